"""Stage "samples": text for training, written by the dense model itself.

Half are chats in the way of Magpie (2406.08464): given the beginning of a user's turn in the chat's own format, the
model writes what a user would ask, then answers. Half go on from a few tokens of local text. What distillation needs is
text as the model sees it in use; its teacher's answer to each token it computes anew.

A shard follows from the seeds and its number; finished ones are files, so a killed run goes on behind them.
"""

import gc
import hashlib
import json
import os
import platform
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from stille.engine.llm import LLM
from stille.engine.sampling_params import SamplingParams
from stille.errors import ConfigError
from stille.model.convert.delta import is_delta, read_delta
from stille.model.convert.text import read_documents, split_documents
from stille.model.load import fetch, load_config
from stille.train.default.settings import DefaultSettings
from stille.train.default.stages import Context, Progress, file_digest, files_digest

SAMPLES, HELD_OUT, LIBRARY, LIBRARY_HELD_OUT = (
    f"{name}.jsonl" for name in ("samples", "held-out", "library", "library-held-out")
)
BROUGHT_HELD_OUT = 0.05  # share of a user's own samples that only judges
MARK = "STILLE-MARK"
GRAM, LEAST_GRAMS, LEAST_DISTINCT = 4, 24, 0.5
PATIENCE = 8  # shards that add nothing before it is given up


def base_of(settings: DefaultSettings) -> str:
    """The dense model's name or path; of a delta its base's."""
    path = fetch(settings.base, False)
    return str(read_delta(path).base_source()) if is_delta(path) else settings.base


def base_digest(settings: DefaultSettings) -> str:
    """sha256 of the dense model's files."""
    path = fetch(base_of(settings), False)
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.json")])
    stats = [(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256("".join(_digest(*each) for each in stats).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _digest(file: Path, size: int, changed: int) -> str:
    return file_digest(file)


def inputs(settings: DefaultSettings) -> dict[str, Any]:
    """What the stage reads."""
    local = files_digest(settings.text) or f"Python {platform.python_version()}"
    if settings.samples is not None:
        return {"samples": files_digest([settings.samples]), "text": local}
    names = ("seed", "tokens", "held_out_tokens", "shard", "answer_tokens", "question_tokens", "prefix_tokens")
    values = {name: getattr(settings, name) for name in (*names, "second_turns", "temperature", "chat_top_p")}
    return {"base": base_digest(settings), "text": local, **values}


def run(context: Context) -> dict[str, Any]:
    """Fill the folder: texts to learn from (`SAMPLES`, `LIBRARY`) and to judge on (the other two)."""
    settings, folder = context.settings, context.folder
    fitted, judged = split_documents(read_documents([Path(file) for file in settings.text]))
    write_lines(folder / LIBRARY, [{"text": text, "kind": "local"} for text in fitted])
    write_lines(folder / LIBRARY_HELD_OUT, [{"text": text, "kind": "local"} for text in judged])
    if settings.samples is not None:
        found = _brought(Path(settings.samples), folder)
    else:
        found = _written(context, fitted, judged)
    if not all((folder / name).stat().st_size for name in (SAMPLES, HELD_OUT)):
        raise ConfigError("no sample was left to learn from or to judge on: ask for more tokens, or bring more text.")
    return found


def _brought(file: Path, folder: Path) -> dict[str, Any]:
    parts: dict[str, list[dict[str, Any]]] = {SAMPLES: [], HELD_OUT: []}
    for text in read_documents([file]):
        chance = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        parts[HELD_OUT if chance < BROUGHT_HELD_OUT else SAMPLES].append({"text": text, "kind": "brought"})
    for name, rows in parts.items():
        write_lines(folder / name, rows)
    return {"documents": {name: len(rows) for name, rows in parts.items()}, "source": file.name}


def _written(context: Context, fitted: list[str], judged: list[str]) -> dict[str, Any]:
    settings, shards = context.settings, context.folder / "shards"
    shards.mkdir(exist_ok=True)
    writer = Writer(settings, context.device)
    known: set[str] = set()
    found: dict[str, Any] = {"documents": {}, "tokens": {}, "kinds": {}}
    # What judges comes first, so that nothing like it is learned from; from other beginnings, and other seeds.
    plan = ((HELD_OUT, settings.held_out_tokens, judged), (SAMPLES, settings.tokens, fitted))
    for name, wanted, documents in plan:
        rows, tokens, number, idle = [], 0, 0, 0
        began, new = time.monotonic(), 0
        while tokens < int(wanted or 0):
            file = shards / f"{Path(name).stem}-{number:05d}.jsonl"
            fresh = not file.exists()
            if fresh:
                count = _shard_size(settings, int(wanted or 0) - tokens)
                write_lines(file, writer.shard(documents, count, f"{settings.seed}/{name}/{number}"))
            kept = [row for row in read_lines(file) if _novel(row, known)]
            more = sum(row["tokens"] for row in kept)
            rows, tokens, number = rows + kept, tokens + more, number + 1
            idle = 0 if more else idle + 1
            if idle >= PATIENCE:
                raise ConfigError(
                    f"{PATIENCE} shards in a row gave no new text for {name}: the model {settings.base!r} repeats "
                    "itself. Bring text by --samples, or raise the temperature."
                )
            new += more if fresh else 0
            rate = new / max(1e-9, time.monotonic() - began)
            text = f"{Path(name).stem}: {tokens:,} tokens, {rate:,.0f} tok/s"
            context.report(Progress("samples", min(tokens, int(wanted or 0)), int(wanted or 0), text))
        write_lines(context.folder / name, rows)
        found["documents"][name], found["tokens"][name] = len(rows), tokens
        for row in rows:
            found["kinds"][row["kind"]] = found["kinds"].get(row["kind"], 0) + 1
    writer.close()
    return found


def _shard_size(settings: DefaultSettings, missing: int) -> int:
    """Fewer documents where fewer tokens are missing; a document has about half of what it may have."""
    return min(int(settings.shard or 1), max(4, 2 * missing // max(1, settings.answer_tokens)))


def _novel(row: dict[str, Any], known: set[str]) -> bool:
    """Whether a text, and the question of a chat, are new and no mere repetition; notes it."""
    keys = {" ".join(row[name].lower().split()) for name in ("text", "question") if row.get(name)}
    if keys & known or repeats(row["text"]):
        return False
    known |= keys
    return True


def repeats(text: str) -> bool:
    """Whether a text says the same again and again: less than half of its runs of four words are distinct."""
    words = text.split()
    grams = [tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1)]
    return len(grams) >= LEAST_GRAMS and len(set(grams)) < LEAST_DISTINCT * len(grams)


class Writer:
    """The dense model as it writes; the engine starts when it is first needed."""

    def __init__(self, settings: DefaultSettings, device: str):
        self.settings, self.device = settings, device
        self._llm: LLM | None = None

    @property
    def llm(self) -> LLM:
        if self._llm is None:
            s = self.settings
            source = base_of(s)
            most = load_config(source, progress=False).max_position_embeddings
            wanted = -(-(2 * (s.answer_tokens + s.question_tokens) + 256) // 64) * 64
            large = self.device == "cuda"
            length = min(most, wanted)
            self._llm = LLM(
                model=source, device=self.device, dtype="bf16" if large else "auto", max_num_seqs=s.sequences,
                max_model_len=length, kv_cache_tokens=length * int(s.sequences or 1) if large else None, seed=s.seed,
                max_draft_tokens=0,
            )  # fmt: skip
        return self._llm

    def close(self) -> None:
        """Free the engine's memory."""
        self._llm = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def shard(self, documents: Sequence[str], count: int, seed: str) -> list[dict[str, Any]]:
        """Documents (text, kind, tokens; of chats the question): half chats if the model has a format for them."""
        chats = count // 2 if getattr(self.llm.tokenizer, "chat_template", None) else 0
        return [*self._chats(chats, seed), *self._continuations(documents, count - chats, seed)]

    def _continuations(self, documents: Sequence[str], count: int, seed: str) -> Iterator[dict[str, Any]]:
        s, dice = self.settings, random.Random(f"{seed}/prefixes")
        sizes, prompts = [len(text) for text in documents], []
        for text in dice.choices(documents, sizes, k=count):
            size, at = dice.randint(*s.prefix_tokens), dice.randrange(len(text))
            at = text.rfind("\n", 0, at) + 1
            prompts.append(self.llm.prompts.encode(text[at : at + 8 * size], add_special_tokens=False)[:size])
        prompts = [prompt for prompt in prompts if prompt]
        for prompt, (text, ids, _) in zip(prompts, self._generate(prompts, s.answer_tokens, 1.0, seed), strict=True):
            before = self.llm.tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
            if text.strip():
                yield {"text": before + text, "kind": "continuation", "tokens": len(prompt) + ids}

    def _chats(self, count: int, seed: str) -> Iterator[dict[str, Any]]:
        s, dice = self.settings, random.Random(f"{seed}/turns")
        turns = [1 + (dice.random() < s.second_turns) for _ in range(count)]
        talks: list[list[dict[str, str]]] = [[] for _ in range(count)]
        found: dict[int, dict[str, Any]] = {}
        for turn in (1, 2):
            live = [at for at in range(count) if turns[at] >= turn and (turn == 1 or len(talks[at]) == 2)]
            asked = self._generate(
                [self._ids(self._before_user(talks[at])) for at in live], s.question_tokens, s.chat_top_p,
                f"{seed}/ask{turn}",
            )  # fmt: skip
            talking = []
            for at, (text, _, ended) in zip(live, asked, strict=True):
                if ended and text.strip():
                    talks[at].append({"role": "user", "content": text.strip()})
                    talking.append(at)
            begun = [self.llm.prompts.chat_text(talks[at]) for at in talking]
            prompts = [self._ids(text) for text in begun]
            answers = self._generate(prompts, s.answer_tokens, s.chat_top_p, f"{seed}/answer{turn}")
            for at, before, prompt, (text, ids, ended) in zip(talking, begun, prompts, answers, strict=True):
                if not text.strip():
                    continue
                whole = before + text
                if ended:
                    talks[at].append({"role": "assistant", "content": text})
                    whole = self.llm.prompts.chat_text(talks[at], add_generation_prompt=False)
                question = talks[at][0]["content"]
                found[at] = {"text": whole, "kind": "chat", "tokens": len(prompt) + ids, "question": question}
        yield from (found[at] for at in sorted(found))

    def _before_user(self, talk: list[dict[str, str]]) -> str:
        """The conversation up to where the user's next words begin."""
        text = self.llm.prompts.chat_text([*talk, {"role": "user", "content": MARK}], add_generation_prompt=False)
        return text.rpartition(MARK)[0]

    def _ids(self, text: str) -> list[int]:
        return self.llm.prompts.encode(text, add_special_tokens=False)

    def _generate(self, prompts: list[list[int]], most: int, top_p: float, seed: str) -> list[tuple[str, int, bool]]:
        """Of each prompt: text, tokens, whether it ended by itself. Empty where no room is left."""
        room = [min(most, self.llm.max_model_len - len(prompt)) for prompt in prompts]
        fitting = [at for at, left in enumerate(room) if left > 0]
        params = [
            SamplingParams(
                max_tokens=room[at], temperature=self.settings.temperature, top_p=top_p, seed=_seed(seed, at)
            )
            for at in fitting
        ]
        found = [("", 0, False)] * len(prompts)
        if fitting:
            outputs = self.llm.generate([prompts[at] for at in fitting], params, progress=False)
            for at, output in zip(fitting, outputs, strict=True):
                answer = output.outputs[0]
                found[at] = (answer.text, len(answer.token_ids), answer.finish_reason == "stop")
        return found


def _seed(seed: str, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:7], "big")


def write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A .jsonl file, whole or not at all."""
    scratch = file.with_suffix(".tmp")
    with scratch.open("w", encoding="utf-8") as opened:
        opened.writelines(json.dumps(row) + "\n" for row in rows)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(scratch, file)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """What `write_lines` wrote."""
    with file.open(encoding="utf-8") as opened:
        return [json.loads(line) for line in opened]
