"""GGUF files as checkpoints of the decoder: metadata to configuration, tensor names and layouts translated."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stille.errors import CheckpointError
from stille.model.config import StilleConfig
from stille.model.gguf_file import GGUFFile

# Architectures of the file format that this decoder runs; True: rows of q and k are permuted for adjacent-pair RoPE.
ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"
LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
ROPE_SCALING = {"linear": "linear", "yarn": "yarn"}


def gguf_config(file: GGUFFile) -> StilleConfig:
    """The configuration that a GGUF file's metadata and tensors describe.

    Raises:
        CheckpointError: another architecture, or a needed key is missing.
        ConfigError: a combination that the decoder does not run.
    """
    arch = file.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path} has GGUF architecture {arch!r}; readable are {', '.join(sorted(ARCHITECTURES))}."
        )

    def get(key: str, default: Any = ...) -> Any:
        value = file.metadata.get(f"{arch}.{key}", default)
        if value is ...:
            raise CheckpointError(f"{file.path} lacks the metadata key '{arch}.{key}'.")
        if isinstance(value, list):  # per layer; only a uniform one describes this decoder
            if len(set(value)) != 1:
                raise CheckpointError(f"{file.path}: '{arch}.{key}' varies by layer ({value}), which is not supported.")
            value = value[0]
        return value

    for needed in ("token_embd.weight", "blk.0.attn_q.weight"):
        if needed not in file.tensors:
            raise CheckpointError(f"{file.path} lacks the tensor '{needed}'.")
    heads, width, context = get("attention.head_count"), get("embedding_length"), get("context_length")
    head_dim = get("attention.key_length", None) or width // heads
    if get("rope.dimension_count", head_dim) != head_dim or get("attention.value_length", head_dim) != head_dim:
        raise CheckpointError(f"{file.path} rotates part of a head, or its values are of another width than its keys.")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": get("rope.freq_base", 10000.0)}
    scaling = get("rope.scaling.type", "none")
    if scaling in ROPE_SCALING:
        rope |= {"rope_type": ROPE_SCALING[scaling], "factor": get("rope.scaling.factor")}
        if scaling == "yarn":
            rope["original_max_position_embeddings"] = get("rope.scaling.original_context_length", context)
    elif scaling != "none":
        raise CheckpointError(f"{file.path} has RoPE scaling {scaling!r}; readable are {', '.join(ROPE_SCALING)}.")
    ids = {key: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "eot", "padding")}
    return StilleConfig(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=width,
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=context,
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_parameters=rope,
        rope_freq_factors=file.read(ROPE_FACTORS).tolist() if ROPE_FACTORS in file.tensors else None,
        sliding_window=get("attention.sliding_window", None),
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        attention_output_bias="blk.0.attn_output.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=ids["bos"],
        eos_token_id=[token_id for token_id in (ids["eos"], ids["eot"]) if token_id is not None] or None,
        pad_token_id=ids["padding"],
    )


class GGUFSource:
    """A GGUF file's tensors under the decoder's names (a `TensorSource`); unknown ones keep their own."""

    def __init__(self, file: GGUFFile, config: StilleConfig):
        self.label = str(file.path)
        self._file = file
        self._heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        self._permuted = ARCHITECTURES[file.metadata["general.architecture"]]
        self._names = {decoder_name(name): name for name in file.tensors if name != ROPE_FACTORS}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._file.tensors[own].shape for name, own in self._names.items()}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = torch.from_numpy(self._file.read(self._names[name]))
        heads = self._heads.get(name.split(".")[-2])
        if self._permuted and heads is not None:
            tensor = unpermute(tensor, heads)
        return tensor.to(dtype)

    def raw(self, name: str) -> Any:
        """The bytes of a tensor as they are stored, a buffer; may be called from several threads."""
        return self._file.raw(self._names[name])


def decoder_name(name: str) -> str:
    """The decoder's name of a GGUF tensor; a name that it does not know stays as it is."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    if (match := LAYER_TENSOR.fullmatch(name)) and match[2] in LAYER_NAMES:
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.{match[3]}"
    return name


def unpermute(rows: Tensor, heads: int) -> Tensor:
    """Rows of a q or k projection (or its bias) from adjacent-pair order back to half-split order.

    GGUF's llama rotates (2i, 2i + 1) and stores the rows of each head so; this decoder rotates (i, i + D/2).

    Args:
        rows: [H * D, ...].
        heads: H.
    """
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def open_gguf(path: str | Path) -> tuple[StilleConfig, GGUFSource, GGUFFile]:
    """Configuration, tensors and container of a GGUF file."""
    file = GGUFFile(path)
    config = gguf_config(file)
    return config, GGUFSource(file, config), file
