"""HSA forward and backward against FlashAttention-2 on one GPU: gradients checked first, selection included in times.

    python benchmarks/hsa_train.py               # check, then time
    python benchmarks/hsa_train.py --only check
    python benchmarks/hsa_train.py --only sweep  # how the backward kernels are best cut up; records nothing
    python benchmarks/hsa_train.py --json results.json

bf16, causal, 32 query and 8 key heads, one sequence, random data, the default `HSAConfig`. Random data do not change
what HSA costs: every tile reads its whole budget. A step is the forward pass and the gradients of queries, keys and
values; medians of repeated runs by CUDA events. The baseline is the FlashAttention-2 behind torch's
scaled_dot_product_attention; cuDNN's is given beside it.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hsa_sides.gpu import Failure, Records, expect, milliseconds
from stille.kernels.hsa import HSAConfig, hsa_attention, triton_backward, triton_select
from stille.kernels.hsa import reference as ref
from stille.kernels.hsa.triton_backward import BackwardConfig
from stille.ledger import measure

COMMAND = "python benchmarks/hsa_train.py"
HEADS, KV_HEADS = 32, 8
SHAPES = [(128, 16), (128, 64), (128, 128), (64, 64)]  # head width, thousands of tokens
GOALS = {(128, 64): "ratio >= 4"}
NAMES = {"fa2": "FlashAttention-2 (torch SDPA), forward and backward", "cudnn": "cuDNN"}
BACKENDS = {"fa2": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
CONFIG = HSAConfig()
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Grads = tuple[Tensor, ...]


def data(n: int, dim: int, heads: int = HEADS, kv_heads: int = KV_HEADS, m: int | None = None, seed: int = 0) -> Inputs:
    """Queries, keys, values (which require gradients) and a gradient of the output."""
    random = torch.Generator("cuda").manual_seed(seed)
    q, k, v, do = (
        torch.randn(1, h, t, dim, device="cuda", generator=random, dtype=torch.bfloat16)
        for h, t in ((heads, m or n), (kv_heads, n), (kv_heads, n), (heads, m or n))
    )
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), do


def step(q: Tensor, k: Tensor, v: Tensor, do: Tensor, config: HSAConfig = CONFIG) -> Grads:
    return torch.autograd.grad(hsa_attention(q, k, v, config), (q, k, v), do)


def dense_step(backend: str, q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> Grads:
    with sdpa_kernel(BACKENDS[backend]):
        gqa = k.shape[1] != q.shape[1]
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        return torch.autograd.grad(out, (q, k, v), do)


def check() -> None:
    for dim in (128, 64):
        n = 4096
        full = HSAConfig(budget=n + 128, dense_below=0)
        x = data(n, dim, seed=1)
        compare(f"hd{dim}, budget for everything, against FA2", step(*x, full), dense_step("fa2", *x), 1e-2)
        again = step(*x, full)
        if not all(torch.equal(a, b) for a, b in zip(again, step(*x, full), strict=True)):
            raise Failure(f"hd{dim}: two runs differ")
    sparse = HSAConfig(budget=1024, dense_below=0)
    for name, dim, n, m, config in (
        ("sparse", 128, 4096, 4096, sparse),
        ("sparse", 64, 4096, 4096, sparse),
        ("sparse, pointers", 128, 4000, 1900, sparse),
        ("sparse, candidates", 128, 4096, 4096, dataclasses.replace(sparse, candidates=2048, candidates_from=0)),
        ("sparse, leaf 32", 64, 4096, 4096, dataclasses.replace(sparse, leaf=32)),
        ("sparse", 256, 2048, 2048, sparse),
        ("sparse", 96, 2048, 2048, sparse),
        ("residual", 128, 4096, 4096, dataclasses.replace(sparse, residual=True)),
        ("residual, unit 16", 64, 4096, 3000, dataclasses.replace(sparse, residual=True, unit=16)),
    ):
        check_selected(f"hd{dim}, {name}, {m} of {n}", n, m, dim, config)


def compare(name: str, got: Grads, want: Grads, most: float) -> None:
    for which, a, b in zip("qkv", got, want, strict=True):
        expect(f"{name}: d{which}", a, b, most)


def selection(q: Tensor, k: Tensor, config: HSAConfig) -> triton_select.Selection:
    q, k = q[0].detach(), k[0].detach()
    return triton_select.select(q, k, q.shape[-1] ** -0.5, config, want_map=config.residual)


def listed(chosen: triton_select.Selection, leaves: int) -> Tensor:
    """[H, T, leaves] bool, from the lists."""
    heads, tiles, keep = chosen.index_HTL.shape
    used = torch.arange(keep, device="cuda") < chosen.count_HT[..., None]
    at = torch.where(used, chosen.index_HTL, leaves).long()
    return torch.zeros(heads, tiles, leaves + 1, device="cuda", dtype=torch.bool).scatter_(2, at, True)[..., :-1]


def check_selected(name: str, n: int, m: int, dim: int, config: HSAConfig) -> None:
    """Gradients against autograd through the specification, on the very leaves that the kernels chose."""
    q, k, v, do = data(n, dim, 8, 2, m, seed=2)
    chosen = selection(q, k, config)
    leaves, tiles = -(-n // config.leaf), chosen.count_HT.shape[1]
    past = ref.past_leaves(tiles, leaves, n - m, config, q.device)
    own = ref.forced_leaves(tiles, leaves, n - m, config, q.device) & ~past
    wide = tuple(x.detach()[0].float().requires_grad_() for x in (q, k, v))
    out, _, _ = ref.attend(wide[0], wide[1], wide[2], listed(chosen, leaves) | own, dim**-0.5, config)
    compare(name, tuple(x[0] for x in step(q, k, v, do, config)), torch.autograd.grad(out, wide, do[0].float()), 3e-2)


def check_full_length(q: Tensor, k: Tensor, v: Tensor, do: Tensor, grads: Grads) -> None:
    """At full length: finite everywhere; for the last heads, the last tile's dQ and the first leaf's dK and dV."""
    n, dim = q.shape[2:]
    name, scale, tile = f"hd{dim}, {n >> 10}K", dim**-0.5, triton_backward.TILE
    if not all(bool(torch.isfinite(x).all()) for x in grads):
        raise Failure(f"{name}: not every gradient was written")
    with torch.no_grad():
        details = hsa_attention(q, k, v, CONFIG, return_details=True)
        chosen = selection(q, k, CONFIG)
        leaves = chosen.index_HTL[-1, -1, : int(chosen.count_HT[-1, -1])].long()
        keys = (leaves[:, None] * CONFIG.leaf + torch.arange(CONFIG.leaf, device="cuda")).flatten()
        keys = torch.cat([keys, torch.arange(n - tile, n, device="cuda")])
        rows = slice(n - tile, n)
        p, ds = pairs(q[0, -1:, rows], k[0, -1, keys], v[0, -1, keys], do[0, -1:, rows], details, rows, scale)
        ds[..., -tile:].tril_()
        expect(f"{name}, last tile: dq", grads[0][0, -1, rows], ds[0] @ k[0, -1, keys].float() * scale, 2e-2)
        group, leaf = slice(-(HEADS // KV_HEADS), None), slice(0, CONFIG.leaf)
        p, ds = pairs(q[0, group], k[0, -1, leaf], v[0, -1, leaf], do[0, group], details, slice(None), scale)
        for x in (p, ds):
            x[:, leaf].tril_()
        dk = torch.einsum("gtn,gtd->nd", ds, q[0, group].float()) * scale
        dv = torch.einsum("gtn,gtd->nd", p, do[0, group].float())
        expect(f"{name}, first leaf, which all tiles read: dk", grads[1][0, -1, leaf], dk, 2e-2)
        expect(f"{name}, first leaf, which all tiles read: dv", grads[2][0, -1, leaf], dv, 2e-2)


def pairs(q_GTD: Tensor, k_ND: Tensor, v_ND: Tensor, do_GTD: Tensor, details, rows: slice, scale: float) -> Grads:
    """Weights and gradients of the scores [G, T, N], of the last heads, without a causal mask."""
    heads = slice(-q_GTD.shape[0], None)
    lse, out = details.lse[0, heads, rows], details.out[0, heads, rows]
    p = (q_GTD.float() @ k_ND.float().T * scale - lse[..., None]).exp()
    delta = (do_GTD.float() * out.float()).sum(-1)
    return p, p * (do_GTD.float() @ v_ND.float().T - delta[..., None])


def baselines(q: Tensor, k: Tensor, v: Tensor, do: Tensor, repeats: int) -> dict[str, float]:
    times: dict[str, float] = {}
    want: Grads | None = None
    for name in BACKENDS:
        run = partial(dense_step, name, q, k, v, do)
        try:
            got = run()
        except RuntimeError:  # this backend knows no grouped heads; the sum over a group is left out of its time
            many = [x.detach().repeat_interleave(HEADS // KV_HEADS, 1).requires_grad_() for x in (k, v)]
            run = partial(dense_step, name, q, many[0], many[1], do)
            try:
                got = run()
            except RuntimeError as error:
                print(f"       {name} is left out: {str(error).splitlines()[0]}", flush=True)
                continue
        got = tuple(x.unflatten(1, (-1, x.shape[1] // y.shape[1])).sum(2) for x, y in zip(got, (q, k, v), strict=True))
        if want is None:
            want = got
        else:
            compare(f"{name} against fa2", got, want, 2e-2)
        del got
        times[name] = milliseconds(run, repeats)
    return times


class Prepared:
    """What the backward kernels are given."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> None:
        with torch.no_grad():
            details = hsa_attention(q, k, v, CONFIG, return_details=True)
            self.inputs = (q.detach()[0], k.detach()[0], v.detach()[0], do[0])
            self.rows = triton_backward.row_stats(do[0], details.out[0], details.lse[0], None)
            self.chosen, self.scale = selection(q, k, CONFIG), q.shape[-1] ** -0.5
        self.leaves = -(-k.shape[2] // CONFIG.leaf)
        self.read_by = self.lists()

    def lists(self) -> triton_backward.Readers:
        return triton_backward.readers(self.chosen, KV_HEADS, self.leaves)

    def dq(self, config: BackwardConfig | None = None) -> Grads:
        x = (*self.inputs, self.rows, self.chosen, self.scale, CONFIG.leaf)
        return (triton_backward.backward_q(*x, config),)

    def dkv(self, config: BackwardConfig | None = None) -> Grads:
        return triton_backward.backward_kv(*self.inputs, self.rows, self.read_by, self.scale, CONFIG.leaf, config)


def parts(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> dict[str, float]:
    """Milliseconds of the parts of a step."""
    ready = Prepared(q, k, v, do)
    with torch.no_grad():
        times = {"forward": milliseconds(lambda: hsa_attention(q, k, v, CONFIG), 5)}
    return times | {name: milliseconds(getattr(ready, name), 5) for name in ("lists", "dq", "dkv")}


def train(records: Records) -> list[str]:
    """Times of a step at the shapes of the goals."""
    heads = "".join(f"{name:>9s}" for name in ("HSA", "forward", "lists", "dq", "dkv"))
    lines = [f"{'':12s}{heads}{'fa2':>17s}{'cudnn':>17s}   ms (times HSA)"]
    for dim, thousands in SHAPES:
        x = data(thousands << 10, dim)
        grads = step(*x)
        check_full_length(*x, grads)
        del grads
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ours = milliseconds(lambda x=x: step(*x), 7, 2)
        memory = (torch.cuda.max_memory_allocated() - before) / 2**30
        part = parts(*x)
        dense = baselines(*x, 5 if thousands <= 64 else 3)
        cells = "".join(f"{f'{dense[n]:.1f} ({dense[n] / ours:.2f})' if n in dense else '-':>17s}" for n in BACKENDS)
        lines.append(
            f"hd{dim} {thousands}K".ljust(12) + f"{ours:9.2f}" + "".join(f"{t:9.2f}" for t in part.values()) + cells
        )
        print(lines[-1], flush=True)
        also = f" cuDNN: {dense['cudnn']:.1f} ms." if "cudnn" in dense else ""
        records.append(
            measure(
                f"hsa.train.{'' if dim == 128 else f'hd{dim}.'}{thousands}k.fa2", ours, "ms", better="lower",
                command=COMMAND, baseline=NAMES["fa2"], baseline_value=dense["fa2"], goal=GOALS.get((dim, thousands)),
                notes=f"Forward and backward of {thousands}K tokens, head width {dim}, selection included; gradients "
                f"of queries, keys and values. bf16, causal, {HEADS}/{KV_HEADS} heads, budget {CONFIG.budget}, leaf "
                f"{CONFIG.leaf}; forward {part['forward']:.1f}, transposed lists {part['lists']:.1f}, dQ "
                f"{part['dq']:.1f}, dK and dV {part['dkv']:.1f} ms; {memory:.1f} GiB beside the inputs. "
                f"Random data: a speed, not an accuracy.{also}",
            )
        )  # fmt: skip
        del x
        torch.cuda.empty_cache()
    return lines


def sweep() -> list[str]:
    """The backward kernels at 64K, cut up differently; (rows, warps, stages)."""
    lines = []
    for dim in (128, 64):
        ready = Prepared(*data(64 << 10, dim))
        want_dq = want_dkv = None
        for tma in (True, False):
            for cut in ((128, 8, 2), (128, 8, 3), (64, 4, 2), (64, 4, 3), (64, 4, 4), (128, 4, 2)):
                config = BackwardConfig(cut[0], 64, *cut[1:], 64, 4, 2, tma=tma)
                name = f"hd{dim} dq  {'tma' if tma else 'ptr'} {cut}"
                want_dq = trial(lines, name, want_dq, partial(ready.dq, config))
            for cut in ((64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 8, 2), (128, 8, 2), (128, 8, 3), (32, 4, 3)):
                config = BackwardConfig(128, 64, 8, 2, *cut, tma=tma)
                name = f"hd{dim} dkv {'tma' if tma else 'ptr'} {cut}"
                want_dkv = trial(lines, name, want_dkv, partial(ready.dkv, config))
    return lines


def trial(lines: list[str], name: str, want: Grads | None, run: Callable[[], Grads]) -> Grads | None:
    try:
        got = run()
        for a, b in zip(got, want or got, strict=True):
            error = float((a.float() - b.float()).norm() / b.float().norm())
            if not error < 1e-2:
                raise Failure(f"{name}: relative error {error} to the first trial")
        lines.append(f"{name:28s} {milliseconds(run, 5):8.2f} ms")
    except Exception as error:
        if isinstance(error, Failure):
            raise
        lines.append(f"{name:28s} {type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}")
        got = want
    print(lines[-1], flush=True)
    return want or got


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--only", nargs="*", choices=["check", "train", "sweep"], help="stages; default: check, train")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    stages = chosen.only or ["check", "train"]
    begin, records, lines = time.perf_counter(), Records(chosen.json), []
    try:
        if "sweep" not in stages or "check" in stages:
            check()  # before anything is timed
        if "sweep" in stages:
            lines += sweep()
        if "train" in stages:
            lines += train(records)
    except Failure as wrong:
        records.discard()
        print(f"WRONG: {wrong}; nothing is recorded", file=sys.stderr)
        return 1
    records.finish()
    print(f"\n=== {torch.cuda.get_device_name()}, {time.perf_counter() - begin:.0f} s in all")
    print("\n".join(lines))
    for record in records:
        state = {True: "met", False: "MISSED", None: "no goal"}[record.met]
        print(f"{record.id:32s} {record.ratio or 0:>8.2f}x  {record.goal or '':15s} {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
