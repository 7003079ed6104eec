"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's form of a conversation."""

import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stille.server.answers import AnswerMaker
from stille.server.conversation import chat_prompt, start_chat
from stille.server.errors import ApiError, as_api_error
from stille.server.generation import Generation
from stille.server.messages import chat_form
from stille.server.messages_answer import MessageAnswer
from stille.server.messages_errors import error_body
from stille.server.openapi import errors, generated_events
from stille.server.routes.common import deliver, require_model, state_of
from stille.server.schemas.messages import (
    CountTokensRequest,
    MessageBody,
    MessagesErrorBody,
    MessagesRequest,
    MessageStreamEvent,
    TokenCount,
)
from stille.server.state import ServerState
from stille.server.streaming import event

router = APIRouter(tags=["generation"])
_ERRORS = (400, 401, 404, 413, 500, 503)


@router.post(
    "/v1/messages",
    response_class=Response,
    responses=generated_events(MessageBody, MessageStreamEvent) | errors(*_ERRORS, 429, model=MessagesErrorBody),
)
async def create_message(request: Request, body: MessagesRequest) -> Response:
    """Answer a conversation in Anthropic's form, all at once or as server-sent events."""
    state = state_of(request)
    model = require_model(state, body.model)
    form = chat_form(body)
    _check_effort(state, form.body.reasoning_effort)
    answer_id = f"msg_{uuid.uuid4().hex}"
    generation, answer = await start_chat(
        state, form.body, answer_id, stop=form.stop, continue_last=form.continue_last, whole=not body.stream
    )
    head = {"id": answer_id, "type": "message", "role": "assistant", "model": model}
    return await deliver(
        request,
        generation,
        stream=body.stream,
        events=lambda: _events(generation, head, answer, request.state.request_id),
        collect=lambda: _collect(generation, head, answer),
    )


@router.post(
    "/v1/messages/count_tokens",
    response_model=TokenCount,
    responses=errors(*_ERRORS, model=MessagesErrorBody),
)
async def count_tokens(request: Request, body: CountTokensRequest) -> TokenCount:
    """The tokens of a conversation's prompt."""
    state = state_of(request)
    require_model(state, body.model)
    form = chat_form(body)
    _check_effort(state, form.body.reasoning_effort)
    return TokenCount(input_tokens=len(await chat_prompt(state, form.body, continue_last=form.continue_last)))


def _check_effort(state: ServerState, effort: str | None) -> None:
    if effort is not None and state.engine.experts is None:
        message = (
            "output_config.effort: this model has no experts to run more or fewer of; leave it out or send 'high'."
        )
        raise ApiError(400, message, code="unsupported_parameter", param="output_config.effort")


async def _collect(generation: Generation, head: dict[str, Any], answer: AnswerMaker) -> dict[str, Any]:
    message = MessageAnswer(answer())
    async for _, delta in generation.updates():
        for _ in message.feed(delta):
            pass
    return _message(head, message, _final_usage(generation))


async def _events(
    generation: Generation, head: dict[str, Any], answer: AnswerMaker, request_id: str
) -> AsyncGenerator[bytes, None]:
    message, begun = MessageAnswer(answer()), False
    try:
        async for _, delta in generation.updates():
            if not begun:
                begun = True
                usage = _usage(*generation.prompt_tokens(), 0)
                yield _encoded({"type": "message_start", "message": _message(head, message, usage)})
                yield _encoded({"type": "ping"})
            for news in message.feed(delta):
                yield _encoded(news)
    except Exception as error:
        # The status line is long gone; Anthropic's clients raise on an event of this name.
        failure = as_api_error(error)
        yield _encoded(error_body(failure.status_code, failure.message, failure.code, failure.param, request_id))
        return
    ending = {"stop_reason": message.stop_reason, "stop_sequence": message.stop_sequence}
    ending |= {"stop_details": None, "container": None}
    yield _encoded({"type": "message_delta", "delta": ending, "usage": _final_usage(generation)})
    yield _encoded({"type": "message_stop"})


def _encoded(data: dict[str, Any]) -> bytes:
    return event(data, name=data["type"])


def _message(head: dict[str, Any], message: MessageAnswer, usage: dict[str, Any]) -> dict[str, Any]:
    return {
        **head,
        "content": message.content(),
        "stop_reason": message.stop_reason,
        "stop_sequence": message.stop_sequence,
        "stop_details": None,
        "container": None,
        "usage": {**usage, "cache_creation": None, "inference_geo": None, "service_tier": "standard"},
    }


def _final_usage(generation: Generation) -> dict[str, Any]:
    usage = generation.usage()
    return _usage(usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, usage.completion_tokens)


def _usage(prompt_tokens: int, cached_tokens: int, output_tokens: int) -> dict[str, Any]:
    """Counts in Anthropic's terms: tokens that are read from the cache are no input tokens."""
    return {
        "input_tokens": prompt_tokens - cached_tokens,
        "output_tokens": output_tokens,
        "cache_read_input_tokens": cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens_details": None,
        "server_tool_use": None,
    }
