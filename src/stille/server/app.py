"""The FastAPI application around an engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from stille._version import __version__
from stille.engine.async_llm import AsyncLLM
from stille.server import openapi
from stille.server.batches.service import BatchService
from stille.server.data_dir import DataLock
from stille.server.errors import install_handlers
from stille.server.metrics import ServerMetrics
from stille.server.middleware import OPEN_PATHS, RequestScope
from stille.server.response_store import ResponseStore
from stille.server.responses_run import Responses
from stille.server.routes import (
    batches,
    chat,
    completions,
    embeddings,
    files,
    health,
    messages,
    models,
    responses,
    tokenize,
)
from stille.server.settings import ServerSettings
from stille.server.state import ServerState


def create_app(engine: AsyncLLM, settings: ServerSettings | None = None, data_lock: DataLock | None = None) -> FastAPI:
    """The server's application. It starts the engine with itself and closes it at its end.

    Args:
        engine: an engine, started or not.
        settings: of the HTTP side; the defaults serve one model on a trusted network.
        data_lock: of `settings.data_dir`, if it is held already; released when the application ends.

    Returns:
        The application; its `ServerState` is `app.state.stille`.

    Raises:
        ConfigError: the data directory cannot be used, or another server does.
    """
    settings = settings or ServerSettings()
    if data_lock is None and settings.data_dir is not None:
        data_lock = DataLock(settings.data_dir)
    state = ServerState(engine, settings, ServerMetrics(engine))
    state.responses = Responses(ResponseStore.from_settings(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        if state.batches is not None:
            state.batches.worker.start()
        yield
        if state.batches is not None:
            await state.batches.close()
        await engine.close()
        await state.responses.close()
        if data_lock is not None:
            data_lock.release()

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
    if settings.data_dir is not None:
        state.batches = BatchService(app, state, settings.data_dir)
    install_handlers(app)
    families = (chat, completions, messages, responses, embeddings, files, batches, models, tokenize, health)
    for module in families:
        app.include_router(module.router)
    openapi.install(app, state, open_paths=OPEN_PATHS)
    return app
