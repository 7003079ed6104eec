"""A real engine on a tiny random model, behind a real uvicorn server on a free port."""

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stille.engine.async_llm import AsyncLLM
from stille.engine.config import EngineConfig
from stille.model import StilleConfig, StilleForCausalLM
from stille.server import ServerSettings, create_app

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "the quick brown fox jumps over the lazy dog and the old grey stones of the quiet harbour",
    "numbers such as 1, 12 and 123 or 3.14; words such as naïve, Zürich, 東京 and здравствуй",
)


def build_tiny_model(folder: Path, *, context: int = 16384, seed: int = 0) -> Path:
    """A checkpoint with random weights (half a megabyte) and a byte-level BPE tokenizer with a chat template."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=384, special_tokens=specials, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    config = StilleConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    StilleForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


@dataclass
class Served:
    """A running server. `base` is its URL without a path; `model` the name it serves."""

    base: str
    port: int
    model: str
    engine: AsyncLLM
    state: Any

    def metrics(self) -> dict[str, float]:
        """Samples of /metrics without labels, by name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        families = text_string_to_metric_families(text)
        return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}

    def wait_idle(self, seconds: float = 20) -> dict[str, float]:
        """Wait until nothing runs; fail if something still does, or holds pages."""
        return self.wait_for(
            lambda m: not (m["stille_sequences_running"] or m["stille_sequences_waiting"] or m["stille_kv_pages_used"]),
            seconds,
        )

    def wait_for(self, condition: Callable[[dict[str, float]], bool], seconds: float = 20) -> dict[str, float]:
        deadline = time.monotonic() + seconds
        while not condition(metrics := self.metrics()):
            assert time.monotonic() < deadline, f"not reached within {seconds} s: {metrics}"
            time.sleep(0.02)
        return metrics


@contextlib.contextmanager
def running(model: Path, settings: ServerSettings | None = None, **config: Any) -> Iterator[Served]:
    """A server in a thread of this process, with an engine of its own."""
    engine = AsyncLLM(EngineConfig(model=str(model), **{"dtype": "fp32", "device": "cpu", "threads": 1, **config}))
    app = create_app(engine, settings or ServerSettings(served_model_names=("tiny",)))
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < deadline, "the server took too long to start"
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{port}", port, app.state.stille.model_names[0], engine, app.state.stille)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="session")
def served(tiny_model: Path) -> Iterator[Served]:
    """The server that most tests share; every test leaves it idle."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with running(tiny_model, max_num_seqs=8, kv_cache_tokens=32768) as server:
        yield server


@pytest.fixture
def idle(served: Served) -> Iterator[Served]:
    """The shared server, and the promise that nothing of the test stays in its engine."""
    yield served
    served.wait_idle()


@pytest.fixture(scope="session")
def start_server() -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """`running`, for tests that need settings of their own."""
    return running
