"""How well a model calls the twelve tools of a simulated company: single turns, and tasks of five turns.

    python benchmarks/agents_tools.py                         # 131 turns and 40 tasks
    python benchmarks/agents_tools.py --json benchmarks/results/agents.json

The sentences (benchmarks/data/agents_tools) were written by hand for this. Models may have been trained to call the
same twelve tools in other companies (stille.train.toolcalls.company), but on none of these sentences, nor on the people
and the state of this one (stille.evals.toolworld). Answers are greedy and held to the grammar of all tools; whether to
call at all is the model's to decide. With --quoted the grammar also holds names and titles to words that were said or
that a tool returned; with --calendar the instructions show the weeks around today.

A turn is right if exactly the expected calls were made: the arguments equal, after defaults are filled in, people are
named in full, and case and white space are dropped. Where something is missing or no tool fits, no call is right,
whatever is said. A task is right if after its five turns, each led on from what the model itself did before, the
company's state is the expected one and every expected call was made in its turn; further calls that only read do no
harm. The baseline is an assistant that never calls.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stille import LLM, ledger
from stille.agents.evals import wilson
from stille.engine.calendar_text import calendar_text
from stille.engine.tool_grammar import Function
from stille.evals.tool_calls import Asked, Player, ToolCaller, converse
from stille.evals.toolworld import SYSTEM, TODAY, Company, specs

DATA = Path(__file__).parent / "data" / "agents_tools"
STEPS = 4
"""Most answers of the model in one turn of a task."""

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Scored:
    """Of a turn or a task.

    Attributes:
        kind: of a turn: "call", "several", "missing" or "none".
        right: it is as expected.
        problem: the first thing that was wrong.
        turns_right: of a task, how many of its turns had all expected calls before the first that had not.
    """

    kind: str
    right: bool
    problem: str = ""
    turns_right: int = 0


def main() -> int:
    options = parse()
    turns, tasks = (draw(read(name), options.limit, options.seed) for name in ("turns", "tasks"))
    llm = LLM(options.model, device=options.device, threads=options.threads, max_num_seqs=options.batch)
    ask = ToolCaller(llm, choice=options.choice, parallel=not options.single, max_tokens=options.tokens)
    tools = functions(options.quoted)
    told = f"{SYSTEM}\n\n{calendar_text(TODAY)}" if options.calendar else SYSTEM
    idle_turns = sum(not turn.get("calls") for turn in turns)
    records = []
    for name, goal, players, idle in (
        ("turn", "value >= 92", [play_turn(turn, tools, told) for turn in turns], idle_turns),
        ("task", "value >= 65", [play_task(task, tools, told) for task in tasks], sum(map(needs_nothing, tasks))),
    ):
        if name not in options.parts:
            continue
        begun = time.perf_counter()
        scored = converse(players, ask, batch=options.batch)
        print(table(name, scored, time.perf_counter() - begun), flush=True)
        records.append(record(name, goal, scored, idle, options))
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def read(name: str) -> list[dict[str, Any]]:
    """Turns or tasks of the data file."""
    with (DATA / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def draw(items: list[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), limit))]


def expected(turn: Mapping[str, Any]) -> list[Call]:
    return [(name, arguments) for call in turn.get("calls", ()) for name, arguments in call.items()]


@functools.cache
def functions(quoted: bool = False) -> list[Function]:
    """The company's tools as models see them.

    Args:
        quoted: with the marks of what is quoted, which models do not see.
    """
    return [Function(**each["function"]) for each in specs(quoted=quoted)]


def play_turn(turn: Mapping[str, Any], tools: Sequence[Function] | None = None, told: str = SYSTEM) -> Player[Scored]:
    company, wanted = Company(), expected(turn)
    said = yield Asked([_message("system", told), _message("user", turn["say"])], tools or functions())
    kind = "missing" if "lacks" in turn else "none" if not wanted else "call" if len(wanted) == 1 else "several"
    problem = said.error or difference(company, wanted, said.calls, exactly=True)
    problem = problem or ("a call was begun" if said.cut else "")
    return Scored(kind, not problem, problem)


def play_task(task: Mapping[str, Any], tools: Sequence[Function] | None = None, told: str = SYSTEM) -> Player[Scored]:
    company = Company()
    tools = tools or functions()
    messages: list[dict[str, Any]] = [_message("system", told)]
    problem, turns_right = "", 0
    for number, turn in enumerate(task["turns"], 1):
        messages.append(_message("user", turn["say"]))
        made: list[Call] = []
        for _ in range(STEPS):
            said = yield Asked(list(messages), tools)
            if said.error:
                return Scored("task", False, f"turn {number}: {said.error}", turns_right)
            messages.append(said.message())
            if not said.calls:
                break
            for index, (name, arguments) in enumerate(said.calls):
                result = json.dumps(company.call(name, arguments))
                messages.append({"role": "tool", "tool_call_id": f"call_{index}", "name": name, "content": result})
            made += said.calls
        wrong = difference(company, expected(turn), made, exactly=False)
        problem = problem or (f"turn {number}: {wrong}" if wrong else "")
        turns_right += not problem
    if not problem and company.snapshot() != gold(task).snapshot():
        problem = "the end state is another"
    return Scored("task", not problem, problem, turns_right)


def gold(task: Mapping[str, Any]) -> Company:
    """The company after a task as it should be."""
    company = Company()
    for turn in task["turns"]:
        for name, arguments in expected(turn):
            result = company.call(name, _first(arguments))
            if isinstance(result, dict) and "error" in result:
                raise ValueError(f"{turn['say']!r} cannot be done: {result['error']}")
    return company


def needs_nothing(task: Mapping[str, Any]) -> bool:
    return not any(turn.get("calls") for turn in task["turns"])


def difference(company: Company, wanted: Sequence[Call], made: Sequence[Call], *, exactly: bool) -> str:
    """What is wrong with the calls that were made; empty: nothing."""
    left = [company.canonical(*call) for call in made]
    for name, arguments in wanted:
        ways = [company.canonical(name, {**arguments, **way}) for way in _ways(arguments)]
        fitting = next((call for call in left if call in ways), None)
        if fitting is None:
            return f"expected {name}({_first(arguments)}), made {_shown(made)}"
        left.remove(fitting)
    return f"unexpected: {_shown(left)}" if exactly and left else ""


def _ways(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list as what to search for holds all words that would do."""
    query = arguments.get("query")
    return [{"query": each} for each in query] if isinstance(query, list) else [{}]


def _first(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {**arguments, **_ways(arguments)[0]}


def _shown(calls: Sequence[Call]) -> str:
    return ", ".join(f"{name}({arguments})" for name, arguments in calls) or "no call"


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def table(name: str, scored: Sequence[Scored], seconds: float) -> str:
    """Shares by kind, and the first things that went wrong."""
    lines = [f"{name}: {len(scored)} in {seconds:.0f} s"]
    for kind in dict.fromkeys(each.kind for each in scored):
        part = [each for each in scored if each.kind == kind]
        right = sum(each.right for each in part)
        low, high = wilson(right, len(part))
        lines.append(f"  {kind:8} {right:3} of {len(part):3}  {right / len(part):6.1%} [{low:.1%}, {high:.1%}]")
    if name == "task":
        lines.append(
            f"  turns right before the first wrong one: {sorted(Counter(e.turns_right for e in scored).items())}"
        )
    lines += [f"  {each.problem[:180]}" for each in scored if each.problem][:5]
    return "\n".join(lines)


def record(name: str, goal: str, scored: Sequence[Scored], idle: int, options: argparse.Namespace) -> ledger.Record:
    right = sum(each.right for each in scored)
    low, high = wilson(right, len(scored))
    what = {
        "turn": "Single turns in which exactly the expected calls of 12 tools were made",
        "task": "Five-turn tasks that ended in the expected state, every expected call made",
    }[name]
    kinds = [
        f"{kind} {sum(e.right for e in scored if e.kind == kind)} of {sum(e.kind == kind for e in scored)}"
        for kind in dict.fromkeys(each.kind for each in scored)
    ]
    choice = options.choice + (", one call an answer" if options.single else "")
    choice += ", names and titles quoted" if options.quoted else ""
    choice += ", the weeks around today in the instructions" if options.calendar else ""
    notes = (
        f"{what}. {right} of {len(scored)}, 95 % [{100 * low:.1f}, {100 * high:.1f}] ({', '.join(kinds)}); "
        f"{options.model}, tool choice {choice}, greedy, at most {options.tokens} tokens an answer. An "
        f"assistant that never calls gets {100 * idle / len(scored):.1f} %."
    )
    command = f"python benchmarks/agents_tools.py --model {options.model} --choice {options.choice}"
    command += (" --single" if options.single else "") + (" --quoted" if options.quoted else "")
    command += " --calendar" if options.calendar else ""
    command += f" --tokens {options.tokens} --parts {name}"
    return ledger.measure(
        f"agents.tools.{name}",
        100 * right / len(scored),
        "%",
        command=command + (f" --limit {options.limit} --seed {options.seed}" if options.limit else ""),
        notes=notes,
        goal=goal,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="stille-135m")
    parser.add_argument("--choice", choices=("auto", "required"), default="auto")
    parser.add_argument("--single", action="store_true", help="at most one call in an answer")
    parser.add_argument("--quoted", action="store_true", help="names and titles are words of the conversation")
    parser.add_argument("--calendar", action="store_true", help="the weeks around today in the instructions")
    parser.add_argument("--parts", nargs="+", choices=("turn", "task"), default=["turn", "task"])
    parser.add_argument("--limit", type=int, help="turns and tasks, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", help="ledger file to write to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
