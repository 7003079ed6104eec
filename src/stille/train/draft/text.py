"""The text that a draft head learns from: answers of its target to prompts, in shards on disk.

A shard is one .npz file, there whole or not at all; it follows from the seed, the part and its number, so a killed run
goes on behind the last one. Several processes, each with a GPU, may fill one folder: part p of P takes every P-th
prompt.

    text.json            the model, its vocabulary, domains and settings: the same for all parts
    shard-PP-NNNNN.npz   tokens [T] (uint16 or uint32), and of each document: length, start (the first position that is
                         learned from), prompt (tokens of it), domain, greedy, held_out
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from stille.engine.llm import LLM
from stille.engine.sampling_params import SamplingParams
from stille.errors import ConfigError
from stille.train.draft.prompts import Encoded, Prompt, encode_all

logger = logging.getLogger(__name__)

TEXT_FILE, FORMAT = "text.json", 1
COLUMNS = ("length", "start", "prompt", "domain", "greedy", "held_out")
PERIOD, ROUNDS, LEAST = 64, 3, 24  # a loop: the same up to 64 tokens three times, 24 tokens at least


@dataclass(frozen=True)
class TextSettings:
    """What text is made.

    Attributes:
        tokens: of all parts together, prompts included.
        answer_tokens: most tokens of an answer.
        greedy: share of the answers at temperature 0; a prompt has one such answer at most. The others are at 1.
        seed: of the order of prompts, and of the answers.
        shard: prompts of a shard.
        minutes: none is begun after so many; None: no limit. Those before a resume do not count.
        part, parts: which of how many this process makes.

    Raises:
        ConfigError: a value out of range.
    """

    tokens: int = 50_000_000
    answer_tokens: int = 384
    greedy: float = 1 / 3
    seed: int = 0
    shard: int = 4096
    minutes: float | None = None
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        for name in ("tokens", "answer_tokens", "shard", "parts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 1.")
        if not 0 <= self.part < self.parts:
            raise ConfigError(f"part {self.part} of {self.parts}: parts are counted from 0.")
        if not 0 <= self.greedy <= 1:
            raise ConfigError(f"greedy={self.greedy}, expected a share from 0 to 1.")

    def identity(self) -> dict[str, Any]:
        """What all parts of one text must agree on."""
        return {name: value for name, value in asdict(self).items() if name not in ("tokens", "minutes", "part")}


Report = Callable[[int, int, str], None]
"""Told (tokens so far, tokens wanted, in words) after every shard."""


def make_text(
    folder: Path, prompts: Sequence[Prompt], settings: TextSettings, start: Callable[[], LLM], report: Report
) -> int:
    """Fill a folder with this part's share of the text; what is there stays.

    Args:
        folder: of the shards.
        prompts: of all parts.
        settings: what is wanted.
        start: makes the engine, if anything is missing.
        report: told after every shard.

    Returns:
        Tokens of this part.

    Raises:
        ConfigError: the folder holds text of another model, of other prompts or settings.
    """
    domains = sorted({prompt.domain for prompt in prompts})
    folder.mkdir(parents=True, exist_ok=True)
    wanted, tokens, number = -(-settings.tokens // settings.parts), 0, 0
    llm: LLM | None = None
    began, new = time.monotonic(), 0
    while tokens < wanted:
        file = folder / f"shard-{settings.part:02d}-{number:05d}.npz"
        if not file.exists():
            if settings.minutes is not None and time.monotonic() - began > 60 * settings.minutes:
                break
            if llm is None:
                llm = start()
                _note(folder, llm, prompts, settings, domains)
                began = time.monotonic()
            count = min(settings.shard, max(8, 2 * (wanted - tokens) // settings.answer_tokens))
            arrays = _shard(llm, prompts, settings, number, count, domains)
            write_shard(file, arrays)
            new += len(arrays["tokens"])
        tokens, number = tokens + _tokens(file), number + 1
        rate = new / max(1e-9, time.monotonic() - began)
        report(min(tokens, wanted), wanted, f"{tokens:,} tokens of text, {rate:,.0f} tok/s")
    return tokens


def _note(folder: Path, llm: LLM, prompts: Sequence[Prompt], settings: TextSettings, domains: list[str]) -> None:
    values = {
        "format": FORMAT,
        "model": llm.model_name,
        "vocab": len(llm.tokenizer),
        "domains": domains,
        "prompts": len(prompts),
        "prompt_keys": sum(prompt.key for prompt in prompts) % 2**53,
        "settings": settings.identity(),
    }
    file = folder / TEXT_FILE
    if file.exists():
        before = read_note(folder)
        if differing := [name for name in values if before.get(name) != values[name]]:
            raise ConfigError(
                f"{folder} holds other text: {', '.join(differing)} differ. Use the same prompts and settings to go "
                "on, or another folder."
            )
        return
    scratch = folder / f".text.{os.getpid()}.part"
    scratch.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, file)


def read_note(folder: Path) -> dict[str, Any]:
    """What `text.json` says.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        values = json.loads((folder / TEXT_FILE).read_text(encoding="utf-8"))
        if values["format"] != FORMAT or not isinstance(values["domains"], list):
            raise ValueError(f"format {values['format']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} holds no text for a draft head ({error!r}); make it by `stille train draft --prompts FILES`."
        ) from error
    return values


def _shard(
    llm: LLM, prompts: Sequence[Prompt], settings: TextSettings, number: int, count: int, domains: list[str]
) -> dict[str, np.ndarray]:
    asked = _draw(prompts, settings, number, count)
    room = llm.max_model_len - settings.answer_tokens
    encoded = encode_all(llm.prompts, [prompt for prompt, _ in asked], max(2, room))
    passes = {prompt.key: turn for prompt, turn in asked}
    params = [_params(prompt, passes[prompt.key], settings) for prompt, _ in encoded]
    outputs = llm.generate([each.ids for _, each in encoded], params, progress=False) if encoded else []
    documents, columns = [], []
    for (prompt, each), sampling, output in zip(encoded, params, outputs, strict=True):
        ids = each.ids + cut_loop(output.outputs[0].token_ids)
        start = _start(each)
        if len(ids) - start < 3:  # nothing to guess: an empty answer
            continue
        documents.append(np.asarray(ids))
        greedy = sampling.temperature == 0
        columns.append((len(ids), start, len(each.ids), domains.index(prompt.domain), greedy, prompt.held_out))
    kind = np.uint16 if len(llm.tokenizer) <= 1 << 16 else np.uint32
    table = np.asarray(columns, dtype=np.int32).reshape(-1, len(COLUMNS))
    tokens = np.concatenate([np.zeros(0, np.int64), *documents]).astype(kind)
    return {"tokens": tokens, **{name: table[:, at] for at, name in enumerate(COLUMNS)}}


def _start(encoded: Encoded) -> int:
    """The first position that is learned from: the one that predicts the answer's first token, or all of a text."""
    return len(encoded.ids) - 1 if encoded.chat else 0


def _draw(prompts: Sequence[Prompt], settings: TextSettings, number: int, count: int) -> list[tuple[Prompt, int]]:
    """Prompts of this part's shard, each with how often it had been drawn: permutations, one after the other."""
    found: list[tuple[Prompt, int]] = []
    orders: dict[int, np.ndarray] = {}
    at = number * settings.shard
    for place in range(at, at + count):
        whole = place * settings.parts + settings.part
        turn, index = divmod(whole, len(prompts))
        if turn not in orders:
            orders[turn] = np.random.default_rng([settings.seed, turn]).permutation(len(prompts))
        found.append((prompts[orders[turn][index]], turn))
    known: set[int] = set()  # a few prompts and a large shard: each is asked once in it
    return [(prompt, turn) for prompt, turn in found if prompt.key not in known and not known.add(prompt.key)]  # pyright: ignore


def _params(prompt: Prompt, turn: int, settings: TextSettings) -> SamplingParams:
    # Mixed (by the golden ratio): small keys are those that are held out.
    chance, past = prompt.key * 0x9E3779B97F4A7C15 % 2**56 / 2**56, turn * settings.greedy
    greedy = past < 1 - 1e-9 and (chance + past) % 1 < settings.greedy
    seed = (prompt.key + 1_000_003 * turn + settings.seed) % 2**56
    return SamplingParams(max_tokens=settings.answer_tokens, temperature=0.0 if greedy else 1.0, seed=seed)


def cut_loop(ids: Sequence[int]) -> list[int]:
    """An answer up to where it says the same for the third time: loops are no text to learn from."""
    values = np.asarray(ids)
    end = len(values)
    for period in range(1, min(PERIOD, len(values) // 2) + 1):
        same = values[period:] == values[:-period]
        run = max(LEAST, (ROUNDS - 1) * period)
        if same.sum() < run:
            continue
        lengths = np.diff(np.flatnonzero(np.concatenate(([True], ~same, [True])))) - 1
        begins = np.flatnonzero(np.concatenate(([True], ~same)))
        long = np.flatnonzero(lengths >= run)
        if len(long):
            end = min(end, int(begins[long[0]]) + period + run)
    return [int(token) for token in values[:end]]


def write_shard(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """A shard, whole or not at all."""
    scratch = file.with_suffix(f".{os.getpid()}.part")
    with scratch.open("wb") as opened:
        np.savez(opened, **arrays)  # pyright: ignore[reportArgumentType]
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(scratch, file)


def _tokens(file: Path) -> int:
    try:
        with np.load(file) as arrays:
            return int(arrays["length"].sum())
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(f"{file} is damaged ({error!r}); delete it, it is made again.") from error
