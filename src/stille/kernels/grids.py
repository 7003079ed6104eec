"""The grids that weights are rounded to, in plain torch.

Weights are quantised in groups of 32 consecutive inputs of one output feature:
- int4: w = scale * q + minimum, q in 0..15, scale and minimum binary16. The grid of GGUF's Q4_1, which it reproduces.
- int8: w = scale * q, q in -127..127, scale binary16. The grid of GGUF's Q8_0.

Shapes: O output features, I input features, G = I / 32 groups.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.errors import ConfigError

GROUP = 32
BITS = (4, 8)
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
    """Round-to-nearest onto the grid of `bits`.

    Args:
        weight_OI: finite floating-point matrix, I a multiple of 32.
        bits: 4 or 8.

    Raises:
        ConfigError: wrong shape, dtype, bits, or values that are not finite or do not fit binary16 scales.
    """
    _check_bits(bits)
    return (quantize_int4 if bits == 4 else quantize_int8)(weight_OI)


def quantize_int4(weight_OI: Tensor) -> QuantizedWeight:
    """4-bit asymmetric: scale = (max - min) / 15 of each group. Values already on such a grid are kept.

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


def _int4(w_OGK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.aminmax(w_OGK, dim=-1)
    scale = ((high - low) / 15).to(torch.float16)
    minimum = low.to(torch.float16)
    q = (w_OGK - minimum.float()[..., None]).mul_(_inverse(scale)[..., None]).round_().clamp_(0, 15)
    return q, scale, minimum


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
