"""Runs the lines of batches in the slots of the engine that nobody else uses."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import ASGIApp

from stille.engine.async_llm import background
from stille.server.batches import output, validation
from stille.server.batches.files import FileStore
from stille.server.batches.in_process import post
from stille.server.batches.store import BatchRecord, BatchStore, Line, LineResult
from stille.server.state import ServerState

log = logging.getLogger("stille.server")

POLL_S = 0.05
"""How often the engine's load is looked at while there are lines to run: the longest that a client waits for a slot."""

_SPARE = 16
"""One slot of so many is not filled with lines, so that the next client need not wait until one has given way."""
_SWEEP_S = 600.0  # between removals of expired files
_FULL_S = 0.5  # how long sequences may wait in spite of free slots, for want of cache, before lines give way
_PAUSE_S = 0.5  # before lines are started again, after the engine had no room for one
_RETRY_S = 5.0  # after an error of the disk

_WITHOUT_SLOTS = ("/v1/embeddings",)
"""Computed between the steps of what is generated, which they would delay: started only when nothing is."""
_MAX_REFUSALS = 5  # of a line that was alone, before its refusal is its answer


class _Run:
    """A line in the engine, or on its way there."""

    def __init__(self, line: Line, width: int, task: "asyncio.Task[LineResult | None]"):
        self.line = line
        self.width = width  # sequences
        self.task = task


class BatchWorker:
    """One task that validates batches, runs their lines and ends them.

    A line is started only when it finds free slots, and when clients' requests need those, the lines that were started
    last are stopped, to be run again later. Results are stored as they come; only stored ones count, so whatever ends
    the process, the next one goes on from there.

    Args:
        app: answers the lines.
        state: of its server.
        batches, files: what to work on.
    """

    def __init__(self, app: ASGIApp, state: ServerState, batches: BatchStore, files: FileStore):
        self._app = app
        self._state = state
        self._batches = batches
        self._files = files
        self._runs: dict[tuple[int, int], _Run] = {}  # by batch and number, in the order of their start
        self._results: list[LineResult] = []  # not stored yet
        self._jobs: dict[int, asyncio.Task[None]] = {}  # validating or ending a batch
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._refusals: dict[tuple[int, int], int] = {}  # of lines that had the engine for themselves
        self._not_before = 0.0  # no line starts before that
        self._waiting_since: float | None = None
        self._swept = 0.0

    def start(self) -> None:
        """Begin, or go on with what an earlier process left; the engine is started."""
        self._task = asyncio.create_task(self._main(), name="batches")

    def wake(self) -> None:
        """Look at the batches soon: something has changed."""
        self._wake.set()

    async def stop(self) -> None:
        """Stop the lines that run and return when nothing is being done any more. May be called again."""
        self._stopping = True
        self.wake()
        if self._task is not None:
            await self._task

    async def _main(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                timeout = await self._turn()
            except Exception:
                log.exception("batches: trying again in %g s", _RETRY_S)
                timeout = _RETRY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout)
        for run in self._runs.values():
            run.task.cancel()
        tasks = [run.task for run in self._runs.values()]
        await asyncio.gather(*tasks, *self._jobs.values(), return_exceptions=True)
        try:
            await self._store_results()
        except Exception:
            log.exception("batches: results are lost, their lines run again at the next start")

    async def _turn(self) -> float:
        """Whatever can be done now; returns after how many seconds to look again."""
        await self._store_results()
        if time.monotonic() - self._swept > _SWEEP_S or not self._swept:
            await asyncio.to_thread(self._files.sweep)
            self._swept = time.monotonic()
        batches = await asyncio.to_thread(self._batches.unfinished)
        self._jobs = {seq: job for seq, job in self._jobs.items() if not job.done()}
        running = [batch for batch in batches if not self._advance(batch)]
        # After a restart with another model, batches for the old one wait until it is back, or they expire.
        ready = [batch for batch in running if batch.model in self._state.model_names]
        self._give_way()
        if ready and self._state.engine.failure is None:
            await self._fill({batch.seq: batch for batch in ready})
        if ready or self._runs:
            return POLL_S
        ends = [batch.expires_at - time.time() for batch in running]
        return min([_SWEEP_S, *(max(POLL_S, end) for end in ends)])

    def _advance(self, batch: BatchRecord) -> bool:
        """Take a batch to its next state if it is time; false if its lines are to be run."""
        if batch.seq in self._jobs:
            return True
        if batch.status == "validating":
            self._jobs[batch.seq] = self._job(self._validate(batch))
            return True
        over = batch.status != "in_progress" or batch.completed + batch.failed == batch.total
        if not over and batch.expires_at > time.time():
            return False
        runs = [run for run in self._runs.values() if run.line.batch == batch.seq]
        for run in runs:
            run.task.cancel()
        if not runs and not any(result.line.batch == batch.seq for result in self._results):
            self._jobs[batch.seq] = self._job(asyncio.to_thread(output.finalize, self._batches, self._files, batch))
        return True

    def _job(self, work: Any) -> asyncio.Task[None]:
        async def job() -> None:
            try:
                await work
            except Exception:
                log.exception("batches: trying again in %g s", _RETRY_S)
                for _ in range(int(_RETRY_S / POLL_S)):
                    if self._stopping:
                        return
                    await asyncio.sleep(POLL_S)
            finally:
                self.wake()

        return asyncio.create_task(job())

    async def _validate(self, batch: BatchRecord) -> None:
        settings = self._state.settings
        path = self._files.path(batch.input_file_id)
        found = await asyncio.to_thread(validation.check, batch, path, self._state.model_names, settings.max_body_bytes)
        if found.errors:
            await asyncio.to_thread(self._batches.refuse, batch, found.errors)
        else:
            await asyncio.to_thread(self._batches.begin, batch, found.model, found.lines)

    async def _store_results(self) -> None:
        for key, run in list(self._runs.items()):
            if run.task.done():
                del self._runs[key]
                if not run.task.cancelled() and (result := run.task.result()) is not None:
                    self._results.append(result)
        if not self._results:
            return
        results = list(self._results)
        await asyncio.to_thread(self._batches.record, results)
        del self._results[: len(results)]
        for result in results:
            self._state.metrics.observe_batch_line("completed" if result.ok else "failed")

    # Capacity

    def _give_way(self) -> None:
        """Stop lines whose place clients' requests need."""
        load, now = self._state.engine.load(), time.monotonic()
        # Those that were told to stop need not be told again, though the engine may still have them.
        live = [run for run in self._runs.values() if not (run.task.done() or run.task.cancelling())]
        needed = min(load.foreground, load.foreground + sum(run.width for run in live) - load.slots)
        if needed <= 0 and load.waiting and load.foreground and live:
            # There are slots, so it is the cache that has no room. It may have in a moment; if not, one line goes.
            self._waiting_since = self._waiting_since or now
            if now - self._waiting_since > _FULL_S:
                needed, self._not_before, self._waiting_since = 1, now + _PAUSE_S, now
        else:
            self._waiting_since = None
        while needed > 0 and live:
            run = live.pop()
            run.task.cancel()
            needed -= run.width

    async def _fill(self, batches: Mapping[int, BatchRecord]) -> None:
        """Start as many lines as there are slots that nobody uses."""
        room = self._room()
        if self._state.engine.load().foreground:
            batches = {seq: batch for seq, batch in batches.items() if batch.endpoint not in _WITHOUT_SLOTS}
        if room <= 0 or not batches:
            return
        lines = await asyncio.to_thread(self._batches.to_do, batches.keys(), room + len(self._runs))
        done = {(result.line.batch, result.line.number) for result in self._results}
        lines = [line for line in lines if (line.batch, line.number) not in self._runs.keys() | done]
        bodies = await asyncio.to_thread(self._bodies, lines, batches)
        for line, body in zip(lines, bodies, strict=True):
            room = self._room()  # clients may have come while the disk was read
            if isinstance(body, LineResult):
                self._results.append(body)
                self.wake()
                continue
            width = _width(body)
            if width > room and not (room > 0 and not self._runs and not self._state.engine.load().foreground):
                continue  # one that is wider than all slots runs alone
            task = asyncio.create_task(self._answer(line, batches[line.batch].endpoint, body))
            task.add_done_callback(lambda _: self.wake())
            self._runs[line.batch, line.number] = _Run(line, width, task)

    def _room(self) -> int:
        """Slots for lines that are not started yet."""
        load = self._state.engine.load()
        if time.monotonic() < self._not_before or load.waiting > 0:
            return 0
        # Lines that have just been started are not in the engine yet.
        started = sum(run.width for run in self._runs.values())
        own = max(load.background, started)
        usual = load.slots - load.slots // _SPARE
        return min(usual - load.foreground, self._state.settings.max_batch_seqs or usual) - own

    def _bodies(
        self, lines: Sequence[Line], batches: Mapping[int, BatchRecord]
    ) -> list[Mapping[str, Any] | LineResult]:
        bodies: list[Mapping[str, Any] | LineResult] = []
        for line in lines:
            try:
                with self._files.path(batches[line.batch].input_file_id).open("rb") as file:
                    file.seek(line.offset)
                    bodies.append(validation.parse(file.read(line.size))["body"])
            except (OSError, ValueError) as error:
                message = f"The input file cannot be read any more: {error}."
                bodies.append(output.failed(line, "file_unreadable", message))
        return bodies

    async def _answer(self, line: Line, endpoint: str, body: Mapping[str, Any]) -> LineResult | None:
        """The result of a line; None if it has to be run again."""
        background.set(True)  # for this task and those that it starts
        key = self._state.settings.api_key
        try:
            status, headers, answer = await post(self._app, endpoint, json.dumps(body).encode(), key)
        except Exception:
            log.exception("batches: a line failed")
            return output.failed(line, "internal_error", "The server had an internal error; see its log.")
        if status in (429, 499, 503) and not self._hopeless(line, status):
            self._not_before = time.monotonic() + _PAUSE_S
            return None
        self._refusals.pop((line.batch, line.number), None)
        return output.answered(line, status, headers["x-request-id"], answer)

    def _hopeless(self, line: Line, status: int) -> bool:
        """Whether a line's refusal is its own fault: it has more prompts than the queue ever takes."""
        if status != 429 or len(self._runs) > 1 or self._state.engine.load().foreground:
            return False
        key = (line.batch, line.number)
        self._refusals[key] = self._refusals.get(key, 0) + 1
        return self._refusals[key] >= _MAX_REFUSALS


def _width(body: Mapping[str, Any]) -> int:
    """About how many sequences a request makes; the route finds out whether it is right."""
    n, prompt = body.get("n"), body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * (n if isinstance(n, int) and n > 0 else 1)
