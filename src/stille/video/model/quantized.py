"""The backbone in 8 bits, for CPUs with AVX512-VNNI: twice as fast there as in bfloat16.

Weights are int8 with a scale per output channel, activations uint8 with a fixed scale per tensor: all of them come out
of a ReLU, so their zero is 0. What is added or concatenated shares a scale, and so the backbone's own `forward` runs on
bytes as it is. Scales come from the largest activations that were seen in pictures (`measure`), which are part of the
configuration. Convolutions are oneDNN's, as torch's own quantised graphs call them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d
from torch.overrides import TorchFunctionMode

from stille.errors import ConfigError
from stille.video.model.backbone import Backbone, CocoBackbone, Conv
from stille.video.model.network import MEAN, SPREAD, StilleCamNet

ADD = (torch.add, Tensor.add, Tensor.__add__)
SAME = (Tensor.chunk, torch.chunk, interpolate, max_pool2d)  # what these return has the range of what they were given
PICTURE = ""  # in place of a convolution's name


def supported() -> bool:
    """Whether this CPU and this build of torch run it fast."""
    has = getattr(torch.cpu, "_is_vnni_supported", None)
    return hasattr(torch.ops.onednn, "qconv2d_pointwise") and bool(has and has())


class _Watch(TorchFunctionMode):
    """Follows a folded backbone's `forward`: which convolution a tensor comes from, which of them share a scale, and
    the largest number. Tensors are told apart by an attribute, `of`."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.largest: dict[str, float] = {}
        self.parent: dict[str, str] = {}
        self.source: dict[str, str] = {}  # of convolutions, where their input comes from
        self.shape: dict[str, list[int]] = {}  # and how large it is
        self.read: set[str] = set()  # what something in the backbone reads
        self.outputs: list[str] = []
        self.backbone = backbone
        self.convolutions = {name: module for name, module in backbone.named_modules() if isinstance(module, Conv)}
        self._hooks = [module.register_forward_hook(self._hook(name)) for name, module in self.convolutions.items()]

    def run(self, pictures: Iterable[Tensor]) -> _Watch:
        """Over float pictures [N, 3, H, W], as the network normalises them."""
        with torch.inference_mode():
            for picture in pictures:
                self._saw(PICTURE, picture)
                with self:
                    maps = self.backbone(picture)
                self.outputs = [_of(x) for x in maps]
        for hook in self._hooks:
            hook.remove()
        return self

    def root(self, name: str) -> str:
        """One name for all that share a scale with this one."""
        while (above := self.parent.get(name, name)) != name:
            name = above
        return name

    def _hook(self, name: str) -> Callable[..., None]:
        def after(_: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
            self.source[name], self.shape[name] = _of(given[0]), list(given[0].shape)
            self.read.add(_of(given[0]))
            self._saw(name, out)

        return after

    def _saw(self, name: str, x: Tensor) -> None:
        setattr(x, "of", name)  # noqa: B010
        self.largest[name] = max(self.largest.get(name, 0.0), float(x.amax()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in ADD or func in SAME or func is torch.cat:
            tensors = args if func in ADD else args[0] if func is torch.cat else args[:1]
            names = [_of(x) for x in tensors]
            self.read.update(names)
            for name in names:
                self.parent[self.root(name)] = self.root(names[0])
            for x in out if isinstance(out, (tuple, list)) else [out]:
                self._saw(names[0], x)
        return out


def _of(x: Tensor) -> str:
    """The convolution that a tensor comes from."""
    if (name := getattr(x, "of", None)) is None:
        raise ConfigError("this backbone does with activations what has no counterpart in 8 bits")
    return name


@torch.inference_mode()
def measure(network: StilleCamNet, pictures: Iterable[Tensor]) -> dict[str, float]:
    """Largest activations of the backbone's convolutions over pictures, for `StilleCamConfig.ranges`.

    Args:
        pictures: uint8 [N, H, W, 3] each, of the network's size; a hundred of many scenes will do.
    """
    backbone = copy.deepcopy(network.backbone).cpu().float().eval()
    backbone.fold()
    watch = _Watch(backbone.in_bytes).run((x.cpu().permute(0, 3, 1, 2).float() - MEAN) / SPREAD for x in pictures)
    if not watch.largest:
        raise ConfigError("no pictures to measure activations on: expected at least one")
    shared: dict[str, float] = {}
    for name, value in watch.largest.items():
        shared[watch.root(name)] = max(value, shared.get(watch.root(name), 1e-6))
    return {name: round(shared[watch.root(name)], 6) for name in watch.convolutions}


class Int8Conv(nn.Module):
    """Convolution and ReLU from bytes, to bytes or floats; weights are laid out for inputs of `shape`."""

    def __init__(self, conv: nn.Conv2d, shape: list[int], scale: float, zero: int, out_scale: float, out: torch.dtype):
        super().__init__()
        weight, bias = conv.weight.detach().float(), conv.bias
        assert bias is not None, "the batch norm is not folded"
        self.spread = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
        number = (weight / self.spread[:, None, None, None]).round().to(torch.int8)
        self.geometry: Any = list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups
        self.packed = torch.ops.onednn.qconv_prepack(number, self.spread, scale, zero, *self.geometry, shape)
        self.bias, self.zeros = bias.detach().float(), torch.zeros(len(number), dtype=torch.int64)
        self.scale, self.zero, self.out_scale, self.out = scale, zero, out_scale, out

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.onednn.qconv2d_pointwise(
            x, self.scale, self.zero, self.packed, self.spread, self.zeros, self.bias, *self.geometry,
            self.out_scale, 0, self.out, "relu", [], "",
        )  # fmt: skip


class _Saturating(TorchFunctionMode):
    """Sums of bytes end at 255."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ADD:
            return torch.minimum(args[0], args[1].bitwise_not()).add_(args[1])
        return func(*args, **(kwargs or {}))


class Int8Backbone(nn.Module):
    """A copy of a backbone that takes bytes; the weights of what computes in them cannot be changed.

    Args:
        backbone: on the CPU, with folded batch norms.
        ranges: see `measure`.
        size: width and height of the pictures.
        dtype: of the maps.

    Raises:
        ConfigError: ranges of another backbone.
    """

    def __init__(
        self, backbone: Backbone | CocoBackbone, ranges: dict[str, float], size: tuple[int, int], dtype: torch.dtype
    ):
        super().__init__()
        self.dtype = dtype
        self.joined = backbone.joined  # of the network itself, whose dtype is this one by then
        self.inside = copy.deepcopy(backbone.in_bytes).float()
        watch = _Watch(self.inside).run([torch.zeros(1, 3, *size[::-1])])
        if odd := sorted(ranges.keys() ^ watch.convolutions.keys()):
            raise ConfigError(f"ranges of activations do not fit the backbone ({', '.join(odd)}): measure them again")
        for name, module in watch.convolutions.items():
            before, last = watch.source[name], name not in watch.read
            scale, zero = (1 / SPREAD, round(MEAN)) if before == PICTURE else (ranges[before] / 255, 0)
            out = (1.0, dtype) if last else (ranges[name] / 255, torch.uint8)
            parent, _, own = name.rpartition(".")
            setattr(self.inside.get_submodule(parent), own, Int8Conv(module.conv, watch.shape[name], scale, zero, *out))
        self.scales = [ranges[name] / 255 for name in watch.outputs]

    def forward(self, frame_NHW3: Tensor) -> tuple[Tensor, ...]:
        """As `StilleCamNet.maps`."""
        with _Saturating():
            maps = self.inside(frame_NHW3.permute(0, 3, 1, 2))
        floats = tuple(
            x if x.is_floating_point() else x.to(self.dtype).mul_(scale)
            for x, scale in zip(maps, self.scales, strict=True)
        )
        return self.joined(floats)
