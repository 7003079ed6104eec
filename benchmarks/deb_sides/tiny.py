"""A random dense model, converted twice, with texts and questions: everything `deb_convert.py` reads, in seconds."""

import json
import random
from pathlib import Path
from typing import Any

import torch

from stille.evals import quality
from stille.model import StilleConfig, StilleForCausalLM
from stille.model.convert.pipeline import ConvertSettings, convert
from stille.train import byte_tokenizer

TEXT = "the quick brown fox jumps over a lazy dog and runs home before night comes to these old grey hills"


def make(folder: Path) -> dict[str, Any]:
    """Fields of `deb_convert.Plan`."""
    torch.manual_seed(0)
    rng, tokenizer = random.Random(0), byte_tokenizer()
    config = StilleConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.1,
    )  # fmt: skip
    dense = folder / "dense"
    model = StilleForCausalLM(config).eval()
    model.save_pretrained(dense)
    tokenizer.save_pretrained(dense)

    def sentences(count: int) -> str:
        return " ".join(" ".join(rng.choices(TEXT.split(), k=8)).capitalize() + "." for _ in range(count))

    texts = {}
    for name in ("fitted", "held_out", "code", "legal", "chat"):
        texts[name] = folder / f"{name}.txt"
        texts[name].write_text(sentences(120))
    common: dict[str, Any] = dict(
        num_experts=4, expert_size=8, shared_size=32, router_size=8, tokens=1024, profile_tokens=512, held_out=0,
        length=64, steps=5,
    )  # fmt: skip
    kinds: dict[str, dict[str, Any]] = {"deb": dict(target_k=2.0), "twin": dict(gate="top_k", target_k=3)}
    for name, extra in kinds.items():
        settings = ConvertSettings(**common, **extra)
        convert(dense, folder / name, settings, text=[texts["fitted"]], progress=False)
    data = folder / "data"
    data.mkdir()
    rows = [{"text": sentences(2).rstrip(".")} for _ in range(8)]
    (data / "lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"context": sentences(1), "choices": [sentences(1) for _ in range(4)], "answer": 0} for _ in range(16)]
    file = data / "hellaswag.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = quality.load_items(quality.TASKS["hellaswag"], data)
    for row, item, answer in zip(rows, items, quality.Subject(model, tokenizer).answer(items), strict=True):
        likeliest = json.loads(answer.text)["ll"]
        lengths = [len(choice) for _, choice in item.pairs]
        row["answer"] = max(range(4), key=lambda i: likeliest[i] / (lengths[i] - 1))  # the random model is no fool
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dict(
        base=str(dense), deb=str(folder / "deb"), twin=str(folder / "twin"), texts=[texts["held_out"]],
        domains={name: texts[name] for name in ("code", "legal", "chat")}, data=data, tasks=["all"], limit=12,
        tokens=1024, length=128, batch=512, target=2.0, budgets=(1.0, 2.0, 4.0), top_k=3,
    )  # fmt: skip
