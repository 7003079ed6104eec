"""A small dense checkpoint with a tokenizer of bytes, and its conversion."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stille.model.convert.pipeline import Conversion, ConvertSettings, convert

SETTINGS = ConvertSettings(
    num_experts=4,
    router_size=8,
    target_k=2.0,
    tokens=512,
    profile_tokens=256,
    held_out=128,
    length=64,
    steps=20,
    budgets=(1, 4),
)


def save_tokenizer(folder: Path) -> None:
    """Lower-case letters and a few signs, within the vocabulary of the tiny checkpoints."""
    alphabet = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    bytelevel = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    bytelevel.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytelevel.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytelevel).save_pretrained(folder)


@pytest.fixture
def dense(make_checkpoint, tmp_path) -> Callable[[str], Path]:
    """The folder of a tiny random model of a family."""

    def make(family: str, name: str = "dense") -> Path:
        folder = tmp_path / name
        make_checkpoint(family).save_pretrained(folder)
        save_tokenizer(folder)
        return folder

    return make


@pytest.fixture
def text(tmp_path) -> list[Path]:
    """Two files of text."""
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("the quick brown fox jumps over the lazy dog. " * 60)
    files[1].write_text("numbers: 1, 12 and 123; sums: 1+12=13. " * 60)
    return files


@pytest.fixture
def run(text) -> Callable[..., Conversion]:
    """`convert` with small settings: run(source, folder, ...)."""
    return lambda source, folder, settings=SETTINGS, **options: convert(
        source, folder, settings, text=text, progress=False, **options
    )
