"""`stille agent`: what durable runs do and wait for, and the decisions that only people take."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stille.cli.options import examples

if TYPE_CHECKING:
    from stille.agents.database import Database
    from stille.agents.durable import Workflow

EXAMPLES = examples(
    ("stille agent runs", "what runs, and what waits for somebody"),
    ("stille agent show RUN", "its steps, effects, approvals and tokens"),
    ('stille agent approve RUN --note "checked by phone"', "let it go on"),
    ("stille agent resolve KEY --not-happened", "an effect whose outcome nobody recorded"),
    ("stille agent audit verify", "was the log changed?"),
)
EXAMPLES_RUNS = examples(
    ("stille agent runs", "the newest hundred"),
    ("stille agent runs --state parked", "those with an effect to resolve"),
    ("stille agent runs --json | jq '.[].id'", "for scripts"),
    ("stille agent runs --db postgresql://me@host/runs", "of another database"),
)
EXAMPLES_SHOW = examples(
    ("stille agent show loan-17", "as tables"),
    ("stille agent show loan-17 --json", "all that is recorded, inputs and results too"),
)
EXAMPLES_APPROVE = examples(
    ("stille agent approve loan-17", "the only thing that it waits for"),
    ("stille agent approve loan-17 --id a1 --by ann", "one of several, in somebody's name"),
    ('stille agent approve loan-17 --reject --note "limit exceeded"', "the model is told the note"),
)
EXAMPLES_RESOLVE = examples(
    ("stille agent resolve wire:loan-17 --not-happened", "it is done again"),
    ("stille agent resolve wire:loan-17 --happened --result '{\"id\": 9}'", "with what the tool would have said"),
    note="Look into the other side's books first: what is done again although it happened is done twice.",
)
EXAMPLES_REPLAY = examples(
    ("stille agent replay loan-17 --code flows.py", "does the code still do what it did then?"),
    ("stille agent replay loan-17 --code shop.flows", "workflows of a module"),
    note="No model, tool or person is asked: the workflow gets the recorded results, and may ask for nothing else.",
)
EXAMPLES_AUDIT = examples(
    ("stille agent audit verify", "exit status 1 if an entry was changed, removed or inserted"),
    ("stille agent audit verify --sequence 812 --hash 5f3a...", "and whether it still contains a head noted earlier"),
    ("stille agent audit export log.jsonl", "one entry a line"),
)
STATE_STYLES = {"parked": "red", "waiting": "yellow", "failed": "red", "running": "cyan", "done": "green"}


def _typer(name: str, help: str, epilog: str) -> typer.Typer:
    settings = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(
        name=name,
        help=help,
        epilog=epilog,
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings=settings,
    )


app = _typer("agent", "See what durable agent runs do, decide what they wait for, check their audit log.", EXAMPLES)
audit_app = _typer("audit", "Check the hash-chained audit log, or export it.", EXAMPLES_AUDIT)
app.add_typer(audit_app)

Db = Annotated[
    str | None,
    typer.Option(
        "--db",
        envvar="STILLE_AGENTS_DB",
        help="SQLite file or postgresql:// URL of the runs. (default: $STILLE_HOME/agents/runs.db, else "
        "~/.cache/stille/agents/runs.db)",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.", show_default=False)]
By = Annotated[str | None, typer.Option(help="Who decides, for the audit log. (default: your login)")]


@app.command("runs", epilog=EXAMPLES_RUNS)
def runs_command(
    db: Db = None,
    state: Annotated[
        str | None, typer.Option(help="queued, running, waiting, parked, done, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most runs to list.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first, with what they wait for."""
    from typing import get_args

    from stille.agents.runs import RunState, RunStore

    if state is not None and state not in get_args(RunState):
        raise typer.BadParameter(f"{state!r} is none of {', '.join(get_args(RunState))}", param_hint="--state")
    with _open(db) as database:
        found = RunStore(database).list(state, limit)  # type: ignore[arg-type]
    if as_json:
        _print_json([run.model_dump(mode="json") for run in found])
        return
    if not found:
        _console().print("no runs" if state is None else f"no runs that are {state}")
        return
    table = _table("run", "workflow", "state", "begun", "waits for")
    for run in found:
        table.add_row(run.id, run.workflow, _styled(run.state), _when(run.created), "\n".join(run.waits_for))
    _console().print(table)


@app.command("show", epilog=EXAMPLES_SHOW)
def show_command(run: RunId, db: Db = None, as_json: AsJson = False) -> None:
    """Show a run: its steps, effects, approvals, tokens and how it ended."""
    from stille.agents.runs import RunStore

    with _open(db) as database:
        found = RunStore(database).get(run)
    if as_json:
        _print_json(found.model_dump(mode="json"))
        return
    console = _console()
    console.print(f"{found.id}  {found.workflow}  ", _styled(found.state), f"  begun {_when(found.created)}")
    for reason in found.waits_for:
        console.print(f"waits for: {reason}", markup=False)
    if found.steps:
        table = _table("step", "seconds", "result")
        for step in found.steps:
            seconds = "" if step.seconds is None else f"{step.seconds:.2f}"
            table.add_row(step.name, seconds, _short(step.error if step.error is not None else step.result))
        console.print(table)
    if found.effects:
        table = _table("effect", "tool", "state", "attempts", "outcome")
        for effect in found.effects:
            state = _styled("parked" if effect.state == "unknown" else effect.state)
            table.add_row(effect.key, effect.tool, state, str(effect.attempts), _short(effect.outcome))
        console.print(table)
    if found.approvals:
        table = _table("approval", "tool", "arguments", "reason", "decided")
        for asked in found.approvals:
            decided = "waits" if asked.verdict is None else f"{asked.verdict} by {asked.by} {asked.note}".rstrip()
            table.add_row(asked.id, asked.tool, _short(asked.arguments), asked.reason, decided)
        console.print(table)
    usage = found.usage
    if usage.prompt_tokens:
        console.print(
            f"tokens: {usage.prompt_tokens:,} prompt ({usage.cached_tokens:,} cached), {usage.completion_tokens:,} made"
        )
    if found.error is not None:
        console.print(f"failed: {found.error['type']}: {found.error['message']}", markup=False)
    elif found.state == "done":
        console.print(f"result: {_short(found.result, 2000)}", markup=False)


@app.command("approve", epilog=EXAMPLES_APPROVE)
def approve_command(
    run: RunId,
    reject: Annotated[bool, typer.Option("--reject", help="Say no.")] = False,
    note: Annotated[str, typer.Option(help="Is told to the model, and logged.")] = "",
    id: Annotated[str | None, typer.Option("--id", help="Which approval, if the run waits for several.")] = None,
    by: By = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Approve, or reject, what a run waits for. The first decision stands."""
    from stille.agents.approvals import Approvals

    with _open(db) as database:
        done = Approvals(database).decide(run, "reject" if reject else "approve", by or getpass.getuser(), note, id)
    if as_json:
        _print_json(done.model_dump(mode="json"))
    else:
        said = "rejected" if reject else "approved"
        _console().print(f"{said}: {done.tool} {_short(done.arguments)} of run {done.run}", markup=False)


@app.command("resolve", epilog=EXAMPLES_RESOLVE)
def resolve_command(
    key: Annotated[str, typer.Argument(help="Of the effect.", show_default=False)],
    happened: Annotated[
        bool | None,
        typer.Option("--happened/--not-happened", help="What the other side's books say.", show_default=False),
    ] = None,
    result: Annotated[str | None, typer.Option(help="JSON that the tool would have given, if it happened.")] = None,
    by: By = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Say what became of a parked effect, so that its run goes on."""
    from stille.agents.effects import Effects

    if happened is None:
        raise typer.BadParameter("say --happened or --not-happened")
    if result is not None and not happened:
        raise typer.BadParameter("what did not happen has no result", param_hint="--result")
    try:
        value = None if result is None else json.loads(result)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--result") from error
    with _open(db) as database:
        done = Effects(database).resolve(key, happened, value, by or getpass.getuser())
    if as_json:
        _print_json(done.model_dump(mode="json"))
    else:
        then = "its result is recorded" if happened else "it will be done again"
        _console().print(f"resolved: {done.key} of run {done.run}; {then}", markup=False)


@app.command("replay", epilog=EXAMPLES_REPLAY)
def replay_command(
    run: RunId,
    code: Annotated[
        str, typer.Option("--code", help="Python file or module with the workflow; it is imported.", show_default=False)
    ],
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Run a workflow again against what is recorded of a run, and compare."""
    from stille.agents.replay import replay
    from stille.agents.runs import RunStore

    with _open(db) as database:
        found = RunStore(database).get(run)
    result = asyncio.run(replay(_workflow(code, found.workflow), found))
    if as_json:
        _print_json({"run": found.id, "steps": len(found.steps), "result": result})
    else:
        _console().print(f"the same {len(found.steps)} steps, the same end: {_short(result, 2000)}", markup=False)


@audit_app.command("verify", epilog=EXAMPLES_AUDIT)
def verify_command(
    sequence: Annotated[int | None, typer.Option(min=1, help="Number of a head that was noted.")] = None,
    hash: Annotated[str | None, typer.Option("--hash", help="Its hash.")] = None,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Check the chain of hashes, and name the first entry that is wrong. Exit status 1 if there is one."""
    from stille.agents.audit import AuditHead, AuditLog

    if (sequence is None) != (hash is None):
        raise typer.BadParameter("--sequence and --hash belong together")
    known = None if sequence is None or hash is None else AuditHead(sequence=sequence, hash=hash)
    with _open(db) as database:
        log = AuditLog(database)
        verdict, head = log.verify(known), log.head()
    if as_json:
        _print_json({"ok": verdict.ok, **verdict.model_dump(), "head": head.model_dump()})
    elif verdict.ok:
        _console().print(f"{verdict.entries:,} entries, all as they were written; head {head.sequence} {head.hash}")
    else:
        _console().print(f"entry {verdict.sequence}: {verdict.problem}", markup=False, style="red")
    if not verdict.ok:
        raise typer.Exit(1)


@audit_app.command("export", epilog=EXAMPLES_AUDIT)
def export_command(
    path: Annotated[Path, typer.Argument(help="JSONL file to write.", show_default=False)],
    run: Annotated[str | None, typer.Option("--run", help="Only entries of this run.")] = None,
    db: Db = None,
) -> None:
    """Write the log as JSONL."""
    from stille.agents.audit import AuditLog

    with _open(db) as database:
        count = AuditLog(database).export(path, run)
    _console().print(f"{count:,} entries in {path}", markup=False)


@contextlib.contextmanager
def _open(db: str | None) -> Iterator[Database]:
    from stille.agents.database import Database

    database = Database(db, create=False)
    try:
        yield database
    finally:
        database.close()


def _workflow(code: str, name: str) -> Workflow:
    from stille.agents.durable import Workflow
    from stille.errors import ConfigError

    if code.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(code).stem, code)
        if spec is None or spec.loader is None or not Path(code).exists():
            raise ConfigError(f"there is no Python file {code}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(code)
        except ModuleNotFoundError as error:
            raise ConfigError(f"there is no module {code} to import: {error}") from error
    found = {flow.name: flow for flow in vars(module).values() if isinstance(flow, Workflow)}
    if name not in found:
        raise ConfigError(f"{code} has no workflow {name!r}; it has {', '.join(sorted(found)) or 'none'}")
    return found[name]


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _styled(state: str) -> Any:
    from rich.text import Text

    return Text(state, STATE_STYLES.get(state, ""))


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _short(value: Any, most: int = 100) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 1] + "…"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
