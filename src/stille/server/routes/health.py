"""GET /health, /ready and /metrics, for supervisors and monitoring: open even where a key is needed."""

from fastapi import APIRouter, Request, Response

from stille.server.errors import unavailable
from stille.server.openapi import errors
from stille.server.routes.common import state_of
from stille.server.schemas.health import Health

router = APIRouter(tags=["operation"])
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/health", response_model=Health, responses=errors(503))
async def health(request: Request) -> Health:
    """Alive: 503 means that the engine has failed and a restart is needed."""
    if state_of(request).engine.failure is not None:
        raise unavailable("The engine has failed; see the log and restart the server.")
    return Health()


@router.get("/ready", response_model=Health, responses=errors(503))
async def ready(request: Request) -> Health:
    """Ready for new work: 503 while starting, while shutting down and after a failure of the engine."""
    state = state_of(request)
    if state.draining or state.engine.health != "ready":
        condition = "draining" if state.draining else state.engine.health
        raise unavailable(f"The server takes no new requests: it is {condition}.")
    return Health()


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text."}},
)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(state_of(request).metrics.render(), media_type=METRICS_TYPE)
