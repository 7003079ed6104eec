"""The model's own modules over a paged cache with torch's attention: any device, any dtype, the exactness mode.

Slower than the executors with kernels of their own, and the one that they are tested against.
Shapes: N tokens, S sequences, H query and K key/value heads, D head width, P pages, L = P x 64 positions, T tokens of
one sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stille.engine.config import PAGE_SIZE, EngineConfig, plan_pages
from stille.engine.executor import StepInput
from stille.engine.sampling_state import to_device

if TYPE_CHECKING:
    from stille.model import StilleForCausalLM


class TorchExecutor:
    """See `executor.Executor`.

    Args:
        model: on its device and in its dtype already; used as it is.
        config: resolved; sizes the cache.
    """

    def __init__(self, model: StilleForCausalLM, config: EngineConfig):
        shape = model.config
        weight = model.model.embed_tokens.weight
        self.model = model.eval()
        self.device = weight.device
        self.vocab_size = int(shape.vocab_size)
        self.async_depth = 1 if self.device.type == "cuda" else 0
        heads, width = int(shape.num_key_value_heads), int(shape.head_dim)
        layers = int(shape.num_hidden_layers)
        page_bytes = 2 * layers * heads * PAGE_SIZE * width * weight.element_size()
        self.num_pages = plan_pages(config, page_bytes, self.device)
        # Zeros, not empty: masked positions still enter the products, and 0 x garbage may be NaN. On CPU the system
        # hands out zeroed memory as it is touched, so an unused cache costs nothing.
        cache = (layers, self.num_pages, heads, PAGE_SIZE, width)
        self.keys = torch.zeros(cache, dtype=weight.dtype, device=self.device)
        self.values = torch.zeros(cache, dtype=weight.dtype, device=self.device)
        model.model.rope_table(config.max_model_len)

    def warmup(self) -> None:
        """Nothing to prepare."""

    @torch.inference_mode()
    def forward(self, step: StepInput, ids_N: Tensor) -> Tensor:
        starts, lengths = step.starts.astype(np.int64), step.lengths.astype(np.int64)
        ends = np.cumsum(lengths)
        positions = np.arange(step.num_tokens) + np.repeat(starts - (ends - lengths), lengths)
        attention = PagedAttention(self, step, positions)
        hidden_NC = self.model.model.forward_tokens(ids_N, to_device(positions, self.device), attention)
        last_S = to_device(ends - 1, self.device)
        return self.model.compute_logits(hidden_NC.index_select(0, last_S)).float()


class PagedAttention:
    """`AttentionBackend` of one step: writes K and V of all tokens, then attends row by row of the step.

    Decode rows are one padded batch; a prompt chunk is computed by itself.
    """

    def __init__(self, executor: TorchExecutor, step: StepInput, positions_N: np.ndarray):
        self._keys, self._values = executor.keys, executor.values
        device = executor.device
        row_N = np.repeat(np.arange(step.num_seqs), step.lengths)
        self._page_N = to_device(step.page_table[row_N, positions_N // PAGE_SIZE].astype(np.int64), device)
        self._offset_N = to_device(positions_N % PAGE_SIZE, device)
        table = to_device(step.page_table.astype(np.int64), device)
        ends = (step.starts + step.lengths).astype(np.int64)
        self._decodes = step.num_decodes
        if self._decodes:
            pages = int(-(-ends[: self._decodes].max() // PAGE_SIZE))
            self._decode_table = table[: self._decodes, :pages]
            end_S = to_device(ends[: self._decodes], device)
            self._decode_mask = torch.arange(pages * PAGE_SIZE, device=device) < end_S[:, None, None, None]
        self._chunks: list[tuple[slice, Tensor, int, Tensor]] = []
        first = self._decodes
        for row in range(self._decodes, step.num_seqs):
            start, length, end = int(step.starts[row]), int(step.lengths[row]), int(ends[row])
            mask = torch.ones(length, end, dtype=torch.bool, device=device).tril(start)
            pages = table[row, : -(-end // PAGE_SIZE)]
            self._chunks.append((slice(first, first + length), pages, end, mask))
            first += length

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float) -> Tensor:
        keys, values = self._keys[layer], self._values[layer]
        keys[self._page_N, :, self._offset_N] = k_NKD
        values[self._page_N, :, self._offset_N] = v_NKD
        out_NHD = torch.empty_like(q_NHD)
        if self._decodes:
            q_SH1D = q_NHD[: self._decodes, :, None]
            k_SKLD = keys[self._decode_table].transpose(1, 2).flatten(2, 3)
            v_SKLD = values[self._decode_table].transpose(1, 2).flatten(2, 3)
            out = scaled_dot_product_attention(
                q_SH1D, k_SKLD, v_SKLD, attn_mask=self._decode_mask, scale=scale, enable_gqa=True
            )
            out_NHD[: self._decodes] = out[:, :, 0]
        for rows, pages, end, mask in self._chunks:
            q_1HTD = q_NHD[rows].transpose(0, 1)[None]
            k_1KLD = keys[pages].transpose(0, 1).flatten(1, 2)[None, :, :end]
            v_1KLD = values[pages].transpose(0, 1).flatten(1, 2)[None, :, :end]
            out = scaled_dot_product_attention(q_1HTD, k_1KLD, v_1KLD, attn_mask=mask, scale=scale, enable_gqa=True)
            out_NHD[rows] = out[0].transpose(0, 1)
        return out_NHD
