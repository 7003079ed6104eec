"""RULER with HSA against full attention on one model: the same samples, question and decode sparse too.

    python benchmarks/hsa_ruler.py --model FOLDER --prepare               # make the samples, nothing else
    python benchmarks/hsa_ruler.py --model FOLDER --json results.json     # answer, compare, record
    python benchmarks/hsa_ruler.py --model FOLDER --settings full         # a part of it
    python benchmarks/hsa_ruler.py --combine answers.jsonl more.jsonl --record hsa:2048 --json results.json

Samples are made by as many processes as there are cores, and kept in --samples-file; answers are kept in --answers as
they come, so that a run goes on where it was cut off, and settings may be run apart and combined. A setting is `full`,
or `hsa` with what differs from the default `HSAConfig`: `hsa:2048`, `hsa:2048:dense_below=0`.

The figure is retention: mean score with HSA / mean score with full attention, over the tasks that full attention solves
to at least half, each of the same weight; with a paired bootstrap interval. docs/evals.md says what the tasks are.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path

from stille.errors import StilleError
from stille.evals import protocol, report, ruler, statistics
from stille.evals.protocol import Answer, AnswerStore
from stille.evals.ruler import Sample
from stille.evals.settings import Setting, code_fingerprint, fingerprint, parse_settings
from stille.ledger import Record, measure, write

COMMAND = "python benchmarks/hsa_ruler.py --model FOLDER"
GOAL = "value >= 0.997"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="stille-135m", help="known name, folder or .gguf")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384], help="tokens of prompt and answer")
    parser.add_argument("--tasks", nargs="+", default=["all"])
    parser.add_argument("--samples", type=int, default=20, help="per task and length")
    parser.add_argument("--seed", type=int, default=ruler.SEED)
    parser.add_argument("--settings", nargs="+", default=["full", "hsa"])
    parser.add_argument("--record", help="the setting whose retention is recorded; default: the first hsa")
    parser.add_argument("--chat", action="store_true", help="prompts in the model's chat format")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-num-seqs", type=int, help="of the engine; fewer start sooner")
    parser.add_argument("--max-num-batched-tokens", type=int, help="of the engine")
    parser.add_argument("--batch", type=int, default=256, help="samples between two writes of answers")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that make samples")
    parser.add_argument("--samples-file", type=Path, default=Path("build/ruler-samples.jsonl.gz"))
    parser.add_argument("--answers", type=Path, default=Path("build/ruler-answers.jsonl"))
    parser.add_argument("--prepare", action="store_true", help="make the samples, and stop")
    parser.add_argument("--combine", type=Path, nargs="+", help="compare the answers in these files; runs no model")
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    return parser.parse_args()


def prepared(chosen: argparse.Namespace, tokenizer: object, model: str) -> list[Sample]:
    """The samples, from the file if it holds just these, made and saved otherwise."""
    tasks = ruler.select_tasks(chosen.tasks)
    about = {"tokenizer": tokenizer_hash(tokenizer), "tasks": tasks, "lengths": chosen.lengths, "seed": chosen.seed}
    about |= {"samples": chosen.samples, "chat": chosen.chat}
    if chosen.samples_file.exists():
        samples, found = ruler.load_samples(chosen.samples_file)
        if found == about:
            return samples
    begin = time.perf_counter()
    samples = ruler.make_samples(
        tokenizer, tasks, chosen.lengths, chosen.samples, chosen.seed, chat=chosen.chat, workers=chosen.workers
    )
    ruler.save_samples(chosen.samples_file, samples, about)
    print(f"{len(samples)} samples made in {time.perf_counter() - begin:.1f} s", flush=True)
    return samples


def tokenizer_hash(tokenizer: object) -> str:
    """Of the text that the tokenizer makes these tokens from and back: enough to tell a file of samples is its."""
    import hashlib

    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else str(type(tokenizer))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def answer(
    chosen: argparse.Namespace, setting: Setting, model: str, samples: list[Sample], store: AnswerStore
) -> list[Answer]:
    """All samples under one setting; the engine is built only if an answer is missing."""
    import torch

    from stille import LLM
    from stille.evals.backends import engine_generate

    begin, done, engines = time.perf_counter(), 0, []

    def make():
        extra = {} if setting.hsa is None else {"hsa": setting.hsa}
        # No prefix cache: every sample stands for itself.
        engines.append(
            LLM(
                chosen.model, dtype=chosen.dtype, device=chosen.device, prefix_caching=False, max_queue=chosen.batch,
                attention=setting.attention, max_num_seqs=chosen.max_num_seqs,
                max_num_batched_tokens=chosen.max_num_batched_tokens, **extra,
            )
        )  # fmt: skip
        print(f"{setting.name}: engine after {time.perf_counter() - begin:.1f} s", flush=True)
        return engine_generate(engines[0])

    def tell(count: int) -> None:
        nonlocal done
        done += count
        print(f"{setting.name}: {done}/{len(samples)} after {time.perf_counter() - begin:.1f} s", flush=True)

    device = chosen.device if chosen.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    key = protocol.describe(
        model=model, code=code_fingerprint(), dtype=chosen.dtype, device=device, seed=chosen.seed, chat=chosen.chat,
        **setting.as_dict(),
    )  # fmt: skip
    answers = protocol.run(
        protocol.deferred(make), samples, setting=key, store=store, batch=chosen.batch, on_answers=tell
    )
    engines.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return answers


def combined(paths: list[Path], names: list[str] | None) -> dict[str, tuple[Setting, list[Answer]]]:
    """Answers by the name of their setting, from several files of one model; of one name the last settings count."""
    found: dict[str, tuple[Setting, list[Answer]]] = {}
    texts: dict[str, str] = {}
    models = set()
    for path in paths:
        for text, answers in AnswerStore(path).by_setting().items():
            about = json.loads(text)
            models.add(about["model"])
            name = about["name"]
            if names and name not in names:
                continue
            if name in texts and texts[name] != text:
                print(f"{name}: {path} holds answers under other settings or code, which replace the earlier ones")
                found.pop(name)
            texts[name] = text
            known = found.setdefault(name, (Setting.parse(name), []))[1]
            seen = {(a.task, a.length, a.index) for a in known}
            known.extend(a for a in answers if (a.task, a.length, a.index) not in seen)
    if len(models) > 1:
        raise StilleError(f"these files hold answers of {len(models)} models; combine those of one")
    return found


def record(comparison: statistics.Comparison, setting: Setting, model: str, others: str) -> Record:
    """One ledger record: retention at one length."""
    kept = comparison.retention
    assert kept is not None
    tasks = [task for task in comparison.tasks if task.counted]
    left_out = [f"{task.task} (full {task.full:.0%})" for task in comparison.tasks if not task.counted]
    below = [task.task for task in tasks if (task.retention or 0) < 0.98]
    assert setting.hsa is not None
    length = f"{comparison.length >> 10}k"
    text = (
        f"RULER at {comparison.length >> 10}K tokens: score with HSA as a share of the score with full attention. "
        f"Model: {model}; HSA drop-in (not trained with), setting {setting.name}, budget {setting.hsa.budget}; "
        f"{setting.reads(comparison.length)}. "
        f"95 % paired bootstrap interval {kept.low:.4f} to {kept.high:.4f}, {sum(t.samples for t in tasks)} samples. "
        f"Full {comparison.full:.1%}, HSA {comparison.sparse:.1%}. Per task, full to HSA in percent: "
        + ", ".join(f"{t.task} {100 * t.full:.1f} to {100 * t.sparse:.1f}" for t in tasks)
        + f". Below 98 % retention: {', '.join(below) or 'none'}. "
        + (f"Left out, as full attention fails them: {', '.join(left_out)}. " if left_out else "")
        + others
    )
    return measure(f"hsa.ruler.{length}", kept.value, "retention", command=COMMAND, goal=GOAL, notes=text.strip())


def compare_all(
    chosen: argparse.Namespace, answers: dict[str, tuple[Setting, list[Answer]]], model: str
) -> list[Record]:
    """Print the tables, and make the records."""
    if "full" not in answers or len(answers) < 2:
        print("nothing to compare: it takes the answers of full and of one hsa setting")
        return []
    full = answers["full"][1]
    comparisons = {name: statistics.compare(full, given) for name, (_, given) in answers.items() if name != "full"}
    text = report.to_markdown(
        {"model": model},
        {name: given for name, (_, given) in answers.items()},
        comparisons,
        [setting for setting, _ in answers.values()],
    )
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text, encoding="utf-8")
    headline = chosen.record or next(iter(comparisons))
    if headline not in comparisons:
        raise StilleError(f"--record {headline!r} was not answered; there are: {', '.join(comparisons)}")
    records = []
    for one in comparisons[headline]:
        if one.retention is None:
            print(f"{one.length}: no record; {report.describe(headline, one)}")
            continue
        others = [
            f"{name}: {other.retention.value:.4f} ({other.retention.low:.4f} to {other.retention.high:.4f})"
            for name, given in comparisons.items()
            for other in given
            if name != headline and other.length == one.length and other.retention is not None
        ]
        extra = f"Other settings: {'; '.join(others)}." if others else ""
        records.append(record(one, answers[headline][0], model, extra))
    return records


def main() -> int:
    chosen = options()
    try:
        settings = parse_settings(chosen.settings)
        if chosen.combine:
            answers = combined(chosen.combine, None if chosen.settings == ["full", "hsa"] else chosen.settings)
        else:
            from stille.model import store as models
            from stille.model.tokenizer import load_tokenizer

            path = models.resolve(chosen.model)
            samples = prepared(chosen, load_tokenizer(path), chosen.model)
            if chosen.prepare:
                print(f"{len(samples)} samples in {chosen.samples_file}")
                return 0
            kept = AnswerStore(chosen.answers)
            identity = fingerprint(path)
            answers = {s.name: (s, answer(chosen, s, identity, samples, kept)) for s in settings}
        records = compare_all(chosen, answers, Path(chosen.model).name)
    except StilleError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    for one in records:
        print(f"{one.id:24s} {one.value:.4f}  {one.goal}  {'met' if one.met else 'MISSED'}")
    if chosen.json and records:
        write(chosen.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
