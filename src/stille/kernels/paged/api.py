"""The operations on a paged KV cache, on Triton where it runs and in plain torch elsewhere.

Shapes: N flat tokens, S sequences, H query heads, K key/value heads, D head width, P pages of a sequence. The cache of
a layer is `k_pages`, `v_pages`: [num_pages, K, 64, D]. A slot is `page * 64 + offset`. Metadata are int32 (int64 is
fine) tensors on the tensors' device. Dtypes: float32, bfloat16, float16, the same for all.
"""

import torch
from torch import Tensor

from stille.errors import UnsupportedError
from stille.kernels.paged import reference
from stille.kernels.triton_support import IN_TRITON, PAGE, runs_triton


def _check(q: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    if k_pages.shape != v_pages.shape or k_pages.ndim != 4 or k_pages.shape[2] != PAGE:
        raise ValueError(
            f"k_pages {tuple(k_pages.shape)} and v_pages {tuple(v_pages.shape)}: expected the same shape "
            f"[num_pages, kv_heads, {PAGE}, head_dim]."
        )
    if not (k_pages.is_contiguous() and v_pages.is_contiguous()):
        raise ValueError("k_pages and v_pages must be contiguous.")
    if q.ndim != 3 or q.shape[2] != k_pages.shape[3] or q.shape[1] % k_pages.shape[1]:
        raise ValueError(
            f"q {tuple(q.shape)} does not fit pages {tuple(k_pages.shape)}: expected [rows, heads, head_dim] with the "
            "pages' head_dim and a multiple of their kv_heads."
        )
    if q.stride(2) != 1 or q.stride(1) != q.shape[2]:
        raise ValueError(f"q has strides {q.stride()}; heads and components of a row must be contiguous.")
    if q.dtype not in IN_TRITON or q.dtype != k_pages.dtype or q.dtype != v_pages.dtype:
        names = ", ".join(str(dtype) for dtype in IN_TRITON)
        raise UnsupportedError(
            f"q is {q.dtype}, the pages are {k_pages.dtype} and {v_pages.dtype}: expected one of {names} for all."
        )


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
    """Store keys and values in their pages; on the way apply q/k norm and RoPE, if given, to q and k.

    Args:
        q_NHD: queries; changed in place by norm and RoPE.
        k_NKD, v_NKD: keys and values; rows may be strided (views of one fused projection).
        k_pages, v_pages: the layer's cache, written.
        slots_N: where each token goes. Slots of padded rows may repeat (page 0 is scratch).
        positions_N, cos_TD, sin_TD: for RoPE: positions and fp32 tables whose halves are equal; all or none.
        q_norm_D, k_norm_D, eps: for RMSNorm of every head before RoPE; both or none.

    Returns:
        q_NHD.
    """
    _check(q_NHD, k_pages, v_pages)
    if (q_norm_D is None) != (k_norm_D is None):
        raise ValueError("q_norm_D and k_norm_D go together: give both or none.")
    if not (positions_N is None) == (cos_TD is None) == (sin_TD is None):
        raise ValueError("positions_N, cos_TD and sin_TD go together: give all or none.")
    if runs_triton(q_NHD):
        from stille.kernels.paged.triton_write import write_kv as run
    else:
        run = reference.write_kv
    return run(
        q_NHD, k_NKD, v_NKD, k_pages, v_pages, slots_N, positions_N=positions_N, cos_TD=cos_TD, sin_TD=sin_TD,
        q_norm_D=q_norm_D, k_norm_D=k_norm_D, eps=eps,
    )  # fmt: skip


def decode_attention(
    q_SHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table_SP: Tensor,
    lengths_S: Tensor,
    scale: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of one query token per sequence over its first `lengths` cached tokens.

    Args:
        q_SHD: queries of the newest tokens, whose keys and values are already in the cache.
        k_pages, v_pages: the layer's cache.
        page_table_SP: pages of each sequence, in order; entries beyond its length are not read.
        lengths_S: tokens in the cache, the newest included; 0 gives a row of zeros (padding).
        scale: factor of the scores.
        out: where to write, optionally.

    Returns:
        o_SHD, in q's dtype.
    """
    _check(q_SHD, k_pages, v_pages)
    if runs_triton(q_SHD):
        from stille.kernels.paged import triton_decode

        return triton_decode.decode_attention(q_SHD, k_pages, v_pages, page_table_SP, lengths_S, scale, out=out)
    result = reference.decode_attention(q_SHD, k_pages, v_pages, page_table_SP, lengths_S, scale)
    return result if out is None else out.copy_(result)


def prefill_attention(
    q_NHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table_SP: Tensor,
    first_rows_S: Tensor,
    starts_S: Tensor,
    counts_S: Tensor,
    scale: float,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of chunks of new tokens, each over its sequence's cache and itself.

    The convenient form: it reads `counts_S` on the host to cut the work into tiles. An engine, which knows the counts,
    calls `triton_prefill.plan_tiles` and `triton_prefill.prefill_attention` itself and waits for nothing.

    Args:
        q_NHD: queries of the new tokens, whose keys and values are already in the cache.
        k_pages, v_pages: the layer's cache.
        page_table_SP: pages of each sequence, covering starts + counts tokens.
        first_rows_S: row of q of each sequence's first new token.
        starts_S: tokens in the cache before the chunk.
        counts_S: new tokens; 0 for none.
        scale: factor of the scores.
        out: where to write, optionally; rows of no sequence are left alone.

    Returns:
        o_NHD, in q's dtype.
    """
    _check(q_NHD, k_pages, v_pages)
    if runs_triton(q_NHD):
        from stille.kernels.paged import triton_prefill

        counts = counts_S.cpu().numpy()
        group = q_NHD.shape[1] // k_pages.shape[1]
        config = triton_prefill.prefill_config(int(counts.max(initial=0)), group, q_NHD.shape[2], q_NHD.dtype)
        tiles = torch.from_numpy(triton_prefill.plan_tiles(counts, config.tokens(group))).to(q_NHD.device)
        return triton_prefill.prefill_attention(
            q_NHD, k_pages, v_pages, page_table_SP, first_rows_S, starts_S, counts_S, scale, tiles=tiles,
            config=config, out=out,
        )  # fmt: skip
    result = reference.prefill_attention(
        q_NHD, k_pages, v_pages, page_table_SP, first_rows_S, starts_S, counts_S, scale
    )
    return result if out is None else out.copy_(result)
