"""Training by pairs of low rank (LoRA, 2106.09685): W = W0 + B A, of which only A and B learn.

It happens where the master weights are, not in the model: the model's parameters hold W, so what is trained is what is
exported, and the pairs are the delta. After the backward pass the gradient G of W becomes those of the pair,
dA = B^T G and dB = G A^T. A pair belongs to a matrix of the *dense* model: the slices of it that shared and routed
experts hold are changed together.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stille.kernels.grids import rounded
from stille.model.checkpoint import EMBEDDINGS, HEAD
from stille.model.convert.delta import COMPONENT, FACTORS, LOW_RANK_A, LOW_RANK_B, from_int8, to_int8
from stille.model.convert.low_rank import DenseMatrix, dense_matrices
from stille.train.weights import Replicated, World


@dataclass(frozen=True)
class Pairs:
    """What a run of low rank has trained.

    Attributes:
        tensors: by dense name and `.low_rank_a` [r, in] or `.low_rank_b` [out, r], neurons in the model's order, int8;
            with `.factors` behind it, the factors of its r components.
        whole: names of the parameters that were trained whole.
    """

    tensors: dict[str, Tensor]
    whole: frozenset[str]


class LowRank(Replicated):
    """As `Replicated`, but the matrices of attention and FFNs learn by pairs, and embeddings and head not at all.

    Gates and vectors learn whole. A starts at random (by the seed), B at 0, so the model starts as it is.

    Args:
        module: holds the model (`module.model`), in float32. Frozen parameters come to need no gradient.
        dtype: of the arithmetic; the module is turned into it.
        world: the processes.
        rank: of the pairs, at most that of the matrix.
        seed: of A.
        bits: 4 or 8: the model holds the sums W as the CPU engine rounds them; 0: as they are.
        compiled: round by compiled kernels (torch.compile).

    Attributes:
        digest: of what does not learn and is not in a checkpoint.
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, world: World, rank: int, seed: int, bits: int = 0,
        compiled: bool = False,
    ):  # fmt: skip
        self.model, self.bits = module.get_submodule("model"), bits
        self._round = torch.compile(rounded, dynamic=False) if compiled else rounded
        for name, parameter in self.model.named_parameters():
            if name in (EMBEDDINGS, HEAD):
                parameter.requires_grad_(False)
        self.matrices = dense_matrices(self.model)
        module.to(world.device)
        self._held = {part.name: self.model.get_parameter(part.name) for m in self.matrices for part in m.parts}
        self._start = {m.name: m.gather(self._held).detach() for m in self.matrices}
        self.digest = self._digest()
        super().__init__(module, dtype, world, without={f"model.{name}" for name in self._held})
        self._stored: dict[str, Tensor] = {}  # of the finished run
        self._whole = frozenset(name.removeprefix("model.") for name in self.masters)
        random = torch.Generator().manual_seed(seed)
        for matrix in self.matrices:
            rows, columns = self._start[matrix.name].shape
            size = min(rank, rows, columns)
            a = torch.randn(size, columns, generator=random) / columns**0.5
            self.masters[matrix.name + LOW_RANK_A] = nn.Parameter(a.to(world.device))
            self.masters[matrix.name + LOW_RANK_B] = nn.Parameter(torch.zeros(rows, size, device=world.device))
        if bits:
            self._sums = {name: torch.empty(p.shape, device=world.device) for name, p in self._held.items()}
            self.publish()

    def pair(self, matrix: DenseMatrix) -> tuple[nn.Parameter, nn.Parameter]:
        """A [r, in] and B [out, r], float32."""
        return self.masters[matrix.name + LOW_RANK_A], self.masters[matrix.name + LOW_RANK_B]

    @torch.no_grad()
    def collect(self) -> None:
        super().collect()
        grads = {name: p.grad for name, p in self._held.items() if p.grad is not None}
        for matrix in self.matrices:
            if not all(part.name in grads for part in matrix.parts):
                continue
            grad = matrix.gather(grads).float()
            a, b = self.pair(matrix)
            _add(a, b.T @ grad)
            _add(b, grad @ a.T)
        for parameter in self._held.values():
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        super().publish()
        for matrix in self.matrices:
            a, b = self.pair(matrix)
            matrix.put(self._start[matrix.name] + b @ a, self._sums if self.bits else self._held)
        if self.bits:
            for name, parameter in self._held.items():
                parameter.copy_(self._round(self._sums[name], self.bits))

    @torch.no_grad()
    def finish(self) -> None:
        self._round = rounded  # compiled code may choose the other of two grids that are equally near
        self._stored = self._rounded()
        for name, axis in self._halves():
            self.masters[name].copy_(from_int8(self._stored[name], self._stored[name + FACTORS], axis))
        self.publish()

    def pairs(self) -> Pairs:
        """What was trained, for a delta; after `finish` the very numbers that the model has."""
        stored = self._stored or self._rounded()
        return Pairs({name: value.cpu() for name, value in stored.items()}, self._whole)

    def _rounded(self) -> dict[str, Tensor]:
        found = {}
        for name, axis in self._halves():
            found[name], found[name + FACTORS] = to_int8(self.masters[name], axis)
        return found

    def _halves(self) -> list[tuple[str, int]]:
        """Name and axis of the components of every A and B."""
        return [(matrix.name + end, axis) for matrix in self.matrices for end, axis in COMPONENT.items()]

    def _digest(self) -> str:
        found = hashlib.sha256()
        frozen = {name: p for name, p in self.model.named_parameters() if not p.requires_grad}
        for name, value in sorted({**self._start, **frozen}.items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().numpy().data)
        return found.hexdigest()[:16]


@torch.no_grad()
def round_weights(model: nn.Module, bits: int) -> None:
    """Bring the matrices that learn by pairs to the grid of the CPU engine, as `LowRank` with these bits does.

    Args:
        model: a `StilleForCausalLM` in float32.
        bits: 4 or 8.
    """
    for name in {part.name for matrix in dense_matrices(model) for part in matrix.parts}:
        parameter = model.get_parameter(name)
        parameter.copy_(rounded(parameter, bits))


def _add(master: nn.Parameter, grad: Tensor) -> None:
    master.grad = grad if master.grad is None else master.grad.add_(grad)
