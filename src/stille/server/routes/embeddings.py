"""POST /v1/embeddings."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from stille.server.errors import ApiError
from stille.server.openapi import errors
from stille.server.routes.common import require_model, state_of
from stille.server.schemas.embeddings import EmbeddingList, EmbeddingRequest
from stille.server.state import ServerState
from stille.server.streaming import ClientGone, unless_disconnected

router = APIRouter(tags=["embeddings"])


@router.post(
    "/v1/embeddings",
    response_class=Response,
    responses={200: {"model": EmbeddingList}} | errors(400, 401, 404, 413, 429, 500, 503),
)
async def create_embeddings(request: Request, body: EmbeddingRequest) -> Response:
    """Mean-pooled hidden states of the served model: a generic representation, not one that was trained for search."""
    state = state_of(request)
    model = require_model(state, body.model)
    _check_dimensions(state, body.dimensions)
    inputs = body.inputs()
    try:
        vectors, tokens = await unless_disconnected(request, _embed(state, inputs))
    except ClientGone:
        return Response(status_code=499)  # for the log; nobody is there to read it
    return JSONResponse(await run_in_threadpool(_answer, model, vectors, tokens, body.encoding_format or "float"))


async def _embed(state: ServerState, inputs: list[str] | list[list[int]]) -> tuple[np.ndarray, int]:
    """float32 [inputs, hidden size] and the number of their tokens."""
    ids = await run_in_threadpool(lambda: [state.engine.prompts.ids(each) for each in inputs])
    return await state.engine.embed(ids), sum(map(len, ids))


def _check_dimensions(state: ServerState, dimensions: int | None) -> None:
    size = state.engine.embedding_size
    if dimensions not in (None, size):
        message = (
            f"dimensions is {dimensions}, but embeddings of this model have {size} numbers: it was not trained to give "
            f"shorter ones. Leave it out or send {size}."
        )
        raise ApiError(400, message, code="invalid_request", param="dimensions")


def _answer(model: str, vectors_SC: np.ndarray, tokens: int, encoding: str) -> dict[str, Any]:
    if encoding == "base64":
        values: list[Any] = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors_SC]
    else:
        values = vectors_SC.tolist()
    data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}
