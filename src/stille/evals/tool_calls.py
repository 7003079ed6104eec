"""Has a model call tools, as benchmarks need it: many conversations at a time, greedy, and held to a grammar."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from stille.engine.quoted import said_in
from stille.engine.sampling_params import SamplingParams
from stille.engine.tool_calls import Arguments, CallStart, Content, ToolCallParser
from stille.engine.tool_grammar import Function, as_text, call_grammar, described, knows_tools
from stille.errors import InvalidRequestError

if TYPE_CHECKING:
    from stille.engine.llm import LLM

T = TypeVar("T")
Choice = Literal["auto", "required"]


@dataclass(frozen=True)
class Asked:
    """A conversation that waits for the model.

    Attributes:
        messages: in the form of chat templates, with `tool_calls` and messages of the role "tool".
        functions: that it may call.
    """

    messages: Sequence[Mapping[str, Any]]
    functions: Sequence[Function]


@dataclass(frozen=True)
class Said:
    """What the model answered.

    Attributes:
        text: before the calls, or in place of them.
        calls: names and arguments. One whose arguments were cut by the limit of tokens is left out.
        cut: a call was begun and not ended.
        error: why it was not asked: the prompt is too long, or there is no grammar for the functions. Empty: it was.
        prompt_tokens, tokens: of the prompt, and of the answer.
    """

    text: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    cut: bool = False
    error: str = ""
    prompt_tokens: int = 0
    tokens: int = 0

    def message(self) -> dict[str, Any]:
        """As part of the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            message["tool_calls"] = [
                {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for i, (name, arguments) in enumerate(self.calls)
            ]
        return message


Player = Generator[Asked, Said, T]
"""A conversation: gives what to ask, is sent what the model said, and returns what came of it."""


class ToolCaller:
    """A model that is asked for calls.

    Args:
        llm: runs it.
        choice: "required": the answer is calls and nothing else; "auto": the model decides.
        parallel: it may make several calls at once.
        max_tokens: of an answer.
    """

    def __init__(self, llm: LLM, *, choice: Choice = "auto", parallel: bool = True, max_tokens: int = 256):
        self._llm, self._forced, self._parallel, self._max_tokens = llm, choice == "required", parallel, max_tokens
        self._knows_tools = knows_tools(llm.tokenizer)

    def __call__(self, asked: Sequence[Asked]) -> list[Said]:
        """What the model says to each; they run together."""
        said: dict[int, Said] = {}
        prompts: dict[int, tuple[list[int], SamplingParams]] = {}
        for index, each in enumerate(asked):
            try:
                prompts[index] = self._prompt(each)
            except InvalidRequestError as error:
                said[index] = Said(error=str(error))
        outputs = self._llm.generate(
            [ids for ids, _ in prompts.values()], [params for _, params in prompts.values()], progress=False
        )
        for index, output in zip(prompts, outputs, strict=True):
            answer = output.outputs[0]
            read = read_calls(answer.text, free_text=not self._forced)
            said[index] = replace(read, prompt_tokens=len(output.prompt_ids), tokens=len(answer.token_ids))
        return [said[index] for index in range(len(asked))]

    def _prompt(self, asked: Asked) -> tuple[list[int], SamplingParams]:
        llm = self._llm
        if self._knows_tools:
            shown = {"tools": [described(function) for function in asked.functions]} if asked.functions else {}
            ids = llm.prompts.render_chat(asked.messages, **shown)
        else:
            ids = llm.prompts.render_chat(as_text(asked.messages, asked.functions))
        room = llm.max_model_len - len(ids)
        if room < self._max_tokens:
            raise InvalidRequestError(
                f"the prompt has {len(ids)} tokens, which leaves {room} of {llm.max_model_len} for the answer, fewer "
                f"than the {self._max_tokens} that it may have",
                "messages",
            )
        grammar = None
        if asked.functions:
            said = said_in(asked.messages)
            grammar = call_grammar(asked.functions, forced=self._forced, parallel=self._parallel, said=said)
        params = SamplingParams(max_tokens=self._max_tokens, temperature=0, grammar=grammar)
        llm.compile(params)
        return ids, params


def read_calls(text: str, *, free_text: bool) -> Said:
    """An answer that follows `call_grammar`, taken apart."""
    parser = ToolCallParser(free_text)
    content, names, arguments = "", [], []
    for event in parser.feed(text) + parser.finish():
        match event:
            case Content(text=more):
                content += more
            case CallStart(name=name):
                names.append(name)
                arguments.append("")
            case Arguments(index=index, text=more):
                arguments[index] += more
    if arguments and not _whole(arguments[-1]):
        names.pop()
    calls = tuple((name, json.loads(written)) for name, written in zip(names, arguments, strict=False))
    return Said(content, calls, cut=not parser.complete)


def _whole(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except ValueError:
        return False


def converse(
    players: Iterable[Player[T]],
    ask: Callable[[Sequence[Asked]], list[Said]],
    *,
    batch: int,
    on_end: Callable[[int, T], None] | None = None,
) -> list[T]:
    """Leads conversations to their ends, `batch` of them at a time.

    Args:
        on_end: told the number of each conversation and what came of it, in the order in which they end.
    """
    results: dict[int, T] = {}
    waiting = enumerate(players)
    active: list[tuple[int, Player[T], Asked]] = []

    def move(number: int, player: Player[T], said: Said | None) -> None:
        try:
            active.append((number, player, next(player) if said is None else player.send(said)))
        except StopIteration as end:
            results[number] = end.value
            if on_end is not None:
                on_end(number, end.value)

    while True:
        while len(active) < batch and (more := next(waiting, None)) is not None:
            move(*more, None)
        if not active:
            return [results[number] for number in sorted(results)]
        round_, active = active, []
        for (number, player, _), said in zip(round_, ask([asked for _, _, asked in round_]), strict=True):
            move(number, player, said)
