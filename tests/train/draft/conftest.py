"""A small lively model, text that it wrote, and a head for it."""

import numpy as np
import pytest
import torch

from stille.model import StilleConfig, StilleForCausalLM
from stille.model.draft import DraftConfig, DraftHead
from stille.train.draft import DraftText, DraftTrainConfig

V, STEPS = 97, 4


def _model(seed: int = 0) -> StilleForCausalLM:
    """Its next token depends on the last one most of all: there is something to learn, and something to miss."""
    torch.manual_seed(seed)
    model = StilleForCausalLM(
        StilleConfig(
            vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=128, initializer_range=0.3, eos_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.model.embed_tokens.weight *= 8
        model.lm_head.weight *= 2
        model.lm_head.weight[0] = 0
    return model.eval()


@torch.no_grad()
def _write(model: StilleForCausalLM, documents: int, tokens: int, seed: int = 0) -> DraftText:
    """Documents of various lengths: every third greedy, every fifth held out, domains in turn, prompts of 3 to 6."""
    dice, number = torch.Generator().manual_seed(seed), np.arange(documents)
    size, prompt, greedy = tokens - number % 7, 3 + number % 4, number % 3 == 0
    rows = torch.randint(1, V, (documents, tokens), generator=dice)
    for at in range(3, tokens):
        p = model(rows[:, :at], use_cache=False).logits[:, -1].softmax(-1)
        drawn = torch.multinomial(p, 1, generator=dice)[:, 0]
        token = torch.where(torch.from_numpy(greedy), p.argmax(-1), drawn)
        rows[:, at] = torch.where(torch.from_numpy(prompt <= at), token, rows[:, at])
    ids = [row[:end].numpy() for row, end in zip(rows, size, strict=True)]
    start = np.where(number % 2 == 1, prompt - 1, 0)
    columns = (size, start, prompt, number % 2, greedy, number % 5 == 0)
    table = np.asarray(columns, dtype=np.int64)
    names = ("length", "start", "prompt", "domain", "greedy", "held_out")
    return DraftText(
        np.concatenate(ids).astype(np.uint16), np.cumsum(table[0]) - table[0], **dict(zip(names, table, strict=True)),
        domains=["chat", "prose"], vocab=V, digest=f"{seed}/{documents}/{tokens}",
    )  # fmt: skip


def _head(model: StilleForCausalLM, **changes) -> DraftHead:
    config = DraftConfig.of(model.config, **{"draft_vocab": 80, "inner_size": 64, "steps": STEPS, **changes})
    return DraftHead(config).attach(model, "small").initialize(model)


def _settings(**changes) -> DraftTrainConfig:
    base = dict(steps=6, unroll=STEPS, batch_tokens=128, warmup=2, lr=3e-3, log_every=1, save_every=2, save_minutes=1e9)
    return DraftTrainConfig(**{**base, **changes})


@pytest.fixture(scope="session")
def make_target():
    """make_target(seed)."""
    return _model


@pytest.fixture(scope="session")
def target() -> StilleForCausalLM:
    """Shared: not to be changed."""
    return _model()


@pytest.fixture(scope="session")
def write():
    """write(model, documents, tokens, seed): text of a model."""
    return _write


@pytest.fixture(scope="session")
def text(target) -> DraftText:
    return _write(target, 60, 40)


@pytest.fixture(scope="session")
def make_head():
    """make_head(model, **fields of DraftConfig): fresh."""
    return _head


@pytest.fixture(scope="session")
def settings():
    """settings(**changes): a short run."""
    return _settings
