"""HSA's decode against dense decode over the same pages, on one GPU: output checked first, everything included.

    python benchmarks/hsa_decode.py               # check, then time
    python benchmarks/hsa_decode.py --sweep       # and how the launches could be cut
    python benchmarks/hsa_decode.py --json results.json

bf16, 32 query and 8 key heads of width 128, one new token per sequence. A call is what a layer of a decode step does:
the codes of the new token's leaf, scores of all signatures, selection, attention. Calls are replayed from a CUDA graph
over different sequences, so that the L2 cache never holds what the next one reads. Baselines, timed alike: our dense
paged decode in the fastest of several cuts, and torch's scaled_dot_product_attention on contiguous keys and values.
Random data: what is read does not depend on them, and they say nothing about accuracy.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hsa_sides.gpu import Failure, Records, expect, graphed, milliseconds
from stille.kernels.hsa import HSAConfig, HSAWorkspace, PageCodes, hsa_decode, signatures, update_codes
from stille.kernels.hsa import paged_reference as ref
from stille.kernels.hsa.paged import DecodeCut, decode_cut
from stille.kernels.paged import PAGE, triton_decode
from stille.kernels.paged import decode_attention as dense_decode
from stille.kernels.paged.triton_decode import DecodeConfig, DecodeWorkspace
from stille.ledger import measure

COMMAND = "python benchmarks/hsa_decode.py"
HEADS, KV_HEADS, DIM = 32, 8, 128
CONTEXT, SEQUENCES = 128 << 10, 16  # what the cache holds
SHAPES = [(32, 1), (32, 16), (128, 1), (128, 16), (1024, 1)]  # thousands of tokens, sequences
GOALS = {(128, 1): 5, (128, 16): 5}
CONFIG = HSAConfig()
BF16 = torch.bfloat16


@dataclass
class Cache:
    """One layer's pages with their codes, and page tables in shuffled order."""

    k: Tensor
    v: Tensor
    q: Tensor
    codes: PageCodes
    table: Tensor
    config: HSAConfig

    @property
    def scale(self) -> float:
        return self.q.shape[2] ** -0.5


def fill(
    sequences: int, length: int, config: HSAConfig, heads: int = HEADS, kv_heads: int = KV_HEADS, dim: int = DIM
) -> Cache:
    """Random sequences; keys resemble their neighbours, as in real heads. Codes of all leaves are computed."""
    random = torch.Generator("cuda").manual_seed(0)
    width = -(-length // PAGE)
    pages = sequences * width + 1
    k = torch.empty(pages, kv_heads, PAGE, dim, device="cuda", dtype=BF16).normal_(generator=random)
    v = torch.empty_like(k).normal_(generator=random)
    for part in k.split(4096):
        part.add_(part.roll(1, 2)).add_(0.3)
    q = torch.randn(sequences, heads, dim, device="cuda", generator=random).to(BF16) * 2
    order = torch.randperm(pages - 1, device="cuda", generator=random) + 1
    codes = PageCodes.allocate(k.shape, config, "cuda")
    leaf = config.decode_leaf
    update_codes(k, codes, torch.arange(leaf - 1, pages * PAGE, leaf, device="cuda", dtype=torch.int32), config)
    return Cache(k, v, q, codes, order.view(sequences, width).int(), config)


def check() -> None:
    """Kernels against the specification on small caches; dense where everything is read."""
    shapes = [(128, 32, 8, 16), (128, 64, 8, 16), (64, 9, 3, 16), (96, 8, 4, 32), (256, 16, 1, 16), (128, 8, 8, 64)]
    for dim, heads, kv_heads, leaf in shapes:
        config = HSAConfig(budget=1024, decode_leaf=leaf)
        c = fill(5, 6144, config, heads, kv_heads, dim)
        lengths = torch.tensor([6144, 0, 1024, 5001, 1041], device="cuda", dtype=torch.int32)
        name = f"hd{dim}, {heads}/{kv_heads} heads, leaves of {leaf}"
        check_selected(name, c, c.table, lengths)
        everything = replace(config, budget=6144)
        got = hsa_decode(c.q, c.k, c.v, c.codes, c.table, lengths, c.scale, everything)
        want = dense_decode(c.q, c.k, c.v, c.table, lengths, c.scale)
        expect(f"{name}, budget for everything, against dense", got, want, 1e-2)
        check_codes(name, c)


def check_codes(name: str, c: Cache) -> None:
    """The codes of some pages against those of the specification."""
    dim, end = c.k.shape[3], 64
    want = PageCodes.allocate(c.k.shape, c.config, "cuda")
    slots = torch.arange(PAGE, end * PAGE, device="cuda")
    ref.update_codes(c.k, *want.parts, signatures.hadamard(dim, c.k), slots, c.config.decode_leaf)
    got, wanted = (ref.unpack_levels(codes.signs[1:end], dim) for codes in (c.codes, want))
    expect(f"{name}, levels", got, wanted, 0.2)
    expect(f"{name}, scales", c.codes.scales[1:end], want.scales[1:end], 1e-2)


def check_selected(name: str, c: Cache, table: Tensor, lengths: Tensor, workspace: HSAWorkspace | None = None) -> None:
    """The output against plain torch on the very leaves that the kernels chose (roundings move near ties)."""
    kv_heads, leaf = c.k.shape[1], c.config.decode_leaf
    rows = len(lengths)
    if workspace is None:
        workspace = make_workspace(c, rows, table.shape[1] * PAGE)
    q = c.q[:rows]
    run = lambda out: hsa_decode(  # noqa: E731
        q, c.k, c.v, c.codes, table, lengths, c.scale, c.config, out=out, workspace=workspace
    )
    out = torch.full_like(q, torch.nan)
    graph = graphed(lambda: run(out))
    out.fill_(torch.nan)
    graph.replay()
    turn = signatures.hadamard(c.k.shape[3], c.k)
    want, agree, total = torch.zeros_like(q), 0, 0
    for row, length in enumerate(lengths.tolist()):
        if not length:
            continue
        leaves = -(-length // leaf)
        read = torch.zeros(kv_heads, leaves, dtype=torch.bool, device="cuda")
        for head in range(kv_heads):
            read[head, workspace.index_SKL[row, head, : int(workspace.count_SK[row, head])].long()] = True
        codes = ref.gather_codes(*c.codes.parts, table[row], length)
        wanted = ref.chosen_leaves(q[row], codes, turn, length, c.scale, c.config)
        agree, total = agree + int((read & wanted).sum()), total + int(wanted.sum())
        if int(read.sum()) != int(wanted.sum()):
            raise Failure(f"{name}: row {row} reads {int(read.sum())} leaves, not {int(wanted.sum())}")
        want[row] = ref.attend_leaves(q[row], c.k, c.v, table[row], read, length, c.scale, leaf)
    expect(f"{name}, on the leaves it selected", out, want, 2e-2)
    print(f"       {agree / total:.2%} of the leaves are those of the specification", flush=True)
    if agree / total < 0.95:
        raise Failure(f"{name}: only {agree / total:.1%} of the leaves are those of the specification")


def make_workspace(c: Cache, sequences: int, length: int, cut: DecodeCut | None = None) -> HSAWorkspace:
    heads, dim = c.q.shape[1:]
    return HSAWorkspace(sequences, heads, c.k.shape[1], dim, length, c.config, BF16, "cuda", cut)


def microseconds(calls: Sequence[Callable[[], object]], repeats: int = 9) -> float:
    """Of one call: median over replays of a graph that makes them all."""
    graph = graphed(lambda: [call() for call in calls])
    return milliseconds(graph.replay, repeats) * 1000 / len(calls)


def turns(c: Cache, thousands: int, sequences: int) -> list[tuple[Tensor, Tensor]]:
    """Table and lengths of each call: different sequences in turn, until the L2 cache is surely cold again."""
    width = (thousands << 10) // PAGE
    tables = c.table.flatten()[: c.table.numel() // width * width].view(-1, width)
    tables = tables[: tables.shape[0] // sequences * sequences].view(-1, sequences, width)[:16].contiguous()
    lengths = torch.full((sequences,), thousands << 10, device="cuda", dtype=torch.int32)
    return [(table, lengths) for table in tables]


def sparse_calls(
    c: Cache, thousands: int, sequences: int, cut: DecodeCut | None = None, pdl: bool = False
) -> list[Callable[[], object]]:
    workspace = make_workspace(c, sequences, thousands << 10, cut)
    q, out = c.q[:sequences], torch.empty_like(c.q[:sequences])

    def call(table: Tensor, lengths: Tensor) -> Callable[[], object]:
        slots = (table[:, -1] * PAGE + PAGE - 1).contiguous()  # the token that completes the last leaf
        return lambda: hsa_decode(
            q, c.k, c.v, c.codes, table, lengths, c.scale, c.config, slots_N=slots, out=out, workspace=workspace,
            pdl=pdl,
        )  # fmt: skip

    return [call(table, lengths) for table, lengths in turns(c, thousands, sequences)]


def dense_times(c: Cache, thousands: int, sequences: int) -> dict[DecodeConfig, float]:
    """Microseconds of dense paged decode in several cuts."""
    q, out = c.q[:sequences], torch.empty_like(c.q[:sequences])
    options = [triton_decode.decode_config(sequences, KV_HEADS, DIM, BF16)]
    splits = (32, 64, 128) if sequences == 1 else (4, 8, 16)
    options += [DecodeConfig(s, 1, block, 4, stages) for s in splits for block, stages in ((64, 3), (128, 2))]
    found = {}
    for cut in dict.fromkeys(options):
        workspace = DecodeWorkspace(sequences, HEADS, KV_HEADS, DIM, BF16, torch.device("cuda"), cut)

        def call(table: Tensor, lengths: Tensor, cut: DecodeConfig, workspace: DecodeWorkspace) -> object:
            return triton_decode.decode_attention(
                q, c.k, c.v, table, lengths, c.scale, out=out, workspace=workspace, config=cut, pdl=True
            )

        calls = [partial(call, *turn, cut, workspace) for turn in turns(c, thousands, sequences)]
        found[cut] = microseconds(calls, 5)
    return found


def sdpa_times(thousands: int, sequences: int) -> dict[str, float]:
    """Microseconds of torch's kernels on contiguous keys and values."""
    count = max(1, min(8, SEQUENCES * CONTEXT // (sequences * (thousands << 10))))
    k, v = (
        torch.empty(count, sequences, KV_HEADS, thousands << 10, DIM, device="cuda", dtype=BF16).normal_()
        for _ in range(2)
    )
    q = torch.randn(sequences, HEADS, 1, DIM, device="cuda", dtype=BF16)
    found = {}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):

        def call(i: int, backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k[i], v[i], enable_gqa=True)

        try:
            found[name] = microseconds([lambda i=i: call(i) for i in range(count)], 5)
        except RuntimeError:
            print(f"       torch's {name} does not take this", flush=True)
    return found


def compare(c: Cache, records: Records) -> list[str]:
    budgets = list(dict.fromkeys((CONFIG.budget, 4096, 2048)))
    heads = [f"HSA {budget}" for budget in budgets]
    rows = ["".join(f"{x:>18s}" for x in ("us (times HSA)", *heads, "dense paged", "flash", "cudnn"))]
    for thousands, sequences in SHAPES:
        name = f"{thousands}k.b{sequences}"
        table, lengths = turns(c, thousands, sequences)[-1]
        workspace = make_workspace(c, sequences, thousands << 10)
        if sequences == 1:
            check_selected(name, c, table, lengths, workspace)
        ours = {}
        for budget in budgets:
            one = replace(c, config=replace(CONFIG, budget=budget))
            ours[budget] = min(
                (microseconds(sparse_calls(one, thousands, sequences, pdl=pdl)), pdl) for pdl in (False, True)
            )
        dense = dense_times(c, thousands, sequences)
        best = min(dense, key=dense.__getitem__)
        others = sdpa_times(thousands, sequences)
        torch.cuda.empty_cache()
        us = ours[CONFIG.budget][0]
        cells = [f"{ours[b][0]:.1f}{' pdl' if ours[b][1] else ''}" for b in budgets]
        cells.append(f"{dense[best]:.1f} ({dense[best] / us:.2f})")
        cells += [f"{others[x]:.1f} ({others[x] / us:.2f})" if x in others else "-" for x in ("flash", "cudnn")]
        rows.append(f"{name:>18s}" + "".join(f"{x:>18s}" for x in cells))
        print(rows[-1], flush=True)
        goal = GOALS.get((thousands, sequences))
        also = "".join(f" torch's {x} on contiguous keys: {t:.0f} us." for x, t in others.items())
        for budget in budgets:
            suffix = "" if budget == CONFIG.budget else f".budget{budget}"
            records.append(
                measure(
                    f"hsa.decode.{name}{suffix}", ours[budget][0], "us", better="lower", command=COMMAND,
                    baseline=f"dense paged decode, {best.splits} splits, tiles of {best.block_t}",
                    baseline_value=dense[best], goal=f"ratio >= {goal}" if goal and not suffix else None,
                    notes=f"Decode attention of one layer, {sequences} x {thousands}K tokens, budget {budget}. bf16, "
                    f"{HEADS}/{KV_HEADS} heads of width {DIM}, leaves of {CONFIG.decode_leaf}; codes of the new leaf, "
                    "scores, selection and attention from one CUDA graph over different sequences"
                    f"{', dependents launched early' if ours[budget][1] else ''}; median of 9 replays. The dense "
                    f"kernel in the fastest of {len(dense)} cuts. Random data: a speed, not an accuracy.{also}",
                )
            )  # fmt: skip
    return rows


def kernels(calls: list[Callable[[], object]]) -> str:
    """Microseconds of each kernel, by the profiler."""
    for call in calls:
        call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            for call in calls:
                call()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {}
    for event in profile.events() or ():
        if event.name.endswith("_kernel"):
            times.setdefault(event.name.removesuffix("_kernel"), []).append(event.device_time)
    return "  ".join(f"{name} {statistics.median(t):.1f}" for name, t in times.items())


def sweep(c: Cache) -> list[str]:
    """Whole calls at 128K while one stage is cut differently, and what each kernel takes."""
    rows = []
    for sequences in (1, 16):
        own = decode_cut(sequences, KV_HEADS, HEADS // KV_HEADS, DIM, 2, (128 << 10) // CONFIG.decode_leaf)
        scores = [
            replace(own, score_pages=p, score_splits=s, score_registers=r)
            for (p, r), s in itertools.product(
                ((1, 96), (2, 0), (2, 112), (2, 128), (4, 0)), (128, 256, 512) if sequences == 1 else (8, 16, 32)
            )
        ]
        selects = [replace(own, select_warps=w) for w in (8, 16, 32)]
        attends = [
            replace(own, attend_splits=s, attend_keys=t, attend_warps=w, attend_stages=g)
            for s, t, w, g in (
                ((16, 64, 4, 3), (32, 64, 4, 3), (32, 64, 2, 2), (64, 64, 2, 3), (32, 128, 4, 2), (32, 128, 4, 1))
                if sequences == 1
                else ((2, 64, 4, 3), (4, 64, 4, 2), (4, 64, 2, 3), (8, 64, 4, 3), (4, 128, 4, 2), (4, 128, 8, 2))
            )
        ]
        rows.append(f"128K, {sequences} sequences, us; own cut {own}")
        for cut in dict.fromkeys([own, *scores, *selects, *attends]):
            changed = {k: v for k, v in vars_of(cut).items() if v != vars_of(own)[k]} or "own"
            try:
                calls = sparse_calls(c, 128, sequences, cut)
                line = f"{microseconds(calls, 5):8.1f}  {kernels(calls[:4])}   {changed}"
            except Exception as error:  # a cut that does not compile or fit: say so, go on
                line = f"{'-':>8s}  {type(error).__name__}: {str(error)[:80]}   {changed}"
            rows.append(line)
            print(line, flush=True)
        rows.append(f"{microseconds(sparse_calls(c, 128, sequences, own, True), 5):8.1f}  own, dependents early")
    return rows


def vars_of(cut: DecodeCut) -> dict[str, int]:
    return {name: getattr(cut, name) for name in cut.__dataclass_fields__}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--sweep", action="store_true", help="also time other cuts of the launches")
    parser.add_argument("--only", nargs="*", choices=["check", "compare"], help="stages; default: both")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    stages: list[str] = ["check", "compare"] if chosen.only is None else chosen.only
    begin, records, lines = time.perf_counter(), Records(chosen.json), []
    try:
        check()  # before anything is timed
        cache = fill(SEQUENCES, CONTEXT, CONFIG) if "compare" in stages or chosen.sweep else None
        print(f"       {time.perf_counter() - begin:.0f} s", flush=True)
        if cache is not None and chosen.sweep:
            lines += sweep(cache)
        if cache is not None and "compare" in stages:
            lines += compare(cache, records)
    except Failure as wrong:
        records.discard()
        print(f"WRONG: {wrong}; nothing is recorded", file=sys.stderr)
        return 1
    records.finish()
    print(f"\n=== {torch.cuda.get_device_name()}, {time.perf_counter() - begin:.0f} s in all")
    print("\n".join(lines))
    for record in records:
        state = {True: "met", False: "MISSED", None: "no goal"}[record.met]
        print(f"{record.id:36s} {record.value:8.1f} us {record.ratio or 0:6.2f}x  {record.goal or '':13s} {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
