"""Fixtures that every part shares: the real default model, fetched once through the store into the usual cache."""

import os
import signal
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: its interpreter runs the GPU kernels' tests on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs so, and children inherit it; the tests of Ctrl-C need it as a terminal has it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "the quick brown fox jumps over the lazy dog and the old grey stones of the quiet harbour",
    "numbers such as 1, 12 and 123 or 3.14; words such as naïve, Zürich, 東京 and здравствуй",
)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint for what starts from files: random weights, 16K context, byte-level BPE, a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from stille.model import StilleConfig, StilleForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=384, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
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
        max_position_embeddings=16384,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = StilleForCausalLM(config)
    with torch.no_grad():  # lively answers, which practically never end by themselves
        model.lm_head.weight *= 4
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's GGUF file; the first run on a machine fetches it."""
    from stille.model.store import DEFAULT_MODEL, resolve

    return resolve(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def default_model(default_model_path):
    """The default model in float32 with its tokenizer (a `LoadedModel`), shared: do not change it."""
    from stille.model import load_model

    return load_model(default_model_path, progress=False)
