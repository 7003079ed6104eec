"""Text in pieces equals text at once, and stop strings do not care where tokens end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from stille.engine.detokenizer import Detokenizer


@pytest.fixture(scope="module")
def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Metaspace pieces and byte tokens, decoded as Llama 2 and Mistral tokenizers decode."""
    words = ["\u2581", "\u2581Hello", "\u2581world", "Hello", "ing", "\u2581\u2581", "é", "日", "!", "a", "b", "c"]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], *words]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece-like"])
def any_tokenizer(request, tokenizer, sentencepiece_like):
    return tokenizer if request.param == "byte-level" else sentencepiece_like


def in_pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    pieces = detokenizer.pieces()
    return [*[pieces.push(i) for i in ids], pieces.finish()]


def test_the_fast_path_is_taken_where_it_applies(tokenizer, sentencepiece_like):
    assert Detokenizer(tokenizer).byte_level
    assert not Detokenizer(sentencepiece_like).byte_level


def test_ids_that_the_tokenizer_lacks_are_nothing_even_inside_a_character(sentencepiece_like):
    detokenizer = Detokenizer(sentencepiece_like)
    first, second = sentencepiece_like.convert_tokens_to_ids(["<0xC5>", "<0x83>"])
    assert "".join(in_pieces(detokenizer, [first, 10_000, second])) == "\u0143"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_whole_for_any_tokens(any_tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, len(any_tokenizer) + 2), max_size=25))
    detokenizer = Detokenizer(any_tokenizer)
    assert "".join(in_pieces(detokenizer, ids)) == detokenizer.decode(ids)
    assert detokenizer.decode(ids) == any_tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_no_piece_of_real_text_ends_inside_a_character(any_tokenizer, text):
    ids = any_tokenizer(text, add_special_tokens=False).input_ids
    if any_tokenizer.unk_token_id in ids:
        return
    detokenizer = Detokenizer(any_tokenizer)
    pieces = in_pieces(detokenizer, ids)
    whole = detokenizer.decode(ids)
    assert "".join(pieces) == whole
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


def test_text_comes_as_early_as_it_can(tokenizer):
    ids = tokenizer("The 🙂 fox").input_ids
    pieces = in_pieces(Detokenizer(tokenizer), ids)
    emoji = next(i for i, piece in enumerate(pieces) if "🙂" in piece)
    assert "".join(pieces[:emoji]).rstrip() == "The"
    assert pieces[-1] == ""


def test_a_half_character_at_the_end_is_given_out_as_replacement(tokenizer):
    ids = tokenizer("🙂").input_ids[:-1]
    pieces = in_pieces(Detokenizer(tokenizer), ids)
    assert pieces[:-1] == [""] * len(ids)
    assert set(pieces[-1]) == {"\ufffd"}


def test_the_prompt_decides_whether_an_answer_begins_with_a_space(sentencepiece_like):
    detokenizer = Detokenizer(sentencepiece_like)
    hello, world = sentencepiece_like.convert_tokens_to_ids(["\u2581Hello", "\u2581world"])
    end = sentencepiece_like.eos_token_id
    assert detokenizer.pieces([hello]).push(world) == " world"
    assert detokenizer.pieces([hello, end]).push(world) == "world"
    assert detokenizer.pieces([]).push(world) == "world"


def test_single_tokens_as_bytes(tokenizer, sentencepiece_like):
    one, other = Detokenizer(tokenizer), Detokenizer(sentencepiece_like)
    ids = tokenizer("naïve 🙂").input_ids
    assert b"".join(one.token_bytes(i) for i in ids).decode() == "naïve 🙂"
    assert one.token_bytes(tokenizer.eos_token_id) == b"</s>"
    assert one.visible_bytes(tokenizer.eos_token_id) == b""
    assert one.token_bytes(tokenizer.convert_tokens_to_ids("<a b>")) == b"<a b>"
    assert one.token_bytes(10**6) == b""
    assert other.token_bytes(sentencepiece_like.convert_tokens_to_ids("<0xE6>")) == b"\xe6"


# Stop strings


def cut(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition: letter by letter, the first moment at which the text ends in a stop string."""
    for end in range(len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


class Chunks:
    """Text that arrives in given pieces; token i is piece i."""

    def __init__(self, chunks: list[str]):
        self.chunks = chunks

    def push(self, token_id: int) -> str:
        return self.chunks[token_id]

    def finish(self) -> str:
        return ""


@settings(max_examples=300, deadline=None)
@given(
    chunks=st.lists(st.text("abc", max_size=4), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_depend_on_the_text_alone(chunks, stop):
    from stille.engine.detokenizer import TextStream

    right, found = cut("".join(chunks), stop)
    stream = TextStream(Chunks(chunks), stop)
    out, hit = "", None
    for token in range(len(chunks)):
        text, hit = stream.push(token)
        out += text
        assert right.startswith(out), "text was given out that a stop string takes back"
        if hit is not None:
            break
    if hit is None:
        text, hit = stream.finish()
        out += text
    assert (out, hit) == (right, found)


def test_only_what_may_begin_a_stop_string_is_held_back(tokenizer):
    stream = Detokenizer(tokenizer).stream(["###"])
    ids = {c: tokenizer(c).input_ids[0] for c in "a#"}
    assert stream.push(ids["a"]) == ("a", None)
    assert stream.push(ids["#"]) == ("", None)
    assert stream.push(ids["a"]) == ("#a", None)
    assert stream.push(ids["#"]) == ("", None)
    assert stream.finish() == ("#", None)
