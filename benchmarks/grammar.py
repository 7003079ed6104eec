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
import statistics
import sys
import time
from collections import Counter
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
    settings: dict[str, Any] = {"model": options.model, "max_model_len": 2048, "max_num_seqs": options.batch}
    llm = LLM(**settings, prefix_caching=False, max_draft_tokens=0)  # guesses would hide the cost
    records = [cost(llm, batch, options) for batch in sorted({1, options.batch})]
    if options.schemas:
        records += validity(LLM(**settings), options)
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
        machine=ledger.describe_machine(), command="python benchmarks/grammar.py",
        notes=f"Time that a grammar for every sequence adds to decoding, {batch} at once, {options.model}. "
        f"{options.tokens} tokens each, prompts included: {1e3 * bound / options.tokens:.3f} against "
        f"{1e3 * free / options.tokens:.3f} ms a step, medians of {options.rounds} in turn.",
    )  # fmt: skip


def validity(llm: LLM, options: argparse.Namespace) -> list[ledger.Record]:
    """Answers to many schemas, each held against its schema by another implementation."""
    files = sorted(options.schemas.rglob("*.json"))
    files = files[:: max(1, len(files) // options.count)]
    work, refused = [], Counter()
    for file in files:
        schema = json.loads(file.read_text(encoding="utf-8"))
        try:
            grammar = Grammar.json_schema(schema)
            llm.compile(SamplingParams(grammar=grammar))
            strict = jsonschema_rs.validator_for(schema, validate_formats=True)
            validator = jsonschema_rs.validator_for(schema, validate_formats=False)
        except InvalidRequestError as error:
            refused[str(error).partition(": ")[2].split(":")[0][:60]] += 1
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            refused[f"the checker: {str(error)[:40]}"] += 1
        else:
            work.append((file, schema, grammar, validator, strict))
    print(f"{len(work)} schemas, refused {sum(refused.values())}: {dict(refused.most_common(8))}", flush=True)
    ended = cut = formats = 0
    wrong: list[str] = []
    begun = time.perf_counter()
    for number, part in enumerate(work[at : at + 64] for at in range(0, len(work), 64)):
        prompts = [f"An example of JSON for the schema {json.dumps(schema)[:1500]}\n\n" for _, schema, *_ in part]
        params = [
            SamplingParams(n=options.samples, max_tokens=options.most, grammar=grammar, seed=1000 * number + at)
            for at, (_, _, grammar, *_) in enumerate(part)
        ]
        outputs = llm.generate(prompts, params, progress=False)
        for (file, *_, validator, strict), output in zip(part, outputs, strict=True):
            for answer in output.outputs:
                if answer.finish_reason != "stop":
                    cut += 1
                    continue
                ended += 1
                try:
                    instance = json.loads(answer.text)
                    validator.validate(instance)
                    formats += not strict.is_valid(instance)
                except ValueError as error:  # both kinds are one
                    wrong.append(f"{file.name}: {str(error).splitlines()[0][:120]} in {answer.text[:200]!r}")
        print(
            f"{ended + cut:,} answers, {cut:,} cut, {len(wrong)} wrong, {time.perf_counter() - begun:.0f} s", flush=True
        )
    for each in wrong[:20]:
        print("WRONG", each)
    return [
        ledger.measure(
            "grammar.valid", 100 * (ended - len(wrong)) / max(1, ended), "%", goal="value >= 100",
            machine=ledger.describe_machine(), command="python benchmarks/grammar.py --schemas FOLDER",
            notes=f"Answers that are valid for their JSON schema, of {ended:,} that ended by themselves, {len(work)} "
            f"schemas of JSONSchemaBench. {options.model}, temperature 1. {cut:,} more were cut at {options.most} "
            f"tokens; {sum(refused.values())} schemas were refused with a reason; {formats} answers are wrong only "
            "where formats are asserted. Wrong: " + ("; ".join(each[:150] for each in wrong[:3]) or "none") + ".",
        )
    ]  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="stille-135m")
    parser.add_argument("--batch", type=int, default=8, help="sequences at once")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer whose time is taken")
    parser.add_argument("--rounds", type=int, default=5, help="times that each side is timed")
    parser.add_argument("--schemas", type=Path, help="folder of JSON schemas")
    parser.add_argument("--count", type=int, default=300, help="of schemas, about")
    parser.add_argument("--samples", type=int, default=4, help="answers to each schema")
    parser.add_argument("--most", type=int, default=200, help="tokens of such an answer")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
