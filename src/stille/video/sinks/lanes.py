"""A lane in front of each sink: a bounded queue, a thread, retries, and a file for what does not fit.

What a sink gets, it gets at least once and in the order of the queue; `event.id` and `event.revision` tell what it has
already. A change that is put into a lane with a spool is lost only if queue and disk are full at the same time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from stille.video.errors import SinkError
from stille.video.types import Event

log = logging.getLogger(__name__)
CHUNK = 1 << 20
"""Bytes of a spool that are read at once."""


class RefusedError(SinkError):
    """The sink will never take this event: there is no use in trying again."""


class Sink(Protocol):
    """A place that takes events, one after another, in the thread of its lane."""

    name: str
    withheld: bool
    """Whether it takes events that the verifier withholds."""

    def send(self, event: Event) -> None:
        """Return when the event has been taken. Must not wait for ever.

        Raises:
            RefusedError: it never will be.
            Exception: not now.
        """
        ...

    def close(self) -> None: ...


class Lane:
    """
    Args:
        size: events that wait in memory.
        spool: a file for those beyond, and for those that are left when the process ends; without one the oldest
            updates are dropped first, then the oldest of all.
        first_s, longest_s: pauses between attempts, which double.

    Attributes:
        counts: "sent", "retried", "refused", "dropped", "spooled".
        problem: why the last attempt failed; None while all is well.
    """

    def __init__(
        self, sink: Sink, size: int = 1000, spool: str | os.PathLike[str] | None = None, first_s: float = 0.5,
        longest_s: float = 60.0,
    ):  # fmt: skip
        self.sink, self.size = sink, size
        self.counts: Counter[str] = Counter()
        self.problem: str | None = None
        self._first_s, self._longest_s = first_s, longest_s
        self._spool = Path(spool) if spool is not None else None
        self._sent_from = None if self._spool is None else self._spool.with_name(self._spool.name + ".sending")
        self._offset = 0
        self._queue: deque[Event] = deque()
        self._backlog: deque[Event] = deque()  # read from the spool
        self._sending: Event | None = None
        self._spooled = any(path is not None and path.exists() for path in (self._spool, self._sent_from))
        self._change = threading.Condition()
        self._ending = self._spool_failed = False
        self._thread = threading.Thread(target=self._work, name=f"stille-sink-{sink.name}", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Never waits for the sink."""
        if event.withheld and not self.sink.withheld:
            return
        with self._change:
            if len(self._queue) >= self.size and not self._to_spool():
                self._drop()
            self._queue.append(event)
            self._change.notify_all()

    def secure(self, wait_s: float = 0.2) -> bool:
        """Wait a moment for the sink to take all; write what it has not taken to the spool, where it survives the
        process. Whether nothing is in memory only any more."""
        if self.drain(wait_s):
            return True
        with self._change:
            return self._to_spool()

    def drain(self, timeout_s: float) -> bool:
        """Wait until all has been taken, the spool included."""
        with self._change:
            return self._change.wait_for(lambda: not (self._queue or self._backlog or self._spooled), timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Give the sink so long for what waits, keep the rest in the spool, and end."""
        if self._ending:
            return
        empty = self.drain(timeout_s)
        with self._change:
            if not empty and not self._to_spool() and self._queue:
                self.counts["dropped"] += len(self._queue)
                log.error("sink %s: %d events are lost with the end of the process", self.sink.name, len(self._queue))
            self._ending = True
            self._change.notify_all()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self.sink.close()

    # The other side

    def _work(self) -> None:
        pause = self._first_s
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._backlog or self._spooled or self._ending)
                if self._ending:
                    return
                if not self._backlog and self._spooled:
                    self._unspool()
                source = self._backlog or self._queue  # what is spooled is older
                event = self._sending = source[0] if source else None
            outcome = self._try(event) if event is not None else None
            with self._change:
                self._sending = None
                if outcome is not None:
                    self.counts[outcome] += 1
                    if source and source[0] is event:  # else it went to the spool meanwhile, and comes again
                        source.popleft()
                    pause = self._first_s
                    self._change.notify_all()
                elif event is not None or self._spooled:  # in vain: the sink, or the spool cannot be read
                    self.counts["retried"] += 1
                    self._change.wait_for(lambda: self._ending, pause)
                    pause = min(2 * pause, self._longest_s)

    def _try(self, event: Event) -> str | None:
        try:
            self.sink.send(event)
        except RefusedError as error:
            log.error("sink %s refuses event %s: %s", self.sink.name, event.id, error)
            return "refused"
        except Exception as error:  # whatever a sink's library raises: it is tried again
            if self.problem is None:
                log.warning("sink %s takes no events: %s: %s", self.sink.name, type(error).__name__, error)
            self.problem = f"{type(error).__name__}: {error}"
            return None
        if self.problem is not None:
            log.warning("sink %s takes events again", self.sink.name)
        self.problem = None
        return "sent"

    def _drop(self) -> None:
        """Make room: an update goes before the beginning or end of an event."""
        updates = (i for i, one in enumerate(self._queue) if one.state == "open" and one.revision > 0)
        oldest = next(updates, 0)
        if self._queue[oldest] is self._sending:
            oldest = min(oldest + 1, len(self._queue) - 1)
        del self._queue[oldest]
        self.counts["dropped"] += 1
        if self.counts["dropped"] == 1:
            log.error("sink %s: its queue of %d is full, events are dropped", self.sink.name, self.size)

    # The spool: what is written goes to its end; what is sent comes from another file, which it becomes.

    def _to_spool(self) -> bool:
        """Move the queue to the end of the spool; False if there is none or it cannot be written."""
        if self._spool is None:
            return False
        if not self._queue:
            return True
        try:
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            with open(self._spool, "ab") as file:
                before = file.tell()
                try:
                    file.writelines(b"\n" + one.model_dump_json().encode() for one in self._queue)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(before)
                    raise
        except OSError as error:
            self._spool_fails(error)
            return False
        self._spool_failed = False
        self.counts["spooled"] += len(self._queue)
        self._queue.clear()
        self._spooled = True
        self._change.notify_all()
        return True

    def _unspool(self) -> None:
        """Fetch the next spooled events, oldest first; the file goes when all of it has been sent."""
        assert self._spool is not None
        assert self._sent_from is not None
        try:
            if not self._sent_from.exists():
                if not self._spool.exists():
                    self._spooled = False
                    self._change.notify_all()
                    return
                os.replace(self._spool, self._sent_from)
            with open(self._sent_from, "rb") as file:
                file.seek(self._offset)
                lines = file.readlines(CHUNK)
                self._offset = file.tell()
            if not lines:
                self._sent_from.unlink()
                self._offset = 0
                self._unspool()
        except OSError as error:
            self._spool_fails(error)
            return
        for line in filter(None, map(bytes.strip, lines)):
            try:
                self._backlog.append(Event.model_validate_json(line))
            except ValidationError:  # cut off by a crash
                self.counts["refused"] += 1
                log.error("sink %s: a line of its spool is no event: %.80r", self.sink.name, line)

    def _spool_fails(self, error: OSError) -> None:
        if not self._spool_failed:
            log.error("sink %s: its spool does not work: %s", self.sink.name, error)
        self._spool_failed, self.problem = True, f"spool: {error}"


class Sinks:
    """All lanes.

    Args:
        lanes: each with its own sink.
    """

    def __init__(self, lanes: Sequence[Lane] = ()):
        self.lanes = list(lanes)

    def put(self, events: Iterable[Event]) -> None:
        for event in events:
            for lane in self.lanes:
                lane.put(event)

    def secure(self, wait_s: float = 0.2) -> bool:
        """Of every lane: before the engine's state is saved, so that a killed process has lost nothing older."""
        deadline = time.monotonic() + wait_s
        secured = [lane.secure(max(0.0, deadline - time.monotonic())) for lane in self.lanes]
        return all(secured)

    def drain(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        return all(lane.drain(max(0.0, deadline - time.monotonic())) for lane in self.lanes)

    def close(self, timeout_s: float = 5.0) -> None:
        """All at the same time."""
        threads = [threading.Thread(target=lane.close, args=(timeout_s,), daemon=True) for lane in self.lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * timeout_s)

    def health(self) -> dict[str, dict[str, int | str | None]]:
        """Counts and problem of each sink."""
        return {lane.sink.name: {**lane.counts, "problem": lane.problem} for lane in self.lanes}
