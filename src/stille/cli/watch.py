"""`stille watch`: cameras in, events out."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stille.cli.options import examples

if TYPE_CHECKING:
    from stille.video.events import Desk
    from stille.video.pipeline import CameraStats, Pipeline
    from stille.video.rules import Rules
    from stille.video.types import Event, Trouble

EXAMPLES = examples(
    ("stille watch dock3.mp4#name=dock3 --rules rules.yaml --model cam/model", "a recording, as fast as it goes"),
    ("stille watch rtsp://viewer:secret@10.0.0.5/s2#name=dock3,fps=5 --rules rules.yaml --model cam/model", "a camera"),
    ("stille watch a.mp4#realtime=true b.mp4#realtime=true ...", "files that act as cameras"),
    ("stille watch ... --webhook https://example.org/hook", "signed with STILLE_WEBHOOK_SECRET"),
    note="Names of cameras (#name=) are those of the rules file. What happened lies in OUT: events.jsonl, events.db, "
    "pictures and clips with hidden heads. Ctrl-C or SIGTERM ends it; the same command goes on with the "
    "events that were open.",
)
SINKS, SEEING = "Where events go", "Seeing"
STATUS_S = 10.0


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


def command(
    sources: Annotated[
        list[str], typer.Argument(help="Files, rtsp:// and http(s):// addresses, /dev/video0, folders of pictures.")
    ],
    rules: Annotated[Path, typer.Option("--rules", "-r", help="YAML file of zones and rules.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder that `stille train video` made.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of events, evidence and state.")] = Path("watch"),
    device: Annotated[str, _option(SEEING, help="auto, cpu or cuda.")] = "auto",
    gate: Annotated[str, _option(SEEING, help="off, on: spare frames in which nothing moves, shadow: only count.")] = (
        "off"
    ),
    verify: Annotated[bool, _option(SEEING, help="Withhold events that their frames do not bear out.")] = True,
    evidence: Annotated[bool, _option(SINKS, help="Keep a picture and a clip of each event.")] = True,
    store: Annotated[str | None, _option(SINKS, help="Path or postgresql:// URL. (default: OUT/events.db)")] = None,
    keep_days: Annotated[float, _option(SINKS, help="Days until events are deleted; rules may say otherwise.")] = 30.0,
    webhook: Annotated[str | None, _option(SINKS, help="URL that gets each change of an event.")] = None,
    webhook_secret: Annotated[
        str | None, _option(SINKS, envvar="STILLE_WEBHOOK_SECRET", help="Signs them.", show_envvar=True)
    ] = None,
    mqtt: Annotated[str | None, _option(SINKS, help="HOST or HOST:PORT of a broker.")] = None,
) -> None:
    """Watch cameras: raise an event for each incident that the rules describe."""
    import torch

    from stille.errors import ConfigError
    from stille.video.events import Consistency, Desk
    from stille.video.evidence import Evidence
    from stille.video.model import StilleCam, load
    from stille.video.pipeline import Pipeline
    from stille.video.rules import load_rules
    from stille.video.sinks import JsonLines, Lane, Sinks, Webhook
    from stille.video.store import Store

    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"device {device!r} is unknown; choose auto, cpu or cuda")
    if gate not in ("off", "on", "shadow"):
        raise typer.BadParameter(f"gate {gate!r} is unknown; choose off, on or shadow")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but there is none here.")
    if webhook and not webhook_secret:
        raise ConfigError("a webhook needs a secret to sign with: set STILLE_WEBHOOK_SECRET (16 characters or more).")
    book = load_rules(rules)
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    cam = StilleCam(load(model), place)
    out.mkdir(parents=True, exist_ok=True)
    kept = Store(store or out / "events.db")
    lanes = [Lane(kept, spool=out / "spool" / "store"), Lane(JsonLines(out / "events.jsonl")), Lane(Printer())]
    if webhook:
        lanes.append(Lane(Webhook(webhook, webhook_secret or ""), spool=out / "spool" / "webhook"))
    if mqtt:
        from stille.video.sinks.mqtt import Mqtt

        host, _, port = mqtt.partition(":")
        if port and not port.isdecimal():
            raise typer.BadParameter(f"mqtt broker {mqtt!r}: expected HOST or HOST:PORT")
        lanes.append(Lane(Mqtt(host, int(port or 1883)), spool=out / "spool" / "mqtt"))
    shown = Evidence(out / "evidence") if evidence else None
    desk = Desk(book, Sinks(lanes), Consistency() if verify else None, shown)
    watch_slots(cam, book)
    desk.load(out / "state.json")
    troubles: SimpleQueue[Trouble] = SimpleQueue()
    with Pipeline(cam, on_seen=[desk.see], on_trouble=[troubles.put], gate=gate) as pipeline:  # type: ignore[arg-type]
        names = [pipeline.add(source) for source in sources]
        for name in sorted({camera.name for camera in book.cameras} - set(names)):
            typer.echo(f"the rules are about camera {name!r}, which no source is named (#name={name})", err=True)
        clerk = Clerk(desk, pipeline, troubles, out, kept, keep_days)
        # A service manager ends it as Ctrl-C does.
        before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        try:
            pipeline.run(until=clerk.look)
        finally:
            signal.signal(signal.SIGTERM, before)
            stats = pipeline.stats()
            pipeline.close()
            clerk.finish()
    report(stats, desk.health())
    if stats and all(camera.state == "failed" for camera in stats.values()):
        raise typer.Exit(1)


class Printer:
    """A sink: events that open and close, a line each."""

    name, withheld = "terminal", False

    def send(self, event: Event) -> None:
        if event.revision == 0 or event.state == "closed":
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.ended or event.began))
            what = "opened" if event.state == "open" else "closed" if event.revision else "happened"
            where = f"{event.camera}/{event.zone}" if event.zone else event.camera
            typer.echo(f"{when}  {where}  {event.rule} {what}: {event.reason} ({event.confidence:.0%})  {event.id}")

    def close(self) -> None:
        pass


class Clerk:
    """What has to be done between frames, in the pipeline's thread.

    Args:
        troubles: of cameras, put there by their threads.
    """

    def __init__(
        self, desk: Desk, pipeline: Pipeline, troubles: SimpleQueue[Trouble], out: Path, store: Any, keep_days: float
    ):
        self.desk, self.pipeline, self.troubles, self.out = desk, pipeline, troubles, out
        self.store, self.keep_days = store, keep_days
        self._ended: set[str] = set()
        self._saved = self._told = time.monotonic()
        self._purged = 0.0

    def look(self) -> bool:
        """Called again and again; never says that it is over."""
        self._take_troubles()
        now = time.monotonic()
        if now - self._saved >= 1.0:
            self._saved = now
            for name, camera in self.pipeline.stats().items():
                if camera.state in ("ended", "failed") and name not in self._ended:
                    self._ended.add(name)
                    self.desk.end(name)
                elif camera.state == "offline":
                    self.desk.advance(name, time.time())
            self.desk.save(self.out / "state.json")
        if now - self._told >= STATUS_S:
            self._told = now
            typer.echo(status(self.pipeline.stats(), len(self.desk.engine.open_events())), err=True)
        if time.time() - self._purged >= 3600:
            from stille.video.events import purge

            self._purged = time.time()
            purge(self.store, self.desk.rules, self.desk.evidence, self._purged, self.keep_days)
        return False

    def finish(self) -> None:
        """The last troubles; recordings that are over end, live cameras go on next time."""
        self._take_troubles()
        for name, camera in self.pipeline.stats().items():
            if camera.state in ("ended", "failed") and name not in self._ended:
                self.desk.end(name)
        self.desk.save(self.out / "state.json")
        self.desk.close()

    def _take_troubles(self) -> None:
        while True:
            try:
                self.desk.trouble(self.troubles.get_nowait())
            except Empty:
                return


def watch_slots(cam: Any, rules: Rules) -> None:
    """Have the model look at the rack slots of the rules: the box around each."""
    for camera in {slot.camera for slot in rules.slots}:
        boxes = {}
        for slot in rules.slots:
            if slot.camera == camera:
                xs, ys = zip(*rules.scaled(camera, slot.points), strict=True)
                boxes[slot.name] = (min(xs), min(ys), max(xs), max(ys))
        cam.watch_slots(camera, boxes)


def status(stats: dict[str, CameraStats], going_on: int) -> str:
    """One line about all cameras."""
    seen, dropped = (sum(getattr(camera, name) for camera in stats.values()) for name in ("seen", "dropped"))
    away = [name for name, camera in stats.items() if camera.state in ("offline", "failed")]
    slowest = max((camera.latency_p99_s for camera in stats.values()), default=0.0)
    gone = f"; away: {', '.join(away)}" if away else ""
    return (
        f"{len(stats)} cameras, {seen} frames seen, {dropped} dropped, p99 {1000 * slowest:.0f} ms, "
        f"{going_on} events go on{gone}"
    )


def report(stats: dict[str, CameraStats], health: dict[str, Any]) -> None:
    """What there was, on stderr."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("camera", "state", "seen", "objects", "dropped", "spared", "errors", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column in ("camera", "state") else "right")
    for name, camera in stats.items():
        figures: Sequence[float] = (camera.seen, camera.objects, camera.dropped, camera.gated, camera.errors)
        times = (1000 * camera.latency_p50_s, 1000 * camera.latency_p99_s)
        table.add_row(name, camera.state, *map(str, figures), *(f"{value:.0f}" for value in times))
    Console(stderr=True).print(table)
    for name, camera in stats.items():
        if camera.error:
            typer.echo(f"{name}: {camera.error}", err=True)
    counts = health["events"]
    typer.echo(
        f"events: {counts.get('opened', 0)} opened, {counts.get('closed', 0)} closed, "
        f"{counts.get('withheld', 0)} withheld, {counts.get('released', 0)} of these released",
        err=True,
    )
