"""Three halls of a warehouse and a real square, from film to alarm, held against the truth: `make video-demo`.

    python -m examples.warehouse.demo --seconds 90 --out build/warehouse
    python -m examples.warehouse.demo --perception truth      # no model: the painted films' own truth
    python -m examples.warehouse.demo --model cam/model --verify second-look

Paints the halls' films once, watches all of them with one model, and reports: events by rule against what really
happened, found, missed and false. Then a real film of people on a square, of which nobody knows the truth. Everything
lies in OUT/run-N: events.db, events.jsonl, evidence, stills and annotated films, heads hidden. Nothing is opened.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.warehouse import report, site, street
from examples.warehouse.app import Outcome, watch
from examples.warehouse.site import HALLS, Recording
from examples.warehouse.truth import Names, TruthPerception
from stille.errors import StilleError
from stille.video.events import Consistency, Verifier
from stille.video.pipeline import Perception
from stille.video.rules import Rules, load_rules
from stille.video.sinks import Lane
from stille.video.types import Event

if TYPE_CHECKING:
    from stille.video.model import StilleCam

console = Console()
STREET_FPS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        return run(options)
    except StilleError as error:
        console.print(f"[red]{error}[/red]", soft_wrap=True)
        return 2


def run(options: argparse.Namespace) -> int:
    halls = [hall for hall in HALLS if hall.name in options.cameras]
    model = load_model(options.model, options.device) if options.perception == "model" else None
    recordings = paint(halls, options.out / "site", options.seconds, tuple(options.size))
    perception: Perception
    if model is not None:
        perception, what = model[0], f"{model[1].name} on {model[0].device}"
    else:
        perception, what = TruthPerception(recordings), "the films' own truth, NO MODEL"
        console.print(
            "[bold yellow]No model is at work here: what is seen are the painted films' own true boxes, identities and "
            "attributes. Figures say how good rules and sinks are, not how good any perception is.[/]"
        )
    out = new_folder(options.out)
    rules = load_rules(site.RULES)
    names = Names(recordings)
    begun = time.perf_counter()
    outcome = go("halls", [one.source for one in recordings], rules, perception, out / "halls", options,
                 sum(len(one.frames) for one in recordings), [names.see])  # fmt: skip
    found = report.rows(recordings, outcome.events, names)
    say_halls(found, outcome, what, time.perf_counter() - begun)
    answer: dict[str, Any] = {
        "perception": what, "model": model is not None, "rules": [asdict(row) for row in [*found, report.total(found)]],
        "cameras": {name: {"seen": one.seen, "objects": one.objects} for name, one in outcome.stats.items()},
    }  # fmt: skip
    if options.street and model is not None:
        answer["street"] = watch_street(model[0], out / "street", options)
    elif options.street:
        console.print("The real film of the square is left out: nobody wrote down its truth, so it takes a model.")
    (out / "report.json").write_text(json.dumps(answer, indent=1) + "\n")
    console.print(f"\nAll of it: {out}", soft_wrap=True, highlight=False)
    return 0


def load_model(name: str | None, device: str) -> tuple[StilleCam, Path]:
    """The perception, and its folder.

    Raises:
        StilleError: there is none.
    """
    import torch

    from stille.video.model import StilleCam, load
    from stille.video.weights import find

    try:
        folder = find(name)
    except StilleError as error:
        raise StilleError(f"{error}\nTo see rules, alarms and films without a model: --perception truth") from error
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return StilleCam(load(folder), place), folder


def paint(halls: Sequence[site.Hall], folder: Path, seconds: float, size: Any) -> list[Recording]:
    """The halls' films, painted unless they are there."""
    with progress() as bar:
        task = bar.add_task("painting the halls", total=round(seconds * site.RATE) * len(halls))
        return [site.record(hall, folder, seconds, size, lambda: bar.advance(task)) for hall in halls]


def go(
    title: str, sources: Sequence[str], rules: Rules, perception: Perception, out: Path, options: argparse.Namespace,
    frames: int, on_seen: Sequence[Callable[..., None]] = (),
) -> Outcome:  # fmt: skip
    """Watch with a progress bar above which events appear as they open."""
    if hasattr(perception, "watch_slots"):
        from stille.cli.watch import watch_slots

        watch_slots(perception, rules)
    with progress() as bar:
        task = bar.add_task(f"watching the {title}", total=frames)

        def tell(event: Event) -> None:
            if event.revision == 0:
                when = time.strftime("%H:%M:%S", time.gmtime(event.began))
                bar.console.print(
                    f"  {when}  {event.camera:7}  {event.reason} ({event.confidence:.0%})", highlight=False
                )

        return watch(
            sources, rules, perception, out, verifier_of(options.verify, perception), lanes(options, out),
            [*on_seen, lambda *_: bar.advance(task)], tell,
        )  # fmt: skip


def verifier_of(name: str, perception: Any) -> Verifier | None:
    from stille.video.second_look import All, SecondLook

    if name == "second-look" and not hasattr(perception, "forget"):
        raise StilleError("--verify second-look needs a model that can look again; truth has nothing to add")
    return {
        "none": lambda: None,
        "consistency": Consistency,
        "second-look": lambda: All([Consistency(), SecondLook(perception)]),
    }[name]()


def lanes(options: argparse.Namespace, out: Path) -> list[Lane]:
    """Brokers that were asked for."""
    found = []
    if options.mqtt:
        from stille.video.sinks.mqtt import Mqtt

        host, _, port = options.mqtt.partition(":")
        found.append(Lane(Mqtt(host, int(port or 1883), topic="warehouse"), spool=out / "spool" / "mqtt"))
    if options.nats:
        from stille.video.sinks.nats import Nats

        found.append(Lane(Nats(options.nats, "warehouse"), spool=out / "spool" / "nats"))
    return found


def watch_street(model: StilleCam, out: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """The real film: no truth, so counts only."""
    try:
        film = street.find(options.video)
    except StilleError as error:
        console.print(f"[yellow]The real film is left out: {error}[/]", soft_wrap=True)
        return None
    begun = time.perf_counter()
    outcome = go("square", [f"{film}#name=square,fps={STREET_FPS:g},start=0"], load_rules(street.RULES), model, out,
                 options, 398)  # fmt: skip
    seen = outcome.stats["square"]
    counts = Counter(one.rule for one in outcome.events if not one.withheld)
    told = ", ".join(f"{n} {rule}" for rule, n in sorted(counts.items())) or "no events"
    console.print(
        f"square, a real film without written truth: {seen.seen} frames in {time.perf_counter() - begun:.0f} s, "
        f"{seen.objects / max(seen.seen, 1):.1f} objects a frame; {told}.\n"
        f"film: {outcome.films.get('square', '-')}", soft_wrap=True, highlight=False,
    )  # fmt: skip
    return {"frames": seen.seen, "objects": seen.objects, "events": dict(counts)}


def say_halls(found: Sequence[report.Row], outcome: Outcome, what: str, seconds: float) -> None:
    seen = sum(one.seen for one in outcome.stats.values())
    console.print(f"\n[bold]Events against what happened[/bold], seen by {what}:")
    console.print(report.table(found))
    errors = sum(one.errors for one in outcome.stats.values())
    taken, sinks = outcome.alarm_desk, outcome.health["sinks"]
    troubled = {name: one["problem"] for name, one in sinks.items() if one["problem"]}
    console.print(
        f"{seen} frames of {len(outcome.stats)} cameras in {seconds:.0f} s ({seen / seconds:.1f} a second), "
        f"{errors} errors. The alarm desk got {taken['changes']} changes of {taken['events']} events, "
        f"{taken['refused']} with a bad signature." + (f" Sinks in trouble: {troubled}" if troubled else ""),
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    for name, path in outcome.films.items():
        console.print(f"film: {path} ({name})", soft_wrap=True, highlight=False)


def progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


def new_folder(out: Path) -> Path:
    """For this run: the first number that is free."""
    number = 1
    while (out / f"run-{number}").exists():
        number += 1
    path = out / f"run-{number}"
    path.mkdir(parents=True)
    return path


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.warehouse.demo", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("build/warehouse"), help="folder of everything")
    parser.add_argument("--seconds", type=float, default=90.0, help="of each hall's film")
    parser.add_argument("--cameras", nargs="+", default=[h.name for h in HALLS], choices=[h.name for h in HALLS])
    parser.add_argument("--size", type=int, nargs=2, default=(640, 352), metavar=("W", "H"), help="of the films")
    parser.add_argument("--perception", choices=("model", "truth"), default="model", help="'truth': no model")
    parser.add_argument("--model", help="name or folder (default: the one in this package)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--verify", choices=("consistency", "second-look", "none"), default="consistency")
    parser.add_argument("--no-street", dest="street", action="store_false", help="without the real film")
    parser.add_argument("--video", type=Path, help="vtest.avi, where it is already; else it is fetched")
    parser.add_argument("--mqtt", help="HOST[:PORT] of a broker that gets events as well")
    parser.add_argument("--nats", help="nats://HOST:PORT of a server that gets events as well")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
