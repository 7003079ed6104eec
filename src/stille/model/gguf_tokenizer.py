"""A fast tokenizer built from the metadata of a GGUF file.

Two families exist in files of our architectures: byte-level BPE ("gpt2"), whose split into words depends on the
pre-tokeniser that the file names, and SentencePiece BPE ("llama"), whose merges follow from the scores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from stille.errors import CheckpointError

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # entries of tokenizer.ggml.token_type
SPACE = "▁"  # SentencePiece's space

# How words are split before merging. Contractions, letters, runs of up to {digits} digits, punctuation, line ends.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(digits: str) -> Callable[[], Any]:
    split = pre_tokenizers.Split(Regex(WORDS.format(digits=digits)), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return lambda: pre_tokenizers.Sequence([split, bytes_only])


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": _gpt2,
    "smollm": _single_digits,
    "starcoder": _single_digits,
    "llama-bpe": _words(r"\p{N}{1,3}"),
    "llama3": _words(r"\p{N}{1,3}"),
    "llama-v3": _words(r"\p{N}{1,3}"),
    "qwen2": _words(r"\p{N}"),
}
BEGIN_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3")  # these add the begin token unless the file says otherwise
WHOLE_WORDS_FIRST = BEGIN_BY_DEFAULT  # a word that is in the vocabulary is not split, whatever the merges say


def gguf_tokenizer(metadata: dict[str, Any], path: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a GGUF file.

    Args:
        metadata: of the file.
        path: for messages.

    Raises:
        CheckpointError: no tokenizer in the file, or one of a kind that is not readable.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    tokens, model = get("tokens"), get("model")
    if not tokens or model not in ("gpt2", "llama"):
        raise CheckpointError(f"{path} has tokenizer model {model!r}; readable are 'gpt2' and 'llama'.")
    try:
        tokenizer = _byte_level(tokens, get, path) if model == "gpt2" else _sentence_piece(tokens, get, path)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for vocabularies that do not fit
        raise CheckpointError(f"the tokenizer of {path} is damaged ({error!r}).") from error

    kinds = get("token_type") or []
    added = [
        AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    special = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = get(f"{key}_token_id")
        if token_id is not None and token_id < len(tokens):
            special[f"{name}_token"] = tokens[token_id]
    add_bos = get("add_bos_token", model == "llama" or get("pre") in BEGIN_BY_DEFAULT)
    if add_bos and "bos_token" in special:
        bos = special["bos_token"]
        inner = [processors.ByteLevel(trim_offsets=False)] if model == "gpt2" else []
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, get("bos_token_id"))]
        )
        tokenizer.post_processor = processors.Sequence([*inner, template])  # pyright: ignore[reportAttributeAccessIssue]
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, model_max_length=context, **special
    )
    fast.chat_template = metadata.get("tokenizer.chat_template")
    return fast


def _byte_level(tokens: list[str], get: Callable[..., Any], path: Path) -> Tokenizer:
    pre = get("pre", "gpt-2")
    if pre not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"{path} names the pre-tokeniser {pre!r}; readable are {', '.join(PRE_TOKENIZERS)}. Convert the original "
            "checkpoint folder instead."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in get("merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in WHOLE_WORDS_FIRST))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer


def _sentence_piece(tokens: list[str], get: Callable[..., Any], path: Path) -> Tokenizer:
    scores, kinds = get("scores"), get("token_type")
    if not scores or len(scores) != len(tokens):
        raise CheckpointError(f"{path} has a SentencePiece vocabulary without its scores.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    mergeable = {
        token for index, token in enumerate(tokens) if not kinds or kinds[index] not in (CONTROL, USER_DEFINED, UNUSED)
    }
    merges = []
    for piece in mergeable:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in mergeable and right in mergeable:
                merges.append((scores[vocabulary[piece]], vocabulary[left], vocabulary[right], left, right))
    # Higher scores merge first; equal ones in the order of the vocabulary, so that the result is always the same.
    merges.sort(key=lambda merge: (-merge[0], merge[1], merge[2]))
    unknown = get("unknown_token_id")
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=[merge[3:] for merge in merges],
            unk_token=tokens[unknown] if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = get("add_space_prefix", True)
    parts: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*parts, normalizers.Replace(" ", SPACE)])  # pyright: ignore[reportAttributeAccessIssue]
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return tokenizer
