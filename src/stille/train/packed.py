"""Attention of training: every document of a micro-batch attends to itself, through the decoder's own seam.

Shapes: B sequences, T tokens of one, N = B * T flat tokens, H query heads, K key/value heads, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.train.data import Batch

FLASH, WIDEST = (torch.bfloat16, torch.float16), 256
"""Dtypes that flash attention takes, and the widest heads; widths are multiples of 8."""


class Packed:
    """The `AttentionBackend` of a micro-batch; nothing is cached.

    On a GPU in half precision documents are attended one by one (torch's flash attention for unequal lengths);
    elsewhere under a mask.

    Args:
        batch: on the device of the model.
    """

    def __init__(self, batch: Batch):
        self.batch = batch
        self._mask: Tensor | None = None

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float) -> Tensor:
        width = q_NHD.shape[-1]
        if q_NHD.is_cuda and q_NHD.dtype in FLASH and width % 8 == 0 and width <= WIDEST:
            return self._by_document(q_NHD, k_NKD, v_NKD, scale)
        return self._by_mask(q_NHD, k_NKD, v_NKD, scale)

    def _by_document(self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float) -> Tensor:
        bounds, longest = self.batch.bounds, self.batch.ids_BT.shape[1]
        return torch.ops.aten._flash_attention_forward(
            q_NHD, k_NKD, v_NKD, bounds, bounds, longest, longest, 0.0, True, False, scale=scale
        )[0]

    def _by_mask(self, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float) -> Tensor:
        if self._mask is None and not self.batch.whole:
            self._mask = self.batch.mask()
        sequences = self.batch.ids_BT.shape[0]
        q, k, v = (x.unflatten(0, (sequences, -1)).transpose(1, 2) for x in (q_NHD, k_NKD, v_NKD))
        causal, grouped = self._mask is None, q.shape[1] != k.shape[1]
        o_BHTD = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self._mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )
        return o_BHTD.transpose(1, 2).flatten(0, 1)
