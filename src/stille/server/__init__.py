"""The OpenAI-compatible HTTP server over one engine.

`create_app` builds the FastAPI application around a started `AsyncLLM`; `stille.server.lifecycle.run_server`
runs it under uvicorn with draining on SIGTERM. The layers, from the wire inwards:

    middleware   request ids, API key, body limit, access log      one ASGI wrapper around everything
    routes       one file per endpoint family                      parse -> generation -> shape the answer
    schemas      requests (strict, unknown fields refused) and responses; the source of the OpenAPI document
    generation   one HTTP request's work in the engine, whatever the protocol in front of it
    batches      files of requests, kept on disk, sent through the routes when the engine is idle
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stille.server.app import create_app
    from stille.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]


def __getattr__(name: str):
    if name == "create_app":
        from stille.server.app import create_app

        return create_app
    if name == "ServerSettings":
        from stille.server.settings import ServerSettings

        return ServerSettings
    raise AttributeError(f"module 'stille.server' has no attribute {name!r}")
