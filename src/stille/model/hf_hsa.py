"""HSA as an attention implementation of transformers, named "hsa", for any decoder that uses its attention interface.

>>> import stille.model  # registers it
>>> model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="hsa")

What a model reads is settled by `model.config.hsa`, a dictionary of `HSAConfig`'s fields that is saved with the model
(and `full_layers`, indices of layers that attend in full), else by what `register_hsa` was given last.

transformers asks for a mask once per forward pass and hands it to every layer. Ours says of each column of the cache
what it is, [B, 1, 1, N], so that no mask of T x T is ever built. Four axes keep transformers from touching it again.
"""

from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function
from transformers.modeling_utils import AttentionInterface

from stille.errors import ConfigError, UnsupportedError
from stille.kernels.hsa import HSAConfig
from stille.kernels.hsa.cached import cached_attention

NAME = "hsa"

FULL = HSAConfig(dense_below=1 << 40)
"""Of layers that attend in full in a model whose other layers are sparse."""

_KEY, _QUERY = 1, 2  # bits of the mask: the column holds a token; it is one of this pass's queries
_FIELDS = frozenset(field.name for field in fields(HSAConfig))
_default: dict[str, Any] = {}
_INSTEAD = "load the model with attn_implementation='sdpa'"


def register_hsa(config: HSAConfig | None = None) -> None:
    """Register "hsa" with transformers; `import stille.model` has done it with the defaults.

    Args:
        config: of models that have no `config.hsa` of their own; None: `HSAConfig()`.
    """
    settings = asdict(HSAConfig() if config is None else config)
    _default.clear()
    _default.update(settings)
    AttentionInterface.register(NAME, hsa_forward)
    AttentionMaskInterface.register(NAME, hsa_mask)


def parse_settings(settings: Any, layer: int | None = None) -> HSAConfig:
    """The `HSAConfig` that a model's `config.hsa` asks for, in a layer of it.

    Raises:
        ConfigError: not a dictionary, a field that there is not, or sizes that do not fit.
    """
    if not isinstance(settings, dict):
        raise ConfigError(f"config.hsa is {settings!r}: expected a dictionary of HSAConfig's fields.")
    sizes = {name: value for name, value in settings.items() if name != "full_layers"}
    unknown = [name for name in sizes if name not in _FIELDS]
    if unknown:
        raise ConfigError(
            f"config.hsa has {', '.join(map(repr, unknown))}: expected full_layers or fields of HSAConfig "
            f"({', '.join(sorted(_FIELDS))})."
        )
    if layer is not None and layer in settings.get("full_layers", ()):
        return FULL
    return HSAConfig(**sizes)


def layer_settings(module: nn.Module) -> HSAConfig:
    """What an attention module of transformers, or ours, is asked to read."""
    own = getattr(module, "hsa", None)  # layers of kind "hsa" of our own decoder
    if own is not None:
        return own
    config: Any = module.config
    if NAME in (getattr(config, "attention_kinds", None) or ()):
        return FULL
    settings = getattr(config, "hsa", None)
    if settings is None:
        return HSAConfig(**_default)
    return parse_settings(settings, getattr(module, "layer_idx", None))


def hsa_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    config: Any = None,
    device: Any = "cpu",
    **_: Any,
) -> Tensor | None:
    """What `create_causal_mask` of transformers calls for "hsa".

    Outside of compiled code, a pass over more than one token looks once whether there is any padding (one wait for the
    GPU in the pass, as in transformers' mask for flash attention), so that batches without it take the fast path.

    Args:
        batch_size, q_length, kv_length: B, new tokens M, columns N of the cache (of a static one: all).
        q_offset: column of the first new token; a tensor where the cache is static.
        attention_mask: bool [B, up to N]; missing columns hold no token.

    Returns:
        None: all N columns hold tokens, the new ones last. uint8 [B, 1, 0, n]: so do the first n. uint8 [B, 1, 1, n]:
        for each of the first n columns, bit 0 if it holds a token, bit 1 if it is one of the new ones.

    Raises:
        UnsupportedError: a pattern other than causal attention (packed sequences, chunks, blocks, prefixes).
    """
    tracing = torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    # Compiled code without mask and cache gets the pattern for packed sequences whether there are any or not.
    windowed = getattr(config, "sliding_window", None) is not None  # judged by layer, in `hsa_forward`
    other = mask_function is not causal_mask_function and not windowed
    if use_vmap or getattr(config, "attention_chunk_size", None) or (other and not tracing):
        raise UnsupportedError(
            "attention 'hsa' is causal over whole rows, and this model or input asks for another pattern (packed "
            f"sequences, chunks, blocks): give one sequence per row with its attention_mask, or {_INSTEAD}."
        )
    if isinstance(kv_offset, int) and kv_offset != 0:
        raise UnsupportedError(f"attention 'hsa' needs a cache that keeps every token: {_INSTEAD}.")
    here = kv_length
    if q_length > 1 and not tracing:
        here = min(int(q_offset) + q_length, kv_length)
        if attention_mask is None or (attention_mask.shape[1] >= here and bool(attention_mask[:, :here].all())):
            return None if here == kv_length else torch.empty(batch_size, 1, 0, here, dtype=torch.uint8, device=device)
    column = torch.arange(here, device=device)
    if attention_mask is None:
        if isinstance(q_offset, int) and q_offset + q_length == kv_length:
            return None
        present = (column < q_offset + q_length).expand(batch_size, -1)
    else:
        present = attention_mask[:, :here].to(torch.bool)
        present = torch.nn.functional.pad(present, (0, here - present.shape[1])) & (column < q_offset + q_length)
    query = (column >= q_offset) & (column < q_offset + q_length)
    return (present.to(torch.uint8) * _KEY + query.to(torch.uint8) * _QUERY)[:, None, None]


def hsa_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: see `cached_attention` for what is computed.

    Args:
        module: its `config` (or our `hsa`) has the settings.
        query: [B, H, M, D].
        key, value: [B, K, N, D], the cache with the new tokens.
        attention_mask: of `hsa_mask`, or 2-D [B, N] as given to the model.

    Returns:
        o [B, M, H, D], and None for the weights, which are not kept.

    Raises:
        UnsupportedError: dropout, sliding windows, soft capping, attention weights and other things that HSA has not.
        ConfigError: settings that make no sense.
    """
    _refuse(module, dropout, is_causal, kwargs)
    config = layer_settings(module)
    present, start = None, None
    if attention_mask is not None:
        n = attention_mask.shape[-1]
        if attention_mask.ndim == 2:
            present = attention_mask != 0
        elif attention_mask.ndim == 4 and attention_mask.dtype == torch.uint8:
            key, value = key[:, :, :n], value[:, :, :n]
            if attention_mask.shape[2]:
                codes = attention_mask[:, 0, 0]
                present, start = (codes & _KEY) != 0, (codes[0] & _QUERY).argmax()
        else:
            raise UnsupportedError(
                f"attention 'hsa' got a mask of shape {tuple(attention_mask.shape)} and {attention_mask.dtype}: give "
                f"attention_mask as [batch, tokens], 1 for tokens and 0 for padding, or {_INSTEAD}."
            )
    out = cached_attention(query, key, value, config, scale=scaling, present_BN=present, start=start)
    return out.transpose(1, 2).contiguous(), None


def _refuse(module: nn.Module, dropout: float, is_causal: bool | None, kwargs: dict[str, Any]) -> None:
    config: Any = module.config
    if dropout > 0:
        raise UnsupportedError(f"attention 'hsa' has no dropout, given {dropout}: set config.attention_dropout = 0.")
    window = kwargs.get("sliding_window")
    if window is not None and window < getattr(config, "max_position_embeddings", 0):
        raise UnsupportedError(
            f"a layer attends to a window of {window} tokens, which 'hsa' does not: set config.sliding_window = None "
            f"to attend beyond it, or config.max_position_embeddings = {window} to stay within, or {_INSTEAD}."
        )
    if is_causal is False or not getattr(module, "is_causal", True):
        raise UnsupportedError(f"a layer is not causal, and 'hsa' is: {_INSTEAD}.")
    if kwargs.get("output_attentions") or getattr(config, "output_attentions", False):
        raise UnsupportedError(
            "attention 'hsa' keeps no attention weights: leave output_attentions out, or load the model with "
            "attn_implementation='eager'."
        )
    for name, what in _ELSEWHERE:
        if kwargs.get(name) is not None:
            raise UnsupportedError(f"attention 'hsa' has no {what} ({name}): {_INSTEAD}.")


_ELSEWHERE = (
    ("softcap", "soft capping of scores"),
    ("position_bias", "bias by position"),
    ("s_aux", "learned sinks"),
    ("cu_seq_lens_q", "packed sequences"),
    ("cache", "paged cache of transformers (our engine has one: `stille serve --attention hsa`)"),
)

register_hsa()
