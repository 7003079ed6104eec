"""GPU kernels of the decode step, one by one: checked against plain torch, then timed over tile sizes.

    python benchmarks/gpu_kernels.py               # check, sweep, whole steps
    python benchmarks/gpu_kernels.py --only check

Every figure is the time of one launch inside a CUDA graph that runs the operation once for each of 30 layers with
weights of their own (SmolLM2-135M's shape: more than the L2 cache holds), so launch gaps and cold weights count as they
do in a decode step. Median of repeated replays. A `*` marks the configuration that the engine uses.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from stille.kernels.fused import reference, triton_linear
from stille.kernels.fused.configs import LinearConfig, linear_config
from stille.kernels.paged import reference as paged_reference
from stille.kernels.paged import triton_decode, triton_prefill
from stille.kernels.triton_support import PAGE

LAYERS, WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 30, 576, 1536, 9, 3, 64, 49152
FEATURES = (HEADS + 2 * KV_HEADS) * HEAD_DIM
BF16 = torch.bfloat16
EPS = 1e-5
ROWS = (1, 8, 32, 64, 256)


def time_graph(run: Callable[[], None], launches: int, repeats: int = 9) -> float:
    """Microseconds of one launch: `run` is captured once and replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for repeat in range(repeats + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if repeat >= 2:
            times.append(start.elapsed_time(end) * 1e3 / launches)
    return statistics.median(times)


class Data:
    """Random weights and activations of SmolLM2-135M's shape."""

    def __init__(self, rows: int, context: int = 300):
        random = torch.Generator("cuda").manual_seed(rows)

        def randn(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape, device="cuda", generator=random) * scale).to(BF16)

        self.rows = rows
        self.x, self.o, self.inner = randn(rows, WIDTH), randn(rows, HEADS * HEAD_DIM), randn(rows, INNER)
        self.norm = randn(WIDTH)
        self.qkv = randn(LAYERS, FEATURES, WIDTH, scale=0.05)
        self.out = randn(LAYERS, WIDTH, HEADS * HEAD_DIM, scale=0.05)
        self.gate_up = randn(LAYERS, 2 * INNER, WIDTH, scale=0.05)
        self.down = randn(LAYERS, WIDTH, INNER, scale=0.05)
        self.head = randn(VOCAB, WIDTH, scale=0.05)
        angles = torch.rand(8192, HEAD_DIM // 2, device="cuda", generator=random).repeat(1, 2) * 6
        self.cos, self.sin = angles.cos(), angles.sin()
        self.logits = torch.empty(rows, VOCAB, device="cuda")
        self.q, self.attended = randn(rows, HEADS, HEAD_DIM), randn(rows, HEADS, HEAD_DIM)
        self.cache(context)

    def cache(self, context: int) -> None:
        """Every row is a sequence of about `context` tokens."""
        random = torch.Generator("cuda").manual_seed(context)
        spread = torch.randint(0, max(1, context // 4), (self.rows,), device="cuda", generator=random)
        self.lengths = (context - spread).int()
        per = -(-context // PAGE)
        pages = self.rows * per + 1
        self.k = torch.randn(LAYERS, pages, KV_HEADS, PAGE, HEAD_DIM, device="cuda", dtype=BF16, generator=random)
        self.v = torch.randn(LAYERS, pages, KV_HEADS, PAGE, HEAD_DIM, device="cuda", dtype=BF16, generator=random)
        order = torch.randperm(pages - 1, device="cuda", generator=random) + 1
        self.table = order.view(self.rows, per).int()
        self.positions = self.lengths - 1
        last = self.table[torch.arange(self.rows, device="cuda"), (self.positions // PAGE).long()]
        self.slots = (last * PAGE + self.positions % PAGE).int()
        self.width = torch.tensor([per], dtype=torch.int32, device="cuda")
        self.workspace = triton_decode.DecodeWorkspace(
            self.rows, HEADS, KV_HEADS, HEAD_DIM, BF16, torch.device("cuda"), triton_decode.DecodeConfig(64, 1, 32)
        )


@dataclass(frozen=True)
class Operation:
    """One kernel of the decode step: `run(data, layer, config, pdl)`; `shape` is its (columns, inputs)."""

    name: str
    run: Callable[[Data, int, LinearConfig | None, bool], torch.Tensor]
    expected: Callable[[Data, int], torch.Tensor]
    shape: tuple[int, int]
    launches: int = LAYERS


def _qkv(d: Data, i: int, config, pdl: bool) -> torch.Tensor:
    return triton_linear.qkv(
        d.x, d.qkv[i], None, d.norm, EPS, d.k[i], d.v[i], d.slots, d.positions, d.cos, d.sin, d.q, config=config,
        pdl=pdl,
    )  # fmt: skip


def _qkv_expected(d: Data, i: int) -> torch.Tensor:
    y = reference.linear(d.x.float(), d.qkv[i], norm_K=d.norm, eps=EPS).unflatten(1, (-1, HEAD_DIM))
    at = d.positions.long()
    return paged_reference.rotate(y[:, :HEADS], d.cos[at], d.sin[at])


OPERATIONS = [
    Operation("qkv", _qkv, _qkv_expected, (FEATURES, WIDTH)),
    Operation(
        "o",
        lambda d, i, config, pdl: triton_linear.linear(d.o, d.out[i], residual_MF=d.x, config=config, pdl=pdl),
        lambda d, i: reference.linear(d.o.float(), d.out[i]) + d.x.float(),
        (WIDTH, HEADS * HEAD_DIM),
    ),
    Operation(
        "gate_up",
        lambda d, i, config, pdl: triton_linear.gate_up(
            d.x, d.gate_up[i], d.norm, EPS, out=d.inner, config=config, pdl=pdl
        ),
        lambda d, i: reference.gate_up(d.x.float(), d.gate_up[i], d.norm, EPS),
        (2 * INNER, WIDTH),
    ),
    Operation(
        "down",
        lambda d, i, config, pdl: triton_linear.linear(d.inner, d.down[i], residual_MF=d.x, config=config, pdl=pdl),
        lambda d, i: reference.linear(d.inner.float(), d.down[i]) + d.x.float(),
        (WIDTH, INNER),
    ),
    Operation(
        "head",
        lambda d, i, config, pdl: triton_linear.linear(
            d.x, d.head, norm_K=d.norm, eps=EPS, out=d.logits, config=config, pdl=pdl
        ),
        lambda d, i: reference.linear(d.x.float(), d.head, norm_K=d.norm, eps=EPS),
        (VOCAB, WIDTH),
        launches=1,
    ),
]


def candidates(rows: int, columns: int, inputs: int) -> list[LinearConfig]:
    """Tiles worth trying, the engine's own first."""
    found = [linear_config(rows, columns, inputs, 2)]
    if rows == 1:
        whole = 1024 if inputs <= 1024 else 2048
        for n in (4, 8, 16, 32):
            for k in (whole, 256):
                for warps in (2, 4, 8):
                    if n * k // (warps * 32) in (16, 32, 64, 128):
                        found.append(LinearConfig(1, n, k, warps))
    else:
        for m in {16 if rows <= 16 else 32, 16 if rows <= 32 else 64, 128 if rows > 128 else 16}:
            for n, k in ((16, 128), (32, 64), (32, 128), (64, 64), (128, 64)):
                if m * n <= 64 * 128 and (n <= 64 or columns > 2048):
                    found.append(LinearConfig(m, n, k, 4, 4))
                    if m * n >= 64 * 64:
                        found.append(LinearConfig(m, n, k, 8, 3))
    return list(dict.fromkeys(found))


def decode_candidates(rows: int) -> list[triton_decode.DecodeConfig]:
    """Cuts of decode attention worth trying, the engine's own first."""
    found = [triton_decode.decode_config(rows, KV_HEADS, HEAD_DIM, BF16)]
    splits = (8, 16, 32) if rows <= 8 else (4, 8) if rows <= 64 else (1, 4)
    for split in splits:
        for tiles in (1, 4) if rows <= 64 else (4, 8):
            for block in (32, 64, 128):
                found.append(triton_decode.DecodeConfig(split, tiles, block, 4, 3))
        found.append(triton_decode.DecodeConfig(split, 2, 64, 2, 3))
    return list(dict.fromkeys(found))


def attend(d: Data, i: int, config, pdl: bool = False) -> torch.Tensor:
    return triton_decode.decode_attention(
        d.q, d.k[i], d.v[i], d.table, d.lengths, HEAD_DIM**-0.5, table_stride=d.width, out=d.attended,
        workspace=d.workspace, config=config, pdl=pdl,
    )  # fmt: skip


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def check() -> list[str]:
    """Errors of every operation at every row count, with and without early launch; returns the failures."""
    failures = []
    for rows in ROWS:
        for pdl in (False, True):
            data = Data(rows)
            for operation in OPERATIONS:
                before = data.x.clone()
                expected = operation.expected(data, 1)
                for poisoned in (data.q, data.logits):
                    poisoned.fill_(float("nan"))
                got = error(operation.run(data, 1, None, pdl), expected)
                data.x.copy_(before)
                if not got < 1e-2:
                    failures.append(f"{operation.name} rows {rows} pdl {pdl}: error {got:.2e}")
            for context in (1, 65, 300, 2100):
                data.cache(context)
                data.q.normal_()
                data.attended.fill_(float("nan"))
                expected = paged_reference.decode_attention(
                    data.q, data.k[2], data.v[2], data.table, data.lengths, HEAD_DIM**-0.5
                )
                got = error(attend(data, 2, None, pdl), expected)
                if not got < 1e-2:
                    failures.append(f"attention rows {rows} context {context} pdl {pdl}: error {got:.2e}")
    return failures + check_prefill()


def check_prefill() -> list[str]:
    random = torch.Generator("cuda").manual_seed(3)
    starts, counts = [0, 700, 63, 5], [1500, 300, 1, 64]
    lengths = [a + b for a, b in zip(starts, counts, strict=True)]
    width = max(-(-n // PAGE) for n in lengths)
    pages = torch.randn(2, 4 * width + 1, KV_HEADS, PAGE, HEAD_DIM, device="cuda", generator=random).to(BF16)
    table = (torch.randperm(4 * width, device="cuda", generator=random) + 1).view(4, width).int()
    q = torch.randn(sum(counts), HEADS, HEAD_DIM, device="cuda", generator=random).to(BF16)
    first = [sum(counts[:i]) for i in range(4)]
    meta = [torch.tensor(t, dtype=torch.int32, device="cuda") for t in (first, starts, counts)]
    expected = paged_reference.prefill_attention(q, pages[0], pages[1], table, *meta, 0.125)
    config = triton_prefill.prefill_config(max(counts), HEADS // KV_HEADS, HEAD_DIM, BF16)
    tiles = torch.from_numpy(triton_prefill.plan_tiles(meta[2].cpu().numpy(), config.tokens(HEADS // KV_HEADS))).cuda()
    out = torch.full_like(q, float("nan"))
    triton_prefill.prefill_attention(q, pages[0], pages[1], table, *meta, 0.125, tiles=tiles, config=config, out=out)
    got = error(out, expected)
    return [] if got < 1e-2 else [f"prefill: error {got:.2e}"]


def compile_one(job: tuple[int, int]) -> None:
    """Compile (into the cache on disk) every `job[1]`-th variant, starting at `job[0]`."""
    turn = 0
    for rows in ROWS:
        data = None
        variants: list[tuple] = [(op, config) for op in OPERATIONS for config in candidates(rows, *op.shape)]
        variants += [(None, config) for config in decode_candidates(rows)]
        for operation, config in variants:
            turn += 1
            if turn % job[1] != job[0]:
                continue
            data = data or Data(rows, 100)
            try:
                if operation is None:
                    attend(data, 0, config)
                else:
                    operation.run(data, 0, config, False)
            except Exception as failure:
                print(f"{operation.name if operation else 'attention'} {config}: {failure}", file=sys.stderr)
    torch.cuda.synchronize()


def compile_all(workers: int) -> None:
    """The same in parallel processes: compilers are slow, and there are many variants."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(compile_one, [(i, workers) for i in range(workers)]))


def sweep() -> None:
    for rows in ROWS:
        data = Data(rows)
        for operation in OPERATIONS:
            timed = []
            options = candidates(rows, *operation.shape)
            for config in options:
                try:
                    us = time_graph(
                        lambda c=config, o=operation, d=data: [o.run(d, i, c, False) for i in range(o.launches)],
                        operation.launches,
                    )
                except Exception as failure:
                    print(f"  {operation.name} {config}: {str(failure)[:80]}")
                    continue
                timed.append((us, config))
            report(f"rows {rows} {operation.name}", timed, options[0])
        for context in (300,) if rows >= 256 else (300, 4000):
            data.cache(context)
            options = decode_candidates(rows)
            timed = [
                (time_graph(lambda c=config, d=data: [attend(d, i, c) for i in range(LAYERS)], LAYERS), config)
                for config in options
            ]
            report(f"rows {rows} attention at {context}", timed, options[0])


def report(name: str, timed: list, own) -> None:
    """The engine's configuration and the best few."""
    timed.sort(key=lambda pair: pair[0])
    shown = timed[:4] + [pair for pair in timed[4:] if pair[1] == own]
    cells = [
        f"{us:.2f}{'*' if config == own else ''} "
        + ",".join(str(value) for value in vars(config).values())
        for us, config in shown
    ]  # fmt: skip
    print(f"{name:26s} " + " | ".join(cells))


def steps() -> None:
    """Whole decode steps as the engine captures them."""
    from stille.engine.config import EngineConfig
    from stille.engine.cuda_executor import CudaExecutor

    model = random_model()
    for pdl in (False, True):
        config = EngineConfig(device="cuda", dtype="bf16", kv_cache_tokens=200_000, max_model_len=8192)
        executor = CudaExecutor(model, config.resolve(model.config), pdl=pdl)
        for rows in (1, 2, 8, 16, 32, 64, 128, 256):
            set_rows(executor, rows, 300)
            with torch.inference_mode():
                us = time_graph(lambda r=rows, e=executor: e._decode_rows(r), 1)
            print(f"step pdl={pdl!s:5} rows {rows:3d}: {us:7.1f} us, {rows / us * 1e6:9.0f} tok/s on the GPU")


def random_model():
    from stille.model import StilleConfig, StilleForCausalLM

    torch.manual_seed(0)
    config = StilleConfig(num_key_value_heads=KV_HEADS, tie_word_embeddings=True, rope_parameters={"rope_theta": 1e5})
    return StilleForCausalLM(config).to(device="cuda", dtype=BF16).eval()


def set_rows(executor, rows: int, context: int) -> None:
    """Put a decode step of `rows` sequences of `context` tokens into the executor's inputs."""
    import numpy as np

    from stille.engine.executor import StepInput

    per = -(-context // PAGE)
    table = 1 + np.arange(rows * per, dtype=np.int32).reshape(rows, per)
    ones = np.ones(rows, np.int32)
    step = StepInput(
        np.arange(rows, dtype=np.int32), ones * (context - 1), ones, np.zeros(rows, np.int64), table,
        np.ones(rows, bool), rows,
    )  # fmt: skip
    executor.forward(step, torch.zeros(rows, dtype=torch.int64, device="cuda"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=("check", "sweep", "steps"), default=["check", "sweep", "steps"])
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    chosen = parser.parse_args()
    start = time.perf_counter()
    failures = check() if "check" in chosen.only else []
    if "check" in chosen.only:
        took = time.perf_counter() - start
        print("\n".join(failures) or f"all kernels agree with plain torch ({took:.0f} s)", flush=True)
    if "sweep" in chosen.only:
        compile_all(chosen.workers)
        print(f"compiled after {time.perf_counter() - start:.0f} s", flush=True)
        sweep()
        print(f"swept after {time.perf_counter() - start:.0f} s", flush=True)
    if "steps" in chosen.only:
        steps()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
