"""Triton: the pairs of a routing table by expert, sorted by counting; the same result as of a stable sort.

Two launches without atomics: the first counts, the second knows from all counts where each of its pairs goes.
Letters: P pairs of the table, E experts (padded), N programs, each of which has consecutive pairs, B of them at a time.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's language is Python in looks only; its types are beyond the checker.

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.kernels.triton_support import next_power_of_2

MOST_EXPERTS = 256
"""Beyond, a tile has too few pairs to be worth it."""

TILE = 8192
"""Elements of a tile, experts times pairs."""

PROGRAMS = 256
"""Most programs: each reads the counts of all, and more would not make a large GPU busier."""


@triton.jit
def load_experts(expert_ptr, p, pairs, experts, E: tl.constexpr):
    """Experts of pairs; E, which is none, where there is no pair or it is not used."""
    expert = tl.load(expert_ptr + p, mask=p < pairs, other=0).to(tl.int32)
    return tl.where((p < pairs) & (expert >= 0) & (expert < experts), expert, E)


@triton.jit
def count_kernel(expert_ptr, count_ptr, pairs, steps, experts, E: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    e = tl.arange(0, E)
    count_E = tl.zeros([E], tl.int32)
    for step in range(steps):
        p = (program * steps + step) * BLOCK + tl.arange(0, BLOCK)
        expert_B = load_experts(expert_ptr, p, pairs, experts, E)
        count_E += tl.sum((expert_B[None, :] == e[:, None]).to(tl.int32), axis=1)
    tl.store(count_ptr + program * E + e, count_E)


@triton.jit
def place_kernel(
    expert_ptr, count_ptr, order_ptr, row_ptr, ends_ptr, pairs, steps, programs, experts,
    E: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A pair's row: the first of its expert, plus that expert's pairs before it, in other programs and in this one."""
    program = tl.program_id(0)
    e = tl.arange(0, E)
    total_E = tl.zeros([E], tl.int32)
    before_E = tl.zeros([E], tl.int32)
    for n0 in range(0, programs, CHUNK):
        n = n0 + tl.arange(0, CHUNK)[None, :]
        count_EN = tl.load(count_ptr + n * E + e[:, None], mask=n < programs, other=0)
        total_E += tl.sum(count_EN, axis=1)
        before_E += tl.sum(tl.where(n < program, count_EN, 0), axis=1)
    ends_E = tl.cumsum(total_E, axis=0)
    tl.store(ends_ptr + e, ends_E, mask=e < tl.where(program == 0, experts, 0))
    next_E = ends_E - total_E + before_E
    start = program * steps * BLOCK
    unused = tl.sum(total_E, axis=0) + start - tl.sum(before_E, axis=0)  # row of the next pair that is not used
    b = tl.arange(0, BLOCK)
    for step in range(steps):
        p = start + step * BLOCK + b
        expert_B = load_experts(expert_ptr, p, pairs, experts, E)
        hit_EB = (expert_B[None, :] == e[:, None]).to(tl.int32)
        row_EB = next_E[:, None] + tl.cumsum(hit_EB, axis=1) - 1
        row_B = tl.sum(row_EB * hit_EB, axis=0)
        used_B = (expert_B < E).to(tl.int32)
        row_B = tl.where(used_B == 1, row_B, unused + b - tl.cumsum(used_B, axis=0))
        tl.store(row_ptr + p, row_B, mask=p < pairs)
        tl.store(order_ptr + row_B, p.to(tl.int64), mask=p < pairs)
        next_E += tl.sum(hit_EB, axis=1)
        unused += BLOCK - tl.sum(used_B, axis=0)


def sort_pairs(
    expert_TK: Tensor, num_experts: int, *, tile: int = TILE, most_programs: int = PROGRAMS
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs in order of their experts, those that are not used last.

    Args:
        expert_TK: integers; entries outside of [0, E) are not used.
        num_experts: E, at most `MOST_EXPERTS`.

    Returns:
        order_P (int64): the pair of each row; row_P (int32): its inverse; ends_E (int32): the row after each expert's.
    """
    pairs, device = expert_TK.numel(), expert_TK.device
    order_P = torch.empty(pairs, dtype=torch.int64, device=device)
    row_P = torch.empty(pairs, dtype=torch.int32, device=device)
    if pairs == 0:
        return order_P, row_P, torch.zeros(num_experts, dtype=torch.int32, device=device)
    ends_E = torch.empty(num_experts, dtype=torch.int32, device=device)
    expert_TK = expert_TK.contiguous()
    padded = max(16, next_power_of_2(num_experts))
    block = max(1, tile // padded)
    steps = triton.cdiv(triton.cdiv(pairs, block), most_programs)
    programs = triton.cdiv(pairs, block * steps)
    count_NE = torch.empty(programs, padded, dtype=torch.int32, device=device)
    count_kernel[(programs,)](expert_TK, count_NE, pairs, steps, num_experts, E=padded, BLOCK=block, num_warps=8)
    place_kernel[(programs,)](
        expert_TK, count_NE, order_P, row_P, ends_E, pairs, steps, programs, num_experts,
        E=padded, BLOCK=block, CHUNK=min(block, next_power_of_2(most_programs)), num_warps=8,
    )  # fmt: skip
    return order_P, row_P, ends_E
