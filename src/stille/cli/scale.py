"""`stille scale`: cameras over many processes and GPUs, and what a camera costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stille.cli.options import examples

if TYPE_CHECKING:
    from stille.scale.fleet import Fleet
    from stille.video.sinks import Lane

app = typer.Typer(name="scale", help="Cameras over many processes and GPUs.", no_args_is_help=True)

EXAMPLES = examples(
    ("stille scale watch --cameras cameras.txt --rules rules.yaml --shards 4 --gpus 0.25", "one GPU"),
    ("stille scale watch --cameras cameras.txt ... --shards 32 --gpus 0.25 --address auto", "a Ray cluster of eight"),
    note="CAMERAS has a source in each line; it is followed while the command runs: cameras come and go. On several "
    "machines OUT has to be a folder that all of them see, and the store PostgreSQL.",
)
STATUS_S = 10.0


class ShardLanes:
    """Sinks of a shard: the store that all share, and a file of its own."""

    def __init__(self, out: Path, store: str, webhook: str | None, secret: str | None):
        self.out, self.store, self.webhook, self.secret = out, store, webhook, secret

    def __call__(self, shard: str) -> list[Lane]:
        from stille.video.sinks import JsonLines, Lane, Webhook
        from stille.video.store import Store

        spool = self.out / "spool" / shard
        lanes = [Lane(Store(self.store), spool=spool / "store"), Lane(JsonLines(self.out / f"events-{shard}.jsonl"))]
        if self.webhook:
            lanes.append(Lane(Webhook(self.webhook, self.secret or ""), spool=spool / "webhook"))
        return lanes


def make_cam(model: Path, device: str, rules: Any) -> Any:
    """In the shard's process."""
    import torch

    from stille.cli.watch import watch_slots
    from stille.video.model import StilleCam, load

    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    cam = StilleCam(load(model), place)
    watch_slots(cam, rules)
    cam.warm()
    return cam


@app.command(epilog=EXAMPLES)
def watch(
    sources: Annotated[list[str] | None, typer.Argument(help="As of stille watch.")] = None,
    cameras: Annotated[Path | None, typer.Option("--cameras", help="A file of sources, which is followed.")] = None,
    rules: Annotated[Path, typer.Option("--rules", "-r", help="YAML file of zones and rules.")] = Path("rules.yaml"),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Name or folder of a perception. (default: the package's)")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of events, evidence and checkpoints.")] = Path(
        "watch"
    ),
    shards: Annotated[int, typer.Option(help="Processes, each with its own model and cameras.")] = 2,
    gpus: Annotated[float, typer.Option(help="Of each shard; 0.25 lets four share one. 0: none.")] = 0.0,
    cpus: Annotated[float, typer.Option(help="Of each shard, for Ray to place it.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Decoding processes of each shard; 0: threads.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    gate: Annotated[str, typer.Option(help="off, on or shadow, as of stille watch.")] = "off",
    verify: Annotated[bool, typer.Option(help="Withhold events that their frames do not bear out.")] = True,
    evidence: Annotated[bool, typer.Option(help="Keep a picture and a clip of each event.")] = True,
    store: Annotated[str | None, typer.Option(help="Path or postgresql:// URL. (default: OUT/events.db)")] = None,
    webhook: Annotated[str | None, typer.Option(help="URL that gets each change of an event.")] = None,
    webhook_secret: Annotated[str | None, typer.Option(envvar="STILLE_WEBHOOK_SECRET", help="Signs them.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster; without it Ray starts here.")] = None,
) -> None:
    """Watch cameras with many processes; the loss of one costs no event."""
    from stille.errors import ConfigError
    from stille.scale import Fleet, ShardSettings
    from stille.video.rules import load_rules
    from stille.video.weights import find

    if gate not in ("off", "on", "shadow"):
        raise typer.BadParameter(f"gate {gate!r} is unknown; choose off, on or shadow")
    if not sources and cameras is None:
        raise typer.BadParameter("no cameras: name sources, or a file of them with --cameras")
    if webhook and not webhook_secret:
        raise ConfigError("a webhook needs a secret to sign with: set STILLE_WEBHOOK_SECRET (16 characters or more).")
    book = load_rules(rules)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    lanes = ShardLanes(out, store or str(out / "events.db"), webhook, webhook_secret)
    made = ShardSettings(
        book, out, functools.partial(make_cam, find(model).absolute(), device, book), lanes, verify, evidence, workers,
        gate,  # type: ignore[arg-type]
    )  # fmt: skip
    if address is not None:
        import ray  # pyright: ignore[reportMissingImports]

        ray.init(address=address, logging_level="warning")  # pyright: ignore[reportArgumentType]
    with Fleet(made, shards, cpus=cpus, gpus=gpus) as fleet:
        for source in sources or ():
            fleet.add(source)
        follow(fleet, cameras)


def follow(fleet: Fleet, cameras: Path | None) -> None:
    """Until Ctrl-C or SIGTERM: the file's cameras, and a line about all now and then."""
    import signal

    from stille.errors import StilleError

    listed: dict[str, str] = {}  # of the file: source to name
    changed, told = -1.0, 0.0
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        while True:
            if cameras is not None and cameras.stat().st_mtime != changed:
                changed = cameras.stat().st_mtime
                lines = [line.strip() for line in cameras.read_text(encoding="utf-8").splitlines()]
                wanted = [line for line in lines if line and not line.startswith("#")]
                for source in set(listed) - set(wanted):
                    fleet.remove(listed.pop(source))
                for source in wanted:
                    if source not in listed:
                        try:
                            listed[source] = fleet.add(source)
                        except StilleError as error:
                            typer.echo(str(error), err=True)
            if time.monotonic() - told >= STATUS_S:
                told = time.monotonic()
                typer.echo(status(fleet), err=True)
            time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo("ending: every shard writes its checkpoints", err=True)
    finally:
        signal.signal(signal.SIGTERM, before)


def status(fleet: Fleet) -> str:
    """One line about the fleet."""
    members, cameras = fleet.status()
    stats = [one for member in members.values() if member.status for one in member.status.cameras.values()]
    going_on = sum(len(ids) for m in members.values() if m.status for ids in m.status.open_events.values())
    down = [name for name, member in members.items() if not member.ready]
    homeless = [name for name, placed in cameras.items() if placed.shard is None]
    problems = {name: placed.error for name, placed in cameras.items() if placed.error}
    text = (
        f"{len(members) - len(down)} of {len(members)} shards, {len(cameras)} cameras, "
        f"{sum(one.seen for one in stats)} frames seen, {sum(one.dropped for one in stats)} dropped, "
        f"p99 {1000 * max((one.latency_p99_s for one in stats), default=0.0):.0f} ms, {going_on} events go on"
    )
    for what, names in (("down", down), ("without a shard", homeless)):
        if names:
            text += f"; {what}: {', '.join(names[:10])}"
    return text + "".join(f"\n{name}: {error}" for name, error in problems.items())


@app.command()
def cost(
    results: Annotated[Path, typer.Option(help="Folder of the ledger's records.")] = Path("benchmarks/results"),
    more: Annotated[list[Path] | None, typer.Option("--records", help="More records, of a run of your own.")] = None,
    gpu: Annotated[float, typer.Option("--gpu", help="Euro an hour of a machine with one GPU and its cores.")] = 3.0,
    core: Annotated[float, typer.Option("--core", help="Euro an hour of one processor core.")] = 0.04,
) -> None:
    """What a camera costs a month, from measured figures alone and your prices."""
    from rich.console import Console
    from rich.table import Table

    from stille.ledger import read
    from stille.scale.cost import Prices, lines

    files: Sequence[Path] = [*sorted(results.glob("*.json")), *(more or ())]
    found, missing = lines([record for file in files for record in read(file)], Prices(gpu, core))
    table = Table(box=None, pad_edge=False)
    for column in ("", "cameras", "EUR/hour", "EUR per camera and month", "by"):
        table.add_column(column, justify="left" if column in ("", "by") else "right")
    for line in found:
        table.add_row(line.what, f"{line.cameras:.1f}", f"{line.price:.2f}", f"{line.month:.2f}", ", ".join(line.by))
    Console().print(table)
    for machine in dict.fromkeys(line.machine for line in found):
        typer.echo(f"measured on: {machine}", err=True)
    if missing:
        typer.echo(f"not measured yet: {', '.join(dict.fromkeys(missing))}", err=True)
