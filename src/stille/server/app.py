"""The FastAPI application around an engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from stille._version import __version__
from stille.engine.async_llm import AsyncLLM
from stille.server import openapi
from stille.server.errors import install_handlers
from stille.server.metrics import ServerMetrics
from stille.server.middleware import OPEN_PATHS, RequestScope
from stille.server.routes import chat, completions, health, models, tokenize
from stille.server.settings import ServerSettings
from stille.server.state import ServerState


def create_app(engine: AsyncLLM, settings: ServerSettings | None = None) -> FastAPI:
    """The server's application. It starts the engine with itself and closes it at its end.

    Args:
        engine: an engine, started or not.
        settings: of the HTTP side; the defaults serve one model on a trusted network.

    Returns:
        The application; its `ServerState` is `app.state.stille`.
    """
    settings = settings or ServerSettings()
    state = ServerState(engine, settings, ServerMetrics(engine))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.close()

    middleware = [Middleware(RequestScope, settings=settings, state=state, metrics=state.metrics)]
    if settings.cors_origins:
        # Outermost: preflight requests carry no key.
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After"],
            ),
        )
    app = FastAPI(title="Stille", version=__version__, lifespan=lifespan, middleware=middleware, redoc_url=None)
    app.state.stille = state
    install_handlers(app)
    for module in (chat, completions, models, tokenize, health):
        app.include_router(module.router)
    openapi.install(app, state, open_paths=OPEN_PATHS)
    return app
