"""Specification of HSA's decode over a paged cache, in plain torch; also what runs without Triton.

S sequences with one query each, H query heads, K key heads (H = K * G), D head width, B leaves of a sequence before
the newest token's, `decode_leaf` keys each, F = 64 // decode_leaf of them in a page.

1. Codes. Keys are rotated. Once its last key is written, a leaf gets the mean of its keys, in 8 bits and a scale, and
   each of its keys a signature: the key minus the mean, x, reduced to one scale and a level per dimension. Levels are
   signs a, one bit, where D > 64. Up to D = 64 they are a + b/2, two bits: signs b are a where |x| exceeds 0.9957 of
   its root mean square, else -a. That is the uniform quantiser with four levels for a Gaussian (J. Max, "Quantizing for
   minimum distortion", IRE Transactions on Information Theory, 1960), and one plane of signs more to a kernel. The
   scale is that of least squares. So up to D = 128 a signature has at most 128 bits.
2. Scores. A query head estimates the log-mass of a leaf, (R q).mean + log sum_j exp(scale_j (R q).level_j). A softmax
   over the leaves before that of the newest token makes shares of them; a key head averages those of its query heads.
   So one selection serves the group.
3. Selection. Sinks, local window and the newest token's leaf always; then the leaves of the largest shares, up to
   `budget` keys in all. Shares are compared on a grid, 32 steps per octave, down to 2^-32; equal: the earlier leaf.
   A context that fits the budget is read in full.
4. Exact softmax attention over what was selected.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from stille.kernels.hsa.config import HSAConfig
from stille.kernels.triton_support import PAGE

FINEST = 95 << 23
"""Bits of 2^-32 as a float32: the smallest share that is told from nothing."""

GRID_BITS = 18
"""Bits of a share, as a float32, that its rank does not see."""

RANK_BITS = 10
"""Bits of a rank."""


FAR = 0.9957
"""Root mean squares of a key from which its components count as large."""


class Codes(NamedTuple):
    """Signs of a leaf's keys [.., leaf, sign_bytes(D)] and their scales [.., leaf]; the leaf's rotated mean [.., D]."""

    signs: Tensor
    scales: Tensor
    means: Tensor


def planes(dim: int) -> int:
    """Signs that a component of a key gets; the first weighs 1, the second 1/2."""
    return 2 if dim <= 64 else 1


def plane_bytes(dim: int) -> int:
    """Bytes of one sign per component: whole words of 32 bits."""
    return -(-dim // 32) * 4


def sign_bytes(dim: int) -> int:
    """Bytes that the signs of a key take, plane after plane."""
    return planes(dim) * plane_bytes(dim)


def pack_signs(signs: Tensor) -> Tensor:
    """uint8 [.., sign_bytes(D)] of bool [.., planes(D), D]: bit i of byte b of a plane is component 8b + i; 0 beyond D.

    True stands for +1.
    """
    bits = signs.unflatten(-1, (-1, 8)).to(torch.uint8)
    packed = (bits << torch.arange(8, dtype=torch.uint8, device=signs.device)).sum(-1, dtype=torch.uint8)
    return pad(packed, (0, plane_bytes(signs.shape[-1]) - packed.shape[-1])).flatten(-2)


def unpack_levels(signs: Tensor, dim: int) -> Tensor:
    """float32 [.., D] of packed signs: +-1, or +-1 +-1/2 where there are two planes."""
    bits = signs.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=signs.device) & 1
    return levels(bits.flatten(-2).unflatten(-1, (planes(dim), -1))[..., :dim])


def levels(signs: Tensor) -> Tensor:
    """float32 [.., D] of signs [.., planes, D], 0 or 1: the planes weigh 1 and 1/2."""
    weights = 0.5 ** torch.arange(signs.shape[-2], device=signs.device)
    return ((signs.float() * 2 - 1) * weights.unsqueeze(-1)).sum(-2)


def quantise(x: Tensor, bits: int | None = None) -> tuple[Tensor, Tensor]:
    """Levels of vectors [.., D], as bool signs [.., bits, D], and the scale of each by least squares, [..].

    Args:
        bits: 1 or 2; None: `planes(D)`.
    """
    positive, size = x >= 0, x.abs()
    if (bits or planes(x.shape[-1])) == 1:
        return positive.unsqueeze(-2), size.mean(-1)
    far = size > FAR * x.square().mean(-1, keepdim=True).sqrt()
    level = torch.where(far, 1.5, 0.5).to(x)
    return torch.stack([positive, positive == far], -2), (size * level).sum(-1) / level.square().sum(-1)


def encode(k: Tensor, rotation: Tensor) -> Codes:
    """Codes of whole leaves.

    Args:
        k: keys [.., leaf, D].
        rotation: [D, D], or what broadcasts against the keys.
    """
    turned = k.float() @ rotation.float().transpose(-1, -2)
    mean = turned.mean(-2)
    signs, scales = quantise(turned - mean.unsqueeze(-2))
    return Codes(pack_signs(signs), scales, mean)


def pack_means(means: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [.., D] and float16 [..], whose product stands for the means."""
    scales = (means.abs().amax(-1) / 127).clamp(max=torch.finfo(torch.float16).max).half()
    rounded = torch.floor(means / scales.float().clamp(min=1e-30).unsqueeze(-1) + 0.5)
    return rounded.clamp(-127, 127).to(torch.int8), scales


def unpack_means(means: Tensor, scales: Tensor) -> Tensor:
    """float32 [.., D], what `pack_means` keeps."""
    return means.float() * scales.float().unsqueeze(-1)


def update_codes(
    k_pages: Tensor,
    signs: Tensor,
    scales: Tensor,
    means: Tensor,
    mean_scales: Tensor,
    rotation: Tensor,
    slots_N: Tensor,
    leaf: int,
) -> None:
    """Recompute the codes of the leaves whose last slot is among `slots_N`; see `stille.kernels.hsa.paged`."""
    slots = slots_N.long()
    done = slots[(slots >= 0) & (slots % leaf == leaf - 1)]
    page, place = done // PAGE, done % PAGE // leaf
    kv_heads, dim = k_pages.shape[1], k_pages.shape[3]
    leaves = k_pages.view(-1, kv_heads, PAGE // leaf, leaf, dim)[page, :, place]
    new = encode(leaves, rotation)
    signs.view(-1, kv_heads, PAGE // leaf, leaf, signs.shape[-1])[page, :, place] = new.signs
    most = torch.finfo(scales.dtype).max
    scales.view(-1, kv_heads, PAGE // leaf, leaf)[page, :, place] = new.scales.clamp(max=most).to(scales.dtype)
    means[page, :, place], mean_scales[page, :, place] = pack_means(new.means)


def leaf_log_mass(q_HD: Tensor, codes: Codes, rotation: Tensor, scale: float) -> Tensor:
    """Estimated log-mass of each leaf for each query head, float32 [H, B].

    Args:
        codes: signs [K, B, leaf, sign_bytes(D)], scales [K, B, leaf], means [K, B, D].
        rotation: [D, D] or [K, D, D].
    """
    kv_heads, leaves, leaf = codes.scales.shape
    q_KGD = q_HD.float().unflatten(0, (kv_heads, -1))
    turned = q_KGD @ rotation.to(q_KGD).transpose(-1, -2)
    keys = unpack_levels(codes.signs, q_HD.shape[-1]) * codes.scales.float().unsqueeze(-1)
    dots = (turned @ keys.flatten(1, 2).transpose(1, 2)).unflatten(-1, (leaves, leaf))
    centre = turned @ codes.means.float().transpose(1, 2)
    return (centre * scale + torch.logsumexp(dots * scale, -1)).flatten(0, 1)


def ranks(log_mass_HB: Tensor, kv_heads: int) -> Tensor:
    """int64 [K, B]: larger is better; the mean share of a group's query heads on the grid of the specification."""
    share = torch.softmax(log_mass_HB, -1).unflatten(0, (kv_heads, -1)).mean(1)
    return ((share.view(torch.int32) - FINEST).clamp(min=0) >> GRID_BITS).clamp(max=(1 << RANK_BITS) - 1).long()


def select(rank_KB: Tensor, length: int, config: HSAConfig) -> Tensor:
    """Bool [K, total leaves]: what a sequence of `length` keys reads; the newest token's leaf is the last."""
    leaf = config.decode_leaf
    total = -(-length // leaf)
    complete = total - 1
    keep = config.budget // leaf
    read = torch.ones(rank_KB.shape[0], total, dtype=torch.bool, device=rank_KB.device)
    if total <= keep:
        return read
    b = torch.arange(complete, device=rank_KB.device)
    free = (b >= config.sinks // leaf) & (b < complete - config.local // leaf)
    order = rank_KB.masked_fill(~free, -1).argsort(dim=-1, descending=True, stable=True)
    need = keep - int((~free).sum()) - 1
    read[:, :complete] = ~free
    read[:, :complete].scatter_(1, order[:, :need], True)
    return read


def gather_codes(
    signs: Tensor, scales: Tensor, means: Tensor, mean_scales: Tensor, table_P: Tensor, length: int
) -> Codes:
    """Codes of a sequence's leaves before the newest token's, in its order: [K, B, ..]."""
    per_page = means.shape[2]
    leaf = PAGE // per_page
    pages = table_P[: -(-length // PAGE)].long()
    complete = max(length - 1, 0) // leaf
    s, f, m, n = (x[pages].transpose(0, 1).flatten(1, 2) for x in (signs, scales, means, mean_scales))
    return Codes(
        s.unflatten(1, (-1, leaf))[:, :complete],
        f.unflatten(1, (-1, leaf))[:, :complete],
        unpack_means(m, n)[:, :complete],
    )


def chosen_leaves(q_HD: Tensor, codes: Codes, rotation: Tensor, length: int, scale: float, config: HSAConfig) -> Tensor:
    """Bool [K, total leaves]: what one sequence reads."""
    kv_heads = codes.scales.shape[0]
    if -(-length // config.decode_leaf) <= config.budget // config.decode_leaf:
        return select(torch.zeros(kv_heads, 0, device=q_HD.device), length, config)
    return select(ranks(leaf_log_mass(q_HD, codes, rotation, scale), kv_heads), length, config)


def attend_leaves(
    q_HD: Tensor, k_pages: Tensor, v_pages: Tensor, table_P: Tensor, read: Tensor, length: int, scale: float, leaf: int
) -> Tensor:
    """Exact attention of one sequence's query to the leaves that `read` [K, total leaves] marks; [H, D] in fp32."""
    pages = table_P[: -(-length // PAGE)].long()
    k, v = (x[pages].transpose(0, 1).flatten(1, 2)[:, :length].float() for x in (k_pages, v_pages))
    q_KGD = q_HD.float().unflatten(0, (k.shape[0], -1))
    logits = q_KGD @ k.transpose(1, 2) * scale
    mask = read.repeat_interleave(leaf, 1)[:, None, :length]
    return (logits.masked_fill(~mask, -math.inf).softmax(-1) @ v).flatten(0, 1)


def hsa_decode(
    q_SHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    signs: Tensor,
    scales: Tensor,
    means: Tensor,
    mean_scales: Tensor,
    rotation: Tensor,
    table_SP: Tensor,
    lengths_S: Tensor,
    scale: float,
    config: HSAConfig,
) -> Tensor:
    """See `stille.kernels.hsa.paged.hsa_decode`."""
    out = torch.zeros_like(q_SHD)
    for row, length in enumerate(lengths_S.tolist()):
        if length:
            codes = gather_codes(signs, scales, means, mean_scales, table_SP[row], length)
            read = chosen_leaves(q_SHD[row], codes, rotation, length, scale, config)
            out[row] = attend_leaves(
                q_SHD[row], k_pages, v_pages, table_SP[row], read, length, scale, config.decode_leaf
            )
    return out
