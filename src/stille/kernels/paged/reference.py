"""Paged KV cache operations in plain torch: the specification of the Triton kernels, and what runs without Triton.

Shapes: N flat tokens, S sequences, H query heads, K key/value heads, D head width, P pages of a sequence,
`pages` [num_pages, K, 64, D]. A slot is `page * 64 + offset`. All metadata are integer tensors on the tensors' device.
"""

import torch
from torch import Tensor

from stille.kernels.triton_support import PAGE


def rotate(x_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """RoPE on pairs (d, d + D/2), computed in fp32; cos and sin are fp32 [N, D] whose halves are equal."""
    first, second = x_NHD.float().chunk(2, dim=-1)
    cos_N1d, sin_N1d = (t.chunk(2, dim=-1)[0].unsqueeze(-2) for t in (cos_ND, sin_ND))
    return torch.cat((first * cos_N1d - second * sin_N1d, second * cos_N1d + first * sin_N1d), dim=-1)


def head_norm(x_NHD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm of every head in fp32."""
    x = x_NHD.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight_D.float()


def write_kv(
    q_NHD: Tensor,
    k_NKD: Tensor,
    v_NKD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots_N: Tensor,
    *,
    positions_N: Tensor | None = None,
    cos_TD: Tensor | None = None,
    sin_TD: Tensor | None = None,
    q_norm_D: Tensor | None = None,
    k_norm_D: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """See `stille.kernels.paged.api.write_kv`."""
    q_new, k_new = q_NHD, k_NKD
    if q_norm_D is not None and k_norm_D is not None:
        q_new, k_new = head_norm(q_new, q_norm_D, eps), head_norm(k_new, k_norm_D, eps)
    if positions_N is not None and cos_TD is not None and sin_TD is not None:
        cos_ND, sin_ND = cos_TD[positions_N.long()], sin_TD[positions_N.long()]
        q_new, k_new = rotate(q_new, cos_ND, sin_ND), rotate(k_new, cos_ND, sin_ND)
    slots = slots_N.long()
    k_pages[slots // PAGE, :, slots % PAGE] = k_new.to(k_pages.dtype)
    v_pages[slots // PAGE, :, slots % PAGE] = v_NKD.to(v_pages.dtype)
    if q_new is not q_NHD:
        q_NHD.copy_(q_new)
    return q_NHD


def gather_pages(pages: Tensor, page_table_P: Tensor, length: int) -> Tensor:
    """The first `length` keys or values of a sequence, [length, K, D]."""
    used = pages[page_table_P[: (length + PAGE - 1) // PAGE].long()]
    return used.transpose(1, 2).flatten(0, 1)[:length]


def attend(q_NHD: Tensor, k_TKD: Tensor, v_TKD: Tensor, scale: float) -> Tensor:
    """Causal attention of the last N of T positions in fp32 (fp64 stays fp64); returns [N, H, D] in q's dtype."""
    wide = torch.promote_types(q_NHD.dtype, torch.float32)
    group = q_NHD.shape[1] // k_TKD.shape[1]
    n, total = q_NHD.shape[0], k_TKD.shape[0]
    q = q_NHD.to(wide).transpose(0, 1)
    k, v = (t.to(wide).transpose(0, 1).repeat_interleave(group, dim=0) for t in (k_TKD, v_TKD))
    scores = q @ k.transpose(1, 2) * scale
    rows = torch.arange(total - n, total, device=q.device)
    scores = scores.masked_fill(torch.arange(total, device=q.device)[None, :] > rows[:, None], float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1).to(q_NHD.dtype)


def decode_attention(
    q_SHD: Tensor, k_pages: Tensor, v_pages: Tensor, page_table_SP: Tensor, lengths_S: Tensor, scale: float
) -> Tensor:
    """See `stille.kernels.paged.api.decode_attention`; rows of length 0 are zero."""
    out = torch.zeros_like(q_SHD)
    for row, length in enumerate(lengths_S.tolist()):
        if length:
            k, v = (gather_pages(pages, page_table_SP[row], length) for pages in (k_pages, v_pages))
            out[row] = attend(q_SHD[row : row + 1], k, v, scale)[0]
    return out


def prefill_attention(
    q_NHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table_SP: Tensor,
    first_rows_S: Tensor,
    starts_S: Tensor,
    counts_S: Tensor,
    scale: float,
) -> Tensor:
    """See `stille.kernels.paged.api.prefill_attention`; rows of no sequence are zero."""
    out = torch.zeros_like(q_NHD)
    meta = zip(first_rows_S.tolist(), starts_S.tolist(), counts_S.tolist(), strict=True)
    for seq, (row, start, count) in enumerate(meta):
        if count:
            k, v = (gather_pages(pages, page_table_SP[seq], start + count) for pages in (k_pages, v_pages))
            out[row : row + count] = attend(q_NHD[row : row + count], k, v, scale)
    return out
