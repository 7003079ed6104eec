"""The model's own modules over a paged cache with torch's attention: any device, any dtype, the exactness mode.

Slower than the executors with kernels of their own, and the one that they are tested against.
Shapes: N tokens, S sequences, H query and K key/value heads, D head width, P pages, L = P x 64 positions, T tokens of
one sequence.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stille.engine.config import PAGE_SIZE, EngineConfig, plan_pages
from stille.engine.embedding import sums_of
from stille.engine.executor import ExpertRange, StepInput, monitor_of
from stille.engine.hsa import PromptRule, Segment
from stille.engine.sampling_state import to_device
from stille.engine.speculate.head import States, TorchDrafter
from stille.kernels.hsa import HSAConfig, paged_reference, reference, signatures
from stille.kernels.hsa.paged import PageCodes

if TYPE_CHECKING:
    from stille.model import StilleForCausalLM
    from stille.model.draft import DraftHead


class TorchExecutor:
    """See `executor.Executor`.

    Args:
        model: on its device and in its dtype already; used as it is.
        config: resolved; sizes the cache.
        draft_head: guesses after each decode step; None: nothing does.
    """

    def __init__(self, model: StilleForCausalLM, config: EngineConfig, draft_head: DraftHead | None = None):
        shape = model.config
        weight = model.model.embed_tokens.weight
        self.model = model.eval()
        self.device = weight.device
        self.vocab_size, self.hidden_size = int(shape.vocab_size), int(shape.hidden_size)
        self.experts, self.routing = ExpertRange.of(shape), monitor_of(model)
        # The specification of sparse decoding reads lengths on the host, so it cannot run ahead.
        self.async_depth = 1 if self.device.type == "cuda" and config.hsa is None else 0
        heads, width = int(shape.num_key_value_heads), int(shape.head_dim)
        layers = int(shape.num_hidden_layers)
        page_bytes = 2 * layers * heads * PAGE_SIZE * width * weight.element_size()
        if config.hsa is not None:
            page_bytes += layers * PageCodes.bytes_per_page(heads, width, config.hsa)
        self.num_pages = plan_pages(config, page_bytes, self.device)
        # Zeros, not empty: masked positions still enter the products, and 0 x garbage may be NaN. On CPU the system
        # hands out zeroed memory as it is touched, so an unused cache costs nothing.
        cache = (layers, self.num_pages, heads, PAGE_SIZE, width)
        self.keys = torch.zeros(cache, dtype=weight.dtype, device=self.device)
        self.values = torch.zeros(cache, dtype=weight.dtype, device=self.device)
        self.rule = None if config.hsa is None else PromptRule.of(config.hsa)
        self.codes = None if config.hsa is None else PageCodes.allocate(cache, config.hsa, self.device)
        model.model.rope_table(config.max_model_len)
        self.drafter: TorchDrafter | None = None
        if draft_head is not None:
            states = States(draft_head, config.max_decode_rows, weight)
            states.watch(model.model.layers)
            self.drafter = TorchDrafter(draft_head, states)

    def warmup(self) -> None:
        """Nothing to prepare."""

    @torch.inference_mode()
    def forward(self, step: StepInput, ids_N: Tensor) -> Tensor:
        last_S = to_device(np.cumsum(step.lengths.astype(np.int64)) - 1, self.device)
        return self.model.compute_logits(self._hidden(step, ids_N).index_select(0, last_S)).float()

    @torch.inference_mode()
    def embed(self, step: StepInput, ids_N: Tensor) -> Tensor:
        return sums_of(self._hidden(step, ids_N), step.lengths)

    def _hidden(self, step: StepInput, ids_N: Tensor) -> Tensor:
        starts, lengths = step.starts.astype(np.int64), step.lengths.astype(np.int64)
        ends = np.cumsum(lengths)
        positions = np.arange(step.num_tokens) + np.repeat(starts - (ends - lengths), lengths)
        attention = PagedAttention(self, step, positions)
        with self._budget(step):
            return self.model.model.forward_tokens(ids_N, to_device(positions, self.device), attention)

    def _budget(self, step: StepInput) -> AbstractContextManager[None]:
        budget_N = step.token_budgets()
        if budget_N is None or self.routing is None:
            return nullcontext()
        return self.routing.watch(to_device(budget_N, self.device))


@dataclass(slots=True)
class _Chunk:
    """Tokens of a prompt: their rows in the step, the pages and number of keys they see, and how.

    Attributes:
        mask_TL: for attention in full; None with a config.
        config: for sparse attention.
    """

    rows: slice
    pages_P: Tensor
    keys: int
    mask_TL: Tensor | None
    config: HSAConfig | None


class PagedAttention:
    """`AttentionBackend` of one step: writes K and V of all tokens, then attends row by row of the step.

    Decode rows are one padded batch; a prompt chunk is computed by itself. Sparse attention runs by its specification.
    """

    def __init__(self, executor: TorchExecutor, step: StepInput, positions_N: np.ndarray):
        self._executor = executor
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
            self._end_S = to_device(ends[: self._decodes], device)
            self._decode_mask = torch.arange(pages * PAGE_SIZE, device=device) < self._end_S[:, None, None, None]
        self._chunks: list[_Chunk] = []
        first = self._decodes
        for row in range(self._decodes, step.num_seqs):
            start, end = int(step.starts[row]), int(ends[row])
            segments = [Segment(start, end, None)]
            if executor.rule is not None:
                segments = executor.rule.segments(start, end, step.total(row))
            for part in segments:
                rows = slice(first + part.start - start, first + part.end - start)
                mask = None
                if part.config is None:
                    mask = torch.ones(part.end - part.start, part.end, dtype=torch.bool, device=device).tril(part.start)
                pages = table[row, : -(-part.end // PAGE_SIZE)]
                self._chunks.append(_Chunk(rows, pages, part.end, mask, part.config))
            first += end - start

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float) -> Tensor:
        keys, values = self._executor.keys[layer], self._executor.values[layer]
        keys[self._page_N, :, self._offset_N] = k_NKD
        values[self._page_N, :, self._offset_N] = v_NKD
        out_NHD = torch.empty_like(q_NHD)
        if self._executor.codes is not None and self._executor.rule is not None:
            layer_codes, config = self._executor.codes.layer(layer), self._executor.rule.config
            codes = *layer_codes.parts, signatures.hadamard(keys.shape[-1], keys)
            slots_N = self._page_N * PAGE_SIZE + self._offset_N
            paged_reference.update_codes(keys, *codes, slots_N, config.decode_leaf)
            if self._decodes:
                out_NHD[: self._decodes] = paged_reference.hsa_decode(
                    q_NHD[: self._decodes], keys, values, *codes, self._decode_table, self._end_S, scale, config
                )
        elif self._decodes:
            q_SH1D = q_NHD[: self._decodes, :, None]
            k_SKLD = keys[self._decode_table].transpose(1, 2).flatten(2, 3)
            v_SKLD = values[self._decode_table].transpose(1, 2).flatten(2, 3)
            out = scaled_dot_product_attention(
                q_SH1D, k_SKLD, v_SKLD, attn_mask=self._decode_mask, scale=scale, enable_gqa=True
            )
            out_NHD[: self._decodes] = out[:, :, 0]
        for chunk in self._chunks:
            q_HTD = q_NHD[chunk.rows].transpose(0, 1)
            k_KLD, v_KLD = (
                pages[chunk.pages_P].transpose(0, 1).flatten(1, 2)[:, : chunk.keys] for pages in (keys, values)
            )
            if chunk.config is None:
                out_HTD = scaled_dot_product_attention(
                    q_HTD[None], k_KLD[None], v_KLD[None], attn_mask=chunk.mask_TL, scale=scale, enable_gqa=True
                )[0]
            else:
                out_HTD = reference.hsa_attention(q_HTD, k_KLD, v_KLD, chunk.config, scale)[0].to(q_NHD.dtype)
            out_NHD[chunk.rows] = out_HTD.transpose(0, 1)
        return out_NHD
