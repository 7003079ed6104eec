"""The decoder: one definition of the architecture, run by transformers and by the engine alike.

Two ways in, the same modules:
- `StilleForCausalLM.forward`: transformers' interface ([B, T] tokens, its caches, masks and losses), so `generate`,
  Trainer, PEFT and evaluation harnesses work;
- `StilleModel.forward_tokens` and `StilleForCausalLM.compute_logits`: flat tokens ([N]) and an `AttentionBackend`, so
  an engine brings its own cache and batches as it likes.

Module and parameter names are Llama's, so its checkpoints load by name.
Shapes: N flat tokens, B batch, T tokens, C hidden size, D head width, V vocabulary, S rows whose logits are wanted.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from stille.errors import UnsupportedError
from stille.model.attention import ATTENTION_KINDS, Attend, AttentionBackend
from stille.model.config import StilleConfig
from stille.model.draft import build_draft
from stille.model.ffn import FFN_KINDS
from stille.model.hf_attention import make_attend
from stille.model.norm import RMSNorm
from stille.model.rope import RotaryEmbedding
from stille.model.routing import BALANCE


class DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and FFN around the residual stream; the configuration names the kind of both."""

    def __init__(self, config: StilleConfig, layer: int):
        super().__init__()
        self.self_attn = ATTENTION_KINDS.build(config.attention_kinds[layer], config, layer)
        self.mlp = FFN_KINDS.build(config.ffn_kinds[layer], config, layer)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x: [..., C]; cos, sin: [..., D] of the tokens' positions; returns [..., C]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class StillePreTrainedModel(PreTrainedModel):
    """What transformers needs to know about the architecture."""

    config: StilleConfig
    config_class = StilleConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _keep_in_fp32_modules_strict = list(BALANCE)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """transformers' choice of attention function; layers of kind "hsa" need the one that they bring.

        Raises:
            UnsupportedError: another one was asked for.
        """
        if "hsa" not in self.config.attention_kinds:
            return super().get_correct_attn_implementation(requested_attention, is_init_check)
        if requested_attention not in (None, "hsa"):
            raise UnsupportedError(
                f"attn_implementation={requested_attention!r}, but the model has layers of kind 'hsa': leave "
                "attn_implementation out; layers of kind 'full' then run on SDPA."
            )
        return "hsa"


class StilleModel(StillePreTrainedModel):
    """Embeddings, layers and the final norm: token ids in, hidden states out."""

    def __init__(self, config: StilleConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)
        self.draft = build_draft(config)
        self.gradient_checkpointing = False
        self.post_init()

    def rope_table(self, length: int | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0 .. T-1 on the model's device, for kernels and for `forward_tokens`.

        Args:
            length: T wanted at least; None: `max_position_embeddings`. Built once, grows when more is asked for.

        Returns:
            cos_TD, sin_TD: float32, contiguous; columns D/2 .. D-1 repeat columns 0 .. D/2-1 (head dimension d is
            rotated with d + D/2), YaRN's factor included.
        """
        return self.rotary.table(self.embed_tokens.weight.device, length)

    def forward_tokens(
        self, ids_N: Tensor, positions_N: Tensor, backend: AttentionBackend, states: list[Tensor] | None = None
    ) -> Tensor:
        """Run flat tokens of any number of sequences through the decoder; the backend tells sequences apart.

        Args:
            ids_N: int64 token ids.
            positions_N: int64 position of each token in its sequence, below `max_position_embeddings` (or the
                length that `rope_table` was last asked for).
            backend: the cache and the attention over it.
            states: if given, what each layer is given, hidden_NC, is appended.

        Returns:
            hidden_NC after the final norm, in the model's dtype.
        """
        x = self.embed_tokens(ids_N)
        cos_TD, sin_TD = self.rope_table()
        x = self._run_layers(x, cos_TD[positions_N], sin_TD[positions_N], backend.attend, states)
        return self.norm(x)

    def _run_layers(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, states: list[Tensor] | None = None
    ) -> Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for layer in self.layers:
            if states is not None:
                states.append(x)
            x = layer(x, cos, sin, attend)
        return x

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """transformers' interface; see `StilleForCausalLM.forward` for the arguments.

        Returns:
            last_hidden_state [B, T, C] after the final norm, the cache, and on request hidden states (L + 1, the last
            one after the final norm) and attention weights (L, with attn_implementation "eager").
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is needed")
        config = self.config
        if use_cache is None:
            use_cache = bool(config.use_cache) and not self.training
        if self.gradient_checkpointing and self.training:
            use_cache = False  # the recomputation in the backward pass would write the cache twice
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states

        x: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(x.shape[1], device=x.device) + past)[None]
        mask = create_causal_mask(
            config=config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        states: list[Tensor] | None = [] if output_hidden_states else None
        weights: list[Tensor] | None = [] if output_attentions else None
        modules = [layer.self_attn for layer in self.layers]
        attend = make_attend(modules, past_key_values, mask, config._attn_implementation, weights, **kwargs)
        cos, sin = self.rotary(position_ids)
        x = self.norm(self._run_layers(x, cos, sin, attend, states))
        return BaseModelOutputWithPast(
            last_hidden_state=x,  # pyright: ignore[reportArgumentType]
            past_key_values=past_key_values if use_cache else None,
            hidden_states=None if states is None else (*states, x),  # pyright: ignore[reportArgumentType]
            attentions=None if weights is None else tuple(weights),  # pyright: ignore[reportArgumentType]
        )


class StilleForCausalLM(StillePreTrainedModel, GenerationMixin):
    """The decoder with its output head.

    Example:
        >>> from stille.model import StilleConfig, StilleForCausalLM
        >>> model = StilleForCausalLM(StilleConfig(num_hidden_layers=2))
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 49152])
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: StilleConfig):
        super().__init__(config)
        self.model = StilleModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward_tokens(self, ids_N: Tensor, positions_N: Tensor, backend: AttentionBackend) -> Tensor:
        """`StilleModel.forward_tokens`."""
        return self.model.forward_tokens(ids_N, positions_N, backend)

    def compute_logits(self, hidden_SC: Tensor) -> Tensor:
        """Logits of chosen rows of hidden states.

        Args:
            hidden_SC: rows of what `forward_tokens` returned.

        Returns:
            logits_SV in the model's dtype.
        """
        return self.lm_head(hidden_SC)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """transformers' interface.

        Args:
            input_ids: int64 [B, T]; or `inputs_embeds` [B, T, C] in its place.
            attention_mask: 1 for tokens, 0 for padding, [B, S] over cached and new tokens; None: no padding.
            position_ids: int64 [B, T]; None: continue after the cache.
            past_key_values: a transformers cache, updated in place.
            labels: int64 [B, T], -100 where not counted; shifted here. Adds `loss`, the mean over counted tokens
                (or the sum divided by `num_items_in_batch`, if given).
            use_cache: return a cache; default: the configuration's choice outside training.
            output_attentions, output_hidden_states: return these of every layer.
            logits_to_keep: compute logits of the last so many tokens, or of these indices; 0: all.
            **kwargs: for the attention function. `return_dict=False` makes the result a tuple.

        Returns:
            logits [B, T, V] in the model's dtype, and what was asked for.
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        hidden = out.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.compute_logits(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
