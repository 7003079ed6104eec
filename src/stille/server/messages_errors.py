"""Anthropic's form of error bodies, and what its parameters that cannot be served are told.

Nothing here imports `stille.server.errors`, which chooses between this form and OpenAI's by the path of a request.
"""

from collections.abc import Sequence
from typing import Any

PATH = "/v1/messages"

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_BLOCKS = "this model reads text; send blocks of the types 'text', 'tool_use' and 'tool_result'"
_TEXT = "this model reads text; send blocks of the type 'text'"

# By the name of the parameter or of what lies around it, the innermost first.
_HINTS = {
    "thinking": "this model does not think in a separate phase; leave it out or send {'type': 'disabled'}",
    "tools": "there are tools of the client only: {'name': ..., 'description': ..., 'input_schema': {...}}",
    "tool_choice": "send {'type': 'auto'}, {'type': 'any'}, {'type': 'tool', 'name': ...} or {'type': 'none'}",
    "format": "send {'type': 'json_schema', 'schema': {...}}",
    "cache_control": "prefixes are cached by themselves; leave it out or send {'type': 'ephemeral'}",
    "citations": "citations are not supported; leave them out",
    "caller": "tools are called by the model only; leave it out or send {'type': 'direct'}",
    "allowed_callers": "tools are called by the model only; leave it out or send ['direct']",
    "toolset_name": "there are no toolsets; leave it out",
    "eager_input_streaming": "input is streamed as it is written; leave it out or send true",
    "defer_loading": "the prompt has all tools; leave it out or send false",
    "input_examples": "examples are not supported; put them into the description",
    "container": "there are no containers; leave it out",
    "context_management": "contexts are not edited; leave it out and shorten the messages",
    "diagnostics": "there are no diagnostics; see cache_read_input_tokens, and leave it out",
    "inference_geo": "there is one place; leave it out",
    "mcp_servers": "the server calls no tools; call them and send what they return as tool_result",
    "service_tier": "there is one tier; leave it out or send 'auto' or 'standard_only'",
    "speed": "there is one speed; leave it out or send 'standard'",
}
_OTHER_NAMES = {
    "betas": "there are no beta features; leave it out",
    "max_completion_tokens": "the name here is max_tokens",
    "n": "there is one answer to a request; send several requests",
    "output_format": "the name here is output_config.format",
    "reasoning_effort": "the name here is output_config.effort",
    "response_format": "the name here is output_config.format",
    "stop": "the name here is stop_sequences",
}
_RENAMED = {
    "response_format": "output_config.format",
    ".function.parameters": ".input_schema",
    ".function.name": ".name",
}


def is_messages_path(path: str) -> bool:
    """Whether requests to a path are answered in Anthropic's form."""
    return path == PATH or path.startswith(PATH + "/")


def error_body(status: int, message: str, code: str | None, param: str | None, request_id: str) -> dict[str, Any]:
    """The body of an error.

    Args:
        message: for people; it may use the names of chat completions, which are translated.
        code: which kind of refusal it is; the codes are those of `stille.server.errors`.
        param: the parameter to blame.
    """
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    if code != "unknown_parameter":  # else the name is the client's
        message, param = _translated(message), None if param is None else _translated(param)
    error = {"type": kind, "message": message, "details": {"error_code": code, "param": param}}
    return {"type": "error", "error": error, "request_id": request_id}


def hint(kind: str, path: Sequence[str | int]) -> str | None:
    """What to send instead of a value that the schema refuses, if there is more to say than what is wrong.

    Args:
        kind: of pydantic's error.
        path: where it is in the body.
    """
    names = [part for part in path if isinstance(part, str)]
    last = names[-1]
    if kind == "extra_forbidden":
        return _OTHER_NAMES.get(last, "leave it out") if len(path) == 1 else "leave it out"
    if kind == "union_tag_invalid":
        if last == "content":
            return _BLOCKS
        return _HINTS.get(last)
    if last == "type" and "content" in names:  # within results there is text only, which needs no tag
        return _TEXT
    if last == "type" and names[0] == "system":
        return _TEXT
    if last in ("type", "ttl"):
        return next((_HINTS[name] for name in reversed(names) if name in _HINTS), None)
    found = _HINTS.get(last)
    return None if last in ("tools", "tool_choice") and kind == "too_long" else found


def _translated(text: str) -> str:
    for name, ours in _RENAMED.items():
        text = text.replace(name, ours)
    return text
