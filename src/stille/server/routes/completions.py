"""POST /v1/completions."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stille.server.errors import as_api_error
from stille.server.generation import Generation, sampling_params
from stille.server.logprobs import CompletionOffsets, joined
from stille.server.openapi import errors, generated
from stille.server.routes.common import check_stream_options, deliver, new_id, require_model, state_of, usage_of_chunks
from stille.server.schemas.completions import Completion, CompletionChunk, CompletionRequest
from stille.server.state import ServerState
from stille.server.streaming import DONE, event
from stille.server.structured import compile_grammar, response_grammar

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/completions",
    response_class=Response,
    responses=generated(Completion, CompletionChunk) | errors(400, 401, 404, 413, 429, 500, 503),
)
async def create_completion(request: Request, body: CompletionRequest) -> Response:
    """Continue a text, or several, all at once or as server-sent events."""
    state = state_of(request)
    model = require_model(state, body.model)
    check_stream_options(body)
    grammar = await response_grammar(body.response_format)
    params = sampling_params(body, body.token_limit(), body.logprobs_count(), grammar)
    await compile_grammar(state.engine, params)
    prompts = await _token_ids(state, body)
    answer_id = new_id("cmpl")
    generation = Generation(state.engine, answer_id, prompts, params)
    generation.start("prompt", state.settings.max_choices, whole=not body.stream)
    head = {"id": answer_id, "object": "text_completion", "created": int(time.time()), "model": model}
    return await deliver(
        request,
        generation,
        stream=body.stream,
        events=lambda: _events(generation, head, body),
        collect=lambda: _collect(generation, head),
    )


async def _token_ids(state: ServerState, body: CompletionRequest) -> list[list[int]]:
    prompts = body.prompts()
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts:
        return list(await asyncio.gather(*(state.prompts.text(text) for text in texts)))
    return [list(prompt) for prompt in prompts if not isinstance(prompt, str)]


async def _collect(generation: Generation, head: dict[str, Any]) -> dict[str, Any]:
    texts = [""] * generation.choices
    reasons = [""] * generation.choices
    alternatives = generation.params.logprobs
    offsets = [CompletionOffsets(alternatives or 0) for _ in texts]
    pieces: list[list[dict[str, Any]]] = [[] for _ in texts]
    async for index, delta in generation.updates():
        texts[index] += delta.text
        if delta.finish_reason is not None:
            reasons[index] = delta.finish_reason
        if alternatives is not None and delta.logprobs:
            pieces[index].append(offsets[index].piece(delta.logprobs))
    choices = [
        {
            "index": index,
            "text": text,
            "logprobs": None if alternatives is None else joined(pieces[index]),
            "finish_reason": reasons[index],
        }
        for index, text in enumerate(texts)
    ]
    return {**head, "choices": choices, "usage": generation.usage().model_dump()}


async def _events(generation: Generation, head: dict[str, Any], body: CompletionRequest) -> AsyncGenerator[bytes, None]:
    usage = usage_of_chunks(generation, body)
    alternatives = generation.params.logprobs
    offsets = [CompletionOffsets(alternatives or 0) for _ in range(generation.choices)]
    try:
        async for index, delta in generation.updates():
            probabilities = None
            if alternatives is not None and delta.logprobs:
                probabilities = offsets[index].piece(delta.logprobs)
            if not (delta.text or probabilities or delta.finish_reason):
                continue
            choice = {
                "index": index,
                "text": delta.text,
                "logprobs": probabilities,
                "finish_reason": delta.finish_reason,
            }
            yield event({**head, "choices": [choice], **usage()})
    except Exception as error:
        yield event(as_api_error(error).body())
        return
    if body.wants_stream_usage():
        yield event({**head, "choices": [], "usage": generation.usage().model_dump()})
    yield DONE
