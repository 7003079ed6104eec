"""Tokenizers out of GGUF metadata split text as the original ones do."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import SentencePieceBPETokenizer, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, Qwen2Tokenizer

from stille.errors import CheckpointError
from stille.model.gguf_tokenizer import gguf_tokenizer
from stille.model.tokenizer import load_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, don't it? It's 1234567890 o'clock; we'll see.",
    "def f(x, y=10):\n    return x ** 2 + y  # comment\n\n\n\tindented\r\nclass A:\n  pass\n",
    "Größe naïve café ÀÉÎ — “quotes” … Привет мир, как дела? 日本語のテキスト。 한국어 텍스트 مرحبا 🎉👩‍👧 e\u0301",
    "   several   spaces\u00a0and\u200bodd ones   ",
] * 5
TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "\n",
    " \n \n",
    "x  4",
    "12345",
    "a1b22c333",
    "I'LL he'd",
    "<|im_start|>user\nhi<|im_end|>",
    "tab\tnew\r\n\r\nline  ",
    "¼ ² ٣ ৪",
]
words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cn", "Co"]) | st.sampled_from(" \n\t.,'a1"), max_size=30
)
# The default model's vocabulary lacks some control bytes; what becomes of those is up to the library's version.
words_without_controls = words.filter(lambda text: all(char.isprintable() or char in " \n\t" for char in text))
PATH = Path("model.gguf")


def byte_level_metadata(pre_tokeniser, **more):
    """Metadata of a small byte-level vocabulary, with what else the file says."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
    )
    trained.train_from_iterator(CORPUS, trainer)
    state = json.loads(trained.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    metadata = {
        "model": "gpt2",
        "pre": pre_tokeniser,
        "tokens": tokens,
        "token_type": [3] + [1] * (len(tokens) - 1),
        "merges": [" ".join(merge) for merge in state["merges"]],
        "eos_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (metadata | more).items()}, state


def sentence_piece_metadata():
    """Metadata of a small SentencePiece vocabulary with byte fallback."""
    trained = SentencePieceBPETokenizer(unk_token="<unk>")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(CORPUS, vocab_size=700, special_tokens=special, show_progress=False)
    state = json.loads(trained.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    merged = {left + right: rank for rank, (left, right) in reversed(list(enumerate(state["merges"])))}
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": [-float(merged.get(token, 100000)) for token in tokens],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


@pytest.fixture(scope="module")
def ours(default_model_path):
    return load_tokenizer(default_model_path)


@pytest.fixture(scope="module")
def theirs(default_model_path):
    """transformers' own conversion, which leaves out the split of digits; put back as the original has it."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_path.parent, gguf_file=default_model_path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


class TestDefaultModel:
    def test_equals_transformers_conversion(self, ours, theirs):
        @settings(deadline=None, max_examples=200)
        @given(words_without_controls)
        def check(text):
            assert ours(text).input_ids == theirs(text).input_ids

        for text in TEXTS:
            check = example(text)(check)
        check()
        assert len(ours) == len(theirs) == 49152
        assert ours.convert_ids_to_tokens(range(49152)) == theirs.convert_ids_to_tokens(range(49152))

    def test_text_survives(self, ours):
        @settings(deadline=None, max_examples=200)
        @given(words_without_controls)
        def check(text):
            assert ours.decode(ours(text).input_ids) == text

        check()

    def test_known_ids(self, ours):
        assert ours("Hello").input_ids == [19556]
        assert ours("<|im_start|>user\n").input_ids == [1, 4093, 198]
        assert ours.decode([1, 4093, 2], skip_special_tokens=True) == "user"

    def test_chat_template(self, ours, theirs):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
        text = ours.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert text == theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert text.endswith(
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_end_tokens(self, ours, default_model):
        assert (ours.eos_token_id, ours.bos_token_id, ours.pad_token_id) == (2, 1, 2)
        assert default_model.eos_token_ids == [2, 0]
        assert default_model.model.generation_config.eos_token_id == [2, 0]
        assert ours.model_max_length == 8192


class TestPreTokenisers:
    @settings(deadline=None, max_examples=100)
    @given(words)
    def test_gpt2(self, text):
        ours, theirs = self.pair("gpt-2", GPT2Tokenizer)
        assert ours(text).input_ids == theirs(text).input_ids

    @settings(deadline=None, max_examples=100)
    @given(words)
    @example("x  4 1234 I'LL\n\n a\u0301")
    def test_qwen2(self, text):
        ours, theirs = self.pair("qwen2", Qwen2Tokenizer)
        assert ours(text).input_ids == theirs(text).input_ids

    @pytest.mark.parametrize(
        ("text", "pieces"),
        [
            ("1234567", ["123", "456", "7"]),
            ("I'LL go", ["I", "'LL", "Ġgo"]),
            ("a  b", ["a", "Ġ", "Ġb"]),
            ("(x)\n\n y", ["(x", ")ĊĊ", "Ġy"]),
            (" \n \nx", ["ĠĊĠĊ", "x"]),
        ],
    )
    def test_llama3_words(self, text, pieces):
        metadata, _ = byte_level_metadata("llama-bpe")
        splitter = gguf_tokenizer(metadata, PATH).backend_tokenizer.pre_tokenizer
        assert [piece for piece, _ in splitter.pre_tokenize_str(text)] == pieces

    def test_llama3_prefers_whole_words(self):
        metadata, _ = byte_level_metadata("llama-bpe")
        key = "tokenizer.ggml.tokens"
        metadata[key] = [*metadata[key], "zqzq"]  # no merges lead there
        assert gguf_tokenizer(metadata, PATH)("zqzq").input_ids == [len(metadata[key]) - 1]

    cache: dict = {}

    def pair(self, pre, theirs):
        if pre not in self.cache:
            metadata, state = byte_level_metadata(pre)
            merges = [tuple(merge) for merge in state["merges"]]
            self.cache[pre] = (gguf_tokenizer(metadata, PATH), theirs(vocab=state["vocab"], merges=merges))
        return self.cache[pre]


class TestSentencePiece:
    metadata = sentence_piece_metadata()
    tokenizer = gguf_tokenizer(metadata, PATH)

    @settings(deadline=None, max_examples=60)
    @given(st.sampled_from(CORPUS[:4]) | words)
    def test_merges_by_score(self, text):
        """SentencePiece's rule written down: of all adjacent pairs that form a piece, the best-scored one merges."""
        scores = dict(zip(self.metadata["tokenizer.ggml.tokens"], self.metadata["tokenizer.ggml.scores"], strict=True))
        pieces = list("▁" + text.replace(" ", "▁")) if text else []
        while True:
            pairs = [left + right for left, right in itertools.pairwise(pieces)]
            merge = max((pair for pair in pairs if pair in scores), key=lambda pair: scores[pair], default=None)
            if merge is None:
                break
            at = pairs.index(merge)
            pieces[at : at + 2] = [merge]
        expected = []
        for piece in pieces:
            expected += [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()]
        ours = self.tokenizer(text, add_special_tokens=False).input_ids
        assert self.tokenizer.convert_ids_to_tokens(ours) == expected

    @settings(deadline=None, max_examples=100)
    @given(words.filter(lambda text: "▁" not in text))
    def test_text_survives(self, text):
        assert self.tokenizer.decode(self.tokenizer(text).input_ids, skip_special_tokens=True) == text

    def test_begin_token_is_added(self):
        assert self.tokenizer("fox").input_ids[0] == 1
        off = self.metadata | {"tokenizer.ggml.add_bos_token": False}
        assert gguf_tokenizer(off, PATH)("fox").input_ids[0] != 1


def test_begin_token_follows_the_file():
    plain, _ = byte_level_metadata("gpt-2", bos_token_id=0)
    assert gguf_tokenizer(plain, PATH)("fox").input_ids[0] != 0
    added, _ = byte_level_metadata("gpt-2", bos_token_id=0, add_bos_token=True)
    assert gguf_tokenizer(added, PATH)("fox").input_ids == [0, *gguf_tokenizer(plain, PATH)("fox").input_ids]
    llama3, _ = byte_level_metadata("llama-bpe", bos_token_id=0)
    assert gguf_tokenizer(llama3, PATH)("fox").input_ids[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "tokenizer model 'bert'"),
        ({"tokens": []}, "tokenizer model"),
        ({"pre": "chameleon"}, "pre-tokeniser 'chameleon'"),
        ({"merges": ["no such pieces"]}, "damaged"),
        ({"merges": None}, "damaged"),
        ({"model": "llama"}, "without its scores"),
    ],
)
def test_unreadable_tokenizers_are_refused(changes, message):
    metadata, _ = byte_level_metadata("gpt-2", **changes)
    with pytest.raises(CheckpointError, match=message):
        gguf_tokenizer(metadata, PATH)
