"""The OpenAPI document, made to say what the server really does."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from stille._version import __version__
from stille.engine.executor import ExpertRange
from stille.server.schemas.base import EXPERTS_MARK, TOKEN_ID_MARK
from stille.server.schemas.chat import ChatCompletionChunk
from stille.server.schemas.completions import CompletionChunk
from stille.server.schemas.errors import ErrorBody
from stille.server.schemas.messages import MessageStreamEvent
from stille.server.schemas.responses import ResponseEvent
from stille.server.state import ServerState

_REFERENCE = "#/components/schemas/{model}"
_CHUNKS: tuple[type[BaseModel], ...] = (ChatCompletionChunk, CompletionChunk, MessageStreamEvent, ResponseEvent)
_DESCRIPTIONS = {
    400: "The request cannot be served as given; `error.param` names the parameter to blame.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    413: "The body is larger than the server's limit.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "An error inside the server.",
    503: "The server is shutting down or its engine has failed.",
}


def errors(*codes: int, model: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """`responses=` entries for the error statuses of a route."""
    return {code: {"model": model, "description": _DESCRIPTIONS[code]} for code in codes}


def generated(whole: type[BaseModel], chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """`responses=` entry for an answer that comes whole as JSON, or streamed as server-sent events."""
    return {
        200: {
            "model": whole,
            "description": f"The answer; with stream=true server-sent events whose data are {chunk.__name__} objects, "
            "ended by [DONE].",
            "content": {"text/event-stream": {"itemSchema": _event_of(chunk)}},
        }
    }


def _event_of(chunk: type[BaseModel]) -> dict[str, Any]:
    """One server-sent event (OpenAPI 3.2's form for streams, which 3.1 lets pass)."""
    documents = [{"$ref": _REFERENCE.format(model=name)} for name in (chunk.__name__, ErrorBody.__name__)]
    document = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": documents}}
    data = {"anyOf": [{"const": "[DONE]"}, document]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def generated_events(whole: type[BaseModel], events: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """As `generated`, where events have names, errors are one of them, and the last is known by its name."""
    document = {"$ref": _REFERENCE.format(model=events.__name__)}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": document}
    item = {"type": "object", "required": ["event", "data"], "properties": {"event": {"type": "string"}, "data": data}}
    return {
        200: {
            "model": whole,
            "description": f"The answer; with stream=true server-sent events whose data are {events.__name__} objects.",
            "content": {"text/event-stream": {"itemSchema": item}},
        }
    }


def install(app: FastAPI, state: ServerState, *, open_paths: frozenset[str]) -> None:
    """Replace the application's generated document by one that knows this server.

    It says 400 where FastAPI says 422, names the models and the vocabulary's size, and asks for the key where one is
    needed. It is made when it is first asked for, as the engine knows its model only once it is started.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title="Stille",
                version=__version__,
                description="An OpenAI-compatible server. Unknown or unsupported parameters are refused with a 400.",
                routes=app.routes,
            )
            _drop_422(schema)
            for chunk in _CHUNKS:
                described = chunk.model_json_schema(ref_template=_REFERENCE)
                schema["components"]["schemas"] |= described.pop("$defs", {}) | {chunk.__name__: described}
            _bound(schema["components"]["schemas"], len(state.engine.tokenizer))
            _name_models(schema["components"]["schemas"], list(state.model_names))
            _name_experts(schema["components"]["schemas"], state.engine.experts)
            if state.settings.api_key is not None:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, operations in schema["paths"].items():
                    for operation in operations.values():
                        if path not in open_paths:
                            operation["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # pyright: ignore[reportAttributeAccessIssue]


def _bound(node: Any, vocabulary: int) -> None:
    """Give token ids their true upper bound, wherever they occur."""
    if isinstance(node, dict):
        if node.pop(TOKEN_ID_MARK, False):
            node["exclusiveMaximum"] = vocabulary
        for value in node.values():
            _bound(value, vocabulary)
    elif isinstance(node, list):
        for value in node:
            _bound(value, vocabulary)


def _name_models(schemas: dict[str, Any], names: list[str]) -> None:
    """Say which models requests may name."""
    for schema in schemas.values():
        model = schema.get("properties", {}).get("model", {})
        if "minLength" in model:
            model["enum"] = names
        for branch in model.get("anyOf", []):
            if branch.get("type") == "string":
                branch["enum"] = names


def _name_experts(schemas: dict[str, Any], experts: ExpertRange | None) -> None:
    """Say which budgets of experts requests may ask for; without experts there is none to ask for."""
    for schema in schemas.values():
        properties = schema.get("properties", {})
        if experts is None:
            properties.pop("expert_budget", None)
        for branch in properties.get("expert_budget", {}).get("anyOf", []):
            if branch.pop(EXPERTS_MARK, False) and experts is not None:
                branch |= {"minimum": experts.least, "maximum": experts.most}
        for name in ("reasoning_effort", "effort"):
            for branch in properties.get(name, {}).get("anyOf", []):
                if experts is None and "none" in branch.get("enum", ()):
                    branch["enum"] = ["none"]
    if experts is None:  # Anthropic's word for the model's own
        for branch in schemas["OutputConfig"]["properties"]["effort"]["anyOf"]:
            if "enum" in branch:
                branch["enum"] = ["high"]


def _drop_422(schema: dict[str, Any]) -> None:
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation.get("responses", {}).pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
