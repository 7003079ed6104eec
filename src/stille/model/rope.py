"""Rotary position embedding: frequencies from the configuration, cos/sin by position, the rotation.

Shapes: N flat tokens or any leading shape, T table rows (positions), H heads, D head width.
The frequencies of the scaled kinds come from transformers, so a checkpoint means here what it means there.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from stille.model.config import StilleConfig


def inverse_frequencies(config: StilleConfig, length: int | None = None) -> tuple[Tensor, float]:
    """Rotary frequencies of a configuration.

    Args:
        config: the model's configuration.
        length: context length in tokens; only the "dynamic" kind depends on it, and only beyond
            `max_position_embeddings`.

    Returns:
        inv_freq float32 [D/2] on the CPU, and the factor that multiplies cos and sin (1 except for YaRN).
    """
    head_dim = config.head_dim
    if config.rope_kind == "default":
        theta = config.rope_parameters["rope_theta"]
        inv_freq, factor = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)), 1.0
    else:
        init: Any = ROPE_INIT_FUNCTIONS[config.rope_kind]
        inv_freq, factor = init(config, torch.device("cpu"), seq_len=length)
    if config.rope_freq_factors is not None:
        inv_freq = inv_freq / torch.tensor(config.rope_freq_factors, dtype=torch.float32)
    return inv_freq.float(), float(factor)


class RotaryEmbedding(nn.Module):
    """cos and sin of every position, in fp32.

    Nothing here is a parameter or a buffer: the values follow from the configuration, so they can neither be lost nor
    changed by loading, casting or moving the model.
    """

    def __init__(self, config: StilleConfig):
        super().__init__()
        self.config = config
        with torch.device("cpu"):  # also while the model itself is being built on the meta device
            self._inv_freq, self._factor = inverse_frequencies(config)
        self._on_device: dict[torch.device, Tensor] = {}
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def frequencies(self, device: torch.device) -> Tensor:
        """Rotary frequencies up to `max_position_embeddings`, float32 [D/2], copied to a device once."""
        if device not in self._on_device:
            self._on_device[device] = self._inv_freq.to(device)
        return self._on_device[device]

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of arbitrary positions, computed on the device.

        Args:
            positions: integers of any shape [...].

        Returns:
            cos, sin: float32 [..., D]; the second half repeats the first.
        """
        inv_freq, factor = self.frequencies(positions.device), self._factor
        if self.config.rope_kind == "dynamic":  # the one kind that must know the length, and so waits for the device
            length = int(positions.max()) + 1
            if length > self.config.max_position_embeddings:
                inv_freq = inverse_frequencies(self.config, length)[0].to(positions.device)
        angles = positions[..., None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * factor, angles.sin() * factor

    @torch.no_grad()
    def table(self, device: torch.device, length: int | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0 .. T-1, cached per device; see `StilleModel.rope_table`."""
        length = length or self.config.max_position_embeddings
        cached = self._tables.get(device)
        if cached is None or cached[0].shape[0] < length:
            cached = self._tables[device] = self(torch.arange(length, device=device))
        return cached


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads: pairs are (d, d + D/2), as in Hugging Face checkpoints.

    Args:
        x: [..., H, D].
        cos, sin: [..., D], broadcast over the heads; cast to x's dtype here.

    Returns:
        The rotated heads, shape and dtype of x.
    """
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
