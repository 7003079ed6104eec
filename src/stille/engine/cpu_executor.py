"""Packed weights and compiled kernels on the CPU: the fast executor where there is no GPU.

Every row of a step, prompt or decode, goes through the same kernels, and a row's logits do not depend on what else is
in the step: a greedy answer is the same alone, batched, chunked or from cached prefixes, bit for bit. That holds with
attention "hsa" too: each row, of a prompt or not, chooses what it reads by its own query.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stille.engine.config import EngineConfig, plan_pages
from stille.engine.embedding import sums_of
from stille.engine.executor import ExpertRange, StepInput
from stille.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.nn import Module

    from stille.kernels.cpu import CpuDecoder, DecoderShape, KeyBudget, LayerTensors, Target
    from stille.kernels.hsa import HSAConfig
    from stille.model import StilleForCausalLM

logger = logging.getLogger(__name__)

_BITS = {"int4": 4, "int8": 8}


class CpuExecutor:
    """See `executor.Executor`.

    Args:
        model: float weights on the CPU. It is consumed: each weight is packed and then freed, so that the peak stays
            near the size of the float model. Left untouched if this raises UnsupportedError.
        config: resolved, dtype int4 or int8; `threads` None takes torch's number.
        target: instruction set and cache element type; None takes the host's best.

    Raises:
        ConfigError: the budget of attention "hsa" is too small.
        UnsupportedError: a layer kind or size without kernels, no numba, no POSIX threads.
    """

    own_threads = True  # beside torch's, which should rest

    def __init__(self, model: StilleForCausalLM, config: EngineConfig, target: Target | None = None):
        if config.dtype not in _BITS:
            raise UnsupportedError(f"CpuExecutor packs weights to int4 or int8, not {config.dtype}")
        try:
            from stille.kernels.cpu import CpuDecoder, Target
        except ImportError as error:
            raise UnsupportedError(f"the CPU kernels need numba (pip install 'stille[serve]'): {error}") from error
        shape, target = _shape(model, _BITS[config.dtype]), target or Target()
        self.device = torch.device("cpu")
        self.vocab_size, self.hidden_size, self.async_depth, self.drafter = shape.vocab, shape.hidden, 0, None
        self.experts = ExpertRange.of(model.config)
        self.routing, self._budgets = None, None
        if shape.experts is not None:
            from stille.engine.cpu_experts import StepBudgets
            from stille.engine.routing_stats import RoutingMonitor

            self.routing, self._budgets = RoutingMonitor(model), StepBudgets(model)
        budget = None if config.hsa is None else _key_budget(config.hsa)
        self.num_pages = plan_pages(config, shape.page_bytes(target, budget), self.device)
        cos_TD, sin_TD = model.model.rope_table(config.max_model_len)
        self.decoder = CpuDecoder(shape, self.num_pages, target, config.threads or torch.get_num_threads(), budget)
        _load(self.decoder, model, cos_TD, sin_TD)

    def warmup(self) -> None:
        """Compiles the kernels, or loads them from numba's cache; writes to the scratch page only."""
        began = time.perf_counter()
        one = np.ones(1, np.int32)
        budgets = None
        if self._budgets is not None and self.experts is not None:
            budgets = self._budgets.rows(np.full(1, self.experts.own, np.float32))
        self.decoder.forward(0 * one, one, one.astype(np.int64), np.zeros((1, 1), np.int32), np.ones(1, bool), budgets)
        logger.info("CPU kernels for %s ready in %.1f s", self.decoder.target, time.perf_counter() - began)

    def forward(self, step: StepInput, ids_N: Tensor) -> Tensor:
        place = step.starts, step.lengths, ids_N.numpy(), step.page_table, step.sample
        budget_N, experts = step.token_budgets(), self.decoder.shape.experts
        if experts is None or budget_N is None or self._budgets is None or self.routing is None:
            return self.decoder.forward(*place)
        masks: list[np.ndarray] | None = [] if self.routing.due() else None
        logits = self.decoder.forward(*place, self._budgets.rows(budget_N), masks)
        if masks:
            from stille.engine.cpu_experts import routing_of

            self.routing.add(routing_of(masks, experts.experts, experts.layers))
        return logits

    def embed(self, step: StepInput, ids_N: Tensor) -> Tensor:
        from stille.kernels.cpu.decoder import MAX_ROWS

        ids, budget_N = ids_N.numpy(), step.token_budgets()
        ends = np.cumsum(step.lengths, dtype=np.int32)
        firsts = ends - step.lengths
        sums_SC = torch.zeros(step.num_seqs, self.hidden_size)
        for begin in range(0, step.num_tokens, MAX_ROWS):  # the decoder keeps the states of one pass
            end = min(step.num_tokens, begin + MAX_ROWS)
            rows = np.flatnonzero((firsts < end) & (ends > begin))
            low = np.maximum(firsts[rows], begin).astype(np.int32)
            counts = np.minimum(ends[rows], end).astype(np.int32) - low
            budgets = None if budget_N is None or self._budgets is None else self._budgets.rows(budget_N[begin:end])
            place = step.starts[rows] + low - firsts[rows], counts, ids[begin:end], step.page_table[rows]
            self.decoder.forward(*place, np.zeros(len(rows), bool), budgets)
            sums_SC[torch.from_numpy(rows)] += sums_of(self.decoder.hidden(end - begin), counts)
        return sums_SC


def _key_budget(hsa: HSAConfig) -> KeyBudget:
    """Sizes in leaves: the budget is not exceeded, sinks and window are not cut short.

    The rest of the configuration shapes the tiles of other kernels; here every row chooses alone.
    """
    from stille.kernels.cpu import KeyBudget

    leaf = hsa.decode_leaf
    return KeyBudget(leaf, hsa.budget // leaf, -(-hsa.sinks // leaf), -(-hsa.local // leaf))


def _shape(model: StilleForCausalLM, bits: int) -> DecoderShape:
    from stille.engine.cpu_experts import experts_shape
    from stille.kernels.cpu import DecoderShape
    from stille.model.attention import Attention
    from stille.model.experts import ExpertsFFN
    from stille.model.ffn import DenseFFN

    c = model.config
    layers: list[Any] = list(model.model.layers)
    for number, layer in enumerate(layers):
        if type(layer.self_attn) is not Attention or type(layer.mlp) not in (DenseFFN, ExpertsFFN):
            kinds = f"{type(layer.self_attn).__name__} and {type(layer.mlp).__name__}"
            raise UnsupportedError(
                f"layer {number} is made of {kinds}; the CPU kernels run full attention, dense FFN and experts"
            )
    return DecoderShape(
        layers=c.num_hidden_layers,
        hidden=c.hidden_size,
        intermediate=c.intermediate_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        vocab=c.vocab_size,
        eps=c.rms_norm_eps,
        scale=float(layers[0].self_attn.scale),
        bits=bits,
        experts=experts_shape(model),
    )


@torch.inference_mode()
def _load(decoder: CpuDecoder, model: StilleForCausalLM, cos_TD: Tensor, sin_TD: Tensor) -> None:
    for number, layer in enumerate(model.model.layers):
        decoder.load_layer(number, _tensors(layer))
        _free(layer)
    body, head = model.model, model.lm_head.weight
    tied = head is body.embed_tokens.weight or head.data_ptr() == body.embed_tokens.weight.data_ptr()
    decoder.load_ends(body.embed_tokens.weight, None if tied else head, body.norm.weight, cos_TD, sin_TD)
    _free(model)


def _tensors(layer: Any) -> LayerTensors:
    from stille.engine.cpu_experts import expert_tensors
    from stille.kernels.cpu import LayerTensors
    from stille.model.experts import ExpertsFFN

    a, routed = layer.self_attn, isinstance(layer.mlp, ExpertsFFN)
    ffn = layer.mlp.shared if routed else layer.mlp
    weight = lambda module: None if module is None else module.weight  # noqa: E731
    return LayerTensors(
        attention_norm_C=layer.input_layernorm.weight,
        q=a.q_proj.weight,
        k=a.k_proj.weight,
        v=a.v_proj.weight,
        out=a.o_proj.weight,
        ffn_norm_C=layer.post_attention_layernorm.weight,
        gate=None if ffn is None else ffn.gate_proj.weight,
        up=None if ffn is None else ffn.up_proj.weight,
        down=None if ffn is None else ffn.down_proj.weight,
        q_bias=a.q_proj.bias,
        k_bias=a.k_proj.bias,
        v_bias=a.v_proj.bias,
        out_bias=a.o_proj.bias,
        q_norm_D=weight(a.q_norm),
        k_norm_D=weight(a.k_norm),
        experts=expert_tensors(layer.mlp) if routed else None,
    )


def _free(module: Module) -> None:
    for parameter in module.parameters():
        parameter.data = torch.empty(0)
