"""`stille watch`: cameras in, events out."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
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
    from stille.web import Ask, PageServer, Site

EXAMPLES = examples(
    ("stille watch dock3.mp4#name=dock3 --rules rules.yaml", "a recording, as fast as it goes"),
    ("stille watch rtsp://viewer:secret@10.0.0.5/s2#name=dock3,fps=5 --rules rules.yaml", "a camera"),
    ("stille watch a.mp4#realtime=true b.mp4#realtime=true ...", "files that act as cameras"),
    ("stille watch ... --webhook https://example.org/hook", "signed with STILLE_WEBHOOK_SECRET"),
    ("stille watch ... --annotate seen.mp4 --preview 8081", "a film of what is seen, and live pictures"),
    ("stille watch ... --page 8080", "cameras, events and zones at http://127.0.0.1:8080"),
    note="Names of cameras (#name=) are those of the rules file. What happened lies in OUT: events.jsonl, events.db, "
    "pictures and clips with hidden heads. Ctrl-C or SIGTERM ends it; the same command goes on with the "
    "events that were open.",
)
SINKS, SEEING, VIEWS, PAGE = "Where events go", "Seeing", "Pictures", "The page"
STATUS_S = 10.0
MOST_THREADS = 16  # that see side by side, each with a copy of the weights


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


def command(
    sources: Annotated[
        list[str], typer.Argument(help="Files, rtsp:// and http(s):// addresses, /dev/video0, folders of pictures.")
    ],
    rules: Annotated[Path, typer.Option("--rules", "-r", help="YAML file of zones and rules.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Name or folder of a perception. (default: the package's)"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of events, evidence and state.")] = Path("watch"),
    device: Annotated[str, _option(SEEING, help="auto, cpu or cuda.")] = "auto",
    gate: Annotated[str, _option(SEEING, help="off, on: spare frames in which nothing moves, shadow: only count.")] = (
        "off"
    ),
    verify: Annotated[
        str,
        _option(SEEING, help="consistency, second-look: the model looks again, closer; none: withhold nothing."),
    ] = "consistency",
    evidence: Annotated[bool, _option(SINKS, help="Keep a picture and a clip of each event.")] = True,
    store: Annotated[str | None, _option(SINKS, help="Path or postgresql:// URL. (default: OUT/events.db)")] = None,
    keep_days: Annotated[float, _option(SINKS, help="Days until events are deleted; rules may say otherwise.")] = 30.0,
    webhook: Annotated[str | None, _option(SINKS, help="URL that gets each change of an event.")] = None,
    webhook_secret: Annotated[
        str | None, _option(SINKS, envvar="STILLE_WEBHOOK_SECRET", help="Signs them.", show_envvar=True)
    ] = None,
    mqtt: Annotated[str | None, _option(SINKS, help="HOST or HOST:PORT of a broker.")] = None,
    nats: Annotated[str | None, _option(SINKS, help="nats://HOST:PORT, user and password in it.")] = None,
    nats_stream: Annotated[str | None, _option(SINKS, help="JetStream stream that stores them.")] = None,
    annotate: Annotated[
        Path | None, _option(VIEWS, help="MP4 of what is seen, heads hidden; of several cameras one each.")
    ] = None,
    preview: Annotated[str | None, _option(VIEWS, help="PORT or HOST:PORT of live pictures for browsers.")] = None,
    page: Annotated[
        int | None,
        _option(PAGE, min=0, max=65535, help="Port of a web page of it all; 0: any. It goes on after recordings."),
    ] = None,
    page_host: Annotated[str, _option(PAGE, help="Address of the page; others than loopback need a password.")] = (
        "127.0.0.1"
    ),
    page_password: Annotated[
        str | None,
        _option(
            PAGE, "--page-password", envvar="STILLE_PAGE_PASSWORD", help="12 characters or more.", show_envvar=True
        ),
    ] = None,
    ask: Annotated[str, _option(PAGE, help="Model that answers questions over the log.")] = "stille-135m",
    ask_url: Annotated[
        str | None, _option(PAGE, help="OpenAI-compatible endpoint of that model; its key: OPENAI_API_KEY.")
    ] = None,
) -> None:
    """Watch cameras: raise an event for each incident that the rules describe."""
    import torch

    from stille.cli.watching import Views, nats_lane, verifier
    from stille.errors import ConfigError
    from stille.video.events import Desk
    from stille.video.evidence import Evidence
    from stille.video.model import Abreast, StilleCam, load
    from stille.video.pipeline import Pipeline
    from stille.video.rules import load_rules
    from stille.video.sinks import JsonLines, Lane, Sinks, Webhook
    from stille.video.store import Store
    from stille.video.weights import find

    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"device {device!r} is unknown; choose auto, cpu or cuda")
    if gate not in ("off", "on", "shadow"):
        raise typer.BadParameter(f"gate {gate!r} is unknown; choose off, on or shadow")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but there is none here.")
    if webhook and not webhook_secret:
        raise ConfigError("a webhook needs a secret to sign with: set STILLE_WEBHOOK_SECRET (16 characters or more).")
    book = load_rules(rules)
    server = _server(page, page_host, page_password) if page is not None else None
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    side_by_side = 1 if place == "cuda" else min(len(sources), torch.get_num_threads(), MOST_THREADS)
    network = load(find(model))
    cam = StilleCam(network, place) if side_by_side == 1 else Abreast(network, side_by_side)
    judge = verifier(verify, cam)
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
    if nats:
        lanes.append(nats_lane(nats, nats_stream, out))
    shown = Evidence(out / "evidence") if evidence else None
    desk = Desk(book, Sinks(lanes), judge, shown)
    views = Views(annotate, preview, sources, desk)
    watch_slots(cam, book)
    desk.load(out / "state.json")
    troubles: SimpleQueue[Trouble] = SimpleQueue()
    on_seen, on_trouble, site = [desk.see, *views.on_seen], [troubles.put], None
    if server is not None:
        site = _site(rules, kept, out, evidence, cam, _ask(ask, ask_url), page_host)
        on_seen, on_trouble = [*on_seen, site.wall.see], [*on_trouble, site.trouble]
    with Pipeline(cam, on_seen=on_seen, on_trouble=on_trouble, gate=gate) as pipeline:  # type: ignore[arg-type]
        names = [pipeline.add(source) for source in sources]
        for name in sorted({camera.name for camera in book.cameras} - set(names)):
            typer.echo(f"the rules are about camera {name!r}, which no source is named (#name={name})", err=True)
        clerk = Clerk(desk, pipeline, troubles, out, kept, keep_days, site)
        if server is not None and site is not None:
            site.start(pipeline, desk, sources)
            server.start(site)
            typer.echo(f"page: {server.url}", err=True)
        # A service manager ends it as Ctrl-C does.
        before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        try:
            pipeline.run(until=clerk.look)
            if server is not None:
                stay(pipeline, clerk)
        finally:
            signal.signal(signal.SIGTERM, before)
            if server is not None:
                server.close()
            stats = pipeline.stats()
            pipeline.close()
            clerk.finish()
            views.close()
    report(stats, desk.health())
    if stats and all(camera.state == "failed" for camera in stats.values()):
        raise typer.Exit(1)


def _server(port: int, host: str, password: str | None) -> PageServer:
    from stille.errors import ConfigError

    try:
        from stille.web import PageServer
    except ImportError as error:
        raise ConfigError(f"the page needs more packages: pip install 'stille[web]' ({error})") from error
    return PageServer(port, host, password or None)


def _ask(model: str, url: str | None) -> Ask | None:
    try:
        from stille.web import Ask
    except ImportError:  # stille[agents] is not there: no questions
        return None
    return Ask.endpoint(url, model) if url else Ask.default(model)


def _site(rules: Path, store: Any, out: Path, evidence: bool, cam: Any, ask: Ask | None, host: str) -> Site:
    from stille.web import RulesFile, Site
    from stille.web.access import LOOPBACK

    return Site(
        RulesFile(rules), store, out / "state.json", evidence=out / "evidence" if evidence else None, ask=ask,
        on_rules=lambda book: watch_slots(cam, book), local=host in LOOPBACK,
    )  # fmt: skip


def stay(pipeline: Pipeline, clerk: Clerk) -> None:
    """After the last recording the page stays, until Ctrl-C; cameras may come."""
    with suppress(KeyboardInterrupt):
        # Ctrl-C within `run` leaves its mark on cameras that were still going on.
        while not any(camera.state == "removed" for camera in pipeline.stats().values()):
            if all(camera.state in ("ended", "failed") for camera in pipeline.stats().values()):
                clerk.look()
                time.sleep(0.1)
            else:
                pipeline.run(until=clerk.look)


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
        site: of the page, if there is one.
    """

    def __init__(
        self, desk: Desk, pipeline: Pipeline, troubles: SimpleQueue[Trouble], out: Path, store: Any, keep_days: float,
        site: Site | None = None,
    ):  # fmt: skip
        self.desk, self.pipeline, self.troubles, self.out = desk, pipeline, troubles, out
        self.store, self.keep_days, self.site = store, keep_days, site
        self._ended: set[str] = set()
        self._saved = self._told = time.monotonic()
        self._purged = 0.0

    def look(self) -> bool:
        """Called again and again; never says that it is over."""
        self._take_troubles()
        if self.site is not None:
            self.site.look()
        now = time.monotonic()
        if now - self._saved >= 1.0:
            self._saved = now
            stats = self.pipeline.stats()
            self._ended &= set(stats)  # a camera that was removed may come again
            for name, camera in stats.items():
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
