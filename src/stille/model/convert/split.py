"""Dense FFN to experts: which neurons every token runs, and which expert each other one belongs to.

Neurons are ranked by what they add to the residual stream on average; the strongest are shared, since a router could
leave them out for hardly any token (CMoE, 2502.04416). The others are grouped by the tokens on which they are strong,
into groups of equal size. A neuron's order in a SwiGLU is free, so all experts together are the dense layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Sizes of a split: `shared` neurons and `experts` times `size` others."""

    shared: int
    experts: int
    size: int

    @classmethod
    def of(cls, inner: int, experts: int = 16, shared: int | None = None, size: int | None = None) -> "Layout":
        """The layout of a dense FFN.

        Args:
            inner: its neurons (I).
            experts: routed experts (E).
            shared: neurons of the shared expert; None: what `size` leaves over, or as near to a half as fits.
            size: neurons of one routed expert; None: an equal part of the others.

        Raises:
            ConfigError: sizes that do not add up to I; the message names some that do.
        """
        if experts < 1 or experts > inner:
            raise ConfigError(f"{experts} experts of {inner} neurons, expected 1 to {inner} experts.")
        fitting = range(inner - experts * (inner // experts), inner, experts)  # every shared size that fits
        if shared is None:
            shared = inner - experts * size if size is not None else min(fitting, key=lambda s: (abs(2 * s - inner), s))
        if size is None:
            size = (inner - shared) // experts
        if shared < 0 or size < 1 or shared + experts * size != inner:
            near = sorted(sorted(fitting, key=lambda s: abs(s - shared))[:3])
            fits = ", ".join(f"{s} + {experts} x {(inner - s) // experts}" for s in near)
            raise ConfigError(
                f"{shared} shared neurons and {experts} experts of {size} are {shared + experts * size}, but the dense "
                f"FFN has {inner}. Sizes that fit: {fits}."
            )
        return cls(shared, experts, size)


def importance(h_TI: Tensor, down_proj: Tensor) -> Tensor:
    """[I]: mean |h| of a neuron times the norm of its column of down_proj [C, I], float32."""
    return h_TI.float().abs().mean(0) * down_proj.float().norm(dim=0)


def neuron_order(h_TI: Tensor, down_proj: Tensor, layout: Layout, rounds: int = 10) -> Tensor:
    """A permutation of a dense layer's neurons: the shared ones, then expert after expert.

    Args:
        h_TI: inner activations (what down_proj takes) of calibration tokens.
        down_proj: [C, I].
        layout: sizes, which add up to I.
        rounds: of the clustering.

    Returns:
        int32 [I]; new neuron i is old neuron order[i]. Within a group neurons keep their order.
    """
    rank = importance(h_TI, down_proj).argsort(descending=True, stable=True)
    shared, routed = rank[: layout.shared].sort().values, rank[layout.shared :].sort().values
    strength_TN = h_TI[:, routed].float().abs() * down_proj[:, routed].float().norm(dim=0)
    # of a token's mean: else all neurons look alike, strong on the same tokens
    relative_TN = strength_TN / strength_TN.mean(1, keepdim=True).clamp(min=1e-12)
    label = balanced_clusters(relative_TN.T, layout.experts, rounds)
    routed = routed[label.to(routed.device).argsort(stable=True)]
    return torch.cat([shared, routed]).to(torch.int32)


def balanced_clusters(profile_NT: Tensor, clusters: int, rounds: int = 10) -> Tensor:
    """Groups of equal size of rows that look alike: k-means by correlation, with capacities.

    Deterministic. The closest pairs of row and centre are settled first, each centre up to its capacity; the best of
    the rounds counts.

    Args:
        profile_NT: one row for each of N things.
        clusters: divides N.

    Returns:
        int64 [N] on the CPU: the group of each row.
    """
    count = profile_NT.shape[0]
    if count % clusters:
        raise ValueError(f"{count} rows do not make {clusters} groups of equal size")
    row_NT = profile_NT.float() - profile_NT.float().mean(1, keepdim=True)
    row_NT = row_NT / row_NT.norm(dim=1, keepdim=True).clamp(min=1e-12)
    # Farthest-first: each centre begins at the row that is least like the centres so far.
    start = [int((row_NT @ row_NT.mean(0)).argmax())]
    closest = row_NT @ row_NT[start[0]]
    while len(start) < clusters:
        closest[start] = torch.inf
        start.append(int(closest.argmin()))
        closest = torch.maximum(closest, row_NT @ row_NT[start[-1]])
    centre_ET, best, fit = row_NT[start], None, -1.0
    for _ in range(rounds):
        near_NE = row_NT @ centre_ET.T
        label = _assign(near_NE.cpu(), count // clusters)
        member_EN = torch.nn.functional.one_hot(label, clusters).to(row_NT).T
        centre_ET = member_EN @ row_NT
        found = float(centre_ET.norm(dim=1).square().sum())  # grows as members of a group agree
        if found <= fit * (1 + 1e-6):
            break
        best, fit = label, found
        centre_ET = centre_ET / centre_ET.norm(dim=1, keepdim=True).clamp(min=1e-12)
    assert best is not None
    return best


def _assign(near_NE: Tensor, capacity: int) -> Tensor:
    count, clusters = near_NE.shape
    label, free, left = [-1] * count, [capacity] * clusters, count
    for pair in near_NE.flatten().argsort(descending=True, stable=True).tolist():
        row, cluster = divmod(pair, clusters)
        if label[row] < 0 and free[cluster]:
            label[row], free[cluster], left = cluster, free[cluster] - 1, left - 1
            if not left:
                break
    return torch.tensor(label)


def split_ffn(
    gate_proj: Tensor, up_proj: Tensor, down_proj: Tensor, order: Tensor, layout: Layout
) -> dict[str, Tensor]:
    """The tensors of an experts layer out of a dense one's; routing aside, the same function.

    Args:
        gate_proj, up_proj: [I, C].
        down_proj: [C, I].
        order: a permutation of I, as `neuron_order` gives it.

    Returns:
        by their names in `ExpertsFFN`: shared.{gate,up,down}_proj.weight (unless S is 0), gate_up_proj [E, 2I', C],
        down_proj [E, C, I'], I' neurons of an expert.
    """
    order = order.long().to(gate_proj.device)
    gate, up, down = gate_proj[order], up_proj[order], down_proj[:, order]
    first, experts, size = layout.shared, layout.experts, layout.size
    grouped = [part[first:].view(experts, size, -1) for part in (gate, up)]
    tensors = {
        "gate_up_proj": torch.cat(grouped, 1),
        "down_proj": down[:, first:].view(-1, experts, size).transpose(0, 1).contiguous(),
    }
    if first:
        tensors["shared.gate_proj.weight"] = gate[:first].clone()
        tensors["shared.up_proj.weight"] = up[:first].clone()
        tensors["shared.down_proj.weight"] = down[:, :first].clone()
    return tensors
