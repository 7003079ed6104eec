"""A chat request's way into the engine, whatever protocol it came by."""

import dataclasses
from collections.abc import Collection, Sequence

from starlette.concurrency import run_in_threadpool

from stille.server.answers import AnswerMaker, ChatAnswer
from stille.server.generation import Generation, sampling_params, with_effort
from stille.server.schemas.chat import ChatCompletionRequest
from stille.server.state import ServerState
from stille.server.structured import compile_grammar, response_grammar
from stille.server.tools import tool_use


async def start_chat(
    state: ServerState,
    body: ChatCompletionRequest,
    answer_id: str,
    *,
    stop: Sequence[str] | None = None,
    continue_last: bool = False,
    allowed: Collection[str] | None = None,
    whole: bool = False,
) -> tuple[Generation, AnswerMaker]:
    """Start the answer to a conversation.

    Args:
        body: what the chat route would be asked.
        answer_id: names it in the engine.
        stop: strings that end it, in place of the body's.
        continue_last: the last message is the beginning of the answer, and not one of its own.
        allowed: names of the tools that may be called, while the prompt tells of all; None: all of them.
        whole: nobody wants to see the answer before it is finished.

    Returns:
        The generation, which runs and has to be closed, and what makes of its text the message.

    Raises:
        StilleError, ApiError: it cannot be served.
    """
    use = tool_use(body)
    if use is not None and allowed is not None:
        use = dataclasses.replace(use, allowed=[tool for tool in use.allowed if tool.function.name in allowed])
    if use is None:
        grammar = await response_grammar(body.response_format)
    else:
        grammar = await run_in_threadpool(use.grammar, body.messages)
    params = sampling_params(body, body.token_limit(), body.logprobs_count(), grammar)
    params = with_effort(params, body.reasoning_effort, state.engine.experts)
    if stop is not None:
        params = dataclasses.replace(params, stop=tuple(stop))
    await compile_grammar(state.engine, params)
    prompt = await chat_prompt(state, body, continue_last=continue_last)
    generation = Generation(state.engine, answer_id, [prompt], params)
    generation.start("messages", state.settings.max_choices, whole)
    return generation, ChatAnswer if use is None else use.answer


async def chat_prompt(state: ServerState, body: ChatCompletionRequest, *, continue_last: bool = False) -> list[int]:
    """Token ids of a conversation, with the tools that its answer may use; arguments and errors as of `start_chat`."""
    use = tool_use(body)
    return await state.prompts.chat(body.messages, () if use is None else use.tools, continue_last=continue_last)
