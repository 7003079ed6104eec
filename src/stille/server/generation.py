"""One HTTP request's work in the engine, whatever protocol is spoken in front of it."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from stille.engine.async_llm import AsyncLLM
from stille.engine.executor import ExpertRange
from stille.engine.grammar import Grammar
from stille.engine.outputs import OutputDelta
from stille.engine.sampling_params import SamplingParams
from stille.engine.streams import RequestStream
from stille.errors import EngineClosedError, InvalidRequestError, PromptTooLongError
from stille.server.errors import SUPPORTED_INSTEAD, ApiError
from stille.server.schemas.base import PromptTokensDetails, SamplingBody, Usage


def sampling_params(
    body: SamplingBody, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None = None
) -> SamplingParams:
    """The engine's parameters for a request body; null and absent mean the API's default."""
    values = {
        "n": body.n,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(0, body.top_k),
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": None if body.logit_bias is None else {int(key): value for key, value in body.logit_bias.items()},
        "seed": None if body.seed is None else (body.seed + 2**63) % 2**64 - 2**63,  # the engine's are 64 bits
        "stop": body.stop_strings(),
        "stop_token_ids": None if body.stop_token_ids is None else tuple(body.stop_token_ids),
        "ignore_eos": body.ignore_eos,
        "expert_budget": body.expert_budget,
    }
    given = {name: value for name, value in values.items() if value is not None}
    return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, grammar=grammar, **given)


def with_effort(params: SamplingParams, effort: str | None, experts: ExpertRange | None) -> SamplingParams:
    """The parameters with `reasoning_effort` in them, which for a model with experts is a budget of these.

    Raises:
        ApiError: the model has no experts, or a budget is given beside the effort.
    """
    if effort in (None, "none"):
        return params
    if experts is None:
        message = f"reasoning_effort: {SUPPORTED_INSTEAD['reasoning_effort']}."
        raise ApiError(400, message, code="unsupported_parameter", param="reasoning_effort")
    if params.expert_budget is not None:
        message = "expert_budget and reasoning_effort set the same thing; give one of them."
        raise ApiError(400, message, code="incompatible_parameters", param="reasoning_effort")
    return dataclasses.replace(params, expert_budget=experts.for_effort(effort))


class Generation:
    """Runs the prompts of one request, each with n choices, and merges what comes back.

    An answer may be as long as `params.max_tokens` and the context allow: the smaller one counts.

    Use: `start()`, iterate `updates()`, and `await close()` at the end, which aborts what still runs.

    Attributes:
        params: how to sample.
        choices: number of choices over all prompts; choice i of prompt p has the index p * n + i.
    """

    def __init__(self, engine: AsyncLLM, request_id: str, prompts: Sequence[list[int]], params: SamplingParams):
        self.params = params
        self.choices = len(prompts) * params.n
        self._engine = engine
        self._request_id = request_id
        self._prompts = prompts
        self._streams: list[RequestStream] = []
        self._written = 0
        self._usage = Usage(
            prompt_tokens=0,
            completion_tokens=0,
            total_tokens=0,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
        )

    def start(self, param: str, max_choices: int, whole: bool = False) -> None:
        """Submit all prompts, or none.

        Args:
            param: name that errors about a prompt carry ("messages" or "prompt").
            max_choices: most choices that one request may ask for.
            whole: nobody wants to see the answers before they are finished; each comes in a single update.

        Raises:
            StilleError: the engine refuses (too long, queue full, closed, failed).
        """
        if self.choices > max_choices:
            message = (
                f"{len(self._prompts)} prompts x n={self.params.n} is more than this server's limit, {max_choices}."
            )
            raise ApiError(400, message, code="incompatible_parameters", param="n")
        context = self._engine.max_model_len
        longest = max(len(prompt) for prompt in self._prompts)
        if longest >= context:
            raise PromptTooLongError(
                f"This model's maximum context length is {context} tokens, prompt and answer together; "
                f"the prompt has {longest}. Shorten it.",
                param,
            )
        try:
            for index, prompt in enumerate(self._prompts):
                room = context - len(prompt)
                limit = room if self.params.max_tokens is None else min(self.params.max_tokens, room)
                params = dataclasses.replace(self.params, max_tokens=limit)
                self._streams.append(self._engine.generate(prompt, params, f"{self._request_id}-{index}", whole))
        except Exception as error:
            for stream in self._streams:
                self._engine.abort(stream.request_id)
            if isinstance(error, InvalidRequestError) and error.param == "prompt":
                error.param = param
            raise

    async def updates(self) -> AsyncIterator[tuple[int, OutputDelta]]:
        """(index of the choice, what is new), until every choice is finished. New is everything since the choice's last
        update: several tokens, if whoever asks for updates is slower than the engine.

        Raises:
            StilleError: the engine failed, or was closed in the middle.
        """
        if len(self._streams) == 1:
            while news := await self._streams[0].take():
                for delta in news:
                    self._account(delta)
                    yield delta.index, delta
            return
        async for position, delta in _merged(self._streams):
            self._account(delta)
            yield position * self.params.n + delta.index, delta

    async def close(self) -> None:
        """Abort what still runs. May be called twice."""
        for stream in self._streams:
            await stream.aclose()

    def usage(self) -> Usage:
        """Token counts, complete once `updates` has ended."""
        return self._usage

    def usage_so_far(self) -> Usage:
        """Token counts up to the last update."""
        prompt, cached = self.prompt_tokens()
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=self._written,
            total_tokens=prompt + self._written,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )

    def prompt_tokens(self) -> tuple[int, int]:
        """(tokens of the prompts, how many of them were in the prefix cache), known once there was an update."""
        return sum(map(len, self._prompts)), sum(stream.cached_tokens or 0 for stream in self._streams)

    def _account(self, delta: OutputDelta) -> None:
        self._written += len(delta.token_ids)
        if delta.finish_reason == "abort":
            raise EngineClosedError("the request was aborted before it was finished: the server is shutting down")
        if delta.finish_reason == "error":
            grammar = self.params.grammar
            raise ApiError(
                400,
                "The answer's grammar became too complex on the way. Ask for a simpler one.",
                code="grammar_too_complex",
                param=grammar.param if grammar is not None else None,
            )
        if delta.usage is not None:
            usage, more = self._usage, delta.usage
            usage.prompt_tokens += more.prompt_tokens
            usage.completion_tokens += more.completion_tokens
            usage.total_tokens = usage.prompt_tokens + usage.completion_tokens
            usage.prompt_tokens_details.cached_tokens += more.cached_tokens


async def _merged(streams: Sequence[RequestStream]) -> AsyncGenerator[tuple[int, OutputDelta], None]:
    news: asyncio.Queue[tuple[int, OutputDelta] | Exception | None] = asyncio.Queue()

    async def pump(position: int, stream: RequestStream) -> None:
        try:
            while pieces := await stream.take():
                for delta in pieces:
                    news.put_nowait((position, delta))
            news.put_nowait(None)
        except Exception as error:
            news.put_nowait(error)

    pumps = [asyncio.create_task(pump(position, stream)) for position, stream in enumerate(streams)]
    try:
        unfinished = len(pumps)
        while unfinished:
            item = await news.get()
            if item is None:
                unfinished -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
