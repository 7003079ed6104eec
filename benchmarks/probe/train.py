"""Train the probe model: an adapter for SmolLM2-135M that makes full attention solve long-range tasks to 16K tokens.

    PYTHONPATH=benchmarks python -m probe.train --model SmolLM2-135M-Instruct.Q4_1.gguf --out adapter --seconds 570
    PYTHONPATH=benchmarks python -m probe.train --smoke --out /tmp/adapter     # two steps on a CPU

The schedule runs by the clock: `--seconds` is the whole time from the start, loading and the last test included.
Sparse attention takes no part in it.
"""

import argparse
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F

from probe.data import TASKS, Batch, Workers
from probe.network import ProbeNetwork, load_adapter, probe_config, save_adapter
from stille.model.load import fetch, load_model

# Until this share of the time: the lengths of the batches and their shares.
PHASES: list[tuple[float, dict[int, float]]] = [
    (0.10, {1024: 0.6, 2048: 0.4}),
    (0.28, {2048: 0.8, 1024: 0.2}),
    (0.45, {4096: 0.7, 2048: 0.3}),
    (0.68, {8192: 0.65, 4096: 0.2, 2048: 0.15}),
    (1.00, {16384: 0.65, 8192: 0.25, 2048: 0.10}),
]
SMOKE_PHASES = [(0.5, {256: 1.0}), (1.0, {512: 0.5, 256: 0.5})]
HELD_OUT = {2048: 16, 4096: 8, 8192: 6, 16384: 4}  # samples of each task
WARM_UP, DECAY_FROM, FINAL_RATE = 40, 0.35, 0.03


def main() -> None:
    started = time.perf_counter()
    options = parse()
    model_file = fetch(options.model, progress=False)
    phases = SMOKE_PHASES if options.smoke else PHASES
    lengths = sorted({length for _, shares in phases for length in shares})
    held_out = {} if options.smoke else HELD_OUT
    workers = Workers(options.workers, options.seed, model_file, options.exclude, options.tokens, lengths, held_out)
    try:
        train(options, model_file, workers, phases, started)
    finally:
        workers.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--model", default="stille-135m", help="the base: a name, folder or .gguf file")
    add("--out", type=Path, required=True, help="folder of the adapter and the log")
    add("--seconds", type=float, default=570, help="the whole time, from start to end")
    add("--reserve", type=float, default=25, help="seconds of it kept for the last test and saving")
    add("--resume", type=Path, help="continue from the adapter of this folder (the optimiser starts afresh)")
    add("--done", type=float, help="with --resume: the share of the schedule behind it (default: as recorded there)")
    add("--tokens", type=int, default=32768, help="tokens of a step")
    add("--rank", type=int, default=48)
    add("--lr", type=float, default=1.5e-3, help="rate of B; A learns at a quarter of it")
    add("--theta", type=float, default=3e5, help="rotary base")
    add("--context", type=int, default=17408, help="max_position_embeddings of the result")
    add("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 2)), help="processes making samples")
    add("--exclude", type=Path, help="text file; no word in it is used in a task")
    add("--seed", type=int, default=1)
    add("--no-compile", action="store_true")
    add("--smoke", action="store_true", help="two short steps on a CPU")
    options = parser.parse_args()
    if options.done is None:
        options.done = 0.0
        if options.resume:
            options.done = json.loads((options.resume / "adapter.json").read_text(encoding="utf-8"))["progress"]
    if options.smoke:
        options.tokens, options.workers, options.no_compile = 512, 1, True
    return options


def train(options: argparse.Namespace, model_file: Path, workers: Workers, phases: list, started: float) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    base = load_model(model_file, progress=False)
    config = probe_config(base.config, options.theta, options.context)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    network = ProbeNetwork(base.model, config, options.rank, dtype, device, compiled=not options.no_compile)
    del base
    if options.resume:
        load_adapter(network, options.resume)
    longest = max(phases[-1][1])
    attention = network.choose_attention(max(1, options.tokens // longest), longest)
    log = Log(options, started)
    torch._dynamo.config.suppress_errors = True  # what does not compile runs as it is, with a warning
    log.say(f"loaded; {sum(p.numel() for p in network.parameters()) / 1e6:.1f}M parameters; attention: {attention}")
    optimiser = torch.optim.AdamW(
        [{"params": list(network.A.values()), "share": 0.25}, {"params": list(network.B.values()), "share": 1.0}],
        betas=(0.9, 0.98), weight_decay=0.0, fused=device == "cuda",
    )  # fmt: skip

    batches = iter(workers)
    begin: float | None = None  # the clock of the schedule starts after the first step, which compiles
    deadline = started + options.seconds - options.reserve
    phase, step, tokens_seen, waited = -1, 0, 0, 0.0
    last_test = mark = time.perf_counter()
    marked = 0
    losses: list[torch.Tensor] = []
    while True:
        now = time.perf_counter()
        part = 0.0 if begin is None else (now - begin) / max(1e-9, deadline - begin)
        if options.smoke:
            part = step / 2
        if part >= 1:
            break
        progress = options.done + (1 - options.done) * part
        current = next(i for i, (until, _) in enumerate(phases) if progress < until or i == len(phases) - 1)
        if current != phase:
            phase = current
            workers.set_plan(phases[phase][1])
        rate = options.lr * learning_rate(step, progress)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["share"]
        batch = next(batches)
        waited += time.perf_counter() - now
        losses.append(learn(network, optimiser, batch))
        step += 1
        tokens_seen += batch.ids.size
        if begin is None:
            if device == "cuda":
                torch.cuda.synchronize()
            begin = last_test = mark = time.perf_counter()
            marked, waited = tokens_seen, 0.0
        if step % 10 == 0 and device == "cuda":
            torch.cuda.synchronize()  # never far ahead of the device, so that the clock holds
        if step % 30 == 0 or options.smoke:
            loss = torch.stack(losses).mean().item()
            losses.clear()
            now = time.perf_counter()
            rate_seen = (tokens_seen - marked) / max(1e-9, now - mark)
            mark, marked = now, tokens_seen
            log.say(
                f"step {step:5d}  {progress:5.1%}  phase {phase}  length {batch.ids.shape[1]:5d}  loss {loss:.4f}  "
                f"{rate_seen / 1e3:.0f}K tok/s  waited {waited:.1f} s  rate {rate:.1e}",
                step=step, progress=progress, loss=loss, tokens=tokens_seen, tokens_per_second=rate_seen, waited=waited,
            )  # fmt: skip
            waited = 0.0
        if time.perf_counter() - last_test > 70 and not options.smoke:
            shown = {max(phases[phase][1])} | ({longest} if progress > 0.5 else set())
            for length in sorted(shown & set(workers.held_out)):
                log.test(step, length, test(network, workers.held_out[length]))
            save(network, options, step, progress, tokens_seen, {})
            last_test = mark = time.perf_counter()
            marked = tokens_seen
    network.round_adapter()
    while not workers.held_out_ready:
        next(batches)
    results = {length: test(network, found) for length, found in workers.held_out.items()}
    save(network, options, step, 1.0, tokens_seen, results)
    for length, scores in results.items():
        log.test(step, length, scores)
    log.table(results)
    log.say(f"done: {step} steps, {tokens_seen / 1e6:.1f}M tokens")


def learning_rate(step: int, progress: float) -> float:
    """Share of the full rate: a warm-up by steps, level, then down along a cosine by the clock."""
    late = max(0.0, (progress - DECAY_FROM) / (1 - DECAY_FROM))
    decay = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, late)))
    return min(1.0, (step + 1) / WARM_UP) * decay


def prepare(batch: Batch, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids_BT, the rows before learnt tokens, those tokens, and their weights."""
    learnt = batch.weight.reshape(-1).nonzero()[0]  # never the first token of a sequence
    ids = torch.from_numpy(batch.ids.astype("int64"))
    rows = torch.from_numpy(learnt)
    targets, weights = ids.reshape(-1)[rows], torch.from_numpy(batch.weight.reshape(-1)[learnt])
    if device == "cuda":
        moved = [x.pin_memory().to(device, non_blocking=True) for x in (ids, rows - 1, targets, weights)]
    else:
        moved = [ids, rows - 1, targets, weights]
    return moved[0], moved[1], moved[2], moved[3]


def learn(network: ProbeNetwork, optimiser: torch.optim.Optimizer, batch: Batch) -> torch.Tensor:
    """One step; returns the loss, still on the device."""
    ids, rows, targets, weights = prepare(batch, network.device)
    losses = F.cross_entropy(network(ids, rows).float(), targets, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for parameter in network.parameters():  # a step that overflowed changes little instead of everything
        if parameter.grad is not None:
            parameter.grad.masked_fill_(~norm.isfinite(), 0.0)
    optimiser.step()
    return loss.detach()


def test(network: ProbeNetwork, batches: Iterable[Batch]) -> dict[str, float]:
    """Share of the answers of each task of which every token is the likeliest one, given the true text before it."""
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in batches:
        ids, rows, targets, _ = prepare(batch, network.device)
        # with gradients, like a step: what was compiled for training serves here too
        hits = (network(ids, rows).argmax(-1) == targets).cpu().numpy()
        length = batch.ids.shape[1]
        places = batch.weight.reshape(-1).nonzero()[0]
        answers = batch.answer.reshape(-1)[places]
        whole: dict[tuple[int, int], bool] = {}
        for place, answer, hit in zip(places, answers, hits, strict=True):
            if answer:
                key = (int(place) // length, int(answer))
                whole[key] = whole.get(key, True) and bool(hit)
        for (row, _), good in whole.items():
            right[batch.tasks[row]].append(good)
    return {task: sum(found) / len(found) for task in TASKS if (found := right[task])}


def save(
    network: ProbeNetwork, options: argparse.Namespace, step: int, progress: float, tokens: int, results: dict
) -> None:
    """The adapter and what is needed to merge or continue it."""
    save_adapter(network, options.out)
    facts = dict(
        base="SmolLM2-135M-Instruct (Q4_1, dequantised)", rank=options.rank, rope_theta=options.theta,
        context=options.context, lr=options.lr, seed=options.seed, step=step, progress=round(progress, 4),
        tokens=tokens, tokens_per_step=options.tokens,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        exact_answers={str(length): scores for length, scores in results.items()},
    )  # fmt: skip
    file = options.out / "adapter.json"
    file.with_suffix(".tmp").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    file.with_suffix(".tmp").replace(file)


class Log:
    """Lines on the terminal and in `train.jsonl`."""

    def __init__(self, options: argparse.Namespace, started: float):
        self._started = started
        options.out.mkdir(parents=True, exist_ok=True)
        self._file = (options.out / "train.jsonl").open("a", encoding="utf-8", buffering=1)

    def say(self, text: str, **facts: object) -> None:
        seconds = time.perf_counter() - self._started
        print(f"{seconds:6.1f} s  {text}", flush=True)
        self._file.write(json.dumps({"seconds": round(seconds, 2), **(facts or {"text": text})}) + "\n")

    def test(self, step: int, length: int, scores: dict[str, float]) -> None:
        mean = sum(scores.values()) / max(1, len(scores))
        shown = "  ".join(f"{task} {score:.0%}" for task, score in scores.items())
        self.say(f"test {length}: mean {mean:.1%}  {shown}", step=step, length=length, scores=scores)

    def table(self, results: dict[int, dict[str, float]]) -> None:
        print("task        " + "".join(f"{length:>8}" for length in results))
        for task in TASKS:
            print(f"{task:12}" + "".join(f"{scores.get(task, float('nan')):8.1%}" for scores in results.values()))


if __name__ == "__main__":
    main()
