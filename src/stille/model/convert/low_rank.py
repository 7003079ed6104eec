"""Changes of low rank to the matrices of the dense model, wherever their rows and columns lie in a converted one.

A matrix of a dense FFN becomes slices of the shared and the routed experts. One pair B @ A changes all of them: the
shared expert and the routed ones share A (or, for `down_proj`, B), as they did when they were one matrix. So a delta
keeps a pair under the dense matrix's name, its neurons in the base's order, and costs rank * (out + in) numbers.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stille.errors import UnsupportedError
from stille.model.convert.delta import (
    COMPONENT,
    DENSE,
    DIFFERENCE,
    FACTORS,
    LOW_RANK_A,
    LOW_RANK_B,
    DeltaSource,
    to_int8,
)

_PLAIN = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight")
_FFN_PAIR = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight\.low_rank_([ab])")


@dataclass(frozen=True)
class Part:
    """A piece of a dense matrix.

    Attributes:
        name: the parameter that holds it.
        kind: "whole": it is the parameter; "gate", "up": rows of `gate_up_proj`; "down": of the experts' `down_proj`.
    """

    name: str
    kind: Literal["whole", "gate", "up", "down"] = "whole"

    def view(self, tensor: Tensor) -> Tensor:
        """Of the parameter: [n, in] or [out, n]; where experts hold it, n is two dimensions, [E, I]."""
        if self.kind == "whole":
            return tensor
        if self.kind == "down":
            return tensor.transpose(0, 1)
        half = tensor.shape[1] // 2
        return tensor[:, :half] if self.kind == "gate" else tensor[:, half:]

    def flat(self, tensor: Tensor) -> Tensor:
        """As a matrix: [n, in] or [out, n]."""
        view = self.view(tensor)
        return view if self.kind == "whole" else view.flatten(1, 2) if self.kind == "down" else view.flatten(0, 1)


@dataclass(frozen=True)
class DenseMatrix:
    """A matrix [out, in] of the dense model.

    Attributes:
        name: in the dense model.
        parts: what holds it, in order.
        axis: along which the parts lie beside each other: 0 rows, 1 columns.
    """

    name: str
    parts: tuple[Part, ...]
    axis: int = 0

    def gather(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The matrix, a copy, out of the parameters (or their gradients) by name."""
        return torch.cat([part.flat(tensors[part.name]) for part in self.parts], self.axis)

    def put(self, value: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Write the matrix into the parameters, in their dtype."""
        sizes = [part.flat(tensors[part.name]).shape[self.axis] for part in self.parts]
        for part, piece in zip(self.parts, value.split(sizes, self.axis), strict=True):
            view = part.view(tensors[part.name])
            view.copy_(piece.reshape(view.shape))


def dense_matrices(model: nn.Module) -> list[DenseMatrix]:
    """Attention's and the FFNs' matrices of a `StilleForCausalLM`, by their names in the dense model."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    found = [DenseMatrix(name, (Part(name),)) for name in shapes if _PLAIN.fullmatch(name)]
    for name in shapes:
        if not name.endswith(".mlp.gate_up_proj"):
            continue
        mlp = name.removesuffix("gate_up_proj")
        for matrix, kind in zip(DENSE, ("gate", "up", "down"), strict=True):
            shared = f"{mlp}shared.{matrix}.weight"
            routed = Part(mlp + "down_proj" if kind == "down" else name, kind)
            parts = (Part(shared), routed) if shared in shapes else (routed,)
            found.append(DenseMatrix(f"{mlp}{matrix}.weight", parts, int(kind == "down")))
    return found


def base_order(pairs: Mapping[str, Tensor], source: DeltaSource) -> dict[str, Tensor]:
    """Pairs of a converted model with their neurons in the order of the base.

    Args:
        pairs: by dense name and `.low_rank_a` [r, in] or `.low_rank_b` [out, r], neurons in the model's order; other
            names (factors) stay as they are.
        source: the delta whose order of the neurons the model has.
    """
    found = {}
    for name, value in pairs.items():
        match = _FFN_PAIR.fullmatch(name)
        order = source.order(int(match[1])) if match and (match[2] == "down") == (match[3] == "a") else None
        if order is not None:
            moved = torch.empty_like(value)
            if name.endswith(LOW_RANK_A):
                moved[:, order] = value
            else:
                moved[order] = value
            value = moved
        found[name] = value
    return found


def low_rank_delta(
    state: Mapping[str, Tensor], pairs: Mapping[str, Tensor], whole: Collection[str], source: DeltaSource
) -> dict[str, Tensor]:
    """All tensors of the delta of a model that was trained by pairs of low rank.

    Args:
        state: of the trained model, by name.
        pairs: what was added to the dense matrices, in int8 with factors; see `base_order`.
        whole: names of the parameters that were trained whole.
        source: the delta that training began with. Its own changes stay, its pairs are joined with the new ones (and
            brought to int8, if they are not).

    Returns:
        For `write_delta`.

    Raises:
        UnsupportedError: that delta replaces a matrix that pairs change.
    """
    found = source.own()
    for name, value in state.items():
        if name in source.tied or (name in source.plain and name not in whole):
            continue  # the base's, and what changes it
        for end in (DIFFERENCE, LOW_RANK_A, LOW_RANK_B, LOW_RANK_A + FACTORS, LOW_RANK_B + FACTORS):
            found.pop(name + end, None)
        found[name] = value.detach().cpu()
    ordered = base_order(pairs, source)
    for target in sorted({name.removesuffix(LOW_RANK_A) for name in ordered if name.endswith(LOW_RANK_A)}):
        if target in found:
            raise UnsupportedError(
                f"{source.label} holds {target} whole, which training changed by a pair of low rank: train it with "
                "rank 0, or begin with a delta that holds differences."
            )
        for end, axis in COMPONENT.items():
            name = target + end
            value, scale = ordered[name].cpu(), ordered[name + FACTORS].cpu()
            if (before := found.get(name)) is not None:
                parts = (before, found[name + FACTORS]) if before.dtype == torch.int8 else to_int8(before, axis)
                value, scale = torch.cat([parts[0], value], axis), torch.cat([parts[1], scale])
            found[name], found[name + FACTORS] = value, scale
    return found
