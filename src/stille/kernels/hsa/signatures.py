"""Rotations before keys are reduced to a bit or two per dimension: a fixed randomised Hadamard matrix, or learned ones.

A rotation is an orthogonal matrix R [D, D] (one for all heads) or [K, D, D] (one per head); a key k becomes the levels
of R (k - its leaf's mean), as `paged_reference.quantise` makes them, and a query that meets it becomes R q.
"""

import torch
from torch import Tensor

from stille.errors import UnsupportedError
from stille.kernels.hsa.paged_reference import levels, quantise
from stille.kernels.hsa.reference import hadamard_rotation

_hadamard: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}


def hadamard(dim: int, like: Tensor) -> Tensor:
    """`hadamard_rotation` on the device and in the dtype of a tensor; kept, so that a captured graph can use it."""
    key = (dim, like.device, like.dtype)
    if key not in _hadamard:
        _hadamard[key] = hadamard_rotation(dim).to(like.device, like.dtype)
    return _hadamard[key]


def learn_rotation(k_KND: Tensor, iterations: int = 50, seed: int = 0, bits: int | None = None) -> Tensor:
    """One rotation per head that brings its keys close to what signatures can say: iterative quantization.

    Starts from the keys' principal components, turned at random, and alternates between rounding to levels and the
    orthogonal matrix that fits these best (Y. Gong, S. Lazebnik, "Iterative quantization: a Procrustean approach to
    learning binary codes", CVPR 2011; there levels are signs). Each key is weighed as it is: long ones count more.

    Args:
        k_KND: keys of each head, minus what will be subtracted from them (`reference.leaf_means`); any float dtype. At
            least D of them; a few thousand are plenty.
        iterations: rounds of fitting.
        seed: of the random turn.
        bits: per dimension, 1 or 2; None: those of HSA's decode for this width.

    Returns:
        float32 [K, D, D], orthogonal.

    Raises:
        ValueError: not three-dimensional.
        UnsupportedError: too few keys to tell directions apart.
    """
    if k_KND.ndim != 3:
        raise ValueError(f"keys {tuple(k_KND.shape)}: expected [kv_heads, keys, head_dim].")
    heads, n, dim = k_KND.shape
    if n < dim:
        raise UnsupportedError(f"{n} keys of width {dim}: give at least {dim} to learn a rotation from.")
    keys = k_KND.double()
    _, axes = torch.linalg.eigh(keys.transpose(1, 2) @ keys)
    random = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(heads, dim, dim, generator=random, dtype=torch.float64))
    rotation = turn.to(keys.device) @ axes.transpose(1, 2)
    for _ in range(iterations):
        turned = keys @ rotation.transpose(1, 2)
        codes = _rounded(turned, bits)
        left, _, right = torch.linalg.svd(codes.transpose(1, 2) @ keys)
        rotation = left @ right
    return rotation.float()


def code_error(k_KND: Tensor, rotation: Tensor, bits: int | None = None) -> Tensor:
    """Share of the keys' squared length that levels and one scale per key lose, float32 [K].

    Args:
        k_KND: keys, centred as for `learn_rotation`.
        rotation: [D, D] or [K, D, D].
        bits: per dimension, 1 or 2; None: those of HSA's decode for this width.
    """
    turned = k_KND.float() @ rotation.to(k_KND.device, torch.float32).transpose(-1, -2)
    return (turned - _rounded(turned, bits)).square().sum((1, 2)) / turned.square().sum((1, 2))


def _rounded(x: Tensor, bits: int | None) -> Tensor:
    signs, scales = quantise(x, bits)
    return levels(signs).to(x) * scales.unsqueeze(-1)
