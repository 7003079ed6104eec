"""GET /v1/models and /v1/models/{id}."""

from fastapi import APIRouter, Request

from stille.server.openapi import errors
from stille.server.routes.common import require_model, state_of
from stille.server.schemas.models import ModelCard, ModelList
from stille.server.state import ServerState

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList, responses=errors(401))
async def list_models(request: Request) -> ModelList:
    """The models that requests may name."""
    state = state_of(request)
    return ModelList(data=[_card(state, name) for name in state.model_names])


@router.get("/v1/models/{model:path}", response_model=ModelCard, responses=errors(401, 404))
async def get_model(request: Request, model: str) -> ModelCard:
    """One model. Names may contain slashes."""
    state = state_of(request)
    return _card(state, require_model(state, model))


def _card(state: ServerState, name: str) -> ModelCard:
    return ModelCard(id=name, created=state.created, owned_by="stille", max_model_len=state.engine.max_model_len)
