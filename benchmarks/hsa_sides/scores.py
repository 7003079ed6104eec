"""Ways to guess which leaves a query attends to: HSA's own and what else has been proposed.

A scorer takes queries [Q, D], already times the attention scale, and the keys of one head, and returns scores [Q, B]
such that their softmax over the leaves estimates the leaves' shares of attention mass. A leaf's score depends on its
own keys (and, in `bands` and `lsh`, on a constant of the head). Names follow the records: `hsa.recall.alt.<name>`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stille.kernels.hsa.paged_reference import levels, quantise
from stille.kernels.hsa.reference import hadamard_rotation

SUB_MEANS = 4
LSH_TABLES, LSH_BITS = 16, 8  # 128 bits a key, the most that HSA's own codes may take
CENTRING = 1024  # first keys, whose mean is subtracted where a leaf's own may not be


@dataclass
class Keys:
    """The keys of one head, in whole leaves.

    Attributes:
        k_ND: float32.
        leaf: keys in a leaf; N is a multiple of it.
        learned_DD: rotation learned on another text, for `learned`.
    """

    k_ND: Tensor
    leaf: int
    learned_DD: Tensor | None = None

    @cached_property
    def leaves_BLD(self) -> Tensor:
        return self.k_ND.unflatten(0, (-1, self.leaf))

    @cached_property
    def mean_BD(self) -> Tensor:
        return self.leaves_BLD.mean(1)

    @cached_property
    def centred_ND(self) -> Tensor:
        return (self.leaves_BLD - self.mean_BD[:, None]).flatten(0, 1)

    def random(self, rows: int) -> Tensor:
        """Gaussian [rows, D], always the same."""
        generator = torch.Generator().manual_seed(rows)
        return torch.randn(rows, self.k_ND.shape[1], generator=generator).to(self.k_ND)

    def mass(self, logits_QN: Tensor) -> Tensor:
        """Log-mass [Q, B] of the keys' logits."""
        return logits_QN.unflatten(-1, (-1, self.leaf)).logsumexp(-1)


def exact(q_QD: Tensor, keys: Keys) -> Tensor:
    """The keys themselves: what HSA scores in prefill."""
    return keys.mass(q_QD @ keys.k_ND.T)


def mean(q_QD: Tensor, keys: Keys) -> Tensor:
    """The leaf's mean key, as in MoBA (2502.13189) and most block-sparse methods."""
    return q_QD @ keys.mean_BD.T


def sub_means(q_QD: Tensor, keys: Keys) -> Tensor:
    """Several representatives: means of a quarter of the leaf each, their masses summed."""
    parts = keys.leaves_BLD.unflatten(1, (SUB_MEANS, -1)).mean(2).flatten(0, 1)
    return (q_QD @ parts.T).unflatten(-1, (-1, SUB_MEANS)).logsumexp(-1)


def variance(q_QD: Tensor, keys: Keys) -> Tensor:
    """Centroid with residual: the mean key, and half the variance of q.k around it, dimension by dimension."""
    spread = keys.leaves_BLD.var(1, correction=0)
    return q_QD @ keys.mean_BD.T + 0.5 * q_QD.square() @ spread.T


def quest(q_QD: Tensor, keys: Keys) -> Tensor:
    """Upper bound by the extremes of each dimension: Quest (2406.10774)."""
    low, high = keys.leaves_BLD.aminmax(dim=1)
    return q_QD.clamp(min=0) @ high.T + q_QD.clamp(max=0) @ low.T


def bands(q_QD: Tensor, keys: Keys) -> Tensor:
    """The mean key's quickly and slowly rotating dimensions scored apart, after Prism (2602.08426).

    Averaging cancels what rotates quickly, so each band's logits are divided by how much of its energy is left in the
    mean keys. A leaf gets the sum of its shares in the two bands.
    """
    quarter = q_QD.shape[1] // 4  # RoPE rotates d with d + D/2; frequencies fall with d
    share = torch.zeros(q_QD.shape[0], keys.mean_BD.shape[0], device=q_QD.device)
    for first in (0, quarter):
        inside = torch.cat([torch.arange(first, first + quarter), torch.arange(first, first + quarter) + 2 * quarter])
        q, means, k = q_QD[:, inside], keys.mean_BD[:, inside], keys.k_ND[:, inside]
        left = (means.square().sum(-1).mean() / k.square().sum(-1).mean()).sqrt().clamp(min=1e-3)
        share += torch.softmax(q @ means.T / left, -1)
    return share.log()


def lsh(q_QD: Tensor, keys: Keys) -> Tensor:
    """Votes: in how many tables of random hyperplanes a key falls into the query's bucket, summed over the leaf.

    Hard collisions of sign patterns (M. Charikar, 2002), as MagicPIG (2410.16179) samples by. The logarithm makes
    shares proportional to votes.
    """
    planes = keys.random(LSH_TABLES * LSH_BITS)
    weights = 1 << torch.arange(LSH_BITS, device=planes.device)
    centre = keys.k_ND[:CENTRING].mean(0)

    def buckets(x: Tensor) -> Tensor:
        return ((x @ planes.T >= 0).unflatten(-1, (LSH_TABLES, LSH_BITS)) * weights).sum(-1).short()

    q_QT, k_NT = buckets(q_QD), buckets(keys.k_ND - centre)
    votes = torch.zeros(q_QD.shape[0], keys.mean_BD.shape[0], device=q_QD.device)
    for table in range(LSH_TABLES):
        same = q_QT[:, table, None] == k_NT[None, :, table]
        votes += same.unflatten(-1, (-1, keys.leaf)).sum(-1)
    return (votes + 1e-3).log()


def random_signs(q_QD: Tensor, keys: Keys) -> Tensor:
    """Signs of random projections of the centred keys, twice as many bits as dimensions, scored by the real query."""
    planes = keys.random(2 * q_QD.shape[1])
    scale = keys.centred_ND.norm(dim=-1) * math.sqrt(math.pi / 2) / planes.shape[0]
    return _signs(q_QD, keys, planes, scale)


def signs(q_QD: Tensor, keys: Keys) -> Tensor:
    """One bit per dimension of the centred keys after a randomised Hadamard rotation: as HSA decodes wide heads."""
    return _signs(q_QD, keys, hadamard_rotation(q_QD.shape[1]).to(q_QD))


def two_bits(q_QD: Tensor, keys: Keys) -> Tensor:
    """Two bits per dimension after the same rotation: as HSA decodes heads of a width of up to 64."""
    rotation = hadamard_rotation(q_QD.shape[1]).to(q_QD)
    signs, scales = quantise(keys.centred_ND @ rotation.T, bits=2)
    return keys.mass((q_QD @ rotation.T) @ levels(signs).T * scales) + q_QD @ keys.mean_BD.T


def learned(q_QD: Tensor, keys: Keys) -> Tensor:
    """The same after a rotation learned by ITQ (Y. Gong, S. Lazebnik, 2011) on the keys of another text."""
    if keys.learned_DD is None:
        raise ValueError("no rotation has been learned for these keys")
    return _signs(q_QD, keys, keys.learned_DD)


def _signs(q_QD: Tensor, keys: Keys, rotation_FD: Tensor, scale_N: Tensor | None = None) -> Tensor:
    turned = keys.centred_ND @ rotation_FD.T
    scale = turned.abs().mean(-1) if scale_N is None else scale_N
    estimate = (q_QD @ rotation_FD.T) @ torch.where(turned >= 0, 1.0, -1.0).T * scale
    return keys.mass(estimate) + q_QD @ keys.mean_BD.T


SCORERS: dict[str, Callable[[Tensor, Keys], Tensor]] = {
    "keys": exact,
    "signs": signs,
    "twobits": two_bits,
    "learned": learned,
    "random": random_signs,
    "quest": quest,
    "submeans": sub_means,
    "variance": variance,
    "bands": bands,
    "mean": mean,
    "lsh": lsh,
}

DESCRIPTIONS = {
    "keys": "keys themselves (HSA, prefill)",
    "signs": "Hadamard signs, 1 bit per dimension (HSA, decode of heads wider than 64)",
    "twobits": "Hadamard, 2 bits per dimension (HSA, decode of heads up to 64)",
    "learned": "learned signs (ITQ on another text), 1 bit per dimension",
    "random": "random-projection signs, 2 bits per dimension",
    "quest": "Quest bounds",
    "submeans": "four sub-means",
    "variance": "mean key and variance (centroid residual)",
    "bands": "mean key, two RoPE bands",
    "mean": "mean key",
    "lsh": f"LSH votes, {LSH_TABLES} tables of {LSH_BITS} bits",
    "candidates": "two passes: mean keys, then keys (HSA, long prefill)",
}
