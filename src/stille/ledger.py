"""The results ledger: what was measured, against what, with which command, on which machine.

A benchmark makes a `Record` per figure with `measure` and stores them with `write`. The runs that the project stands by
are committed under `benchmarks/results/`, one file per first part of the id, and the tables in README and docs are
generated from them:

    python -m stille.ledger tables            # rewrite the tables between the markers
    python -m stille.ledger tables --check    # exit with 1 if one is out of date

In a Markdown file, `<!-- ledger:cpu -->` ... `<!-- /ledger -->` holds the table of every record whose id is `cpu` or
starts with `cpu.`; several prefixes may be given, separated by blanks.
"""

import argparse
import dataclasses
import json
import math
import operator
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from stille.errors import ConfigError

_ID = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
_CONDITION = re.compile(r"(value|ratio) (>=|<=|>|<|==) (-?[0-9][0-9_]*(?:\.[0-9]+)?)")
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_BLOCK = re.compile(r"(<!-- ledger:([a-z0-9_. ]+?) -->\n)(.*?)(<!-- /ledger -->)", re.DOTALL)
_SOURCES = ("src", "benchmarks/*.py", "pyproject.toml", "constraints.txt")  # what a figure depends on


@dataclass(frozen=True)
class Record:
    """One figure. Make it with `measure`, which fills in what can be computed.

    Attributes:
        id: dotted name, for example `cpu.decode.short`.
        value: the median of what was measured.
        unit: of value and baseline_value, for example `tok/s`.
        baseline: what it is held against, by name, version and settings; None if nothing.
        baseline_value: the same quantity of the baseline, from the same run.
        ratio: how many times better than the baseline, so that above 1 always means better.
        goal: conditions such as `ratio >= 1.8 and value <= 30`; None if there is none.
        met: whether value and ratio satisfy the goal; None without a goal.
        command: what to type to measure it again.
        machine: processor, memory, accelerator, Python and torch.
        commit: abbreviated hash of what was measured, `-dirty` if its sources had uncommitted changes.
        date: of the measurement, UTC, ISO 8601.
        notes: the first sentence says what the figure is; then how it was taken, and what to beware of.

    Raises:
        ConfigError: the id or goal cannot be read, a number is not finite, or ratio or met contradicts the rest.
    """

    id: str
    value: float
    unit: str
    baseline: str | None
    baseline_value: float | None
    ratio: float | None
    goal: str | None
    met: bool | None
    command: str
    machine: str
    commit: str
    date: str
    notes: str

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _ID.fullmatch(self.id):
            raise ConfigError(
                f"record id {self.id!r}: expected lower-case words joined by dots, like 'cpu.decode.short'"
            )
        for name in ("value", "baseline_value", "ratio"):
            number = getattr(self, name)
            if number is None and name != "value":
                continue
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ConfigError(f"record {self.id}: {name} is {number!r}; expected a finite number")
        if (self.baseline is None) != (self.baseline_value is None) or (self.baseline is None) != (self.ratio is None):
            raise ConfigError(f"record {self.id}: baseline, baseline_value and ratio go together; give all or none")
        if self.ratio is not None and self.baseline_value is not None:
            quotients = [_divide(self.value, self.baseline_value), _divide(self.baseline_value, self.value)]
            if not any(q is not None and math.isclose(self.ratio, q, rel_tol=1e-6) for q in quotients):
                raise ConfigError(f"record {self.id}: ratio {self.ratio} is neither value/baseline nor its inverse")
        if self.met != evaluate_goal(self.goal, self.value, self.ratio):
            raise ConfigError(f"record {self.id}: met is {self.met}, but the goal {self.goal!r} says otherwise")

    @property
    def summary(self) -> str:
        """The first sentence of the notes: what the figure is."""
        return re.split(r"(?<=[.!?]) ", self.notes, maxsplit=1)[0].rstrip(".")


def measure(
    id: str,
    value: float,
    unit: str,
    *,
    command: str,
    notes: str,
    better: Literal["higher", "lower"] = "higher",
    baseline: str | None = None,
    baseline_value: float | None = None,
    goal: str | None = None,
    machine: str | None = None,
    commit: str | None = None,
    date: str | None = None,
) -> Record:
    """Make a record of a figure: ratio, met, machine, commit and date are found out here.

    Args:
        better: which way is better, for the ratio: value/baseline_value if higher, its inverse if lower.

    Raises:
        ConfigError: see `Record`.
    """
    value, baseline_value = _plain(value), _plain(baseline_value)
    ratio = None
    if baseline_value is not None:
        ratio = _divide(value, baseline_value) if better == "higher" else _divide(baseline_value, value)
        if ratio is None:
            raise ConfigError(f"record {id}: no ratio of {value} and {baseline_value}; neither may be zero")
    return Record(
        id=id,
        value=value,
        unit=unit,
        baseline=baseline,
        baseline_value=baseline_value,
        ratio=ratio,
        goal=goal,
        met=evaluate_goal(goal, value, ratio),
        command=command,
        machine=machine if machine is not None else describe_machine(),
        commit=commit if commit is not None else describe_commit(),
        date=date if date is not None else datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        notes=notes,
    )


def _plain(number: Any) -> Any:
    """Numbers of numpy are no JSON."""
    return number.item() if hasattr(number, "item") else number


def arguments() -> str:
    """What this process was called with, for a record's command: without `--json` and where it leads."""
    given = iter(sys.argv[1:])
    kept = []
    for word in given:
        if word == "--json":
            next(given, None)
        elif not word.startswith("--json="):
            kept.append(word)
    return " ".join(kept)


def evaluate_goal(goal: str | None, value: float, ratio: float | None) -> bool | None:
    """Whether a goal such as `ratio >= 1.8 and value <= 30` holds; None without one.

    Raises:
        ConfigError: the goal cannot be read, or is about a ratio that is not there.
    """
    if goal is None:
        return None
    met = True
    for condition in goal.split(" and "):
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise ConfigError(f"goal {goal!r}: expected 'value >= 3' or 'ratio <= 1.5', several joined by ' and '")
        name, sign, limit = match.groups()
        number = value if name == "value" else ratio
        if number is None:
            raise ConfigError(f"goal {goal!r} is about a ratio, but there is no baseline")
        met &= _COMPARE[sign](number, float(limit))
    return met


def write(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Merge records into a JSON file by id, newest wins; other records in it stay. Atomic.

    Raises:
        ConfigError: the file exists and is not a ledger.
    """
    path = Path(path)
    merged = {record.id: record for record in (read(path) if path.exists() else [])}
    merged.update((record.id, record) for record in records)
    rows = [dataclasses.asdict(merged[id]) for id in sorted(merged)]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: str | os.PathLike[str]) -> list[Record]:
    """Read the records of a file, or of every .json file in a folder, sorted by id.

    Raises:
        ConfigError: a file is not a ledger, a record contradicts itself, or two files hold the same id.
    """
    path = Path(path)
    if path.is_dir():
        records: dict[str, Record] = {}
        for file in sorted(path.glob("*.json")):
            for record in read(file):
                if record.id in records:
                    raise ConfigError(f"{path}: the id {record.id} is in two files; one of them is {file.name}")
                records[record.id] = record
        return [records[id] for id in sorted(records)]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return sorted((Record(**row) for row in rows), key=lambda record: record.id)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a results ledger (a JSON list of records): {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def render_table(records: Sequence[Record]) -> str:
    """A Markdown table of records, and below it where and when they were measured."""
    lines = [
        "| figure | what | measured | baseline | ratio | goal | met | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        baseline = ratio = ""
        if record.baseline is not None and record.baseline_value is not None and record.ratio is not None:
            baseline = f"{format_number(record.baseline_value)} {record.unit}, {record.baseline}"
            ratio = f"{format_number(record.ratio)}x"
        met = {True: "yes", False: "**no**", None: ""}[record.met]
        cells = [
            f"`{record.id}`",
            record.summary,
            f"{format_number(record.value)} {record.unit}",
            baseline,
            ratio,
            re.sub(r"\s(and)\s", r", ", record.goal or "").replace(">=", "≥").replace("<=", "≤"),
            met,
            f"`{record.command}`",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    by_place: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        by_place.setdefault((record.machine, record.commit, record.date[:10]), []).append(record.id)
    lines.append("")
    for (machine, commit, date), ids in by_place.items():
        whose = "" if len(by_place) == 1 else " (" + ", ".join(f"`{id}`" for id in ids) + ")"
        lines.append(f"Measured {date} at `{commit}` on: {machine}{whose}.")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def format_number(number: float) -> str:
    """Three digits that matter, thousands apart: 1,234, 56.7, 0.123."""
    if number == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:,.{min(digits, 9)}f}"


def render_blocks(text: str, records: Sequence[Record]) -> str:
    """Replace what stands between the ledger markers of a Markdown text by tables.

    Raises:
        ConfigError: an opening marker without its end.
    """
    if len(re.findall(r"^<!-- ledger:", text, re.MULTILINE)) != len(_BLOCK.findall(text)):
        raise ConfigError("a '<!-- ledger:PREFIX -->' marker cannot be read or lacks its '<!-- /ledger -->'")

    def replace(match: re.Match[str]) -> str:
        prefixes = match[2].split()
        chosen = [r for r in records if any(r.id == p or r.id.startswith(p + ".") for p in prefixes)]
        table = render_table(chosen) if chosen else "Nothing has been recorded yet.\n"
        return f"{match[1]}{table}{match[4]}"

    return _BLOCK.sub(replace, text)


def describe_machine() -> str:
    """Processor, cores, memory, accelerator, Python and torch of this machine; no name that identifies it."""
    facts = [_describe_processor()]
    pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    facts.append(f"{pages * page_size / 2**30:.0f} GiB")
    try:
        import torch
    except ImportError:
        torch = None
    if torch is not None and torch.cuda.is_available():
        facts.append(f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})")
    facts.append(f"{platform.system()}, Python {platform.python_version()}")
    if torch is not None:
        facts.append(f"torch {torch.__version__}")
    return ", ".join(facts)


def describe_commit(root: str | os.PathLike[str] | None = None) -> str:
    """The abbreviated commit of the sources, `-dirty` if they differ from it; STILLE_COMMIT where there is no git."""
    root = Path(root) if root is not None else Path(__file__).resolve().parents[2]
    try:
        commit = _git(root, "rev-parse", "--short=10", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *_SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("STILLE_COMMIT", "unknown")
    return f"{commit}-dirty" if changes else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _describe_processor() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model, family, flags = platform.processor() or platform.machine(), "", set()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{cores} cores of {model}"
    facts = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", text.split("\n\n")[0], re.MULTILINE))
    model = re.sub(r"\((R|TM)\)", "", facts.get("model name", model))
    if "cpu family" in facts and "model" in facts:
        family = f" (family {facts['cpu family']}, model {facts['model']})"
    flags = set(facts.get("flags", "").split())
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if name in flags]
    return f"{cores} cores of {model}{family}" + (f" with {' '.join(known[1:] or known)}" if known else "")


def _divide(a: float, b: float) -> float | None:
    return a / b if b else None


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stille.ledger", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="name", required=True)
    tables = commands.add_parser("tables", help="rewrite the tables in Markdown files from recorded results")
    tables.add_argument("files", nargs="*", type=Path, help="default: README.md and docs/**/*.md")
    tables.add_argument("--root", type=Path, default=Path.cwd(), help="of the repository")
    tables.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table is out of date")
    chosen = parser.parse_args(arguments)
    records = read(chosen.root / "benchmarks" / "results")
    stale = 0
    for file in chosen.files or [chosen.root / "README.md", *sorted((chosen.root / "docs").glob("**/*.md"))]:
        text = file.read_text(encoding="utf-8")
        rendered = render_blocks(text, records)
        if rendered == text:
            continue
        stale += 1
        if not chosen.check:
            file.write_text(rendered, encoding="utf-8")
        sys.stdout.write(f"{file}: {'out of date; run make docs-tables' if chosen.check else 'rewritten'}\n")
    return 1 if chosen.check and stale else 0


if __name__ == "__main__":
    sys.exit(_main())
