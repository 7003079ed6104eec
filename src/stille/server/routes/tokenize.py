"""POST /tokenize and /detokenize."""

from fastapi import APIRouter, Request

from stille.server.openapi import errors
from stille.server.routes.common import require_model, state_of
from stille.server.schemas.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChat,
    TokenizeResponse,
    TokenizeText,
)
from stille.server.tools import check_tools

router = APIRouter(tags=["tokens"])
_ERRORS = errors(400, 401, 404, 413, 503)


@router.post("/tokenize", response_model=TokenizeResponse, responses=_ERRORS)
async def tokenize(request: Request, body: TokenizeText | TokenizeChat) -> TokenizeResponse:
    """The token ids of a text, or of a conversation rendered by the chat template."""
    state = state_of(request)
    require_model(state, body.model)
    if isinstance(body, TokenizeText):
        ids = await state.prompts.text(body.prompt, body.add_special_tokens)
    else:
        check_tools(body.tools or [])
        ids = await state.prompts.chat(body.messages, body.tools or [])
    return TokenizeResponse(tokens=ids, count=len(ids), max_model_len=state.engine.max_model_len)


@router.post("/detokenize", response_model=DetokenizeResponse, responses=_ERRORS)
async def detokenize(request: Request, body: DetokenizeRequest) -> DetokenizeResponse:
    """The text of token ids."""
    state = state_of(request)
    require_model(state, body.model)
    return DetokenizeResponse(prompt=await state.prompts.decode(body.tokens))
