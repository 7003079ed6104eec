"""The application: recordings of cameras in; events, evidence, annotated films and stills out.

films -> Pipeline -> Desk (rules, verifier, evidence) -> store, events.jsonl, alarm desk, MQTT, NATS
                 `-> Annotator -> films, stills
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from PIL import Image

from stille.video.annotate import Annotator, Moment
from stille.video.events import Desk, Verifier
from stille.video.evidence import Evidence
from stille.video.films import Films
from stille.video.pipeline import CameraStats, OnSeen, Perception, Pipeline
from stille.video.rules import Rules
from stille.video.sinks import JsonLines, Lane, Sinks, Webhook, verify
from stille.video.store import Filter, Store
from stille.video.types import Event, Frame, Seen, Trouble

SECRET = "of this demo and its alarm desk"


@dataclass(frozen=True)
class Outcome:
    """
    Attributes:
        events: the newest revision of each, withheld ones too. stats: by camera. health: of desk and sinks.
        films: annotated, by camera. alarm_desk: what it got.
    """

    events: list[Event]
    stats: dict[str, CameraStats]
    health: dict[str, Any]
    films: dict[str, Path]
    alarm_desk: Counter[str]


def watch(
    sources: Sequence[str], rules: Rules, perception: Perception, out: Path, verifier: Verifier | None = None,
    lanes: Sequence[Lane] = (), on_seen: Sequence[OnSeen] = (), on_event: Callable[[Event], None] = lambda _: None,
) -> Outcome:  # fmt: skip
    """Watch recordings to their end. All that comes out lies in `out`, which must be new.

    Args:
        lanes: further sinks.
        on_seen: told of every frame. on_event: of every change of an event, in the thread of a sink.
    """
    out.mkdir(parents=True)
    store = Store(out / "events.db")
    with AlarmDesk() as alarm_desk:
        sinks = Sinks(
            [
                Lane(store, spool=out / "spool" / "store"),
                Lane(JsonLines(out / "events.jsonl")),
                Lane(Webhook(alarm_desk.url, SECRET), spool=out / "spool" / "alarm-desk"),
                Lane(Teller(on_event)),
                *lanes,
            ]
        )
        desk = Desk(rules, sinks, verifier, Evidence(out / "evidence"))
        films, stills = Films(out / "annotated.mp4", each=len(sources) > 1, wait=True), Stills(out / "stills")
        annotator = Annotator(lambda: desk.rules, lambda: desk.engine.open_events(), [films, stills])
        troubles: SimpleQueue[Trouble] = SimpleQueue()

        def look(seen: Seen, frame: Frame) -> None:
            desk.see(seen, frame)

        with Pipeline(perception, on_seen=[look, annotator.see, *on_seen], on_trouble=[troubles.put]) as pipeline:
            names = [pipeline.add(source) for source in sources]
            pipeline.run(until=lambda: _tell(desk, troubles))
            stats = pipeline.stats()
        _tell(desk, troubles)
        for name in names:
            desk.end(name)
        annotator.end()
        films.close()
        desk.close(60.0)
        health = desk.health()
    kept = Store(out / "events.db")
    events = kept.find(Filter(withheld=None), limit=100_000, newest=False)
    kept.close()
    return Outcome(events, stats, health, films.paths, alarm_desk.counts)


def _tell(desk: Desk, troubles: SimpleQueue[Trouble]) -> bool:
    """Troubles of cameras, which their threads report, to the desk; never says that it is over."""
    while True:
        try:
            desk.trouble(troubles.get_nowait())
        except Empty:
            return False


class Teller:
    """A sink that calls a function."""

    name, withheld = "teller", False

    def __init__(self, tell: Callable[[Event], None]):
        self._tell = tell

    def send(self, event: Event) -> None:
        self._tell(event)

    def close(self) -> None:
        pass


class Stills:
    """An output that keeps one annotated picture of each event, heads hidden, when it opens."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._known: set[str] = set()

    def wants(self, camera: str) -> bool:
        return True

    def show(self, moment: Moment) -> None:
        new = [event for event in moment.alarms if event.id not in self._known and not event.withheld]
        if not new:
            return
        self._known |= {event.id for event in new}
        self.folder.mkdir(exist_ok=True)
        rules = "+".join(sorted({event.rule for event in new}))
        Image.fromarray(moment.image()).save(
            self.folder / f"{moment.frame.camera}-{moment.frame.index:05d}-{rules}.jpg", quality=88
        )


class AlarmDesk:
    """Where alarms go to at this site: an HTTP server that takes webhooks which are signed, and nothing else.

    Attributes:
        counts: "changes" with a good signature, "events" that they are about, "refused".
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        known: set[str] = set()
        counts, lock = self.counts, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stamp, given = (self.headers.get(f"Stille-{name}", "") for name in ("Timestamp", "Signature"))
                good = verify(SECRET, stamp, body, given)
                with lock:
                    if good:
                        key = self.headers["Idempotency-Key"]
                        counts["changes"] += key not in known  # what comes twice counts once
                        counts["events"] += key.rpartition(":")[0] not in known
                        known.update((key, key.rpartition(":")[0]))
                    else:
                        counts["refused"] += 1
                self.send_response(200 if good else 403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/alarms"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> AlarmDesk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
