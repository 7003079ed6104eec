"""A model behind any OpenAI-compatible endpoint. What it gives is checked: no forbidden or malformed call gets out."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stille.agents.errors import ModelError
from stille.agents.models.arguments import misfit, parsed_arguments
from stille.agents.types import CallDelta, Message, ModelEvent, ModelRequest, Reply, TextDelta, ToolCall, Usage

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

_PROMPT_TOKENS = 64  # of a chat template, beyond what has a place in the request's JSON
_TOOL_TOKENS = 512  # and of its explanation of tools


class EndpointModel:
    """A model that is asked over HTTP, by the official client.

    A call outside `permitted`, or with arguments that are no JSON or do not fit their schema, is answered with an error
    and the model asked again, all within one `stream`. An answer that should have followed `output_schema` but does not
    is asked for once more, without tools, because not every endpoint takes tools and a format together.

    Args:
        base_url: such as http://localhost:8000/v1; None: of OpenAI.
        model: its name at the endpoint.
        api_key: None: of the environment variable OPENAI_API_KEY, or none.
        repeats: times that a wrong answer is asked for again.
        retries: of requests that failed on the way, or that the endpoint was too busy for.
        timeout_s: without any piece of an answer.
        count: tokens of a request's prompt, or a bound; None: the bytes of its JSON, which are more.
        limit: the parameter that limits an answer: newer models of OpenAI want "max_completion_tokens".
        extra: more fields of the request's body.
        client: in place of base_url, api_key, retries and timeout_s.
    """

    def __init__(
        self,
        base_url: str | None,
        model: str,
        *,
        api_key: str | None = None,
        repeats: int = 2,
        retries: int = 2,
        timeout_s: float = 120.0,
        count: Callable[[ModelRequest], int] | None = None,
        limit: str = "max_tokens",
        extra: Mapping[str, Any] | None = None,
        client: AsyncOpenAI | None = None,
    ):
        self.name = model
        self._repeats, self._count, self._limit, self._extra = repeats, count, limit, dict(extra or {})
        if client is None:
            from openai import AsyncOpenAI

            key = api_key if api_key is not None or base_url is None else "none"
            client = AsyncOpenAI(base_url=base_url, api_key=key, max_retries=retries, timeout=timeout_s)
        self._client = client

    async def close(self) -> None:
        await self._client.close()

    async def count_tokens(self, request: ModelRequest) -> int:
        """At least the tokens of the prompt."""
        if self._count is not None:
            return self._count(request)
        said = {"messages": [_plain(message) for message in request.messages], "tools": _tools(request)}
        return len(json.dumps(said, ensure_ascii=False).encode()) + _PROMPT_TOKENS + _TOOL_TOKENS * bool(request.tools)

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """See `ChatModel`. Text comes as it is written, a call when it is whole and has been checked."""
        allowed = {
            tool.name: tool for tool in request.tools if request.permitted is None or tool.name in request.permitted
        }
        if request.choice == "required" and not allowed:
            raise ModelError("the answer has to be a call, but no tool is permitted; permit one or leave it open")
        calling = request.choice != "none" and bool(allowed)
        messages = [_plain(message) for message in request.messages]
        usage, text = Usage(), ""
        for _ in range(self._repeats + 1):
            answer = _Answer()
            held = request.output_schema is not None and calling  # it may have to be asked for again
            async with aclosing(self._answer(self._body(request, messages, allowed, calling), answer)) as pieces:
                async for piece in pieces:
                    if not held:
                        text += piece
                        yield TextDelta(text=piece)
            usage += answer.usage
            cut = answer.reason == "length"
            written = (answer.calls[:-1] if cut else answer.calls)[: None if request.parallel else 1]
            calls, problems = _checked(written, allowed if calling else {})
            if any(problems):
                messages += _corrected(answer, written, problems)
                continue
            if not calls and not cut and request.choice == "required":
                messages += [{"role": "assistant", "content": answer.text}, _told("Answer with a call of a tool.")]
                continue
            if not calls and not cut and held and not _is_json(answer.text, request):
                calling = False
                continue
            if held and answer.text:
                text += answer.text
                yield TextDelta(text=answer.text)
            for index, (call, source) in enumerate(zip(calls, written, strict=True)):
                yield CallDelta(index=index, name=call.name, arguments=source.arguments or "{}")
            reason = "length" if cut else "tool_calls" if calls else "stop"
            message = Message(role="assistant", content=text, calls=tuple(calls))
            yield Reply(message=message, usage=usage, finish_reason=reason)
            return
        raise ModelError(
            f"model {self.name} gave no usable answer in {self._repeats + 1} attempts; raise `repeats`, or use a model "
            "that is better at calling tools, or one in this process, whose grammar leaves no other"
        )

    def _body(self, request: ModelRequest, messages: list[Any], allowed: Mapping[str, Any], calling: bool) -> Any:
        body: dict[str, Any] = {"model": self.name, "messages": messages, "temperature": request.temperature}
        if request.max_tokens is not None:
            body[self._limit] = request.max_tokens
        if request.seed is not None:
            body["seed"] = request.seed
        if request.tools:
            body["tools"] = _tools(request)
            only = next(iter(allowed)) if len(allowed) == 1 else None
            if calling and request.choice == "required" and only is not None:
                body["tool_choice"] = {"type": "function", "function": {"name": only}}
            else:
                body["tool_choice"] = request.choice if calling else "none"
            if calling and not request.parallel:
                body["parallel_tool_calls"] = False
        if request.output_schema is not None and not calling:
            form = {"name": "answer", "schema": dict(request.output_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    async def _answer(self, body: dict[str, Any], answer: _Answer) -> AsyncGenerator[str]:
        """One request: pieces of its text; what it comes to is put into `answer`."""
        import openai

        options: Any = {"stream": True, "stream_options": {"include_usage": True}, "extra_body": self._extra or None}
        try:
            async with await self._client.chat.completions.create(**body, **options) as chunks:
                async for chunk in chunks:
                    if chunk.usage is not None:
                        details = chunk.usage.prompt_tokens_details
                        answer.usage = Usage(
                            prompt_tokens=chunk.usage.prompt_tokens,
                            completion_tokens=chunk.usage.completion_tokens,
                            cached_tokens=(details.cached_tokens if details else None) or 0,
                        )
                    for choice in chunk.choices[:1]:
                        answer.reason = choice.finish_reason or answer.reason
                        for part in choice.delta.tool_calls or []:
                            answer.take(part)
                        if choice.delta.content:
                            answer.text += choice.delta.content
                            yield choice.delta.content
        except openai.APIError as error:
            raise ModelError(f"model {self.name} at {self._client.base_url}: {_advice(error)}") from error
        if answer.reason not in ("stop", "tool_calls", "length"):
            raise ModelError(f"model {self.name} ended its answer without a result: {answer.reason or 'it broke off'}")


@dataclass
class _Written:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class _Answer:
    text: str = ""
    calls: list[_Written] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    reason: str | None = None

    def take(self, part: Any) -> None:
        """More of a call. Some endpoints leave out the index, or repeat id and name."""
        index = part.index if part.index is not None else len(self.calls) - (0 if part.id else 1)
        while len(self.calls) <= index:
            self.calls.append(_Written(f"call_{uuid.uuid4().hex[:24]}"))
        call, function = self.calls[index], part.function
        call.id = part.id or call.id
        if function is not None:
            call.name = call.name or function.name or ""
            call.arguments += function.arguments or ""


def _checked(written: list[_Written], allowed: Mapping[str, Any]) -> tuple[list[ToolCall], list[str | None]]:
    """The calls that can be made, and what is wrong with each."""
    calls: list[ToolCall] = []
    problems: list[str | None] = []
    for each in written:
        problem = None
        if each.name not in allowed:
            problem = f"{each.name!r} cannot be called now; what can be: {', '.join(sorted(allowed)) or 'nothing'}"
        else:
            try:
                arguments = parsed_arguments(each.arguments)
                problem = misfit(arguments, allowed[each.name])
                calls.append(ToolCall(id=each.id, name=each.name, arguments=arguments))
            except ValueError as error:
                problem = f"the arguments are no JSON object: {error}"
        problems.append(problem)
    return calls, problems


def _corrected(answer: _Answer, written: list[_Written], problems: list[str | None]) -> list[dict[str, Any]]:
    """A wrong answer and what is said about it. Its calls are shown as text: their arguments may be no JSON, which
    endpoints refuse to take back."""
    shown = [f"{call.name}({call.arguments[:500]})" for call in written]
    told = [f"{call.name}: {problem or 'not made, because another call was wrong'}" for call, problem in
            zip(written, problems, strict=True)]  # fmt: skip
    said = "\n".join(part for part in (answer.text, *shown) if part)
    return [{"role": "assistant", "content": said}, _told("No call was made. " + "; ".join(told) + ". Answer again.")]


def _told(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _is_json(text: str, request: ModelRequest) -> bool:
    """Whether a text follows the answer's schema."""
    from jsonschema import Draft202012Validator

    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return Draft202012Validator(dict(request.output_schema or {})).is_valid(read)


def _advice(error: APIError) -> str:
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "no answer in time; raise timeout_s or look at the endpoint"
    if isinstance(error, openai.APIConnectionError):
        return f"it cannot be reached ({error}); check base_url, and that the endpoint runs"
    if isinstance(error, openai.APIStatusError):
        code = error.status_code
        what = {401: "check api_key", 403: "check api_key", 404: "check base_url and the model's name"}
        what[429] = "ask less often, or for a higher limit"
        advice = what.get(code, "look at the endpoint's log" if code >= 500 else "see what it says about the request")
        return f"HTTP {code}: {error.message[:500]}; {advice}"
    return str(error)[:500]


def _tools(request: ModelRequest) -> list[Any]:
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
        }
        for tool in request.tools
    ]


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.call_id is not None:
        plain["tool_call_id"] = message.call_id
    if message.calls:
        plain["content"] = message.content or None
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in message.calls
        ]
    return plain
