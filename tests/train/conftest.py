"""A tiny model with experts, and text that comes in documents of many lengths."""

import json

import numpy as np
import pytest
import torch

from stille.model import StilleConfig, StilleForCausalLM
from stille.train import TokenStore, TrainConfig

EXPERTS = dict(num_experts=4, expert_size=8, shared_size=16, router_size=0, target_k=1.5, max_k=4)
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "old", "grey", "stones"]


def _model(seed: int = 0, *, dense: bool = False, **experts) -> StilleForCausalLM:
    torch.manual_seed(seed)
    kinds = {} if dense else dict(ffn_kinds=["experts"] * 2, experts={**EXPERTS, **experts})
    return StilleForCausalLM(
        StilleConfig(
            vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.1,
            eos_token_id=256, **kinds,
        )
    )  # fmt: skip


def _texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, int(random.integers(1, 40)))) for _ in range(count)]


def _settings(**changes) -> TrainConfig:
    return TrainConfig(
        **{
            **dict(steps=6, batch=4, micro_batch=2, length=32, lr=3e-3, warmup=2, anneal=0.4, log_every=1),
            **dict(save_every=2, eval_sequences=4),
            **changes,
        }
    )


@pytest.fixture(scope="session")
def make_model():
    """make_model(seed, dense=False, **settings of the experts)."""
    return _model


@pytest.fixture(scope="session")
def settings():
    """settings(**changes): a short run."""
    return _settings


@pytest.fixture(scope="session")
def make_store():
    """make_store(count, seed): random documents of 1 to 40 words, as bytes."""
    return lambda count=120, seed=0: TokenStore.from_documents(
        [np.array([*text.encode(), 256]) for text in _texts(count, seed)]
    )


@pytest.fixture(scope="session")
def store(make_store) -> TokenStore:
    return make_store()


@pytest.fixture
def text_folder(tmp_path):
    """A folder of text: 60 documents in a .jsonl file."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in _texts(60)))
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
