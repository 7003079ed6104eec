"""POST /v1/chat/completions."""

import time
from collections.abc import AsyncGenerator
from json.encoder import encode_basestring  # as `event` encodes text, in quotes
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stille.server import logprobs
from stille.server.answers import AnswerMaker, ChatAnswer
from stille.server.conversation import start_chat
from stille.server.errors import ApiError, as_api_error
from stille.server.generation import Generation
from stille.server.openapi import errors, generated
from stille.server.routes.common import check_stream_options, deliver, new_id, require_model, state_of, usage_of_chunks
from stille.server.schemas.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from stille.server.streaming import DONE, event

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/chat/completions",
    response_class=Response,
    responses=generated(ChatCompletion, ChatCompletionChunk) | errors(400, 401, 404, 413, 429, 500, 503),
)
async def create_chat_completion(request: Request, body: ChatCompletionRequest) -> Response:
    """Answer a conversation, all at once or as server-sent events."""
    state = state_of(request)
    model = require_model(state, body.model)
    check_stream_options(body)
    if body.top_logprobs is not None and not body.logprobs:
        message = "top_logprobs is only allowed with logprobs=true."
        raise ApiError(400, message, code="incompatible_parameters", param="top_logprobs")
    answer_id = new_id("chatcmpl")
    generation, answer = await start_chat(state, body, answer_id, whole=not body.stream)
    head = {"id": answer_id, "object": "chat.completion", "created": int(time.time()), "model": model}
    return await deliver(
        request,
        generation,
        stream=body.stream,
        events=lambda: _events(generation, head, answer, body),
        collect=lambda: _collect(generation, head, answer),
    )


async def _collect(generation: Generation, head: dict[str, Any], answer: AnswerMaker) -> dict[str, Any]:
    answers = [answer() for _ in range(generation.choices)]
    reasons = [""] * generation.choices
    tokens: list[list[dict[str, Any]]] = [[] for _ in answers]
    alternatives = generation.params.logprobs
    async for index, delta in generation.updates():
        _, reason = answers[index].feed(delta.text, delta.finish_reason)
        if reason is not None:
            reasons[index] = reason
        if alternatives is not None and delta.logprobs:
            tokens[index] += logprobs.for_chat(delta.logprobs, alternatives)
    choices = [
        {
            "index": index,
            "message": answer.message(),
            "logprobs": None if alternatives is None else {"content": tokens[index], "refusal": None},
            "finish_reason": reasons[index],
        }
        for index, answer in enumerate(answers)
    ]
    return {**head, "choices": choices, "usage": generation.usage().model_dump()}


async def _events(
    generation: Generation, head: dict[str, Any], answer: AnswerMaker, body: ChatCompletionRequest
) -> AsyncGenerator[bytes, None]:
    head = {**head, "object": "chat.completion.chunk"}
    usage = usage_of_chunks(generation, body)
    alternatives = generation.params.logprobs

    def chunk(index: int, delta: dict[str, Any], probabilities: Any = None, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": probabilities, "finish_reason": reason}
        return event({**head, "choices": [choice], **usage()})

    plain = alternatives is None and not body.wants_continuous_usage()
    frames: dict[int, tuple[bytes, bytes]] = {}  # of chunks of plain text, by choice: what stands around it
    answers: dict[int, ChatAnswer] = {}
    try:
        async for index, delta in generation.updates():
            if index not in answers:
                answers[index] = answer()
                yield chunk(index, {"role": "assistant", "content": ""})
                before, content, after = chunk(index, {"content": ""}).rpartition(b'"content":')
                frames[index] = before + content, after.removeprefix(b'""')
            news, reason = answers[index].feed(delta.text, delta.finish_reason)
            probabilities = None
            if alternatives is not None and delta.logprobs:
                probabilities = {"content": logprobs.for_chat(delta.logprobs, alternatives), "refusal": None}
                news = news or [{"content": ""}]  # tokens of which no text shows yet
            if plain and reason is None and len(news) == 1 and "content" in news[0]:
                before, after = frames[index]
                yield before + encode_basestring(news[0]["content"]).encode() + after
                continue
            parts = []
            for part in news:
                parts.append(chunk(index, part, probabilities))
                probabilities = None
            if reason is not None:
                parts.append(chunk(index, {}, None, reason))
            if parts:
                yield b"".join(parts)
    except Exception as error:
        # The status line is long gone; OpenAI's clients raise on an event with an error. No [DONE]: it is not.
        yield event(as_api_error(error).body())
        return
    if body.wants_stream_usage():
        yield event({**head, "choices": [], "usage": generation.usage().model_dump()})
    yield DONE
