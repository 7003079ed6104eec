"""`load_model` on folders: weights, tokenizer and the tokens that end an answer."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stille.errors import CheckpointError, ModelNotFoundError
from stille.model import load_config, load_model, load_tokenizer

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def make_tokenizer(**options):
    """Bytes of printable ASCII as tokens, and the special tokens of a chat model."""
    alphabet = [chr(code) for code in range(33, 114)] + ["Ġ", "Ċ"]
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    assert fast.convert_tokens_to_ids(special) == [83, 84, 85, 86]
    return fast


@pytest.fixture
def folder(make_checkpoint, tmp_path):
    make_checkpoint("qwen2").save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    return tmp_path


@torch.no_grad()
def test_folder_with_tokenizer(folder, make_checkpoint, ids):
    make_tokenizer(eos_token="<|endoftext|>", chat_template=TEMPLATE).save_pretrained(folder)
    loaded = load_model(folder, progress=False)
    torch.testing.assert_close(loaded.model(ids).logits, make_checkpoint("qwen2")(ids).logits, rtol=1e-4, atol=1e-5)
    assert not loaded.model.training
    assert (loaded.path, loaded.name) == (folder, str(folder))
    assert loaded.config.to_diff_dict() == load_config(folder).to_diff_dict()
    assert loaded.tokenizer.decode(loaded.tokenizer("hello").input_ids) == "hello"
    assert load_tokenizer(folder)("hello").input_ids == loaded.tokenizer("hello").input_ids
    text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n"


class TestEndTokens:
    """2 is the family's own end in config.json; the rest comes from where chat models put theirs."""

    def ends(self, folder, generation=None, **options):
        make_tokenizer(**options).save_pretrained(folder)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        loaded = load_model(folder, progress=False)
        assert loaded.model.generation_config.eos_token_id == loaded.eos_token_ids
        return loaded.eos_token_ids

    def test_configuration_and_document_end(self, folder):
        assert self.ends(folder) == [2, 83]

    def test_tokenizer(self, folder):
        assert self.ends(folder, eos_token="<|eot_id|>") == [2, 86, 83]

    def test_chat_template(self, folder):
        assert self.ends(folder, chat_template=TEMPLATE, eos_token="<|endoftext|>") == [2, 83, 85]

    def test_generation_config_comes_first(self, folder):
        assert self.ends(folder, generation=[85, 83]) == [85, 83, 2]
        assert self.ends(folder, generation=86) == [86, 2, 83]

    def test_ids_outside_the_vocabulary_are_left_out(self, folder):
        assert self.ends(folder, generation=[101, -1, 85]) == [85, 2, 83]

    def test_damaged_generation_config(self, folder):
        make_tokenizer().save_pretrained(folder)
        (folder / "generation_config.json").write_text("[")
        with pytest.raises(CheckpointError, match=r"generation_config\.json is damaged"):
            load_model(folder, progress=False)


def test_generate_stops_at_the_chat_end(folder, make_checkpoint):
    """`generate` without arguments ends where the chat ends."""
    make_tokenizer(chat_template=TEMPLATE).save_pretrained(folder)
    model = load_model(folder, progress=False).model
    with torch.no_grad():
        for ending in (85, 83):
            model.lm_head.weight.zero_()
            model.lm_head.weight[ending] = 1.0
            model.model.norm.weight.copy_(model.model.norm.weight.abs())
            out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=30, do_sample=False, pad_token_id=0)
            assert out.shape[1] < 33
            assert out[0, -1] == ending


def test_folder_without_tokenizer(folder):
    with pytest.raises(CheckpointError, match=r"no readable tokenizer.*tokenizer\.json"):
        load_model(folder, progress=False)


def test_damaged_tokenizer(folder):
    make_tokenizer().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="no readable tokenizer"):
        load_model(folder, progress=False)


def test_nothing_there(tmp_path):
    with pytest.raises(ModelNotFoundError):
        load_model(tmp_path / "absent", progress=False)
    with pytest.raises(ModelNotFoundError):
        load_config("no-such-model")
