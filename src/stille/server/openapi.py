"""The OpenAPI document, made to say what the server really does."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from stille._version import __version__
from stille.server.schemas.errors import ErrorBody

_DESCRIPTIONS = {
    400: "The request cannot be served as given; `error.param` names the parameter to blame.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    413: "The body is larger than the server's limit.",
    429: "The queue is full; `Retry-After` says when to try again.",
    500: "An error inside the server.",
    503: "The server is shutting down or its engine has failed.",
}


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` entries for the error statuses of a route."""
    return {code: {"model": ErrorBody, "description": _DESCRIPTIONS[code]} for code in codes}


def generated(whole: type[BaseModel], chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """`responses=` entry for an answer that comes whole as JSON, or streamed as server-sent events."""
    return {
        200: {
            "model": whole,
            "description": f"The answer; with stream=true server-sent events whose data are {chunk.__name__} objects, "
            "ended by [DONE].",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    }


def install(app: FastAPI, *, requires_key: bool, open_paths: frozenset[str]) -> None:
    """Replace the application's generated document: 400 where FastAPI says 422, the key where one is needed."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title="Stille",
                version=__version__,
                description="An OpenAI-compatible server. Unknown or unsupported parameters are refused with a 400.",
                routes=app.routes,
            )
            _drop_422(schema)
            if requires_key:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, operations in schema["paths"].items():
                    for operation in operations.values():
                        if path not in open_paths:
                            operation["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # pyright: ignore[reportAttributeAccessIssue]


def _drop_422(schema: dict[str, Any]) -> None:
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation.get("responses", {}).pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema.get("components", {}).get("schemas", {}).pop(name, None)
