"""Every failure as an OpenAI-shaped body: {"error": {"message", "type", "param", "code"}}.

Paths under /v1/messages answer in Anthropic's shape, which carries the same codes; see `stille.server.messages_errors`.

Codes say which kind of refusal a 400 is: `invalid_json`, `invalid_type`, `invalid_value`, `missing_required_parameter`,
`unknown_parameter`, `unsupported_parameter` for a body that breaks the schema; `context_length_exceeded`,
`incompatible_parameters`, `invalid_prompt`, `invalid_request` for one that keeps it and still cannot be served;
`grammar_too_complex` for one whose answer could not be held to its grammar to the end.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from stille.errors import (
    EngineClosedError,
    EngineFailedError,
    InvalidRequestError,
    PromptTooLongError,
    QueueFullError,
    StilleError,
)
from stille.server import messages_errors

log = logging.getLogger("stille.server")

# What a refused value of a parameter that has only neutral values should be told.
SUPPORTED_INSTEAD: dict[str, str] = {
    "tools": "there are functions only, {'type': 'function', 'function': {'name': ...}}",
    "tool_choice": "send 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ...}}",
    "functions": "this older form is not supported; send tools",
    "function_call": "this older form is not supported; send tool_choice",
    "response_format": "there are objects of the types 'text', 'json_object', 'json_schema', 'regex' and 'lark'",
    "modalities": "only ['text'] is supported",
    "audio": "audio is not supported; leave it out",
    "prediction": "predicted outputs are not supported; leave it out",
    "web_search_options": "web search is not supported; leave it out",
    "moderation": "moderation of answers is not supported; leave it out",
    "reasoning_effort": "this model does not reason in a separate phase; leave it out or send 'none'",
    "verbosity": "only 'medium' is supported; ask for shorter or longer answers in the messages",
    "service_tier": "there is one tier; leave it out or send 'auto' or 'default'",
    "store": "answers are not stored; leave it out or send false",
    "prompt_cache_retention": "prefixes are cached in memory; leave it out or send 'in_memory'",
    "prompt_cache_options": "prefixes are cached automatically; leave it out",
    "echo": "echo is not supported; leave it out or send false",
    "suffix": "insertion is not supported; leave it out",
    "best_of": "best_of is not supported; use n and choose among the answers",
    "include_obfuscation": "chunks are never padded; leave it out or send false",
    "refusal": "refusals are not supported as input; leave it out or put the text into content",
}

# Of these, what lies deeper (names, schemas) is judged by its own rules.
_FORMS = ("tools", "tool_choice", "response_format")


class ApiError(HTTPException):
    """An error answer, complete with OpenAI's fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers) if headers else None)
        self.message = message
        self.code = code
        self.param = param
        self.type = type

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The HTTP answer."""
        return JSONResponse(self.body(), self.status_code, headers=dict(self.headers) if self.headers else None)


def unavailable(message: str, retry_after_s: float = 5.0) -> ApiError:
    """503: the server cannot answer now (draining, failed)."""
    return ApiError(
        503, message, code="service_unavailable", type="server_error", headers={"Retry-After": _seconds(retry_after_s)}
    )


def internal() -> ApiError:
    """500 without details; those are in the log under the request id."""
    return ApiError(500, "The server had an internal error; see its log.", code="internal_error", type="server_error")


def as_api_error(error: Exception) -> ApiError:
    """The answer to give for an exception of the engine, the model or this package."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), code="context_length_exceeded", param=error.param or "messages")
    if isinstance(error, InvalidRequestError):
        return ApiError(400, str(error), code="invalid_request", param=error.param)
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            str(error),
            code="queue_full",
            type="rate_limit_error",
            headers={"Retry-After": _seconds(error.retry_after_s)},
        )
    if isinstance(error, EngineClosedError | EngineFailedError):
        return unavailable(str(error))
    if isinstance(error, HTTPException):
        return _from_http_exception(error)
    if isinstance(error, StilleError):
        log.error("request failed: %s", error)
        return ApiError(500, str(error), code="internal_error", type="server_error")
    log.error("request failed", exc_info=error)
    return internal()


def error_response(error: ApiError, scope: Scope) -> Response:
    """The HTTP answer, in the shape of the API that the request's path belongs to."""
    if not messages_errors.is_messages_path(scope["path"]):
        return error.response()
    body = messages_errors.error_body(
        error.status_code, error.message, error.code, error.param, scope["state"]["request_id"]
    )
    return JSONResponse(body, error.status_code, headers=dict(error.headers) if error.headers else None)


def install_handlers(app: FastAPI) -> None:
    """Give shaped answers to refusals; the middleware does so for exceptions that nobody expected."""

    async def handle(request: Request, error: Exception) -> Response:
        return error_response(as_api_error(error), request.scope)

    async def handle_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        anthropic = messages_errors.is_messages_path(request.scope["path"])
        return error_response(from_validation(error, messages_errors.hint if anthropic else None), request.scope)

    async def handle_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            _allow_all(request, error)
        return error_response(_from_http_exception(error, f"{request.method} {request.url.path}"), request.scope)

    app.add_exception_handler(RequestValidationError, handle_invalid)
    app.add_exception_handler(HTTPException, handle_http)
    app.add_exception_handler(StilleError, handle)


def _seconds(value: float) -> str:
    return str(max(1, math.ceil(value)))


def _allow_all(request: Request, error: HTTPException) -> None:
    """Name all methods that the path has; each is a route of its own, which knows only itself."""
    path = getattr(request.scope.get("route"), "path", None)
    methods = request.app.openapi()["paths"].get(path)
    if methods:
        error.headers = {"Allow": ", ".join(sorted(method.upper() for method in methods))}


def _from_http_exception(error: HTTPException, target: str = "") -> ApiError:
    if isinstance(error, ApiError):
        return error
    headers = dict(error.headers) if error.headers else None
    if error.status_code == 404:
        return ApiError(404, f"There is no {target}; see /openapi.json for what there is.", code="unknown_url")
    if error.status_code == 405:
        allowed = (headers or {}).get("Allow") or (headers or {}).get("allow") or "another method"
        message = f"{target} is not allowed; use {allowed}."
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    if error.status_code == 400:
        return ApiError(400, "The body is not JSON that can be read.", code="invalid_json", headers=headers)
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return ApiError(error.status_code, str(error.detail), type=kind, headers=headers)


def from_validation(
    error: RequestValidationError, hint_for: Callable[[str, Sequence[str | int]], str | None] | None = None
) -> ApiError:
    """Turn pydantic's list of errors into one message about the most specific of them.

    Args:
        hint_for: of another API than OpenAI's: says by kind and place of an error what to send instead.
    """
    found = [(_path(entry["loc"], error.body), entry) for entry in error.errors()]
    path, entry = max(found, key=lambda item: len(item[0]))  # the deepest is where a union's best branch failed
    kind, param = entry["type"], _render(path)
    if kind == "json_invalid":
        reason = entry.get("ctx", {}).get("error", "not JSON")
        return ApiError(400, f"The body is not valid JSON: {reason}.", code="invalid_json")
    if not path:
        message = "The body must be a JSON object, sent with Content-Type: application/json."
        return ApiError(400, message, code="invalid_json")
    name = str(path[-1])
    if kind == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
    if hint_for is not None:
        return _hinted(kind, path, entry, hint_for(kind, path))
    if kind == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    given = _shorten(entry.get("input"))
    if kind == "union_tag_invalid" and name == "response_format":
        path, param, given = [*path, "type"], f"{param}.type", _shorten(entry.get("ctx", {}).get("tag"))
    elif kind == "union_tag_invalid":
        return _bad_role(entry, path)
    if kind == "union_tag_not_found":
        param += ".type" if name == "response_format" else ".role"
        message = f"Missing required parameter: '{param}'."
        return ApiError(400, message, code="missing_required_parameter", param=param)
    if name == "type" and "content" in path:
        message = (
            f"Unsupported content part at '{param}': {given}. This model reads text parts only, {{'type': 'text'}}."
        )
        return ApiError(400, message, code="unsupported_parameter", param=param)
    hint = next((SUPPORTED_INSTEAD[part] for part in reversed(path) if part in SUPPORTED_INSTEAD), None)
    if path[0] in _FORMS and path[-1] not in ("type", path[0]):
        hint = None
    if hint is not None:
        return ApiError(
            400, f"Unsupported value for '{param}': {given}; {hint}.", code="unsupported_parameter", param=param
        )
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return ApiError(400, f"Invalid value for '{param}': {entry['msg']} (given {given}).", code=code, param=param)


def _hinted(kind: str, path: Sequence[str | int], entry: Mapping[str, Any], hint: str | None) -> ApiError:
    """A refused value, and what to send instead."""
    param = _render(path)
    if kind == "union_tag_not_found":
        message = f"Missing required parameter: '{param}.type'."
        return ApiError(400, message, code="missing_required_parameter", param=f"{param}.type")
    if kind == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{param}'; {hint}.", code="unknown_parameter", param=param)
    given = _shorten(entry.get("input"))
    if kind == "union_tag_invalid":
        param, given = f"{param}.type", _shorten(entry.get("ctx", {}).get("tag"))
    if hint is not None:
        message = f"Unsupported value for '{param}': {given}; {hint}."
        return ApiError(400, message, code="unsupported_parameter", param=param)
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return ApiError(400, f"Invalid value for '{param}': {entry['msg']} (given {given}).", code=code, param=param)


def _bad_role(entry: Mapping[str, Any], path: Sequence[str | int]) -> ApiError:
    param = f"{_render(path)}.role"
    given = str(entry.get("ctx", {}).get("tag", ""))[:64]
    if given == "function":
        message = "Messages of role 'function' are not supported; send role 'tool' with the tool_call_id."
        return ApiError(400, message, code="unsupported_parameter", param=param)
    message = f"Invalid value for '{param}': '{given}'; expected system, developer, user, assistant or tool."
    return ApiError(400, message, code="invalid_value", param=param)


def _path(loc: Sequence[str | int], body: Any) -> list[str | int]:
    """`loc` without pydantic's own marks (union branches, "[key]"), by walking along the body that was sent."""
    path: list[str | int] = []
    current = body
    steps = list(loc[1:]) if loc and loc[0] in ("body", "query", "path", "header") else list(loc)
    if loc and loc[0] in ("query", "path", "header"):
        return steps
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        if isinstance(current, list) and isinstance(step, int) and step < len(current):
            path.append(step)
            current = current[step]
        elif isinstance(current, dict) and not last and _is_tag(step, current):
            continue
        elif isinstance(current, dict) and isinstance(step, str) and (step in current or last):
            if last and (step == "[key]" or (step.startswith("literal[") and step not in current)):
                break
            path.append(step)
            current = current.get(step)
    return path


def _is_tag(step: Any, value: Mapping[Any, Any]) -> bool:
    """Whether a step names the branch of a union, although there is a field of that name ("text")."""
    return step == value.get("type") and not isinstance(value.get(step), dict | list)


def _render(path: Sequence[str | int]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else step)
    return text[:200]


def _shorten(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value).__name__)
    return text if len(text) <= 120 else text[:117] + "..."
