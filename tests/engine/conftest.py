"""A random tiny decoder and a real byte-level tokenizer; engines around them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stille.engine.build import Engine, assemble
from stille.engine.config import EngineConfig
from stille.engine.core import EngineCore
from stille.engine.outputs import RequestOutput
from stille.engine.sampling_params import SamplingParams
from stille.model import LoadedModel, StilleConfig, StilleForCausalLM

CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Pack my box with five dozen liquor jugs; stop when it is full.",
    "Über naïve façades, smörgåsbord und Füße: 日本語 und 한국어, ĝis revido 🙂🙃.",
]
SPECIAL = ["<s>", "</s>", "<tool>"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models here are too small for two threads, and other tests need the other core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 320 tokens, three of them special, one added and visible."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=319, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<a b>", special=False)])
    assert backend.get_vocab_size() == 320
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant', 'system'] %}"
        "{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
        "<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    return fast


@pytest.fixture(scope="session")
def tiny_model() -> StilleForCausalLM:
    """Two layers, random, 512 positions; weights large enough for lively answers."""
    torch.manual_seed(1)
    config = StilleConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    return StilleForCausalLM(config).eval()


EngineFactory = Callable[..., Engine]


@pytest.fixture(scope="session")
def make_engine(tiny_model, tokenizer) -> EngineFactory:
    """An fp32 engine around the tiny model; arguments are fields of EngineConfig."""

    def make(eos: tuple[int, ...] = (), **settings) -> Engine:
        defaults = {"dtype": "fp32", "device": "cpu", "kv_cache_tokens": 4096, "max_num_seqs": 8, "seed": 0}
        loaded = LoadedModel(tiny_model, tokenizer, Path(), "tiny", list(eos))
        return assemble(loaded, EngineConfig(**{**defaults, **settings}))

    return make


Work = dict[str, tuple[list[int], SamplingParams]]


@pytest.fixture(scope="session")
def run() -> Callable[[EngineCore, Work], dict[str, RequestOutput]]:
    """Runs requests, all at once, to the end."""

    def run_all(core: EngineCore, work: Work) -> dict[str, RequestOutput]:
        results = {name: RequestOutput.empty(name, None, ids, params.n) for name, (ids, params) in work.items()}
        for name, (ids, params) in work.items():
            core.add(name, ids, params)
        while core.has_work:
            for delta in core.step():
                results[delta.request_id].add(delta)
        core.blocks.check()
        assert core.blocks.num_used == 0, "a page leaked"
        assert all(result.finished for result in results.values())
        return results

    return run_all


@pytest.fixture(scope="session")
def answer(run) -> Callable[[EngineCore, list[int], SamplingParams], list[int]]:
    """Token ids of the answer to one prompt."""
    return lambda core, ids, params: run(core, {"one": (ids, params)})["one"].outputs[0].token_ids


def pytest_configure(config):
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
