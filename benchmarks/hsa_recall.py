"""Which share of a real model's attention mass HSA's selection reads, against an oracle and against other selections.

    python benchmarks/hsa_recall.py                                # 8K, 32K, 64K; minutes on one GPU
    python benchmarks/hsa_recall.py --json FILE --points FILE      # keep records, and every figure for the plots
    python benchmarks/hsa_recall.py --lengths 2048 --layers 7 --default-budget 768        # a look, on a CPU

Q, K and V are captured by `hsa_capture.py`: every head of nine layers, two texts. The oracle reads the leaves of the
largest true mass, with the same leaf, the same leaves always read and the same budget, so no choice of leaves exceeds a
ratio of 1. Only tiles (rows) with more past than the budget count: the others read everything.

Prefill: tiles of 128 queries, leaves of 64; HSA's choice is that of the very kernels, the others are scored by the same
mean queries. Decode: single rows from the second half of the text, leaves of 16, one choice for the heads of a group.
The output error is that of `hsa_attention` against dense attention, over the rows of the tiles that count.
"""

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hsa_capture import (
    DEFAULT_MODEL,
    LAYERS,
    Captured,
    add_arguments,
    capture,
    dtype_of,
    load,
    read_tokens,
)
from hsa_sides.mass import ranked, recall_of, row_leaves, row_mass, tile_mass
from hsa_sides.scores import DESCRIPTIONS, SCORERS, Keys
from stille.kernels.hsa import HSAConfig, hsa_attention
from stille.kernels.hsa import paged_reference as paged
from stille.kernels.hsa import reference as ref
from stille.kernels.hsa.config import TILE
from stille.kernels.hsa.signatures import hadamard, learn_rotation
from stille.kernels.triton_support import runs_triton
from stille.ledger import Record, measure, write

COMMAND = "python benchmarks/hsa_recall.py"
LENGTHS = (8192, 32768, 65536)
BUDGETS = (1024, 2048, 4096)
CURVE = (512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)  # of the plot
ROWS = 48  # single rows of a text and layer that stand for decode
LEARNED_FROM, LEARNING = 4096, 25  # keys that a rotation is learned on, and iterations
GOAL = "ratio >= 0.985"
OURS = "hsa"  # the selection of the kernels, where SCORERS' "keys" is the same thing by plain torch


class Tally:
    """Means over heads, layers and texts."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, str, int], list[float]] = defaultdict(list)

    def add(self, kind: str, method: str, budget: int, values: Tensor) -> None:
        """values: [heads, tiles or rows]; kept as one mean per head."""
        self.sums[kind, method, budget] += values.float().mean(1).tolist()

    def mean(self, kind: str, method: str, budget: int) -> float:
        return statistics.fmean(self.sums[kind, method, budget])

    def ratio(self, kind: str, method: str, budget: int) -> float:
        return self.mean(kind, method, budget) / self.mean(kind, "oracle", budget)

    def lowest(self, kind: str, method: str, budget: int) -> float:
        """The worst head's ratio to the oracle."""
        pairs = zip(self.sums[kind, method, budget], self.sums[kind, "oracle", budget], strict=True)
        return min(ours / oracle for ours, oracle in pairs)


def chosen_leaves(q_HMD: Tensor, k_KND: Tensor, scale: float, config: HSAConfig) -> Tensor:
    """[H, T, B] bool: what HSA reads, by the kernels where they run, else by the specification."""
    if not runs_triton(q_HMD):
        return ref.select(q_HMD, k_KND, scale, config)
    from stille.kernels.hsa import triton_select

    got = triton_select.select(q_HMD, k_KND, scale, config, want_map=True).chosen_HTB
    assert got is not None
    (tiles, leaves), start = got.shape[1:], k_KND.shape[1] - q_HMD.shape[1]
    past = ref.past_leaves(tiles, leaves, start, config, q_HMD.device)
    own = ref.forced_leaves(tiles, leaves, start, config, q_HMD.device) & ~past
    return (got.bool() & past) | own


def heads_of(q_HQD: Tensor, k_KND: Tensor, leaf: int, learned_KDD: Tensor) -> Iterator[tuple[Tensor, Keys]]:
    """Of each key head: the queries of its group [G * Q, D], and its keys."""
    for head, q_GQD in enumerate(q_HQD.float().chunk(k_KND.shape[0])):
        yield q_GQD.flatten(0, 1), Keys(k_KND[head].float(), leaf, learned_KDD[head])


def scores(name: str, heads: list[tuple[Tensor, Keys]]) -> Tensor:
    """[K, G * Q, B] of one method."""
    return torch.stack([SCORERS[name](q, keys) for q, keys in heads])


def prefill_recall(
    tally: Tally, q_HND: Tensor, k_KND: Tensor, scale: float, learned_KDD: Tensor, budgets: tuple[int, ...],
    config: HSAConfig,
) -> None:  # fmt: skip
    """Tiles of 128 queries."""
    n = q_HND.shape[1]
    mass = tile_mass(q_HND, k_KND, scale, config.leaf)
    tiles, leaves = mass.shape[1:]
    past = ref.past_leaves(tiles, leaves, 0, config, q_HND.device)
    forced = ref.forced_leaves(tiles, leaves, 0, config, q_HND.device)
    ends = (torch.arange(tiles, device=q_HND.device) + 1) * TILE
    ranks = {"oracle": ranked(mass, past, forced)}
    grouped = list(heads_of(ref.pool_queries(q_HND, TILE) * scale, k_KND, config.leaf, learned_KDD))
    for name in SCORERS:
        share = ref.shares(scores(name, grouped).unflatten(1, (-1, tiles)).flatten(0, 1), past)
        ranks[name] = ranked(share, past, forced)
    for budget in usable(budgets, n, config):
        counts, keep = ends > budget, budget // config.leaf
        for name, rank in ranks.items():
            tally.add("prefill", name, budget, recall_of(rank, mass, keep)[:, counts])
        ours = replace(config, budget=budget)
        chosen = {OURS: chosen_leaves(q_HND, k_KND, scale, ours)}
        if n > config.candidates:
            chosen["candidates"] = chosen_leaves(q_HND, k_KND, scale, replace(ours, candidates_from=0))
        for name, read in chosen.items():
            if bool((read.sum(-1) > keep).any()):
                raise SystemExit(f"WRONG: a tile reads more than its budget of {budget} keys; nothing is recorded")
            tally.add("prefill", name, budget, (mass * read).sum(-1)[:, counts])
        tally.add("density-prefill", "read", budget, (budget / (ends[counts] - TILE / 2))[None])


def decode_recall(
    tally: Tally, q_HND: Tensor, k_KND: Tensor, scale: float, learned_KDD: Tensor, budgets: tuple[int, ...],
    config: HSAConfig,
) -> None:  # fmt: skip
    """Single rows; one choice for the heads of a group, so the oracle's is too."""
    n, k_heads, leaf = q_HND.shape[1], k_KND.shape[0], config.decode_leaf
    rows = torch.linspace(n // 2, n - 1, ROWS, device=q_HND.device).long()
    q_HRD = q_HND[:, rows]
    mass = row_mass(q_HRD, k_KND, rows, scale, leaf).unflatten(0, (k_heads, -1)).mean(1)
    past, forced = row_leaves(rows, mass.shape[-1], config)
    ranks = {"oracle": ranked(mass, past, forced)}
    grouped = list(heads_of(q_HRD * scale, k_KND, leaf, learned_KDD))
    for name in SCORERS:
        share = ref.shares(scores(name, grouped).unflatten(1, (-1, len(rows))), past)
        ranks[name] = ranked(share.sum(1), past, forced)
    codes = signatures(k_KND, leaf)
    marks = [
        paged.ranks(paged.leaf_log_mass(q_HRD[:, i], leading(codes, p // leaf), rotation, scale), k_heads)
        for rotation in [hadamard(k_KND.shape[2], q_HRD.float())]
        for i, p in enumerate(rows.tolist())
    ]
    for budget in usable(budgets, n // 2 + 1, config):
        for name, rank in ranks.items():
            tally.add("decode", name, budget, recall_of(rank, mass, budget // leaf))
        ours = replace(config, budget=budget)
        read = [paged.select(mark, p + 1, ours) for mark, p in zip(marks, rows.tolist(), strict=True)]
        covered = [(mass[:, i, : r.shape[1]] * r).sum(-1) for i, r in enumerate(read)]
        tally.add("decode", OURS, budget, torch.stack(covered, 1))
        tally.add("density-decode", "read", budget, (budget / (rows + 1))[None])


def signatures(k_KND: Tensor, leaf: int) -> paged.Codes:
    """What the paged cache keeps of the keys, in the precision that it keeps."""
    codes = paged.encode(k_KND.unflatten(1, (-1, leaf)), hadamard(k_KND.shape[2], k_KND.float()))
    return paged.Codes(codes.signs, codes.scales.half(), paged.unpack_means(*paged.pack_means(codes.means)))


def leading(codes: paged.Codes, leaves: int) -> paged.Codes:
    return paged.Codes(*(x[:, :leaves] for x in codes))


def usable(budgets: tuple[int, ...], below: int, config: HSAConfig) -> list[int]:
    """The budgets of table and plot that hold what is always read and leave something out."""
    least = config.sinks + config.local + TILE + config.leaf
    return [budget for budget in sorted({*budgets, *CURVE}) if least <= budget < below]


def output_error(
    tally: Tally, q_HND: Tensor, k_KND: Tensor, v_KND: Tensor, scale: float, budgets: tuple[int, ...], config: HSAConfig
) -> None:
    """Relative error of the output of each head, over the tiles that count."""
    q, k, v = q_HND[None], k_KND[None], v_KND[None]
    groups = q.shape[1] // k.shape[1]
    many_k, many_v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    dense = scaled_dot_product_attention(q, many_k, many_v, is_causal=True, scale=scale)[0].float()
    for budget in [b for b in budgets if b < q.shape[2]]:
        rows = slice(budget // TILE * TILE, None)
        for name, residual in (("plain", False), ("residual", True)):
            setting = replace(config, budget=budget, dense_below=0, residual=residual)
            got = hsa_attention(q, k, v, setting, scale=scale)[0].float()
            error = (got - dense)[:, rows].norm(dim=(1, 2)) / dense[:, rows].norm(dim=(1, 2))
            tally.add("error", name, budget, error[:, None])


def learn_rotations(k_KND: Tensor) -> Tensor:
    """[K, D, D], of evenly spaced keys, each minus the mean of the 16 keys that it is among."""
    centred = k_KND.float() - ref.leaf_means(k_KND, 16).repeat_interleave(16, 1)[:, : k_KND.shape[1]]
    sample = centred[:, :: max(1, k_KND.shape[1] // LEARNED_FROM)].cpu()  # small singular values: faster there
    return learn_rotation(sample, iterations=LEARNING, bits=1).to(k_KND.device)


@torch.inference_mode()
def measure_length(captured: list[Captured], budgets: tuple[int, ...], config: HSAConfig) -> Tally:
    """All layers of all texts of one length. Rotations are learned on the other text."""
    tally = Tally()
    for at, here in enumerate(captured):
        other = captured[at - 1]
        for layer in here.q_HND:
            q, k, v = here.q_HND[layer], here.k_KND[layer], here.v_KND[layer]
            rotations = learn_rotations(other.k_KND[layer])
            prefill_recall(tally, q, k, here.scale, rotations, budgets, config)
            decode_recall(tally, q, k, here.scale, rotations, budgets, config)
            output_error(tally, q, k, v, here.scale, budgets, config)
    return tally


def table(tally: Tally, length: int, budgets: tuple[int, ...]) -> str:
    """Recall and its ratio to the oracle, method by method, and the output errors."""
    used = {kind: [b for b in budgets if (kind, "oracle", b) in tally.sums] for kind in ("prefill", "decode")}
    columns = [(kind, budget) for kind in used for budget in used[kind]]
    lines = [
        f"| {length} tokens | " + " | ".join(f"{kind} {budget:,}" for kind, budget in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for name in ("oracle", OURS, "candidates", *SCORERS):
        cells = []
        for kind, budget in columns:
            if (kind, name, budget) not in tally.sums:
                cells.append("")
            else:
                cells.append(f"{tally.mean(kind, name, budget):.4f} ({tally.ratio(kind, name, budget):.4f})")
        lines.append(f"| {label(name)} | " + " | ".join(cells) + " |")
    for budget in [b for b in budgets if ("error", "plain", b) in tally.sums]:
        plain, residual = (tally.mean("error", name, budget) for name in ("plain", "residual"))
        lines.append(f"\nbudget {budget:,}: relative output error {plain:.4f}, with residual {residual:.4f}")
    return "\n".join(lines)


def label(name: str) -> str:
    return {"oracle": "oracle", OURS: "HSA"}.get(name) or DESCRIPTIONS[name]


def records_of(
    tally: Tally, captured: list[Captured], budgets: tuple[int, ...], config: HSAConfig, name: str
) -> list[Record]:
    """What goes into the ledger: at the default budget, other budgets in the notes."""
    first, budget, others = captured[0], config.budget, [b for b in budgets if b != config.budget]
    size, model = f"{first.length >> 10}k", "SmolLM2-135M" if name == DEFAULT_MODEL else Path(name).name
    if ("prefill", OURS, budget) not in tally.sums:
        return []
    heads = len(tally.sums["prefill", OURS, budget]) // len(captured)
    reach = f" by YaRN x{first.stretch:g}, untrained" if first.stretch > 1 else ""
    where = (
        f"Budget {budget}; {model}, {heads} heads of {len(first.q_HND)} layers, {len(captured)} texts, {first.length} "
        f"tokens{reach}; perplexity {', '.join(f'{c.perplexity:.1f} on {c.text}' for c in captured)}."
    )

    def elsewhere(kind: str, method: str, among: list[int]) -> str:
        known = [b for b in among if (kind, method, b) in tally.sums]
        parts = [f"{tally.mean(kind, method, b):.4f} ({tally.ratio(kind, method, b):.4f}x) of {b}" for b in known]
        return f" In {kind}: {', '.join(parts)}." if parts else ""

    def recall(id: str, kind: str, method: str, how: str, more: str, goal: str | None = None) -> Record:
        return measure(
            f"hsa.recall.{id}", tally.mean(kind, method, budget), "of the mass", command=COMMAND,
            baseline="oracle, same budget and leaf", baseline_value=tally.mean(kind, "oracle", budget), goal=goal,
            notes=f"Attention mass read in {kind}, {first.length >> 10}K tokens, {how}. {where}{more}",
        )  # fmt: skip

    def worst(kind: str, method: str) -> str:
        return f" The worst head reads {tally.lowest(kind, method, budget):.3f} of its oracle." + elsewhere(
            kind, method, others
        )

    prefill = f"leaves of {config.leaf} chosen by HSA for tiles of {TILE} queries"
    found = [recall(size, "prefill", OURS, prefill, worst("prefill", OURS), GOAL)]
    if ("decode", OURS, budget) in tally.sums:
        decode = f"leaves of {config.decode_leaf} chosen by signatures for single queries"
        found.append(recall(f"decode.{size}", "decode", OURS, decode, worst("decode", OURS), GOAL))
    for method in ("candidates", *SCORERS):
        if ("prefill", method, budget) in tally.sums:
            more = elsewhere("prefill", method, others) + elsewhere("decode", method, [*others, budget])
            found.append(recall(f"alt.{method}.{size}", "prefill", method, DESCRIPTIONS[method], more))
    return found + errors_of(tally, size, budget, others, where)


def errors_of(tally: Tally, size: str, budget: int, others: list[int], where: str) -> list[Record]:
    plain, residual = (tally.mean("error", name, budget) for name in ("plain", "residual"))
    rest = ", ".join(
        f"{tally.mean('error', 'plain', b):.4f} without, {tally.mean('error', 'residual', b):.4f} with residual of {b}"
        for b in others
        if ("error", "plain", b) in tally.sums
    )
    where = f"Rows with more past than the budget. {where} {rest}."
    what = f"Relative error of HSA's output against dense attention, {size.upper()} tokens"
    return [
        measure(f"hsa.error.{size}", plain, "of the norm", command=COMMAND, notes=f"{what}. {where}"),
        measure(
            f"hsa.error.{size}.residual", residual, "of the norm", better="lower", command=COMMAND,
            baseline="without residual", baseline_value=plain, notes=f"{what}, with the residual. {where}",
        ),
    ]  # fmt: skip


def points_of(tally: Tally, length: int) -> list[dict[str, object]]:
    """What the plots are drawn from."""
    return [
        {"kind": kind, "method": method, "length": length, "budget": budget, "value": tally.mean(kind, method, budget)}
        for kind, method, budget in sorted(tally.sums)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--points", type=Path, help="write every figure there, for the plots")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens (default: %(default)s)")
    parser.add_argument("--layers", type=int, nargs="+", default=list(LAYERS))
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--default-budget", type=int, help="instead of HSAConfig's; nothing is recorded then")
    chosen = parser.parse_args()
    if chosen.default_budget and chosen.json:
        parser.error("records are of the default budget: leave out --default-budget or --json")
    if len(chosen.texts) < 2:
        parser.error("two texts are needed: rotations are learned on the other one")
    config = HSAConfig(budget=chosen.default_budget) if chosen.default_budget else HSAConfig()
    budgets = tuple(sorted({*chosen.budgets, config.budget}))
    begin, records, points = time.perf_counter(), [], []
    model, tokenizer = load(chosen.model, chosen.device, dtype_of(chosen.device))
    for length in chosen.lengths:
        ids = [torch.tensor(read_tokens(tokenizer, text, length), device=chosen.device) for text in chosen.texts]
        captured = [capture(model, x, text, tuple(chosen.layers)) for x, text in zip(ids, chosen.texts, strict=True)]
        tally = measure_length(captured, budgets, config)
        records += records_of(tally, captured, budgets, config, chosen.model)
        points += points_of(tally, length)
        print(f"\n{table(tally, length, budgets)}\n[{time.perf_counter() - begin:.0f} s]", flush=True)
    print()
    for record in records:
        if record.goal:
            state = "met" if record.met else "MISSED"
            print(f"{record.id:28s} {record.ratio:.4f}x  {record.goal}  {state}")
    if chosen.points:
        chosen.points.parent.mkdir(parents=True, exist_ok=True)
        chosen.points.write_text(json.dumps(points, indent=0) + "\n", encoding="utf-8")
    if chosen.json:
        write(chosen.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
