"""The real (token, expert) pairs of a routing table in order of their experts, found without waiting for a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.kernels.triton_support import runs_triton


@dataclass(frozen=True)
class Routes:
    """Where each pair of a routing table stands among the rows that the experts compute.

    R is the number of rows: of the real pairs where the host knows it, else T * K, of which only the first `ends_E[-1]`
    are real; what the rest of such a buffer holds is undefined.

    Attributes:
        order_R: int64, the pair t * K + k that each row computes; rows of an expert stand together, in order of tokens.
        row_TK: int32, the inverse: row of each pair; at least `ends_E[-1]` for pairs that are not used.
        ends_E: int32, the first row after each expert's.
        ends: the same on the host, where it is known.
    """

    order_R: Tensor
    row_TK: Tensor
    ends_E: Tensor
    ends: list[int] | None

    @property
    def columns(self) -> int:
        """K of the table."""
        return self.row_TK.shape[1]

    @property
    def rows(self) -> int:
        """R."""
        return self.order_R.shape[0]

    def host_ends(self) -> list[int]:
        """`ends`; waits for the GPU if the host does not know them."""
        return self.ends_E.tolist() if self.ends is None else self.ends

    def live(self) -> list[tuple[int, int, int]]:
        """Experts that have rows, each with its first row and the one after its last; as `host_ends`."""
        ends = self.host_ends()
        starts = [0, *ends[:-1]]
        return [(e, start, end) for e, (start, end) in enumerate(zip(starts, ends, strict=True)) if end > start]


def find_routes(expert_TK: Tensor, num_experts: int, *, on_host: bool) -> Routes:
    """Sort the pairs of a routing table by expert, those that are not used (entry E) last.

    Args:
        expert_TK: integers in [0, E].
        on_host: let the host know the number of rows, so that buffers hold nothing else; waits for a GPU.
    """
    if not on_host and runs_triton(expert_TK):
        from stille.kernels.experts.triton_routes import MOST_EXPERTS, sort_pairs

        if num_experts <= MOST_EXPERTS:
            order_P, row_P, ends_E = sort_pairs(expert_TK, num_experts)
            return Routes(order_P, row_P.view(expert_TK.shape), ends_E, None)
    pairs, device = expert_TK.numel(), expert_TK.device
    narrow = torch.int16 if num_experts < 2**15 else torch.int32  # fewer passes of a radix sort
    sorted_P, order_P = torch.sort(expert_TK.reshape(-1).to(narrow), stable=True)
    experts_E = torch.arange(num_experts, dtype=narrow, device=device)
    ends_E = torch.searchsorted(sorted_P, experts_E, right=True, out_int32=True)
    row_P = torch.empty(pairs, dtype=torch.int32, device=device)
    row_P.scatter_(0, order_P, torch.arange(pairs, dtype=torch.int32, device=device))
    ends = ends_E.tolist() if on_host else None
    if ends is not None:
        order_P = order_P[: ends[-1]]
    return Routes(order_P, row_P.view(expert_TK.shape), ends_E, ends)
