"""Triton: attention of new tokens over the paged cache, one query row per token, split over the sequence.

One program takes one (sequence, key/value head, split): the query heads of the group are the rows of one small matrix
product, so every key and value is read once. Rows that are successive positions of one sequence (guesses that are
checked) can be taken together, with the heads of all of them in that product. Partial results are merged by whichever
program of a (sequence, head) finishes last, which saves a launch; the merge adds in split order, so the result does not
depend on who that is. Lengths and page tables stay on the device and the grid depends on neither: the launch can be
captured in a CUDA graph.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.triton_early import prefetch
from stille.kernels.triton_support import PAGE, next_power_of_2

LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["table_stride"])
def decode_kernel(
    q_ptr,
    k_pages_ptr,
    v_pages_ptr,
    page_table_ptr,
    lengths_ptr,
    rows_ptr,
    out_ptr,
    part_ptr,  # fp32 [S, K, SPLITS, G, D]: weighted values of a split, not yet divided
    stat_ptr,  # fp32 [S, K, 2, SPLITS, G]: maximum score (base 2) and sum of weights of a split
    ticket_ptr,  # int32 [S, K], 0 between launches
    table_stride,  # an integer, or a pointer to one (TABLE_STRIDE_ON_DEVICE)
    q_stride,
    out_stride,
    scale_log2,
    G: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    MIN_TILES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LINES: tl.constexpr,  # of 128 bytes of half precision in a row of a page, a power of two
    R: tl.constexpr,  # neighbouring rows that are one sequence at successive positions
    HAS_ROWS: tl.constexpr,
    TABLE_STRIDE_ON_DEVICE: tl.constexpr,
    PDL: tl.constexpr,
):
    split = tl.program_id(0)
    kv_head = tl.program_id(1)
    kv_heads = tl.num_programs(1)
    seq = tl.program_id(2)
    RG: tl.constexpr = R * G
    g = tl.arange(0, BLOCK_G)  # row by row the query heads of the group
    g_mask = g < RG
    length_G = tl.load(lengths_ptr + seq * R + g // G, mask=g_mask, other=0)
    length = tl.max(length_G, axis=0)
    tiles = tl.cdiv(length, BLOCK_T)
    per_split = tl.maximum(tl.cdiv(tiles, SPLITS), MIN_TILES)
    used = tl.maximum(tl.cdiv(tiles, per_split), 1)
    if split >= used:
        return

    row = seq * R + g // G
    if HAS_ROWS:
        row = tl.load(rows_ptr + row, mask=g_mask, other=0)
    stride = table_stride
    if TABLE_STRIDE_ON_DEVICE:
        stride = tl.load(table_stride)
    table_ptr = page_table_ptr + (seq * R).to(tl.int64) * stride

    d = tl.arange(0, BLOCK_D)
    d_mask = d < D
    gd_mask = g_mask[:, None] & d_mask[None, :]
    head_at = (kv_head * G + g % G)[:, None] * D + d[None, :]
    first = split * per_split
    if PDL:
        # Nothing so far depends on the launch before, nor do keys and values but the newest: until it has ended, the
        # first tile is fetched into the L2 cache.
        token = first * BLOCK_T + tl.arange(0, BLOCK_T)
        early_page = tl.load(table_ptr + token // PAGE, mask=token < length, other=0).to(tl.int64)
        line = tl.minimum(tl.arange(0, LINES) * 64, D - 1)  # 128 bytes of half precision
        early_at = ((early_page * kv_heads + kv_head) * PAGE + token % PAGE)[:, None] * D + line[None, :]
        prefetch(k_pages_ptr + early_at)
        prefetch(v_pages_ptr + early_at)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    q = tl.load(q_ptr + row.to(tl.int64)[:, None] * q_stride + head_at, mask=gd_mask, other=0.0)

    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for tile in range(first, tl.minimum(first + per_split, tiles)):
        t = tile * BLOCK_T + tl.arange(0, BLOCK_T)
        t_mask = t < length
        page = tl.load(table_ptr + t // PAGE, mask=t_mask, other=0).to(tl.int64)
        at = ((page * kv_heads + kv_head) * PAGE + t % PAGE)[:, None] * D + d[None, :]
        kv_mask = t_mask[:, None] & d_mask[None, :]
        k = tl.load(k_pages_ptr + at, mask=kv_mask, other=0.0)
        v = tl.load(v_pages_ptr + at, mask=kv_mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(t[None, :] < length_G[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        # A row that ends before the tile sees nothing of it; its top may still be minus infinity.
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)
        alpha = tl.exp2(top - finite)
        weights = tl.exp2(scores - finite[:, None])
        total = total * alpha + tl.sum(weights, axis=1)
        acc = acc * alpha[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = new_top

    out_at = out_ptr + row.to(tl.int64)[:, None] * out_stride + head_at
    if used == 1:
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]  # length 0 (a padded row) gives 0
        tl.store(out_at, acc, mask=gd_mask)
    else:
        cell = seq.to(tl.int64) * kv_heads + kv_head
        part_at = part_ptr + (cell * SPLITS * RG + g)[:, None] * D + d[None, :]
        stat_at = stat_ptr + cell * (2 * SPLITS * RG)
        tl.store(part_at + split * RG * D, acc, mask=gd_mask)
        tl.store(stat_at + split * RG + g, top, mask=g_mask)
        tl.store(stat_at + (SPLITS + split) * RG + g, total, mask=g_mask)
        tl.debug_barrier()  # every thread's stores come before the release below
        ticket = tl.atomic_add(ticket_ptr + cell, 1, sem="acq_rel", scope="gpu")
        if ticket == used - 1:
            tl.store(ticket_ptr + cell, 0)
            if R == 1:  # few heads and perhaps many splits
                s = tl.arange(0, SPLITS)
                s_mask = s < used
                for head in tl.static_range(G):
                    tops = tl.load(stat_at + s * G + head, mask=s_mask, other=float("-inf"), cache_modifier=".cg")
                    sums = tl.load(stat_at + (SPLITS + s) * G + head, mask=s_mask, other=0.0, cache_modifier=".cg")
                    factor = tl.exp2(tops - tl.max(tops, axis=0))
                    parts = tl.load(
                        part_ptr + ((cell * SPLITS + s) * G + head)[:, None] * D + d[None, :],
                        mask=s_mask[:, None] & d_mask[None, :], other=0.0, cache_modifier=".cg",
                    )  # fmt: skip
                    merged = tl.sum(parts * factor[:, None], axis=0) / tl.sum(sums * factor, axis=0)
                    one_row = tl.max(tl.where(g_mask, row, 0), axis=0).to(tl.int64)
                    head_out = out_ptr + one_row * out_stride + (kv_head * G + head) * D
                    tl.store(head_out + d, merged, mask=d_mask)
            else:
                top = tl.full([BLOCK_G], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_G], tl.float32)
                acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
                for s in range(used):
                    its_top = tl.load(stat_at + s * RG + g, mask=g_mask, other=float("-inf"), cache_modifier=".cg")
                    its_total = tl.load(
                        stat_at + (SPLITS + s) * RG + g, mask=g_mask, other=0.0, cache_modifier=".cg"
                    )  # fmt: skip
                    its_acc = tl.load(part_at + s * RG * D, mask=gd_mask, other=0.0, cache_modifier=".cg")
                    new_top = tl.maximum(top, its_top)
                    finite = tl.where(new_top == float("-inf"), 0.0, new_top)
                    old, new = tl.exp2(top - finite), tl.exp2(its_top - finite)
                    total = total * old + its_total * new
                    acc = acc * old[:, None] + its_acc * new[:, None]
                    top = new_top
                tl.store(out_at, acc / tl.where(total > 0, total, 1.0)[:, None], mask=gd_mask)


@dataclass(frozen=True)
class DecodeConfig:
    """How a decode launch is cut up.

    Attributes:
        splits: most programs for one (sequence, head), a power of two.
        min_tiles: fewest tiles that a program of a split sequence takes.
        block_t: tokens of a tile.
        warps, stages: of a program.
    """

    splits: int
    min_tiles: int
    block_t: int
    warps: int = 4
    stages: int = 3


ROWS_TOGETHER = (1, 2, 4, 8, 16)
"""Numbers of rows of one sequence that can be attended together."""


def decode_config(sequences: int, kv_heads: int, head_dim: int, dtype: torch.dtype, rows: int = 1) -> DecodeConfig:
    """A sensible cut: fill the GPU when there are few sequences, keep long ones parallel when there are many.

    Args:
        rows: of each sequence.
    """
    wide = head_dim * dtype.itemsize
    block_t = 64 if wide <= 256 else 32
    stages = 3 if wide <= 256 else 2
    programs = sequences * kv_heads
    if programs <= 8:
        return DecodeConfig(32 if rows == 1 else 8, 1, block_t, stages=stages)
    if programs <= 128:
        return DecodeConfig(
            16 if programs <= 32 and rows == 1 else 4, 1, 2 * block_t if wide <= 128 else block_t, stages=stages
        )
    if programs <= 512:
        return DecodeConfig(4, 2, block_t, warps=2, stages=stages)
    return DecodeConfig(4, 16, block_t, warps=2, stages=stages)


class DecodeWorkspace:
    """Scratch memory of split decode attention, reused by every layer and step on one stream.

    Args:
        sequences: most rows of one call.
        heads, kv_heads, head_dim: shape of the attention.
        config: the cut that calls will use; None: the default of each call's size, for which room is made.
        dtype, device: of the tensors.
    """

    def __init__(
        self,
        sequences: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        config: DecodeConfig | None = None,
    ):
        if config is not None:
            cells = sequences * config.splits
        else:
            cells = max(
                n * rows * decode_config(n, kv_heads, head_dim, dtype, rows).splits
                for rows in ROWS_TOGETHER
                for n in range(1, sequences // rows + 1)
            )
        self.sequences = sequences
        self.cells = cells
        self.part = torch.empty(cells * heads * head_dim, dtype=torch.float32, device=device)
        self.stat = torch.empty(cells * heads * 2, dtype=torch.float32, device=device)
        self.ticket = torch.zeros(sequences * kv_heads, dtype=torch.int32, device=device)


def decode_attention(
    q_SHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths_S: Tensor,
    scale: float,
    *,
    sequences: int | None = None,
    rows_S: Tensor | None = None,
    together: int = 1,
    table_stride: Tensor | int | None = None,
    out: Tensor | None = None,
    workspace: DecodeWorkspace | None = None,
    config: DecodeConfig | None = None,
    pdl: bool = False,
) -> Tensor:
    """See `stille.kernels.paged.api.decode_attention`."""
    _, heads, head_dim = q_SHD.shape
    kv_heads = k_pages.shape[1]
    sequences = lengths_S.shape[0] if sequences is None else sequences
    out = torch.empty_like(q_SHD) if out is None else out
    groups = sequences // together
    config = config or decode_config(groups, kv_heads, head_dim, q_SHD.dtype, together)
    if workspace is None:
        workspace = DecodeWorkspace(sequences, heads, kv_heads, head_dim, q_SHD.dtype, q_SHD.device, config)
    if table_stride is None:
        table_stride = page_table.stride(0)
    group = heads // kv_heads
    extra = {"launch_pdl": True} if pdl else {}
    if sequences:
        decode_kernel[(config.splits, kv_heads, groups)](
            q_SHD, k_pages, v_pages, page_table, lengths_S, rows_S, out,
            workspace.part, workspace.stat, workspace.ticket,
            table_stride, q_SHD.stride(0), out.stride(0), scale * LOG2_E,
            G=group, D=head_dim, PAGE=PAGE, SPLITS=config.splits, MIN_TILES=config.min_tiles,
            BLOCK_T=config.block_t, BLOCK_G=max(16, next_power_of_2(together * group)),
            BLOCK_D=max(16, next_power_of_2(head_dim)), LINES=next_power_of_2(triton.cdiv(head_dim, 64)), R=together,
            HAS_ROWS=rows_S is not None, TABLE_STRIDE_ON_DEVICE=isinstance(table_stride, Tensor), PDL=pdl,
            num_warps=config.warps, num_stages=config.stages, **extra,
        )  # fmt: skip
    return out
