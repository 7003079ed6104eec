"""The grids that weights are rounded to, in plain torch.

Weights are quantised in groups of 32 consecutive inputs of one output feature:
- int4: w = scale * q + minimum, q in 0..15, scale and minimum binary16. The grid of GGUF's Q4_1, which it reproduces.
- int8: w = scale * q, q in -127..127, scale binary16. The grid of GGUF's Q8_0.

Shapes: O output features, I input features, G = I / 32 groups.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.errors import ConfigError

GROUP = 32
BITS = (4, 8)
NARROWER = (0.0, 0.1, 0.2)
"""Parts of a group's range that int4 leaves out at first, in search of the nearest grid."""
REFITS = 2
AT_ONCE = 1 << 15  # groups in the search: what lies between its steps stays in the cache
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix on its grid.

    Attributes:
        bits: 4 or 8.
        q_OI: uint8 in 0..15 (int4) or int8 in -127..127 (int8).
        scale_OG: float16.
        min_OG: float16, int4 only.
    """

    bits: int
    q_OI: Tensor
    scale_OG: Tensor
    min_OG: Tensor | None = None


def quantize(weight_OI: Tensor, bits: int) -> QuantizedWeight:
    """The nearest values on the grid of `bits`; of int4's grids, a near one to each group.

    Args:
        weight_OI: finite floating-point matrix, I a multiple of 32.
        bits: 4 or 8.

    Raises:
        ConfigError: wrong shape, dtype, bits, or values that are not finite or do not fit binary16 scales.
    """
    _check_bits(bits)
    return (quantize_int4 if bits == 4 else quantize_int8)(weight_OI)


def quantize_int4(weight_OI: Tensor) -> QuantizedWeight:
    """4-bit asymmetric: of each group the grid from least to largest value, or one that is nearer by squares.

    Others are found by narrowing that range and fitting scale and minimum to the values for the integers that they got,
    as llama.cpp does for its K formats. Values already on the first grid are kept, to the bit.

    Raises:
        ConfigError: see `quantize`.
    """
    w_OGK = _groups(weight_OI)
    _check_range(w_OGK)
    q, scale, minimum = _int4(w_OGK)
    return QuantizedWeight(4, q.to(torch.uint8).reshape(weight_OI.shape), scale, minimum)


def quantize_int8(weight_OI: Tensor) -> QuantizedWeight:
    """8-bit symmetric: scale = max|w| / 127 of each group. Values already on such a grid are kept.

    Raises:
        ConfigError: see `quantize`.
    """
    w_OGK = _groups(weight_OI)
    _check_range(w_OGK)
    q, scale = _int8(w_OGK)
    return QuantizedWeight(8, q.to(torch.int8).reshape(weight_OI.shape), scale)


def dequantize(weight: QuantizedWeight) -> Tensor:
    """float32 weight_OI."""
    w_OGK = weight.q_OI.float().unflatten(1, (-1, GROUP)) * weight.scale_OG.float()[..., None]
    if weight.min_OG is not None:
        w_OGK += weight.min_OG.float()[..., None]
    return w_OGK.flatten(1)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The nearest values on the grid, for training that knows of it: what `quantize` and `dequantize` give, to the bit.

    Args:
        weight: float [..., I], any I: the last group of a row is filled up with zeros, as the kernels do. Not checked,
            which would wait for the device.
        bits: 4 or 8.

    Returns:
        float32 [..., I].

    Raises:
        ConfigError: other bits.
    """
    _check_bits(bits)
    inputs = weight.shape[-1]
    w_OGK = F.pad(weight.detach().float().reshape(-1, inputs), (0, -inputs % GROUP)).unflatten(1, (-1, GROUP))
    if bits == 4:
        q, scale, minimum = _int4(w_OGK)
        found = q * scale.float()[..., None] + minimum.float()[..., None]
    else:
        q, scale = _int8(w_OGK)
        found = q * scale.float()[..., None]
    return found.flatten(1)[:, :inputs].reshape(weight.shape)


class _Grid(NamedTuple):
    """Groups [N, 32] on int4 grids: integers as floats, binary16 scale and minimum [N], squared error [N]."""

    q: Tensor
    scale: Tensor
    minimum: Tensor
    error: Tensor


def _int4(w_OGK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    w_NK = w_OGK.reshape(-1, GROUP)
    if w_NK.is_cuda:
        q, scale, minimum, _ = _nearest(w_NK)
    else:
        parts = [_nearest_where_needed(part) for part in w_NK.split(AT_ONCE)]
        q, scale, minimum, _ = (torch.cat(each) for each in zip(*parts, strict=True))
    return q.view(w_OGK.shape), scale.view(w_OGK.shape[:-1]), minimum.view(w_OGK.shape[:-1])


def _nearest_where_needed(w_NK: Tensor) -> _Grid:
    """`_nearest` for groups that are not on their plain grid; on a GPU, to find out which would wait for it."""
    found = _plain(w_NK)
    rows = found.error > 0
    if rows.any():  # else a model that was published in 4 bits
        for mine, nearer in zip(found, _nearest(w_NK[rows]), strict=True):
            mine[rows] = nearer
    return found


def _nearest(w_NK: Tensor) -> _Grid:
    best = _plain(w_NK)
    low, high = torch.aminmax(w_NK, dim=-1)
    for part in NARROWER:
        scale, minimum = (high - low) * ((1 - part) / 15), low + (high - low) * (part / 2)
        for _ in range(REFITS):
            q = ((w_NK - minimum[:, None]) / scale.clamp(min=1e-30)[:, None]).round().clamp(0, 15)
            q_sum, w_sum = q.sum(-1), w_NK.sum(-1)
            spread = (GROUP * q.square().sum(-1) - q_sum.square()).clamp(min=1e-9)
            scale = (GROUP * (w_NK * q).sum(-1) - q_sum * w_sum) / spread
            minimum = (w_sum - scale * q_sum) / GROUP
        other = _on_grid(w_NK, scale, minimum)
        nearer = (other.error < best.error) & (other.scale > 0)
        best = _Grid(*(
            torch.where(nearer[:, None] if mine.dim() > 1 else nearer, theirs, mine)
            for theirs, mine in zip(other, best, strict=True)
        ))  # fmt: skip
    return best


def _plain(w_NK: Tensor) -> _Grid:
    """From the least to the largest value."""
    low, high = torch.aminmax(w_NK, dim=-1)
    return _on_grid(w_NK, (high - low) / 15, low)


def _on_grid(w_NK: Tensor, scale: Tensor, minimum: Tensor) -> _Grid:
    scale, minimum = scale.to(torch.float16), minimum.to(torch.float16)
    q = ((w_NK - minimum.float()[:, None]) * _inverse(scale)[:, None]).round().clamp(0, 15)
    error = (q * scale.float()[:, None] + minimum.float()[:, None] - w_NK).square().sum(-1)
    return _Grid(q, scale, minimum, error)


def _int8(w_OGK: Tensor) -> tuple[Tensor, Tensor]:
    scale = (w_OGK.abs().amax(-1) / 127).to(torch.float16)
    return (w_OGK * _inverse(scale)[..., None]).round_().clamp_(-127, 127), scale


def _inverse(scale: Tensor) -> Tensor:
    scale = scale.float()
    return torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))


def _groups(weight_OI: Tensor) -> Tensor:
    if weight_OI.dim() != 2 or not weight_OI.is_floating_point() or weight_OI.shape[1] % GROUP or not weight_OI.numel():
        raise ConfigError(
            f"a weight to quantise must be a floating-point matrix with a multiple of {GROUP} columns, "
            f"got {weight_OI.dtype} {tuple(weight_OI.shape)}"
        )
    return weight_OI.detach().float().unflatten(1, (-1, GROUP))


def _check_range(w_OGK: Tensor) -> None:
    low, high = torch.aminmax(w_OGK)  # NaN spreads to both
    if not (low >= -_LARGEST_HALF and high <= _LARGEST_HALF):
        raise ConfigError("a weight to quantise holds values that are not finite or exceed 65504")


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        raise ConfigError(f"weights are packed to 4 or 8 bits, not {bits!r}")
