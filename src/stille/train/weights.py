"""Processes, and where the float32 weights live that the optimizer moves.

`Replicated`: every process holds all of them and gradients are added up. With bf16 arithmetic the model itself is bf16,
exactly as it will be exported, and each parameter has a float32 master; no autocast. `Sharded`: FSDP2 splits weights,
gradients and optimizer over the processes and casts for the arithmetic.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stille.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_BUCKET = 1 << 24  # elements added up over the processes at once


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank, size: this one, and how many.
        device: where it computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    def agree(self, *values: float) -> list[float]:
        """The largest of each value over the processes."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def total(self, sums: Tensor) -> Tensor:
        """Sums over the processes."""
        if self.size > 1:
            dist.all_reduce(sums)
        return sums

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def open_world(device: str = "auto") -> Iterator[World]:
    """The processes that `torchrun` started (gloo on CPUs, NCCL on GPUs), or this one alone.

    Args:
        device: "cpu", "cuda" or "auto".

    Raises:
        ConfigError: no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r}, expected auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but there is none here.")
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    ours = size > 1 and not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield World(dist.get_rank() if size > 1 else 0, size, place)
    finally:
        if ours:
            dist.destroy_process_group()


class Replicated:
    """All weights in every process.

    Args:
        module: holds the model, in float32.
        dtype: of the arithmetic; the module is turned into it.
        world: the processes.
        without: names of parameters that somebody else moves.

    Attributes:
        digest: of weights that are in no checkpoint; None: all are.
    """

    factor = 1.0
    digest: str | None = None

    def __init__(self, module: nn.Module, dtype: torch.dtype, world: World, without: Collection[str] = ()):
        self.world, self.module = world, module
        module.to(world.device)
        ours = [(n, p) for n, p in module.named_parameters() if p.requires_grad and n not in without]
        names, parameters = [name for name, _ in ours], [parameter for _, parameter in ours]
        if dtype == torch.float32:
            self.masters: dict[str, nn.Parameter] = dict(zip(names, parameters, strict=True))
        else:
            self.masters = {
                name: nn.Parameter(p.detach().float().clone()) for name, p in zip(names, parameters, strict=True)
            }
            module.to(dtype)
        self.parameters = dict(zip(names, (module.get_parameter(name) for name in names), strict=True))
        self.mixed = dtype != torch.float32

    def collect(self) -> None:
        """Take the gradients of a micro-batch."""
        if not self.mixed:
            return
        for name, parameter in self.parameters.items():
            master, grad = self.masters[name], parameter.grad
            if grad is not None:
                master.grad = grad.float() if master.grad is None else master.grad.add_(grad)
        for parameter in self.parameters.values():
            parameter.grad = None

    def reduce(self) -> None:
        """Add the gradients of all processes up."""
        if self.world.size == 1:
            return
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        bucket: list[Tensor] = []
        for grad in [m.grad for m in self.masters.values() if m.grad is not None]:
            bucket.append(grad)
            if sum(g.numel() for g in bucket) >= _BUCKET:
                _add_up(bucket)
                bucket = []
        _add_up(bucket)

    def clip(self, most: float) -> Tensor:
        """Scale the gradients to a norm of at most so much; returns the norm before, on the device."""
        return nn.utils.clip_grad_norm_(self.masters.values(), most or float("inf"))

    @torch.no_grad()
    def publish(self) -> None:
        """Bring what the optimizer did into the model."""
        if self.mixed:
            for name, parameter in self.parameters.items():
                parameter.copy_(self.masters[name])

    def finish(self) -> None:
        """Once, when the run is over: bring the model to what will be kept of it."""

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {name: m.detach().cpu() for name, m in self.masters.items()}, optimizer.state_dict()

    @torch.no_grad()
    def load(self, optimizer: torch.optim.Optimizer, masters: dict[str, Tensor], moments: dict[str, Any]) -> None:
        for name, master in self.masters.items():
            master.copy_(masters[name])
        optimizer.load_state_dict(moments)
        self.publish()

    def whole(self) -> dict[str, Tensor]:
        """Every parameter in the dtype of the arithmetic."""
        return {name: p.detach() for name, p in self.parameters.items()}


def _add_up(grads: list[Tensor]) -> None:
    if not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


class Sharded:
    """Weights split over the processes by FSDP2, layer by layer.

    Args:
        module: holds the model (`module.model`), in float32.
        dtype: of the arithmetic.
        world: the processes.
    """

    def __init__(self, module: Any, dtype: torch.dtype, world: World):
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.world, self.module, self.dtype, self.digest = world, module, dtype, None
        self.factor = float(world.size)  # FSDP averages
        module.to(world.device)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for layer in module.model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(module, mp_policy=policy)
        self.masters: dict[str, nn.Parameter] = {n: p for n, p in module.named_parameters() if p.requires_grad}

    def collect(self) -> None:
        """FSDP adds micro-batches up itself."""

    def reduce(self) -> None:
        """FSDP has done so already."""

    def clip(self, most: float) -> Tensor:
        """As in `Replicated`."""
        norm: Any = nn.utils.clip_grad_norm_(self.masters.values(), most or float("inf"))
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def publish(self) -> None:
        """The model reads the masters themselves."""

    def finish(self) -> None:
        """As in `Replicated`."""

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        masters = {name: _gather(p) for name, p in self.masters.items()}
        moments = optimizer.state_dict()
        moments["state"] = {k: {n: _gather(v) for n, v in one.items()} for k, one in moments["state"].items()}
        return masters, moments

    @torch.no_grad()
    def load(self, optimizer: torch.optim.Optimizer, masters: dict[str, Tensor], moments: dict[str, Any]) -> None:
        from torch.distributed.tensor import distribute_tensor

        def split(name: str, value: Tensor) -> Tensor:
            like: Any = self.masters[name]
            return distribute_tensor(value.to(self.world.device), like.device_mesh, like.placements)

        for name, master in self.masters.items():
            master.copy_(split(name, masters[name]))
        # A state knows parameters by their place in the groups; both sides have them in the same order.
        names = {id(master): name for name, master in self.masters.items()}
        order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        state = {
            index: {key: split(order[index], v) if v.dim() else v for key, v in one.items()}
            for index, one in moments["state"].items()
        }
        optimizer.load_state_dict({**moments, "state": state})

    def whole(self) -> dict[str, Tensor]:
        """As in `Replicated`; a collective: every process calls it."""
        return {name: _gather(p).to(self.dtype) for name, p in self.masters.items()}


def _gather(value: Any) -> Any:
    if hasattr(value, "full_tensor"):
        return value.detach().full_tensor().cpu()
    return value.detach().cpu() if isinstance(value, Tensor) else value
