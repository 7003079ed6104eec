"""Evaluating agents: cases with checks of what was said, called and spent, and of the state in which it ended.

    cases = [Case("refund", "Refund invoice 7", [Called("refund", {"invoice": 7}), Within(calls=3)])]
    report = await evaluate(cases, run, repeats=5, file="finished.jsonl")

where `run` is an async function from a case to its `Outcome`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stille.agents.checks import Check, Outcome, shown
from stille.errors import ConfigError


@dataclass(frozen=True)
class Case:
    """One task and what its outcome must be like. All checks are made, so that all reasons are told.

    Attributes:
        name: unique among the cases.
        input: for the function that runs it.
        metadata: kept with its results, to tell kinds of cases apart.
    """

    name: str
    input: Any = None
    checks: Sequence[Check] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Of one run of a case.

    Attributes:
        repeat: number of the run, from 0.
        reasons: why it failed; none: it passed.
        error: it raised, or took too long; `reasons` say what.
    """

    case: str
    repeat: int
    reasons: tuple[str, ...]
    error: bool = False
    seconds: float = 0.0
    tokens: int = 0
    calls: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class Report:
    """Results in order of the cases, repeats of one together."""

    results: Sequence[Result]

    @property
    def passed(self) -> int:
        return sum(result.passed for result in self.results)

    @property
    def pass_rate(self) -> float:
        return self.passed / len(self.results)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the pass rate, 95 %, as if all runs were independent; repeats of a case are not quite."""
        return wilson(self.passed, len(self.results))

    def pass_hat(self, k: int) -> float:
        """pass^k: how likely k runs of a case all pass, the mean over cases (Yao et al., tau-bench).

        Raises:
            ConfigError: a case ran fewer than k times.
        """
        parts = _by_case(self).values()
        if k < 1 or any(len(part.results) < k for part in parts):
            raise ConfigError(
                f"pass^{k} needs k >= 1 and at least {k} runs of every case; run with repeats={max(k, 1)}"
            )
        return sum(math.comb(part.passed, k) / math.comb(len(part.results), k) for part in parts) / len(parts)

    def by(self, key: str) -> dict[Any, Report]:
        """A report for each value of something in the metadata."""
        return _grouped(self, lambda result: result.metadata.get(key))

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        repeats = min(len(part.results) for part in _by_case(self).values())
        return {
            "runs": len(self.results),
            "passed": self.passed,
            "pass_rate": self.pass_rate,
            "low": low,
            "high": high,
            "pass_hat": {str(k): self.pass_hat(k) for k in range(1, repeats + 1)},
            "results": [asdict(result) | {"passed": result.passed} for result in self.results],
        }

    def to_markdown(self) -> str:
        """A line for each case, with the first reason of its first failure."""
        low, high = self.interval
        lines = [f"{self.passed} of {len(self.results)} runs passed: {self.pass_rate:.1%} [{low:.1%}, {high:.1%}]", ""]
        lines += ["| case | passed | seconds | tokens | calls | why not |", "|---|---:|---:|---:|---:|---|"]
        for name, part in _by_case(self).items():
            runs = part.results
            why = next((result.reasons[0] for result in runs if not result.passed), "")
            means = [
                sum(values) / len(runs) for values in zip(*((r.seconds, r.tokens, r.calls) for r in runs), strict=True)
            ]
            cells = [name, f"{part.passed}/{len(runs)}", f"{means[0]:.2f}", f"{means[1]:.0f}", f"{means[2]:.1f}", why]
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        return "\n".join(lines) + "\n"

    def to_junit(self, name: str = "agents") -> str:
        """JUnit's XML, which CI systems read: a test case for each run."""
        from xml.etree import ElementTree

        errors = sum(result.error for result in self.results)
        counts = {"tests": len(self.results), "failures": len(self.results) - self.passed - errors, "errors": errors}
        seconds = sum(result.seconds for result in self.results)
        about = {"name": _xml(name), "time": f"{seconds:.3f}"} | {key: str(count) for key, count in counts.items()}
        root = ElementTree.Element("testsuites", about)
        suite = ElementTree.SubElement(root, "testsuite", about)
        for result in self.results:
            title = result.case if result.repeat == 0 else f"{result.case} (repeat {result.repeat})"
            place = {"classname": _xml(name), "name": _xml(title), "time": f"{result.seconds:.3f}"}
            case = ElementTree.SubElement(suite, "testcase", place)
            if not result.passed:
                kind = "error" if result.error else "failure"
                why = ElementTree.SubElement(case, kind, {"message": _xml(result.reasons[0])})
                why.text = _xml("\n".join(result.reasons))
        ElementTree.indent(root)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


async def evaluate(
    cases: Sequence[Case],
    run: Callable[[Case], Awaitable[Outcome]],
    *,
    concurrency: int = 8,
    repeats: int = 1,
    timeout: float | None = None,
    file: str | Path | None = None,
    setting: str = "",
) -> Report:
    """Runs all cases and checks their outcomes. Progress is shown on stderr if that is a terminal.

    Args:
        concurrency: runs at a time.
        timeout: seconds for one run.
        file: JSONL of finished runs: those in it, of the same setting and case, are not run again. What raised or took
            too long is not kept. After a change of checks take another file: functions cannot be compared.
        setting: what else results depend on, for example the model.

    Raises:
        ConfigError: no cases, two of one name, an input that is no JSON although there is a file, or a file of
            something else.
    """
    names = {case.name for case in cases}
    if not cases or len(names) < len(cases):
        raise ConfigError("there are no cases" if not cases else "two cases have the same name; results go by it")
    if concurrency < 1 or repeats < 1:
        raise ConfigError(f"concurrency is {concurrency} and repeats {repeats}; both must be at least 1")
    store = _Finished(Path(file)) if file is not None else None
    todo = [(case, repeat) for case in cases for repeat in range(repeats)]
    results: dict[tuple[str, int], Result] = {}
    keys = {} if store is None else {(case.name, n): _key(setting, case, n) for case, n in todo}
    for place, key in keys.items():
        if store is not None and (known := store.known.get(key)) is not None:
            results[place] = known
    waiting = iter([(case, n) for case, n in todo if (case.name, n) not in results])
    with _progress(len(todo), len(results)) as advance:

        async def work() -> None:
            for case, repeat in waiting:
                result = await _run(case, repeat, run, timeout)
                results[case.name, repeat] = result
                if store is not None and not result.error:
                    store.add(keys[case.name, repeat], result)
                advance()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(todo))):
                group.create_task(work())
    return Report([results[case.name, repeat] for case, repeat in todo])


def wilson(passed: int, runs: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval)."""
    if not 0 <= passed <= runs or not runs:
        raise ConfigError(f"no interval for {passed} of {runs}")
    z = 1.959963984540054
    share, spread = passed / runs, z * z / runs
    middle = share + spread / 2
    reach = z * math.sqrt((share * (1 - share) + spread / 4) / runs)
    return max(0.0, (middle - reach) / (1 + spread)), min(1.0, (middle + reach) / (1 + spread))


async def _run(case: Case, repeat: int, run: Callable[[Case], Awaitable[Outcome]], timeout: float | None) -> Result:
    begun = time.perf_counter()
    about = {"case": case.name, "repeat": repeat, "metadata": case.metadata}
    try:
        async with asyncio.timeout(timeout):
            outcome = await run(case)
    except Exception as error:
        seconds = time.perf_counter() - begun
        late = timeout is not None and isinstance(error, TimeoutError) and seconds >= timeout
        why = f"took longer than {timeout:g} seconds" if late else f"raised {type(error).__name__}: {error}"
        return Result(reasons=(why,), error=True, seconds=seconds, **about)
    outcome = replace(outcome, seconds=time.perf_counter() - begun)
    reasons = tuple(why for check in case.checks if (why := _checked(check, outcome)) is not None)
    tokens = outcome.usage.prompt_tokens + outcome.usage.completion_tokens
    return Result(reasons=reasons, seconds=outcome.seconds, tokens=tokens, calls=len(outcome.called), **about)


def _checked(check: Check, outcome: Outcome) -> str | None:
    try:
        return check(outcome)
    except Exception as error:  # a check that meets what it did not expect does not hold
        return f"the check {shown(check)} raised {type(error).__name__}: {error}"


class _Finished:
    """Results in a JSONL file; a line that was cut off while it was written does not count."""

    def __init__(self, path: Path):
        self.path, self.known = path, {}
        try:
            content = path.read_bytes() if path.exists() else b""
            self._whole = content.rfind(b"\n") + 1
            self._torn = self._whole < len(content)
            for line in content[: self._whole].splitlines():
                row = json.loads(line)
                key = row.pop("key")
                self.known[key] = Result(**row | {"reasons": tuple(row["reasons"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is no file of finished cases ({error!r}); choose another one") from error

    def add(self, key: str, result: Result) -> None:
        line = json.dumps({"key": key, **asdict(result)}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self._torn else "ab") as file:
            if self._torn:
                file.truncate(self._whole)
                file.seek(self._whole)
                self._torn = False
            file.write(line.encode())


def _key(setting: str, case: Case, repeat: int) -> str:
    try:
        json.dumps(case.metadata)  # goes into the file too
        text = json.dumps([setting, case.name, case.input, repeat], sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"input or metadata of {case.name!r} is no JSON ({error}); leave the file out") from error
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextlib.contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[], None]]:
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("cases", total=total, completed=done)
        yield lambda: bar.advance(task)


def _by_case(report: Report) -> dict[str, Report]:
    return _grouped(report, lambda result: result.case)


def _grouped(report: Report, key: Callable[[Result], Any]) -> dict[Any, Report]:
    parts: dict[Any, list[Result]] = {}
    for result in report.results:
        parts.setdefault(key(result), []).append(result)
    return {value: Report(part) for value, part in parts.items()}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _xml(text: str) -> str:
    """Without the characters that XML cannot say."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
