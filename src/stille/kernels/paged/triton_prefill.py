"""Triton: causal attention of chunks of new tokens over the paged cache, many sequences in one launch.

A tile is some consecutive tokens of one sequence times all query heads of one key/value head: row r of its matrix
product is token r // G, head r % G. So a one-token chunk uses its tile as well as decode does, and any group size
works. Which tiles exist is a small table made on the host, where the chunk lengths are known anyway.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.triton_support import PAGE, next_power_of_2

LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["table_stride"])
def prefill_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    page_table_ptr,
    tiles_ptr,  # int32 [tiles, 2]: sequence, first token of the tile within the chunk
    first_rows_ptr,
    starts_ptr,
    counts_ptr,
    out_ptr,
    table_stride,
    q_stride,
    out_stride,
    scale_log2,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_T: tl.constexpr,  # keys of one iteration, at most a page
    BLOCK_D: tl.constexpr,
):
    kv_heads = tl.num_programs(1)
    # Late tokens of a chunk see the most keys: their tiles start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    seq = tl.load(tiles_ptr + tile * 2)
    token0 = tl.load(tiles_ptr + tile * 2 + 1)
    start = tl.load(starts_ptr + seq)
    count = tl.load(counts_ptr + seq)
    first_row = tl.load(first_rows_ptr + seq)

    r = tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    d_mask = d < D
    token = token0 + r // G
    r_mask = (r < TOKENS * G) & (token < count)
    rd_mask = r_mask[:, None] & d_mask[None, :]
    row = (first_row + token).to(tl.int64)
    head_at = (kv_head * G + r % G)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + row[:, None] * q_stride + head_at, mask=rd_mask, other=0.0)

    position = start + token
    end = tl.minimum(start + count, start + token0 + TOKENS)  # keys that any row of the tile sees
    table_ptr = page_table_ptr + seq.to(tl.int64) * table_stride
    offset = tl.arange(0, BLOCK_T)
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for t0 in range(0, end, BLOCK_T):
        page = tl.load(table_ptr + t0 // PAGE).to(tl.int64)
        t = t0 + offset
        kv_mask = (t < end)[:, None] & d_mask[None, :]
        at = ((page * kv_heads + kv_head) * PAGE + t0 % PAGE + offset)[:, None] * D + d[None, :]
        k = tl.load(k_pages_ptr + at, mask=kv_mask, other=0.0)
        v = tl.load(v_pages_ptr + at, mask=kv_mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(t[None, :] <= position[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))  # finite: position >= 0, so the first keys always count
        alpha = tl.exp2(top - new_top)
        weights = tl.exp2(scores - new_top[:, None])
        total = total * alpha + tl.sum(weights, axis=1)
        acc = acc * alpha[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = new_top
    acc = acc / total[:, None]
    tl.store(out_ptr + row[:, None] * out_stride + head_at, acc, mask=rd_mask)


@dataclass(frozen=True)
class PrefillConfig:
    """How a prefill launch is cut up.

    Attributes:
        rows: rows of a tile (tokens times query heads of a group), a power of two, at least 16.
        block_t: keys of one iteration, 32 or 64.
        warps, stages: of a program.
    """

    rows: int
    block_t: int = PAGE
    warps: int = 8
    stages: int = 2

    def tokens(self, group: int) -> int:
        """Tokens of a tile."""
        return max(1, self.rows // group)


def prefill_config(longest: int, group: int, head_dim: int, dtype: torch.dtype) -> PrefillConfig:
    """A sensible cut for chunks of at most `longest` tokens: what registers and shared memory hold, no more than used.

    Args:
        longest: tokens of the longest chunk.
        group: query heads of a key/value head.
        head_dim, dtype: of the tensors.
    """
    width = next_power_of_2(head_dim) * dtype.itemsize
    small = next_power_of_2(max(16, group))
    if longest * group <= small:
        return PrefillConfig(small, 32 if width > 256 else PAGE, warps=4, stages=2)
    if dtype == torch.float32 or width > 256:
        return PrefillConfig(max(32 if width > 512 else 64, small), 32, warps=8, stages=1 if width > 512 else 2)
    return PrefillConfig(max(128, small))


def plan_tiles(counts: np.ndarray, tokens: int) -> np.ndarray:
    """The tile table of chunks.

    Args:
        counts: integer [S], tokens of each chunk (0 allowed).
        tokens: tokens of a tile, `PrefillConfig.tokens`.

    Returns:
        int32 [tiles, 2]: index of the sequence, first token of the tile within its chunk.
    """
    per_seq = -(-counts // tokens)
    seqs = np.repeat(np.arange(len(counts)), per_seq)
    first_tile = np.cumsum(per_seq) - per_seq
    within = np.arange(len(seqs)) - first_tile[seqs]
    return np.stack((seqs, within * tokens), axis=1).astype(np.int32)


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
    tiles: Tensor,
    config: PrefillConfig,
    out: Tensor | None = None,
) -> Tensor:
    """See `stille.kernels.paged.api.prefill_attention`; `tiles` is `plan_tiles` for `config`, on the device."""
    _, heads, head_dim = q_NHD.shape
    kv_heads = k_pages.shape[1]
    group = heads // kv_heads
    out = torch.empty_like(q_NHD) if out is None else out
    if tiles.shape[0]:
        prefill_kernel[(tiles.shape[0], kv_heads)](
            q_NHD, k_pages, v_pages, page_table_SP, tiles, first_rows_S, starts_S, counts_S, out,
            page_table_SP.stride(0), q_NHD.stride(0), out.stride(0), scale * LOG2_E,
            G=group, D=head_dim, PAGE=PAGE, TOKENS=config.tokens(group), BLOCK_R=config.rows, BLOCK_T=config.block_t,
            BLOCK_D=max(16, next_power_of_2(head_dim)), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return out
