"""Triton: what a draft head does between its matrix products, for a handful of rows.

    accept:   how many guesses of each sequence were right, and where that leaves it
    gather:   features of the rows where the sequences stand, normalised
    pick:     the likeliest token of a step's logits, its probability, and its embedding added to the carried state

Shapes: R sampled rows, B sequences, C hidden size, F = parts x C features, D draft vocabulary, V vocabulary, T draft
steps.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.triton_support import next_power_of_2


@triton.jit
def accept_kernel(sampled_ptr, ids_ptr, first_ptr, count_ptr, row_ptr, token_ptr):
    b = tl.program_id(0)
    first = tl.load(first_ptr + b)
    count = tl.load(count_ptr + b)
    right = 0
    going = 1
    for j in range(count):
        same = tl.load(sampled_ptr + first + j) == tl.load(ids_ptr + first + j + 1)
        going = going * same.to(tl.int32)
        right += going
    tl.store(row_ptr + b, first + right)
    tl.store(token_ptr + b, tl.load(sampled_ptr + first + right))


@triton.jit
def gather_kernel(
    state_ptr,
    row_ptr,
    out_ptr,
    part,
    eps,
    C: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    b = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    mask = c < C
    row = tl.load(row_ptr + b).to(tl.int64)
    x = tl.load(state_ptr + row * C + c, mask=mask, other=0.0).to(tl.float32)
    x = x / tl.sqrt(tl.sum(x * x, axis=0) / C + eps)
    tl.store(out_ptr + (b * PARTS + part) * C + c, x, mask=mask)


@triton.jit(do_not_specialize=["step"])
def pick_kernel(
    logits_ptr,  # fp32 [B, D]; not read if FIRST
    vocabulary_ptr,  # int64 [D]
    table_ptr,  # [V, C]
    state_ptr,  # [B, C], in place; left alone if LAST
    token_ptr,  # int64 [B]: the token of a FIRST step
    tokens_ptr,  # int64 [B, T], out
    chances_ptr,  # fp32 [B, T], out
    step,
    D: tl.constexpr,
    C: tl.constexpr,
    T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    b = tl.program_id(0)
    if FIRST:
        token = tl.load(token_ptr + b)
    else:
        d = tl.arange(0, BLOCK_D)
        logits = tl.load(logits_ptr + b * D + d, mask=d < D, other=float("-inf"))
        top = tl.max(logits, axis=0)
        token = tl.load(vocabulary_ptr + tl.min(tl.where(logits == top, d, BLOCK_D), axis=0))
        tl.store(tokens_ptr + b * T + step - 1, token)
        tl.store(chances_ptr + b * T + step - 1, 1.0 / tl.sum(tl.exp(logits - top), axis=0))
    if not LAST:
        c = tl.arange(0, BLOCK_C)
        mask = c < C
        row = tl.load(table_ptr + token.to(tl.int64) * C + c, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(state_ptr + b * C + c, mask=mask, other=0.0).to(tl.float32)
        tl.store(state_ptr + b * C + c, x + row, mask=mask)


def _early(pdl: bool) -> dict:
    return {"launch_pdl": True} if pdl else {}


def accept(sampled_R: Tensor, ids_R: Tensor, first_B: Tensor, count_B: Tensor, row_B: Tensor, token_B: Tensor) -> None:
    """Where each sequence stands after its guesses were checked.

    Args:
        sampled_R, ids_R: int64, token sampled in each row, and the one that the row was computed for.
        first_B, count_B: int32, first row of each sequence, and guesses in the rows after it.
        row_B: int32, written: the row after the last right guess.
        token_B: int64, written: the token sampled there.
    """
    accept_kernel[(first_B.shape[0],)](sampled_R, ids_R, first_B, count_B, row_B, token_B)


def gather(states: list[Tensor], row_B: Tensor, eps: float, out_BF: Tensor, pdl: bool = False) -> None:
    """Features of some rows: each part divided by its root mean square, side by side.

    Args:
        states: parts, each [R, C] and contiguous.
        row_B: int32.
        out_BF: written.
        pdl: programmatic dependent launch: may start before the previous kernel has ended; so in `pick`.
    """
    width = states[0].shape[1]
    for part, state_RC in enumerate(states):
        gather_kernel[(row_B.shape[0],)](
            state_RC, row_B, out_BF, part, eps, C=width, PARTS=len(states), BLOCK_C=next_power_of_2(width),
            PDL=pdl, **_early(pdl),
        )  # fmt: skip


def pick(
    logits_BD: Tensor,
    vocabulary_D: Tensor,
    table_VC: Tensor,
    state_BC: Tensor,
    token_B: Tensor,
    tokens_BT: Tensor,
    chances_BT: Tensor,
    step: int,
    pdl: bool = False,
) -> None:
    """Before draft step `step`: takes the likeliest token of the step before and adds its row of a table to the state.

    Args:
        logits_BD: float32, of the step before.
        vocabulary_D: int64, which token each logit is of.
        table_VC: projected embeddings.
        state_BC: changed, except after the last step.
        token_B: int64, goes in before step 0.
        tokens_BT, chances_BT: int64 and float32, column step - 1 is written: the token and its probability.
        step: 0 .. T.
    """
    (rows, size), width, steps = logits_BD.shape, state_BC.shape[1], tokens_BT.shape[1]
    pick_kernel[(rows,)](
        logits_BD, vocabulary_D, table_VC, state_BC, token_B, tokens_BT, chances_BT, step,
        D=size, C=width, T=steps, BLOCK_D=next_power_of_2(size), BLOCK_C=next_power_of_2(width),
        FIRST=step == 0, LAST=step == steps, PDL=pdl, num_warps=8, **_early(pdl),
    )  # fmt: skip
