"""The synchronous API: prompts in, answers out."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from stille.engine.build import Engine, build_engine
from stille.engine.config import EngineConfig
from stille.engine.outputs import OutputDelta, RequestOutput
from stille.engine.prompts import Prompts
from stille.engine.sampling_params import SamplingParams
from stille.engine.stats import EngineStats
from stille.errors import EngineFailedError, InvalidRequestError

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class LLM:
    """A model in this process.

    Args:
        model: see `EngineConfig.model`.
        **config: other fields of `EngineConfig`.

    Raises:
        StilleError: the model cannot be found, loaded or run.

    Example:
        >>> from stille import LLM, SamplingParams
        >>> llm = LLM()
        >>> llm.chat([{"role": "user", "content": "Hello!"}], SamplingParams(temperature=0))[0].outputs[0].text
    """

    def __init__(self, model: str = "stille-135m", **config: Any):
        self._start(build_engine(EngineConfig(model=model, **config)))

    @classmethod
    def from_engine(cls, engine: Engine) -> LLM:
        """Around an engine that is built already."""
        llm = cls.__new__(cls)
        llm._start(engine)
        return llm

    def _start(self, engine: Engine) -> None:
        self.tokenizer = engine.tokenizer
        self.model_name = engine.model_name
        self.prompts = Prompts(engine.tokenizer)
        self._core = engine.core
        self._ids = itertools.count()
        self._failure: BaseException | None = None

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._core.max_model_len

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Answers prompts, as many at a time as the engine runs; results in order of the prompts.

        Args:
            prompts: one prompt or a list of them; a prompt is text or a list of token ids.
            params: for all prompts or one each; None = the defaults.
            progress: show a bar on stderr if that is a terminal.

        Raises:
            InvalidRequestError: one of the prompts cannot be served; nothing has been generated then.
            EngineFailedError: the engine broke down, now or earlier.
        """
        return self._run(self._split(prompts), params, progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: bool = True,
        **template: Any,
    ) -> list[RequestOutput]:
        """As `generate`, for one conversation or a list of them, in the model's chat format.

        Raises:
            UnsupportedError: the model has no chat template.
        """
        if not messages:
            raise InvalidRequestError("messages is empty; give at least one", "messages")
        if isinstance(messages[0], Mapping):
            messages = [messages]  # pyright: ignore[reportAssignmentType]
        work: list[tuple[str | None, list[int]]] = []
        for conversation in messages:
            text = self.prompts.chat_text(conversation, **template)  # pyright: ignore[reportArgumentType]
            work.append((text, self.prompts.encode(text, add_special_tokens=False)))
        return self._run(work, params, progress)

    def compile(self, params: SamplingParams) -> None:
        """Compiles the grammar of some parameters, if they have one; `generate` does so by itself.

        Raises:
            InvalidRequestError: it cannot be compiled.
            UnsupportedError: grammars do not work with this model's tokenizer.
        """
        if params.grammar is not None:
            self._core.grammars.matcher(params.grammar)

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine."""
        return self._core.stats()

    def _split(self, prompts: Prompt | Sequence[Prompt]) -> list[tuple[str | None, list[int]]]:
        if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
            prompts = [prompts]  # pyright: ignore[reportAssignmentType]
        return [(p if isinstance(p, str) else None, self.prompts.ids(p)) for p in prompts]  # pyright: ignore[reportArgumentType]

    def _run(
        self,
        work: list[tuple[str | None, list[int]]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        progress: bool,
    ) -> list[RequestOutput]:
        if self._failure is not None:
            raise EngineFailedError(f"the engine failed earlier: {self._failure!r}; make a new one") from self._failure
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(work)
        if len(params) != len(work):
            raise InvalidRequestError(f"{len(work)} prompts but {len(params)} params; give one or one each", "params")
        results: dict[str, RequestOutput] = {}
        for (text, ids), each in zip(work, params, strict=True):
            self._core.check(ids, each)
            request_id = f"llm-{next(self._ids)}"
            results[request_id] = RequestOutput.empty(request_id, text, ids, each.n)
        todo = list(zip(results.values(), params, strict=True))[::-1]
        try:
            with _bar(len(work), progress) as bar, _interrupts_between_steps() as check_interrupt:
                while todo or self._core.has_work:
                    while todo and self._core.queue_depth < self._core.max_queue:
                        result, each = todo.pop()
                        self._core.add(result.request_id, result.prompt_ids, each)
                    deltas = self._step()
                    for delta in deltas:
                        results[delta.request_id].add(delta)
                    bar.advance(deltas)
                    check_interrupt()
        except BaseException:  # Ctrl-C too: leave no sequence behind
            if self._failure is None:
                self._core.abort_all()
            raise
        return list(results.values())

    def _step(self) -> list[OutputDelta]:
        try:
            return self._core.step()
        except BaseException as error:
            self._failure = error
            if not isinstance(error, Exception):
                raise
            raise EngineFailedError(f"the engine failed: {error!r}; make a new one") from error


@contextlib.contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Puts Ctrl-C off until the step that runs is over, where the engine's books balance; a second one acts at once.

    Yields:
        to be called between steps: raises KeyboardInterrupt if there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # somebody else decides what Ctrl-C does
        yield lambda: None
        return
    pending = False

    def note(number: int, frame: Any) -> None:
        nonlocal pending
        if pending:
            signal.default_int_handler(number, frame)
        pending = True

    def check() -> None:
        if pending:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar(Protocol):
    def advance(self, deltas: list[OutputDelta]) -> None: ...


class _NoBar:
    def advance(self, deltas: list[OutputDelta]) -> None:
        pass


class _RichBar:
    def __init__(self, progress: Any, prompts: int):
        self._progress = progress
        self._task = progress.add_task("generating", total=prompts, tokens=0)
        self._tokens = 0

    def advance(self, deltas: list[OutputDelta]) -> None:
        self._tokens += sum(len(delta.token_ids) for delta in deltas)
        done = sum(delta.usage is not None for delta in deltas)
        self._progress.update(self._task, advance=done, tokens=self._tokens)


@contextlib.contextmanager
def _bar(prompts: int, wanted: bool) -> Iterator[_Bar]:
    """Prompts done, tokens written and time left, on stderr."""
    if not wanted or not sys.stderr.isatty():
        yield _NoBar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _RichBar(progress, prompts)
