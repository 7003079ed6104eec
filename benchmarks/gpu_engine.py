"""The engine on one CUDA GPU against transformers: checked first, then timed.

    python benchmarks/gpu_engine.py --json benchmarks/results/gpu.json
    python benchmarks/gpu_engine.py --check-only | --quick | --profile | --random-weights

Both sides run SmolLM2-135M in bf16 with the same weights, greedily, past the end-of-sequence token, in this process:

    gpu.batch1    one request, 32 tokens in, 512 out, against `generate` with a static cache, which compiles itself
    gpu.batch256  256 requests, 128 tokens in, 128 out, against `generate_batch` (continuous batching, warm manager)

A figure is answer tokens over wall time of the whole call, prompts included: the median of repeated runs. Stages are
independent; tracebacks of one that fails go to $OUT/gpu_engine.log if OUT is set, else to stderr.
"""

import argparse
import copy
import dataclasses
import gc
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from stille import LLM, SamplingParams
from stille.engine.build import Engine, assemble
from stille.engine.config import PAGE_SIZE, EngineConfig
from stille.engine.core import EngineCore
from stille.engine.cuda_executor import CudaExecutor
from stille.engine.executor import StepInput
from stille.ledger import Record, measure, write
from stille.model import LoadedModel, StilleConfig, StilleForCausalLM, load_model

COMMAND = "python benchmarks/gpu_engine.py --json benchmarks/results/gpu.json"
SMOLLM2 = dict(num_key_value_heads=3, tie_word_embeddings=True, rope_parameters={"rope_theta": 1e5})


def load(path: str, random_weights: bool) -> LoadedModel:
    """The model in fp32 on the GPU."""
    if not random_weights:
        return load_model(path, dtype=torch.float32, device="cuda", progress=False)
    torch.manual_seed(0)
    model = StilleForCausalLM(StilleConfig(**SMOLLM2)).cuda().eval()
    return LoadedModel(model, number_tokenizer(model.config.vocab_size), Path("random"), "random weights", [])


def number_tokenizer(size: int) -> Any:
    """A tokenizer whose tokens are numbers, for weights that speak no language."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(size)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="0")


def baseline(model: StilleForCausalLM, dtype: torch.dtype) -> Any:
    """transformers' own Llama with the same weights."""
    c: Any = model.config
    config = LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads, head_dim=c.head_dim, rms_norm_eps=c.rms_norm_eps,
        max_position_embeddings=c.max_position_embeddings, rope_parameters=dict(c.rope_parameters),
        tie_word_embeddings=c.tie_word_embeddings, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.device("cuda"):
        theirs = LlamaForCausalLM(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if "rotary" not in name}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise RuntimeError(f"weights do not carry over: missing {missing}, unexpected {unexpected}")
    theirs.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0, do_sample=False)
    return theirs.to(dtype).eval()


def prompts(tokenizer: Any, count: int, length: int, vocab: int, random_weights: bool) -> list[list[int]]:
    """Different windows of prose (torch's own documentation), or random numbers for random weights."""
    random = np.random.default_rng(0)
    if random_weights:
        return random.integers(1, vocab, (count, length)).tolist()
    documented = (getattr(torch, name, None) for name in sorted(dir(torch)))
    text = "\n".join(thing.__doc__ for thing in documented if callable(thing) and isinstance(thing.__doc__, str))
    ids = tokenizer(text[:600_000]).input_ids
    starts = random.choice(len(ids) - length, count, replace=False)
    return [ids[start : start + length] for start in starts]


def engine(loaded: LoadedModel, dtype: str, *, fused: bool = True, **options: Any) -> LLM:
    """Our engine over a copy of the model; `fused` False: as `make_executor` would choose."""
    config = EngineConfig(device="cuda", dtype=dtype, prefix_caching=False, max_draft_tokens=0, **options)
    resolved = config.resolve(loaded.config)
    model = copy.deepcopy(loaded.model).to(resolved.load_dtype)
    if not fused:
        return LLM.from_engine(assemble(dataclasses.replace(loaded, model=model), config))
    executor = CudaExecutor(model, resolved)
    executor.warmup()
    core = EngineCore(executor, loaded.tokenizer, resolved, loaded.eos_token_ids)
    return LLM.from_engine(Engine(core, loaded.tokenizer, loaded.name))


def greedy(llm: LLM, inputs: Sequence[list[int]], tokens: int) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    return [list(result.outputs[0].token_ids) for result in llm.generate(list(inputs), params, progress=False)]


def timed(run: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


class Run:
    """What stages share, and what they found."""

    def __init__(self, chosen: argparse.Namespace):
        self.quick, self.random = chosen.quick, chosen.random_weights
        self.loaded = load(chosen.model, chosen.random_weights)
        self.vocab = int(self.loaded.config.vocab_size)
        self.records: list[Record] = []
        self.lines: list[str] = []
        self.failures: list[str] = []
        name = "random weights of SmolLM2-135M's shape" if self.random else "SmolLM2-135M"
        self.what = f"{name}, bf16, greedy"

    def prompts(self, count: int, length: int) -> list[list[int]]:
        return prompts(self.loaded.tokenizer, count, length, self.vocab, self.random)

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def expect(self, fact: bool, what: str) -> None:
        self.say(f"{'ok    ' if fact else 'FAILED'} {what}")
        if not fact:
            self.failures.append(what)


def check_kernels(run: Run) -> None:
    import gpu_kernels

    failures = gpu_kernels.check()
    run.expect(not failures, "kernels agree with plain torch" + "".join(f"\n       {f}" for f in failures))


def check_fp32(run: Run) -> None:
    """Greedy answers in fp32, batched and graphed, are transformers' own."""
    tokens = 32 if run.quick else 64
    inputs = [p[:n] for p, n in zip(run.prompts(5, 200), (1, 17, 64, 65, 200), strict=True)]
    theirs = baseline(run.loaded.model, torch.float32)
    expected = []
    with torch.inference_mode():
        for ids in inputs:
            out = theirs.generate(torch.tensor([ids], device="cuda"), max_new_tokens=tokens)
            expected.append(out[0, len(ids) :].tolist())
    for fused, name in ((True, "fused kernels and graphs"), (False, "make_executor's choice")):
        llm = engine(run.loaded, "fp32", fused=fused, max_num_seqs=8, kv_cache_tokens=8192, max_num_batched_tokens=128)
        got = greedy(llm, inputs, tokens)
        same = sum(a == b for a, b in zip(got, expected, strict=True))
        run.expect(same == len(inputs), f"fp32 greedy, {name}: {same} of {len(inputs)} answers equal transformers'")
        del llm
    del theirs
    release()


def check_bf16(run: Run) -> None:
    """bf16 logits, prefill and graphed decode, are as close to fp32 as transformers' bf16 logits are."""
    inputs = run.prompts(8, 130)
    ids = torch.tensor(inputs, device="cuda")
    with torch.inference_mode():
        exact = baseline(run.loaded.model, torch.float32)(ids).logits[:, -2:].double()
        half = baseline(run.loaded.model, torch.bfloat16)(ids).logits[:, -2:].double()
    config = EngineConfig(device="cuda", dtype="bf16", max_num_seqs=8, kv_cache_tokens=8192)
    executor = CudaExecutor(copy.deepcopy(run.loaded.model).bfloat16(), config.resolve(run.loaded.config))
    table = 1 + np.arange(8 * 3, dtype=np.int32).reshape(8, 3)
    slots, ones = np.arange(8, dtype=np.int32), np.ones(8, np.int32)
    theirs = float((half - exact).norm() / exact.norm())
    for name, start, length in (("prefill", 0, 129), ("decode", 129, 1)):
        part = ids[:, start : start + length].flatten()
        pages = table[:, : -(-(start + length) // PAGE_SIZE)]
        step = StepInput(
            slots, ones * start, ones * length, part.cpu().numpy(), pages, ones > 0, 8 if length == 1 else 0
        )
        logits = executor.forward(step, part).double()
        want = exact[:, start + length - 129]
        ours = float((logits - want).norm() / want.norm())
        run.expect(ours < 1.3 * theirs, f"bf16 logits, {name}: error {ours:.4f} (transformers' {theirs:.4f})")
    del executor
    release()


def ours_timed(run: Run, inputs: list[list[int]], tokens: int, repeats: int) -> tuple[list[list[int]], list[float]]:
    """Answers and seconds of our engine, with room for all requests at once."""
    room = sum(len(ids) + tokens + PAGE_SIZE for ids in inputs)
    llm = engine(run.loaded, "bf16", max_num_seqs=len(inputs), kv_cache_tokens=room)
    answers = greedy(llm, inputs, tokens)
    run.expect(all(len(a) == tokens for a in answers), f"batch {len(inputs)}: every answer has {tokens} tokens")
    times = timed(lambda: greedy(llm, inputs, tokens), repeats)
    used = llm.stats().pages_used
    run.expect(used == 0, f"batch {len(inputs)}: no page is left in use ({used})")
    return answers, times


def generate_timed(run: Run, prompt: list[int], tokens: int, repeats: int) -> tuple[list[int], list[float], float]:
    """Answer, seconds, and seconds of compilation of transformers' `generate` with a static cache."""
    theirs = baseline(run.loaded.model, torch.bfloat16)
    ids = torch.tensor([prompt], device="cuda")

    def generate() -> list[int]:
        out = theirs.generate(ids, max_new_tokens=tokens, cache_implementation="static")
        return out[0, len(prompt) :].tolist()

    with torch.inference_mode():
        warm = sum(timed(generate, 2))  # the first compiles, the second records graphs
        return generate(), timed(generate, repeats), warm


def generate_batch_timed(
    run: Run, inputs: list[list[int]], tokens: int, repeats: int
) -> tuple[list[list[int]], list[float], float]:
    """Answers, seconds, and seconds of the first call of transformers' continuous batching."""
    theirs = baseline(run.loaded.model, torch.bfloat16)
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    answers: list[list[int]] = []

    def generate() -> None:
        results = theirs.generate_batch(inputs=inputs, generation_config=config, persistent_manager=True)
        answers[:] = [list(result.generated_tokens) for result in results.values()]

    try:
        first = timed(generate, 1)[0]
        return answers, timed(generate, repeats), first
    finally:
        theirs.destroy_cached_continuous_batching_manager()


def batch1(run: Run) -> None:
    inputs, tokens, repeats = run.prompts(1, 32), 512, 3 if run.quick else 5
    answers, times = ours_timed(run, inputs, tokens, repeats)
    ours = tokens / statistics.median(times)
    release()
    shape: Any = run.loaded.config
    weights = sum(p.numel() for p in run.loaded.model.parameters()) * 2
    cache = 2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * (32 + tokens / 2)
    copied = copy_bandwidth()
    used = (weights + cache) * ours
    run.say(
        f"batch 1: ours {ours:.0f} tok/s, {1e6 / ours:.0f} us a token (spread {tokens / max(times):.0f} to "
        f"{tokens / min(times):.0f}); reads {used / 1e9:.0f} GB/s, {used / copied:.0%} of a copy"
    )
    answer, their_times, warm = generate_timed(run, inputs[0], tokens, repeats)
    release()
    reference = tokens / statistics.median(their_times)
    agree = next((i for i, (a, b) in enumerate(zip(answers[0], answer, strict=True)) if a != b), tokens)
    run.say(
        f"batch 1: transformers {reference:.0f} tok/s (spread {tokens / max(their_times):.0f} to "
        f"{tokens / min(their_times):.0f}, compiled in {warm:.0f} s); answers agree for {agree} tokens; "
        f"ratio {ours / reference:.2f}"
    )
    run.records.append(
        measure(
            "gpu.batch1", ours, "tok/s", command=COMMAND, baseline="transformers generate, static cache, compiled",
            baseline_value=reference, goal="ratio >= 2",
            notes=f"One request on a GPU. {run.what}, 32 tokens in and {tokens} out, prompt included, median of "
            f"{repeats}. Reads {used / copied:.0%} of the bandwidth of a device-to-device copy.",
        )
    )  # fmt: skip


def copy_bandwidth() -> float:
    """Bytes per second of a large device-to-device copy, read plus written."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = timed(lambda: target.copy_(source), 5)
    return 2 * source.numel() / min(times)


def batch256(run: Run) -> None:
    count, length, tokens, repeats = 256, 512, 128, 3
    inputs = run.prompts(count, length)
    total = count * tokens
    answers, times = ours_timed(run, inputs, tokens, repeats)
    ours = total / statistics.median(times)
    run.say(f"batch {count}: ours {ours:.0f} tok/s (spread {total / max(times):.0f} to {total / min(times):.0f})")
    release()
    their_repeats = 1 if run.quick else 2
    their_answers, their_times, first = generate_batch_timed(run, inputs, tokens, their_repeats)
    release()
    reference = total / statistics.median(their_times)
    whole = sum(len(a) == tokens for a in their_answers)
    run.expect(whole == count, f"batch {count}: transformers answered {whole} of {count} in full")
    same = sum(a[0] == b[0] for a, b in zip(answers, their_answers, strict=False) if b)
    # Random weights have near-ties everywhere, which rounding decides. With the real ones bf16 and fp32 agree on 60 of
    # the first 64 of these prompts (transformers' modules, on a CPU).
    run.expect(run.random or same >= 0.9 * count, f"batch {count}: {same} of {count} first tokens agree")
    run.say(
        f"batch {count}: transformers {reference:.0f} tok/s (first call {first:.1f} s); ratio {ours / reference:.1f}"
    )
    run.records.append(
        measure(
            "gpu.batch256", ours, "tok/s", command=COMMAND, baseline="transformers continuous batching, generate_batch",
            baseline_value=reference, goal="value >= 60000",
            notes=f"{count} requests at once on a GPU. {run.what}, {length} tokens in and {tokens} out each, prompts "
            f"included, median of {repeats}; transformers with its defaults and a warm manager, median of "
            f"{their_repeats}.",
        )
    )  # fmt: skip


def profile(run: Run) -> None:
    """Where a decode step's time goes: kernels on the GPU, then Python on the host."""
    import cProfile
    import pstats

    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    for rows, length in ((1, 32), (256, 128)):
        llm = engine(run.loaded, "bf16", max_num_seqs=rows, kv_cache_tokens=2 * rows * 400)
        inputs = run.prompts(rows, length)
        greedy(llm, inputs, 32)
        with torch_profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            greedy(llm, inputs, 24)
        print(f"--- batch {rows}: kernels of {24} steps, prefill included")
        print(found.key_averages().table(sort_by="self_device_time_total", row_limit=16, max_name_column_width=60))
        watch = cProfile.Profile()
        start = time.perf_counter()
        watch.runcall(greedy, llm, inputs, 128)
        print(f"--- batch {rows}: host, {(time.perf_counter() - start) / 128 * 1e6:.0f} us a step under the profiler")
        pstats.Stats(watch, stream=sys.stdout).sort_stats("tottime").print_stats(18)
        del llm
        release()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--model", default="stille-135m")
    parser.add_argument("--random-weights", action="store_true", help="SmolLM2-135M's shape, nothing to download")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--profile", action="store_true", help="only print where the time goes")
    parser.add_argument("--only", nargs="*", help="names of stages")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    begin = time.perf_counter()
    stages: list[Callable[[Run], None]] = [check_kernels, check_fp32, check_bf16]
    if not chosen.check_only:
        stages += [batch1, batch256]
    if chosen.profile:
        stages = [profile]
    if chosen.only:
        stages = [stage for stage in (*stages, profile) if stage.__name__ in chosen.only]
    run = Run(chosen)
    for stage in stages:
        start = time.perf_counter()
        try:
            stage(run)
        except Exception as failure:
            note(traceback.format_exc())
            run.expect(False, f"{stage.__name__}: {type(failure).__name__}: {str(failure)[:300]}")
        print(f"       {stage.__name__} took {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n=== {torch.cuda.get_device_name()}, {time.perf_counter() - begin:.0f} s in all\n" + "\n".join(run.lines))
    if chosen.json and run.records:
        write(chosen.json, run.records)
    return 1 if run.failures else 0


def note(text: str) -> None:
    """A traceback, where someone will find it."""
    print(text[-2500:], file=sys.stderr, flush=True)
    if os.environ.get("OUT"):
        with open(Path(os.environ["OUT"]) / "gpu_engine.log", "a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
