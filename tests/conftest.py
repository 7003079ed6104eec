"""Fixtures that every part shares: the real default model, fetched once through the store into the usual cache."""

import dataclasses
import inspect
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when torch loads numpy; the interpreter's products are small
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core already; threads of theirs would only wait

import torch

# The same examples each time, however slow the machine: what passed here passes elsewhere. New ones are sought with
# --hypothesis-profile=explore.
settings.register_profile("explore", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")

if not torch.cuda.is_available():
    # Before anything imports Triton: its interpreter runs the GPU kernels' tests on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def spare_the_interpreter() -> None:
    """Takes two costs off Triton's interpreter that change no result; leaves one that looks unlike 3.9's as it is.

    Each call of a function within a kernel patches the language again, which the launch has patched already. And each
    integer operation is computed once more in 64 bits to detect overflow, for an assertion that is off.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch, nothing = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "_LangPatchScope", None)
    if patch is None or nothing is None or list(inspect.signature(patch).parameters) != ["fn"]:
        return
    patched = []

    def patch_once(fn):
        langs = [lang for lang in (tl, tl.core) if any(value is lang for value in fn.__globals__.values())]
        if langs and all(lang in patched for lang in langs):
            return nothing()  # to restore
        outermost, scope = not patched, patch(fn)
        patched.extend(langs)
        if outermost:
            restore = scope.restore

            def restore_all():
                patched.clear()
                restore()

            scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_once
    options = getattr(getattr(interpreter, "interpreter_builder", None), "options", None)
    if options and getattr(options, "sanitize_overflow", False) and getattr(options, "debug", True) is False:
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)


if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    spare_the_interpreter()

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs so, and children inherit it; the tests of Ctrl-C need it as a terminal has it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run what takes long and seldom finds more")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; asked for with --slow"))


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
