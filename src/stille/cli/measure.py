"""The measurements behind `stille bench`."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stille.cli.session import Session


DECODE_PROMPT = 16  # tokens


@dataclass
class Timeline:
    """When one request's tokens came: (seconds since its start, number of tokens)."""

    arrivals: list[tuple[float, int]]

    @property
    def first(self) -> float:
        return self.arrivals[0][0]


async def run(
    session: Session, prompt_tokens: int, output_tokens: int, batches: list[int], repeats: int
) -> dict[str, Any]:
    """Time prefill (batch 1), time to the first token and decode at each batch size.

    Prompts are random tokens, another for each run; those of decoding are short, so that all requests of a batch
    decode together for nearly all of the time. One round of every kind warms up and is not counted.
    """
    generator = random.Random(0)
    vocabulary = len(session.engine.tokenizer)

    def prompt(length: int) -> list[int]:
        return [generator.randrange(vocabulary) for _ in range(length)]

    ttft, prefill = [], []
    decode: dict[int, list[float]] = {size: [] for size in batches}
    for round in range(repeats + 1):
        line = await _request(session, prompt(prompt_tokens), 1)
        if round:
            ttft.append(line.first * 1000)
            prefill.append(prompt_tokens / line.first)
        for size in batches:
            started = time.perf_counter()
            lines = await asyncio.gather(
                *(_request(session, prompt(DECODE_PROMPT), output_tokens, started) for _ in range(size))
            )
            if round:
                decode[size].append(_decode_rate(lines))
    measures = [
        _row(f"prefill, {prompt_tokens} tokens", prefill, "tok/s"),
        _row(f"time to first token, {prompt_tokens} tokens", ttft, "ms"),
        *(_row(f"decode, batch {size}", rates, "tok/s") for size, rates in decode.items()),
    ]
    config = session.engine.config
    import torch

    return {
        "model": session.engine.model_name,
        "device": config.device,
        "dtype": config.dtype,
        "attention": config.attention,
        "threads": torch.get_num_threads(),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "measures": measures,
    }


async def _request(session: Session, prompt: list[int], max_tokens: int, started: float | None = None) -> Timeline:
    from stille.engine.sampling_params import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    started = time.perf_counter() if started is None else started
    arrivals = []
    async for delta in session.engine.generate(prompt, params):
        if delta.token_ids:
            arrivals.append((time.perf_counter() - started, len(delta.token_ids)))
    return Timeline(arrivals)


def _decode_rate(lines: list[Timeline]) -> float:
    """Tokens per second from the moment when every request decodes to the moment when the first one is done."""
    begin = max(line.first for line in lines)
    end = min(line.arrivals[-1][0] for line in lines)
    tokens = sum(count for line in lines for moment, count in line.arrivals if begin < moment <= end)
    return tokens / (end - begin) if end > begin else 0.0


def _row(name: str, values: list[float], unit: str) -> dict[str, Any]:
    return {"name": name, "value": statistics.median(values), "low": min(values), "high": max(values), "unit": unit}
