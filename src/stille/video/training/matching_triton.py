"""`matching.match` as one Triton kernel, so that a GPU need not wait for the CPU in the middle of a step.

A program goes through the frames of one clip. Objects without a query get one by shortest augmenting paths (R. Jonker,
A. Volgenant, Computing 1987), one object after the other; what is known of the queries lies in registers. Beside the
queries there is a place for each object at which it is left out, at a price that is paid in a crowd only.

B clips, T frames, Q queries, M objects.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stille.video.training.matching import NEAR

MOST, LEFT_OUT = 1e3, 1e4
"""Costs end here; of an object without a query."""


@triton.jit
def _match(
    cost_ptr, near_ptr, origin_ptr, present_ptr, query_ptr, frames, queries, objects,
    NEAR: tl.constexpr, LEFT_OUT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * frames
    lane = tl.arange(0, WIDE)  # queries, then the places of those that are left out
    is_query = lane < queries
    held = tl.full((WIDE,), -1, tl.int32)  # the object that a query has
    for t in range(frames):
        at = (first + t).to(tl.int64)
        source = tl.load(origin_ptr + at * queries + lane, mask=is_query, other=-1)
        held = tl.where(source >= 0, tl.gather(held, tl.maximum(source, 0), 0), -1)
        thing = tl.maximum(held, 0)
        here = (held >= 0) & (tl.load(present_ptr + at * objects + thing) > 0)
        near = tl.load(near_ptr + (at * objects + thing) * queries + lane, mask=is_query, other=0.0)
        keeps = here & (near >= NEAR)
        tl.store(query_ptr + at * objects + thing, lane, mask=keeps)
        held = tl.where(here & (keeps == 0), -1, held)  # what is hidden is waited for
        free = is_query & (held < 0)
        owner = tl.full((WIDE,), -1, tl.int32)  # the object that a free query gets
        paid = tl.full((WIDE,), 0.0, tl.float32)  # what that costs
        price = tl.full((WIDE,), 0.0, tl.float32)  # of queries; reduced costs are what costs exceed prices by
        for m in range(objects):
            has = tl.sum(tl.where(keeps & (held == m), 1, 0), 0)
            wanted = (tl.load(present_ptr + at * objects + m) > 0) & (has == 0)
            row = m
            base = 0.0
            offset = 0.0
            reached = tl.full((WIDE,), float("inf"), tl.float32)
            through = tl.full((WIDE,), -1, tl.int32)
            done = tl.full((WIDE,), 0, tl.int32)
            sink = tl.where(wanted, -1, 0)
            while sink < 0:
                each = tl.load(cost_ptr + (at * objects + row) * queries + lane, mask=free, other=float("inf"))
                each = tl.where(is_query, each, LEFT_OUT)
                length = base + each - offset - price
                shorter = (done == 0) & (length < reached)
                reached = tl.where(shorter, length, reached)
                through = tl.where(shorter, row, through)
                ahead = tl.where(done == 0, reached, float("inf"))
                base = tl.min(ahead, 0)
                best = tl.argmin(ahead, 0)
                chosen = lane == best
                done = tl.where(chosen, 1, done)
                other = tl.max(tl.where(chosen, owner, -1), 0)
                offset = tl.sum(tl.where(chosen, paid - price, 0.0), 0)
                sink = tl.where(other < 0, best, -1)  # pyright: ignore[reportOperatorIssue]
                row = tl.maximum(other, 0)
            price = tl.where(done > 0, price - (base - reached), price)
            end = tl.where(wanted, sink, -1)
            # Back along the path: each object takes the query after its own.
            while end >= 0:  # pyright: ignore[reportOperatorIssue]
                gains = lane == end
                one = tl.max(tl.where(gains, through, -1), 0)
                before = tl.max(tl.where(owner == one, lane, -1), 0)
                cost = tl.load(cost_ptr + (at * objects + one) * queries + end, mask=end < queries, other=LEFT_OUT)
                owner = tl.where(gains, one, owner)
                paid = tl.where(gains, cost, paid)
                end = before
        got = is_query & (owner >= 0)
        tl.store(query_ptr + at * objects + owner, lane, mask=got)
        held = tl.where(got, owner, held)


@torch.no_grad()
def match_triton(cost_BTQM: Tensor, iou_BTQM: Tensor, origin_BTQ: Tensor, present_BTM: Tensor) -> Tensor:
    """int64 [B, T, M] on the device of the costs: the query of each present object; -1 for the others."""
    clips, frames, queries, objects = cost_BTQM.shape
    cost = cost_BTQM.float().nan_to_num(MOST, MOST, -MOST).clamp(-MOST, MOST).transpose(2, 3).contiguous()
    near = iou_BTQM.float().transpose(2, 3).contiguous()
    query = torch.full((clips, frames, objects), -1, dtype=torch.int32, device=cost.device)
    _match[(clips,)](
        cost, near, origin_BTQ.int().contiguous(), present_BTM.int().contiguous(), query, frames, queries, objects,
        NEAR=NEAR, LEFT_OUT=LEFT_OUT, WIDE=triton.next_power_of_2(queries + objects),
        num_warps=1,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return query.long()
