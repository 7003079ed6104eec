"""The dense decoder over fused kernels: the same parameters as the modules, five launches for a layer of a decode step.

`tests/engine/test_cuda_executor.py` holds it equal to the modules.
Shapes: N tokens, B padded decode rows, C hidden size, H query and K key/value heads, D head width, I inner width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stille.engine.cuda_batch import Batch, KVCache, attend
from stille.kernels.fused import triton_linear, triton_pointwise
from stille.kernels.fused.configs import FUSED_ROWS
from stille.kernels.paged.triton_write import write_kv

if TYPE_CHECKING:
    from stille.engine.speculate.head import States
    from stille.model import StilleForCausalLM


@dataclass(slots=True)
class LayerWeights:
    """Parameters of one layer; the fused ones are shared with the modules, whose parameters are views of them."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


def is_dense(config: Any) -> bool:
    """Whether every layer is of the kinds that the fused kernels compute."""
    return all(kind == "full" for kind in config.attention_kinds) and all(k == "dense" for k in config.ffn_kinds)


def fuse(linears: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Stack the weights (and biases) of projections of the same input; the modules' own become views of the stack."""
    stacks: list[Tensor | None] = []
    for name in ("weight", "bias"):
        parts: list[Any] = [getattr(linear, name) for linear in linears]
        if parts[0] is None:
            stacks.append(None)
            continue
        stack = torch.cat([part.data for part in parts])
        start = 0
        for part in parts:
            part.data = stack[start : start + part.shape[0]]
            start += part.shape[0]
        stacks.append(stack)
    weight, bias = stacks
    assert weight is not None
    return weight, bias


class FusedDecoder:
    """Runs a dense model over a paged cache.

    Args:
        model: its projections are fused in place.
        cache: of the engine.
        rows: most rows of a decode step (padded).
        length: positions to prepare RoPE for.
        states: of decode steps, to be kept for a draft head.
    """

    def __init__(self, model: StilleForCausalLM, cache: KVCache, rows: int, length: int, states: States | None = None):
        config: Any = model.config
        self.cache = cache
        self.eps = float(config.rms_norm_eps)
        self.heads, self.kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.head_dim = int(config.head_dim)
        self.scale = self.head_dim**-0.5
        self.embedding: Tensor = model.model.embed_tokens.weight.data
        self.head: Tensor = model.lm_head.weight.data
        self.norm: Tensor = model.model.norm.weight.data
        self.cos_TD, self.sin_TD = model.model.rope_table(length)
        self.layers: list[LayerWeights] = []
        layers: Any = model.model.layers
        for layer in layers:
            attention, ffn = layer.self_attn, layer.mlp
            qkv, qkv_bias = fuse([attention.q_proj, attention.k_proj, attention.v_proj])
            gate_up, _ = fuse([ffn.gate_proj, ffn.up_proj])
            self.layers.append(
                LayerWeights(
                    input_norm=layer.input_layernorm.weight.data,
                    qkv=qkv,
                    qkv_bias=qkv_bias,
                    q_norm=None if attention.q_norm is None else attention.q_norm.weight.data,
                    k_norm=None if attention.k_norm is None else attention.k_norm.weight.data,
                    o=attention.o_proj.weight.data,
                    o_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.data,
                    post_norm=layer.post_attention_layernorm.weight.data,
                    gate_up=gate_up,
                    down=ffn.down_proj.weight.data,
                )
            )
        # Buffers of decode steps: a captured graph must find them where they were.
        width, inner = int(config.hidden_size), int(config.intermediate_size)
        like = {"dtype": self.embedding.dtype, "device": self.embedding.device}
        self._x = torch.empty(rows, width, **like)
        self._q = torch.empty(rows, self.heads, self.head_dim, **like)
        self._o = torch.empty(rows, self.heads, self.head_dim, **like)
        self._inner = torch.empty(rows, inner, **like)
        # After these layers the residual stream goes on in another buffer, and stays in the one before for whoever
        # reads it there. The last layer's state is left in one in any case.
        self._kept = {} if states is None else dict(zip(states.layers, states.parts, strict=True))

    def decode(self, ids_B: Tensor, batch: Batch, logits_BV: Tensor) -> None:
        """One token of each of B sequences, into `logits_BV` (fp32); allocates nothing."""
        rows, pdl, eps = ids_B.shape[0], batch.pdl, self.eps
        x, q, o, inner = self._x[:rows], self._q[:rows], self._o[:rows], self._inner[:rows]
        torch.index_select(self.embedding, 0, ids_B, out=x)
        stream = x
        for index, layer in enumerate(self.layers):
            triton_linear.qkv(
                stream, layer.qkv, layer.qkv_bias, layer.input_norm, eps, self.cache.keys[index],
                self.cache.values[index], batch.slots_N, batch.positions_N, self.cos_TD, self.sin_TD, q,
                q_norm_D=layer.q_norm, k_norm_D=layer.k_norm, pdl=pdl,
            )  # fmt: skip
            attend(self.cache, batch, index, q, self.scale, o)
            triton_linear.linear(o.flatten(1), layer.o, layer.o_bias, residual_MF=stream, out=x, pdl=pdl)
            triton_linear.gate_up(x, layer.gate_up, layer.post_norm, eps, out=inner, pdl=pdl)
            stream = self._kept[index][:rows] if index in self._kept else x
            triton_linear.linear(inner, layer.down, residual_MF=x, out=stream, pdl=pdl)
        triton_linear.linear(stream, self.head, norm_K=self.norm, eps=eps, out=logits_BV, pdl=pdl)

    def prefill(self, ids_N: Tensor, batch: Batch) -> Tensor:
        """Steps of any composition; returns logits_SV (fp32) of each sequence's last row."""
        x = F.embedding(ids_N, self.embedding)
        delta: Tensor | None = None
        split = (self.heads, self.kv_heads, self.kv_heads)
        for index, layer in enumerate(self.layers):
            y = triton_pointwise.add_rms_norm(delta, x, layer.input_norm, self.eps)
            qkv = F.linear(y, layer.qkv, layer.qkv_bias).unflatten(1, (-1, self.head_dim))
            q, k, v = qkv.split(split, dim=1)
            write_kv(
                q, k, v, self.cache.keys[index], self.cache.values[index], batch.slots_N,
                positions_N=batch.positions_N, cos_TD=self.cos_TD, sin_TD=self.sin_TD, q_norm_D=layer.q_norm,
                k_norm_D=layer.k_norm, eps=self.eps,
            )  # fmt: skip
            o = attend(self.cache, batch, index, q, self.scale, q.new_empty(q.shape))
            y = triton_pointwise.add_rms_norm(
                F.linear(o.flatten(1), layer.o, layer.o_bias), x, layer.post_norm, self.eps
            )
            delta = F.linear(triton_pointwise.silu_mul(F.linear(y, layer.gate_up)), layer.down)
        assert delta is not None
        x.add_(delta)
        if batch.last_rows_S is not None:
            x = x.index_select(0, batch.last_rows_S)
        if x.shape[0] <= FUSED_ROWS:
            return triton_linear.linear(x, self.head, norm_K=self.norm, eps=self.eps, out_dtype=torch.float32)
        return F.linear(triton_pointwise.add_rms_norm(None, x, self.norm, self.eps), self.head).float()
