"""Answers that follow JSON schemas: whether they are all valid, and what following costs.

    python benchmarks/grammar.py                                          # what it costs, on a CPU or a GPU
    python benchmarks/grammar.py --schemas FOLDER --json benchmarks/results/grammar.json

--schemas: .json files, anywhere below the folder; of JSONSchemaBench (Geng et al., arXiv:2501.10868, on GitHub
guidance-ai/jsonschemabench) the folder `data`. Every k-th is taken, so that all its parts are there. Each is shown to
the model, which answers at temperature 1 with different seeds; an answer that ended by itself has to be valid for its
schema by another implementation (jsonschema-rs). What `max_tokens` cut, schemas that are refused, and answers that are
only wrong where "format" is asserted (which JSON Schema leaves open) are counted apart. The cost is that of whole
steps, the same number of tokens with and without, in turn.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema_rs
import torch

from stille import LLM, Grammar, SamplingParams, ledger
from stille.errors import InvalidRequestError

LONG = Grammar.json_schema(
    {
        "type": "array",
        "minItems": 1000,
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 40}, "count": {"type": "integer", "maximum": 999}},
            "required": ["name", "count"],
            "additionalProperties": False,
        },
    }
)
PROMPT = "A list of what is in the shed, as JSON:"


def main() -> int:
    options = parse()
    records: list[ledger.Record] = []
    if not options.schemas:
        # Guesses would hide the cost.
        llm = LLM(
            options.model, max_model_len=2048, max_num_seqs=options.batch, prefix_caching=False, max_draft_tokens=0
        )
        records = [cost(llm, batch, options) for batch in sorted({1, options.batch})]
    if options.schemas:
        records = validity(options)
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def cost(llm: LLM, batch: int, options: argparse.Namespace) -> ledger.Record:
    """Time of a step with a grammar for every sequence, against the same without."""
    prompts = [f"{number}. {PROMPT}" for number in range(batch)]
    sides = {
        "free": SamplingParams(max_tokens=options.tokens, temperature=0, ignore_eos=True),
        "bound": SamplingParams(max_tokens=options.tokens, temperature=0, grammar=LONG),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):
        for name, params in sides.items():
            begun = time.perf_counter()
            outputs = llm.generate(prompts, params, progress=False)
            taken = time.perf_counter() - begun
            for output in outputs:
                answer = output.outputs[0]
                if len(answer.token_ids) != options.tokens or (
                    name == "bound" and not answer.text.startswith('[{"name"')
                ):
                    raise SystemExit(f"WRONG: {name} answered {answer.text[:80]!r}; nothing is recorded")
            if turn:
                seconds[name].append(taken)
    free, bound = (statistics.median(seconds[name]) for name in sides)
    kind, suffix = "gpu." if torch.cuda.is_available() else "", "" if batch == 1 else f".batch{batch}"
    return ledger.measure(
        f"grammar.{kind}overhead{suffix}", 100 * (bound - free) / free, "%", goal="value <= 5",
        machine=ledger.describe_machine(), command=f"python benchmarks/grammar.py {ledger.arguments()}".strip(),
        notes=f"Time that a grammar for every sequence adds to decoding, {batch} at once, {options.model}. "
        f"{options.tokens} tokens each, prompts included: {1e3 * bound / options.tokens:.3f} against "
        f"{1e3 * free / options.tokens:.3f} ms a step, medians of {options.rounds} in turn.",
    )  # fmt: skip


@dataclass
class Tally:
    """What one process saw, or all. `wrong` has the cases, `counted` says how many schemas have 100 answers that ended,
    `asked` how often answers were asked for, by which seeds are told apart."""

    schemas: int = 0
    counted: int = 0
    ended: int = 0
    cut: int = 0
    tokens: int = 0
    formats: int = 0
    beyond: int = 0
    invalid: int = 0
    asked: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


@dataclass
class Case:
    """One schema: what its answers are held against, and how it went."""

    name: str
    prompt: list[int]
    grammar: Grammar
    validator: Any
    strict: Any
    ended: int = 0
    cut: int = 0


def validity(options: argparse.Namespace) -> list[ledger.Record]:
    """Answers to many schemas, each held against its schema by another implementation."""
    begun = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        tallies = list(pool.map(answers_of, range(options.processes), [options] * options.processes))
    total, before = Tally(), Tally()
    if options.tally and options.tally.exists():
        before = Tally(**json.loads(options.tally.read_text(encoding="utf-8")))
    for tally in [before, *tallies]:
        for name in ("ended", "cut", "tokens", "formats", "beyond", "invalid"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.wrong += tally.wrong
    total.asked = before.asked + max(tally.asked for tally in tallies)
    total.schemas, total.refused = tallies[0].schemas, tallies[0].refused
    total.counted = min(tally.counted for tally in tallies)
    if options.tally:
        partial_file = options.tally.with_suffix(".partial")
        partial_file.write_text(json.dumps(vars(total)), encoding="utf-8")
        partial_file.replace(options.tally)
    for each in total.wrong[:20]:
        print("WRONG", each)
    command = f"python benchmarks/grammar.py {ledger.arguments()}"
    machine = ledger.describe_machine()
    return [
        ledger.measure(
            "grammar.valid.answers", total.ended, "answers", goal="value >= 1000000", machine=machine, command=command,
            notes="Answers that were held against their JSON schemas (see grammar.valid).",
        ),
        ledger.measure(
            "grammar.valid", 100 * (1 - total.invalid / max(1, total.ended)), "%", goal="value >= 100",
            machine=machine, command=command,
            notes=f"Answers that are valid for their JSON schema, of {total.ended:,} that ended by themselves, "
            f"{total.schemas} schemas of JSONSchemaBench, {total.counted} of them with at least 100 such answers in "
            f"each of {options.processes} processes. {options.model}, temperature 1, "
            f"{(total.tokens - before.tokens) / (time.perf_counter() - begun):,.0f} tokens a second, loading and "
            f"checks included. {before.ended:,} of the answers are of earlier runs with other seeds. "
            f"{total.cut:,} more were cut at {options.most} tokens; after the first round schemas are left out of "
            f"which most answers are cut. {sum(total.refused.values())} schemas were refused with a reason; "
            f"{total.formats:,} answers are wrong only where formats are asserted; {total.beyond:,} hold a number "
            f"beyond what a double can say, checked as the largest that it can. {total.invalid} wrong: "
            + ("; ".join(each[:150] for each in total.wrong[:3]) or "none") + ".",
        ),
    ]  # fmt: skip


def answers_of(process: int, options: argparse.Namespace) -> Tally:
    """Asks for answers until a process's share of them has ended by itself, or its time is over."""
    tally = Tally()
    os.environ["CUDA_VISIBLE_DEVICES"] = options.gpus[process % len(options.gpus)]
    llm = LLM(options.model, max_model_len=1024, max_num_seqs=options.batch, kv_cache_tokens=options.batch * 640)
    cases = prepare(llm, options, tally)
    tally.schemas = len(cases)
    if process == 0:
        print(f"{len(cases)} schemas; refused: {dict(tally.refused.most_common(8))}", flush=True)
    begun, number, ended = time.perf_counter(), 0, 0
    if options.tally and options.tally.exists():
        earlier = json.loads(options.tally.read_text(encoding="utf-8"))
        number, ended = earlier["asked"], earlier["ended"]
    first, share = number, (options.answers - ended) / options.processes
    while True:
        for at in range(0, len(cases), 48):
            part = cases[at : at + 48]
            ask(llm, part, 1_000_000 * process + 1_000 * number, options, tally)
            number += 1
            tally.asked = number - first
            taken = time.perf_counter() - begun
            print(
                f"{process}: {tally.ended:,} answers of {share:,.0f}, {tally.cut:,} cut, {tally.invalid} wrong, "
                f"{tally.tokens / taken:,.0f} tok/s, {taken:.0f} s",
                flush=True,
            )
            if tally.ended >= share or taken > 60 * options.minutes:
                tally.counted = sum(case.ended >= 100 for case in cases)
                return tally
        going = [case for case in cases if case.ended > case.cut]
        cases = going if len(going) >= 200 else sorted(cases, key=lambda c: -c.ended / (c.ended + c.cut))[:200]


def ask(llm: LLM, cases: list[Case], seed: int, options: argparse.Namespace, tally: Tally) -> None:
    """Some answers to each of some schemas."""
    params = [
        SamplingParams(n=options.samples, max_tokens=options.most, grammar=case.grammar, seed=(seed + at) << 16)
        for at, case in enumerate(cases)
    ]
    outputs = llm.generate([case.prompt for case in cases], params, progress=False)
    for case, output in zip(cases, outputs, strict=True):
        for answer in output.outputs:
            tally.tokens += len(answer.token_ids)
            if answer.finish_reason != "stop":
                tally.cut += 1
                case.cut += 1
                continue
            tally.ended += 1
            case.ended += 1
            large: list[str] = []
            try:
                instance = json.loads(answer.text, parse_float=partial(as_double, large))
                tally.beyond += bool(large)
                case.validator.validate(instance)
                tally.formats += not case.strict.is_valid(instance)
            except ValueError as error:  # both kinds are one
                tally.invalid += 1
                tally.wrong.append(f"{case.name}: {str(error).splitlines()[0][:120]} in {answer.text[:200]!r}")


def as_double(large: list[str], text: str) -> float:
    """The nearest double; what is beyond all of them is noted."""
    value = float(text)
    if math.isinf(value):
        large.append(text)
        value = math.copysign(sys.float_info.max, value)
    return value


def prepare(llm: LLM, options: argparse.Namespace, tally: Tally) -> list[Case]:
    """The schemas that can be used. Prompts end one token after a page, so that a schema's answers share all of it."""
    files = sorted(options.schemas.rglob("*.json"))
    cases = []
    for file in files[:: max(1, len(files) // options.count)]:
        schema = json.loads(file.read_text(encoding="utf-8"))
        try:
            grammar = Grammar.json_schema(schema)
            llm.compile(SamplingParams(grammar=grammar))
            strict = jsonschema_rs.validator_for(schema, validate_formats=True)
            validator = jsonschema_rs.validator_for(schema, validate_formats=False)
        except InvalidRequestError as error:
            tally.refused[str(error).partition(": ")[2].split(":")[0][:60]] += 1
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            tally.refused[f"the checker: {str(error)[:40]}"] += 1
        else:
            text = f"An example of JSON, as short as possible, for the schema {json.dumps(schema)[:1500]}\n\n"
            ids = llm.tokenizer.encode(text + " " * 64)
            cases.append(Case(file.name, ids[: min(8, (len(ids) - 1) // 64) * 64 + 1], grammar, validator, strict))
    return cases


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="stille-135m")
    parser.add_argument("--batch", type=int, default=8, help="sequences at once")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer whose time is taken")
    parser.add_argument("--rounds", type=int, default=5, help="times that each side is timed")
    parser.add_argument("--schemas", type=Path, help="folder of JSON schemas")
    parser.add_argument("--count", type=int, default=300, help="of schemas, about")
    parser.add_argument("--answers", type=int, default=1_000, help="that have to end by themselves")
    parser.add_argument("--minutes", type=float, default=60, help="after which there are as many as there are")
    parser.add_argument("--samples", type=int, default=4, help="answers to each schema in one round")
    parser.add_argument("--tally", type=Path, help="file that is added to: the same command again goes on")
    parser.add_argument("--most", type=int, default=200, help="tokens of such an answer")
    parser.add_argument("--processes", type=int, default=1, help="with an engine each")
    parser.add_argument("--gpus", nargs="+", default=["0"], help="that they are shared out to")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
