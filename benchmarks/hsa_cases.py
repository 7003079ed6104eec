"""Adversarial cases for HSA: needles that dense attention finds, on synthetic and on real keys. Says where HSA fails.

    python benchmarks/hsa_cases.py                      # both backgrounds at 32K; a minute on one GPU
    python benchmarks/hsa_cases.py --json FILE --points FILE
    python benchmarks/hsa_cases.py --length 4096 --layers 7 23 --draws 1      # a look, on a CPU

A case asks every head of every layer (or draw) its own question; `hsa_sides/exams.py` says how. "Found" is the share of
the needles' attention weight that lies in what HSA reads, over the rows in which dense attention gives the needles at
least half of its weight. The output error is that of the asking rows against dense attention, with and without the
residual. Each case is repeated with larger budgets until 99 % is found, or the error is at most 1 %.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hsa_capture import LAYERS, add_arguments, capture, dtype_of, load, read_tokens
from hsa_recall import chosen_leaves, leading, signatures
from hsa_sides.exams import CASES, Case, Exam, Field, synthetic
from stille.kernels.hsa import HSAConfig, PageCodes, hsa_attention, hsa_decode, update_codes
from stille.kernels.hsa import paged_reference as paged
from stille.kernels.hsa.config import TILE
from stille.kernels.hsa.signatures import hadamard
from stille.kernels.triton_support import PAGE
from stille.ledger import Record, measure, write

COMMAND = "python benchmarks/hsa_cases.py"
ENOUGH = 0.99
COUNTED = 0.5  # least weight that dense attention gives the needles of a row that counts


@dataclass
class Result:
    """One case on one background at one budget; None where it does not apply."""

    case: str
    background: str
    budget: int
    found: float | None
    error: float | None
    error_residual: float | None
    rows: int


def needles_read(exam: Exam, config: HSAConfig, decode: bool) -> Tensor:
    """[B, H, R, P] bool: whether the leaf of a needle is read for an asking row."""
    assert exam.needles_BHP is not None
    batch, heads, m, _ = exam.q_BHMD.shape
    rows = torch.arange(m, device=exam.q_BHMD.device)[exam.rows]
    if decode:
        read_BHRB = decode_leaves(exam, config)
    else:
        q, k = exam.q_BHMD.flatten(0, 1), exam.k_BKND.flatten(0, 1)
        read = chosen_leaves(q, k, exam.scale, config).unflatten(0, (batch, heads))
        read_BHRB = read[:, :, rows // TILE]
    leaf = config.decode_leaf if decode else config.leaf
    at = (exam.needles_BHP // leaf)[:, :, None].expand(-1, -1, read_BHRB.shape[2], -1)
    return read_BHRB.gather(-1, at)


def decode_leaves(exam: Exam, config: HSAConfig) -> Tensor:
    """[B, H, 1, leaves] bool: what decoding the last row reads, by the specification of the paged cache's codes."""
    (batch, heads), n = exam.q_BHMD.shape[:2], exam.k_BKND.shape[2]
    k_heads, dim = exam.k_BKND.shape[1], exam.k_BKND.shape[3]
    rotation, read = hadamard(dim, exam.k_BKND.float()), []
    for b in range(batch):
        codes = leading(signatures(exam.k_BKND[b], config.decode_leaf), (n - 1) // config.decode_leaf)
        got = paged.chosen_leaves(exam.q_BHMD[b, :, -1], codes, rotation, n, exam.scale, config)
        read.append(got.repeat_interleave(heads // k_heads, 0))
    return torch.stack(read)[:, :, None]


def output_error(exam: Exam, dense: Tensor, counted: Tensor, config: HSAConfig, decode: bool) -> float:
    """Mean relative error of the rows that count."""
    if decode:
        got = decoded(exam, config)
    else:
        got = hsa_attention(exam.q_BHMD, exam.k_BKND, exam.v_BKND, config, scale=exam.scale)[:, :, exam.rows]
    error = (got.float() - dense).norm(dim=-1) / dense.norm(dim=-1)
    return float(error[counted].mean())


def decoded(exam: Exam, config: HSAConfig) -> Tensor:
    """[B, H, 1, D]: the last row over a paged cache, a sequence for each of the batch."""
    (batch, k_heads, n, dim), dev = exam.k_BKND.shape, exam.k_BKND.device
    pages = batch * n // PAGE
    k, v = (
        x.unflatten(2, (-1, PAGE)).transpose(1, 2).reshape(pages, k_heads, PAGE, dim).contiguous()
        for x in (exam.k_BKND, exam.v_BKND)
    )
    codes = PageCodes.allocate(k.shape, config, dev)
    update_codes(k, codes, torch.arange(pages * PAGE, device=dev), config)
    table = torch.arange(pages, dtype=torch.int32, device=dev).view(batch, -1)
    lengths = torch.full((batch,), n, dtype=torch.int32, device=dev)
    q_SHD = exam.q_BHMD[:, :, -1].contiguous()
    return hsa_decode(q_SHD, k, v, codes, table, lengths, exam.scale, config)[:, :, None]


@torch.inference_mode()
def run_case(case: Case, field: Field, config: HSAConfig, draws: int) -> list[Result]:
    """At the budget of `config`, and doubled until enough is found."""
    exams = [case.make(field, config, seed) for seed in range(draws)]
    answers, results, budget = [exam.dense() for exam in exams], [], config.budget
    while True:
        setting = replace(config, budget=min(budget, field.length), dense_below=0)
        found, plain, residual, rows = [], [], [], 0
        for exam, (dense, weight) in zip(exams, answers, strict=True):
            counted = (
                weight.sum(-1) >= COUNTED if exam.needles_BHP is not None else torch.ones_like(dense[..., 0]).bool()
            )
            rows += int(counted.sum())
            if not counted.any():
                continue
            if case.found:
                read = (weight * needles_read(exam, setting, case.decode)).sum(-1) / weight.sum(-1)
                found.append(float(read[counted].mean()))
            plain.append(output_error(exam, dense, counted, setting, case.decode))
            if not case.decode:
                with_residual = replace(setting, residual=True)
                residual.append(output_error(exam, dense, counted, with_residual, case.decode))
        results.append(
            Result(case.name, field.name, setting.budget, mean(found), mean(plain), mean(residual), rows)
        )  # fmt: skip
        if rows == 0 or good(results[-1]) or budget >= field.length:
            return results
        budget *= 2


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def good(result: Result) -> bool:
    if result.found is not None:
        return result.found >= ENOUGH
    return result.error is not None and result.error <= 1 - ENOUGH


def needed(results: list[Result]) -> str:
    """The budget that was enough, in words."""
    return f"a budget of {results[-1].budget}" if good(results[-1]) else "no budget below the whole context"


def record_of(case: Case, field: Field, results: list[Result], extent: str) -> Record:
    first = results[0]
    errors = [
        f"{label} {value:.3g}"
        for label, value in (("without", first.error), ("with the residual", first.error_residual))
        if value is not None
    ]
    notes = (
        f"{'Needles found' if case.found else 'Output error'}, {field.name} keys, {field.length >> 10}K: {case.what}. "
        f"Budget {first.budget}; {first.rows} rows of {extent}; {'99 % found' if case.found else 'an error of 1 %'} "
        f"takes {needed(results)}."
    ) + (f" Relative output error: {', '.join(errors)}." if errors else "")
    value, unit = (first.found, "of the weight") if case.found else (first.error, "of the norm")
    assert value is not None
    goal = f"value >= {ENOUGH}" if case.found else None
    return measure(f"hsa.case.{case.name}.{field.name}", value, unit, goal=goal, command=COMMAND, notes=notes)


def real(chosen: argparse.Namespace) -> Field:
    """Every head of the captured layers, on the docstrings' text."""
    model, tokenizer = load(chosen.model, chosen.device, dtype_of(chosen.device))
    ids = torch.tensor(read_tokens(tokenizer, "docstrings", chosen.length), device=chosen.device)
    got = capture(model, ids, "docstrings", tuple(chosen.layers))
    q, k, v = (torch.stack(list(x.values())) for x in (got.q_HND, got.k_KND, got.v_KND))
    return Field("real", q, k, v, got.scale)


def show(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--points", type=Path, help="write every figure there")
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAYERS))
    parser.add_argument("--draws", type=int, default=3, help="questions for each head (default: %(default)s)")
    parser.add_argument("--budget", type=int, help="instead of HSAConfig's; nothing is recorded then")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="cases; default: all")
    chosen = parser.parse_args()
    if chosen.budget and chosen.json:
        parser.error("records are of the default budget: leave out --budget or --json")
    config = HSAConfig(budget=chosen.budget) if chosen.budget else HSAConfig()
    begin, records, points = time.perf_counter(), [], []
    print("| case | keys | found | error | with residual | enough |\n| --- | --- | --- | --- | --- | --- |")
    for field in (synthetic(chosen.length, chosen.device, dtype_of(chosen.device)), real(chosen)):
        extent = f"{field.q_BHND.shape[0] * field.q_BHND.shape[1]} heads, {chosen.draws} questions each"
        for case in CASES:
            if chosen.only and case.name not in chosen.only:
                continue
            results = run_case(case, field, config, chosen.draws)
            first = results[0]
            cells = [show(first.found), show(first.error), show(first.error_residual), needed(results)]
            print(f"| {case.name} | {field.name} | {' | '.join(cells)} |", flush=True)
            points += [asdict(result) for result in results]
            if first.rows == 0:
                print(f"WRONG: dense attention finds no needle of {case.name}; nothing is recorded", file=sys.stderr)
                return 1
            records.append(record_of(case, field, results, extent))
    print(f"\nbudget {config.budget}, {chosen.length} tokens, {time.perf_counter() - begin:.0f} s")
    if chosen.points:
        chosen.points.parent.mkdir(parents=True, exist_ok=True)
        chosen.points.write_text(json.dumps(points, indent=0) + "\n", encoding="utf-8")
    if chosen.json:
        write(chosen.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
