"""HSA's forward pass against dense attention on one GPU: output checked first, selection included in every time.

    python benchmarks/hsa_prefill.py               # check, then time
    python benchmarks/hsa_prefill.py --only check
    python benchmarks/hsa_prefill.py --only sweep  # how the exact part is best cut up, for head widths 64 to 256
    python benchmarks/hsa_prefill.py --json results.json

bf16, causal, 32 query and 8 key heads, one sequence, random data, the default `HSAConfig`. Random data do not change
what HSA costs: every tile reads its whole budget. They say nothing about accuracy. The baselines are the kernels behind
torch's scaled_dot_product_attention (FlashAttention-2, cuDNN) and, if it can be imported, FlashAttention-3 (package
`fa3-fwd`). Medians of repeated runs by CUDA events; HSA is replayed from a CUDA graph, which also shows that nothing
waits for the host.
"""

import argparse
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hsa_sides.gpu import Failure, Records, expect, graphed, milliseconds
from stille.kernels.hsa import HSAConfig, api, hsa_attention, triton_prefill, triton_select
from stille.kernels.hsa import reference as ref
from stille.ledger import measure

COMMAND = "python benchmarks/hsa_prefill.py"
HEADS, KV_HEADS = 32, 8
# head width, thousands of tokens
SHAPES = (
    [(128, n) for n in (1, 2, 4, 8, 16, 32, 64, 128)] + [(64, n) for n in (4, 8, 16, 64, 128)] + [(96, 64), (256, 64)]
)
NEVER_SLOWER = {"fa2": 0.97}
GOALS = {  # ratio to reach
    (128, 64): {"fa2": 10, "fa3": 5},
    (128, 128): {"fa2": 20, "fa3": 9},
    (64, 64): {"fa2": 9, "fa3": 5},
}
NAMES = {"fa2": "FlashAttention-2 (torch SDPA)", "cudnn": "cuDNN (torch SDPA)", "fa3": "FlashAttention-3 (fa3-fwd)"}
CONFIG = HSAConfig()


def data(n: int, dim: int, heads: int = HEADS, kv_heads: int = KV_HEADS, seed: int = 0) -> tuple[Tensor, ...]:
    random = torch.Generator("cuda").manual_seed(seed)
    return tuple(
        torch.randn(1, h, n, dim, device="cuda", generator=random, dtype=torch.bfloat16)
        for h in (heads, kv_heads, kv_heads)
    )


def check() -> None:
    for dim in (128, 64):
        n = 4096
        q, k, v = data(n, dim, seed=1)
        want = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        full = HSAConfig(budget=n + 128, dense_below=0)
        expect(f"hd{dim}, budget for everything, against dense", hsa_attention(q, k, v, full), want, 1e-2)
        late = hsa_attention(q[:, :, -1000:], k, v, full)
        expect(f"hd{dim}, the last 1,000 queries, against dense", late, want[:, :, -1000:], 1e-2)
        odd = hsa_attention(q[:, :, :3001], k[:, :, :3001], v[:, :, :3001], full)
        expect(f"hd{dim}, 3,001 tokens, against dense", odd, want[:, :, :3001], 1e-2)
        q, k, v = data(n, dim, 8, 2, seed=2)
        for name, config in (
            ("sparse", HSAConfig(budget=1024, dense_below=0)),
            ("candidates", HSAConfig(budget=1024, dense_below=0, candidates=2048, candidates_from=0)),
            ("leaf 32, pointers", HSAConfig(budget=1024, dense_below=0, leaf=32)),
            ("residual", HSAConfig(budget=1024, dense_below=0, residual=True)),
            ("no rows", HSAConfig(budget=1024, dense_below=0, row_weight=0)),
        ):
            check_selected(f"hd{dim}, {name}, on the leaves it selected", q, k, v, config)


def check_selected(name: str, q: Tensor, k: Tensor, v: Tensor, config: HSAConfig) -> None:
    """The output against plain torch on the very leaves that the kernels chose (roundings move near ties)."""
    scale = q.shape[3] ** -0.5
    chosen = triton_select.select(q[0], k[0], scale, config, want_map=True)
    tiles, leaves = chosen.chosen_HTB.shape[1:]
    past = ref.past_leaves(tiles, leaves, 0, config, q.device)
    own = ref.forced_leaves(tiles, leaves, 0, config, q.device) & ~past
    want, _, missed = ref.attend(q[0], k[0], v[0], (chosen.chosen_HTB.bool() & past) | own, scale, config)
    got = hsa_attention(q, k, v, config, return_details=True)
    expect(name, got.out[0], want, 3e-2)
    if config.residual:
        expect(f"{name}: missed mass", got.missed[0], missed, 3e-2)
    wanted = ref.select(q[0], k[0], scale, config)
    agree = float((chosen.chosen_HTB.bool() & wanted & past).sum() / (wanted & past).sum())
    if agree < 0.9:
        raise Failure(f"{name}: only {agree:.1%} of the leaves are those of the specification")


def check_last_tile(n: int, dim: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """At full length: finite everywhere, and the last tile of the last head against plain torch."""
    if not bool(torch.isfinite(out).all()):
        raise Failure(f"hd{dim}, {n >> 10}K: not every output was written")
    chosen = triton_select.select(q[0], k[0], dim**-0.5, CONFIG)
    listed = chosen.index_HTL[-1, -1, : int(chosen.count_HT[-1, -1])].long()
    columns = (listed[:, None] * CONFIG.leaf + torch.arange(CONFIG.leaf, device="cuda")).flatten()
    columns = torch.cat([columns, torch.arange(n - 128, n, device="cuda")])
    logits = q[0, -1, -128:].float() @ k[0, -1, columns].float().T * dim**-0.5
    logits[:, -128:] += torch.full((128, 128), -math.inf, device="cuda").triu(1)
    expect(
        f"hd{dim}, {n >> 10}K, last tile",
        out[0, -1, -128:],
        torch.softmax(logits, -1) @ v[0, -1, columns].float(),
        2e-2,
    )


def baselines(q: Tensor, k: Tensor, v: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of each dense kernel that this machine has."""
    times: dict[str, float] = {}
    want = None
    for name, backend in (("fa2", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):

        def run(k: Tensor = k, v: Tensor = v, backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])

        try:
            out = run()
        except RuntimeError:  # this backend knows no grouped heads
            many = [x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v)]
            run = partial(run, *many)
            out = run()
        if want is None:
            want = out
        else:
            expect(f"{name} against fa2", out, want, 2e-2)
        del out
        times[name] = milliseconds(graphed(run).replay, repeats)
    try:
        from fa3_fwd_interface import flash_attn_func
    except ImportError:
        print("       fa3 is left out: fa3_fwd_interface cannot be imported", flush=True)
        return times
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    out = flash_attn_func(q, k, v, causal=True)
    out = out[0] if isinstance(out, tuple) else out
    if want is not None:
        expect("fa3 against fa2", out.transpose(1, 2), want, 2e-2)
    del out, want
    times["fa3"] = milliseconds(graphed(lambda: flash_attn_func(q, k, v, causal=True)).replay, repeats)
    return times


def prefill(records: Records) -> list[str]:
    """Times of the whole function at the shapes of the goals."""
    rows = [f"{'':14s}{'HSA':>9s}{'select':>9s}{'exact':>9s}{'fa2':>17s}{'cudnn':>17s}{'fa3':>17s}   ms (times HSA)"]
    for dim, thousands in SHAPES:
        n = thousands << 10
        q, k, v = data(n, dim)
        out = torch.full_like(q, torch.nan)
        graph = graphed(lambda q=q, k=k, v=v, out=out: out.copy_(hsa_attention(q, k, v, CONFIG)))
        graph.replay()
        if n >= CONFIG.dense_limit:
            check_last_tile(n, dim, q, k, v, out)
        del graph
        few = thousands >= 64
        ours = milliseconds(graphed(lambda q=q, k=k, v=v: hsa_attention(q, k, v, CONFIG)).replay, 9 if few else 21, 2)
        sparse = n >= CONFIG.dense_limit
        chosen = milliseconds(graphed(lambda q=q, k=k: selection(q, k)).replay, 9, 2) if sparse else 0.0
        dense = baselines(q, k, v, 3 if thousands > 64 else 5 if few else 21)
        cells = "".join(f"{f'{dense[x]:.2f} ({dense[x] / ours:.2f})' if x in dense else '-':>17s}" for x in NAMES)
        rows.append(f"hd{dim} {thousands}K".ljust(14) + f"{ours:9.2f}{chosen:9.2f}{ours - chosen:9.2f}{cells}")
        print(rows[-1], flush=True)
        also = f" cuDNN: {dense['cudnn']:.1f} ms." if "cudnn" in dense else ""
        kernel = "torch's SDPA" if not sparse else "Gluon" if api.uses_gluon(q[0], CONFIG) else "Triton"
        for name in ("fa2", "fa3"):
            if name not in dense:
                continue
            goal = GOALS.get((dim, thousands), NEVER_SLOWER).get(name)
            records.append(
                measure(
                    f"hsa.prefill.hd{dim}.{thousands}k.{name}", ours, "ms", better="lower", command=COMMAND,
                    baseline=NAMES[name], baseline_value=dense[name], goal=goal and f"ratio >= {goal}",
                    notes=f"Attention of {thousands}K tokens, head width {dim}, forward, "
                    + (f"selection ({chosen:.2f} ms) included. " if sparse else "attended in full at this length. ")
                    + f"bf16, causal, {HEADS}/{KV_HEADS} heads, budget {CONFIG.budget}, leaf {CONFIG.leaf}, unit "
                    f"{CONFIG.unit}, row weight {CONFIG.row_weight:g}, outliers {CONFIG.outliers}, tail {CONFIG.tail}; "
                    f"exact part by {kernel}; medians, both replayed from graphs. "
                    f"Random data: a speed, not an accuracy.{also}",
                )
            )  # fmt: skip
        if (dim, thousands) == (128, 64):
            rows += extras(q, k, v)
        del q, k, v, out
        torch.cuda.empty_cache()
    return rows


def selection(q: Tensor, k: Tensor) -> triton_select.Selection:
    return triton_select.select(q[0], k[0], q.shape[3] ** -0.5, CONFIG)


def extras(q: Tensor, k: Tensor, v: Tensor) -> list[str]:
    """What else is known of hd128 at 64K: the exact part by Triton, and the price of the residual."""
    chosen, scale = selection(q, k), q.shape[3] ** -0.5
    exact = milliseconds(
        lambda: triton_prefill.prefill(q[0], k[0], v[0], chosen, scale, CONFIG.leaf, CONFIG.unit), 7, 2
    )
    config = HSAConfig(residual=True)
    whole = milliseconds(graphed(lambda: hsa_attention(q, k, v, config)).replay, 5)
    return [f"  exact part by Triton {exact:.2f} ms; whole with residual {whole:.2f} ms"]


def sweep(_: Records) -> list[str]:
    """Milliseconds of the exact part by Triton, cut up in other ways."""
    lines = []
    for dim in (64, 96, 128, 256):
        q, k, v = data(32768, dim, seed=3)
        chosen, scale, cells = selection(q, k), dim**-0.5, []
        default = triton_prefill.prefill_config(k[0], CONFIG.leaf)
        want = triton_prefill.prefill(q[0], k[0], v[0], chosen, scale, CONFIG.leaf, CONFIG.unit)[0]
        for config in {
            default: 0,
            **{
                triton_prefill.PrefillConfig(keys, warps, stages, tma): 0
                for keys in (64, 128)
                for warps in (4, 8)
                for stages in (1, 2, 3)
                for tma in (True, False)
                if not (tma and dim & (dim - 1)) and keys * dim * stages <= 64 * 256 * 2
            },
        }:

            def run(q=q, k=k, v=v, chosen=chosen, scale=scale, config=config) -> Tensor:
                return triton_prefill.prefill(
                    q[0], k[0], v[0], chosen, scale, CONFIG.leaf, CONFIG.unit, config=config
                )[0]  # fmt: skip

            try:
                got = run()
            except Exception as error:  # more shared memory than there is
                cells.append((math.inf, f"{config}: {type(error).__name__}"))
                continue
            wrong = float((got.float() - want.float()).norm() / want.float().norm()) > 1e-2
            ms = milliseconds(graphed(run).replay, 5)
            cells.append((ms, f"{config}: {ms:.2f} ms{' WRONG' if wrong else ''}{' (default)' * (config == default)}"))
        cells.sort(key=lambda cell: cell[0])
        lines.append(f"hd{dim} 32K: " + "\n  ".join(text for ms, text in cells[:6] if ms < math.inf))
    return lines


def slope(records: Records) -> list[str]:
    """Selection alone from 16K to 1M, and the exponent fitted to it; at 1M the whole function runs too."""
    points, cells = [], []
    for log in range(14, 21):
        q, k, v = data(1 << log, 128)
        ms = milliseconds(graphed(lambda q=q, k=k: selection(q, k)).replay, 5)
        points.append((float(log), math.log2(ms)))
        cells.append(f"{1 << log >> 10}K {ms:.2f}")
        if log == 20:
            out = hsa_attention(q, k, v, CONFIG)
            check_last_tile(1 << log, 128, q, k, v, out)
            cells.append(f"(whole {milliseconds(lambda q=q, k=k, v=v: hsa_attention(q, k, v, CONFIG), 2, 0):.0f})")
            del out
        del q, k, v
        torch.cuda.empty_cache()
    x, y = (statistics.mean(p[i] for p in points) for i in (0, 1))
    exponent = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    records.append(
        measure(
            "hsa.selection.slope", exponent, "exponent", command=COMMAND, goal="value <= 1.15",
            notes="Exponent of the cost of selection from 16K to 1M tokens, least squares on logarithms. Head width "
            f"128, {HEADS}/{KV_HEADS} heads, defaults: every key is scored below {CONFIG.candidates_from} tokens, "
            f"{CONFIG.candidates} candidates per {CONFIG.span} queries from there. ms: {', '.join(cells)}.",
        )
    )  # fmt: skip
    return [f"selection, ms: {', '.join(cells)}; exponent {exponent:.3f}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--budget", type=int, help=f"keys of a tile; default: {HSAConfig().budget}")
    parser.add_argument("--row-weight", type=float, help=f"default: {HSAConfig().row_weight}")
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument(
        "--only", nargs="*", choices=["check", "prefill", "slope", "sweep"], help="stages; default: the first 3"
    )
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    if chosen.budget or chosen.row_weight is not None:
        global CONFIG
        weight = CONFIG.row_weight if chosen.row_weight is None else chosen.row_weight
        CONFIG = HSAConfig(budget=chosen.budget or CONFIG.budget, row_weight=weight)
    stages = chosen.only or ["check", "prefill", "slope"]
    begin, records, lines = time.perf_counter(), Records(chosen.json), []
    try:
        check()  # before anything is timed
        for name, stage in (("prefill", prefill), ("slope", slope), ("sweep", sweep)):
            if name in stages:
                lines += stage(records)
    except Failure as wrong:
        records.discard()
        print(f"WRONG: {wrong}; nothing is recorded", file=sys.stderr)
        return 1
    records.finish()
    print(f"\n=== {torch.cuda.get_device_name()}, {time.perf_counter() - begin:.0f} s in all")
    print("\n".join(lines))
    for record in records:
        state = {True: "met", False: "MISSED", None: "no goal"}[record.met]
        figure = f"{record.value:.3f}" if record.ratio is None else f"{record.ratio:.2f}x"
        print(f"{record.id:32s} {figure:>9s}  {record.goal or '':15s} {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
