"""Sizes of the perception model, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from stille.errors import ConfigError

LongMemory = Literal["hsa", "dense", "window", "none"]
LONG_MEMORIES: tuple[LongMemory, ...] = ("hsa", "dense", "window", "none")

STRIDES = (8, 16, 32)
"""Of the feature maps, the finest first."""


@dataclass(frozen=True)
class StilleCamConfig:
    """
    Attributes:
        width, height: of the pictures that the model computes on, multiples of 32; others are resized.
        backbone: "plain", or "coco", the shape of NanoDet-g.
        widths: channels at strides 2, 4, 8, 16 and 32.
        depths: residual blocks at strides 4, 8, 16 and 32.
        dim, heads, layers, ffn: of the decoder.
        points: samples of a query per head and feature map.
        queries: objects that are looked for in a frame, at most as many as the feature maps have cells.
        history: whether frames and objects from before are given to the decoder. Without, each frame is looked at
            alone, the frames of a clip train side by side, and memory says who is who, nothing else.
        carried: of these, at most, that go on from the frame before; also the objects that memory takes of a frame.
        carry: presence from which an object is carried on.
        pooled_frames, pooled_side: frames whose picture is remembered, as side x side tokens each.
        object_frames: frames whose objects are remembered one by one.
        words: identity words of a camera, more than `carried`.
        identity_layers: of the identity decoder.
        long_memory: how older objects are reached: "hsa" reads the `keep` leaves that suit a query best, "window" the
            `keep` leaves written last, "dense" all, "none" nothing.
        long_tokens, leaf: size of the long memory, and of its blocks: tokens of one identity each.
        keep: leaves that a query reads.
        long_step: seconds between two tokens of an object in the long memory.
        doubt: what is taken off the logits of the long memory: it holds many that an object is not, far more than in
            training.
        shown: presence from which an object is reported.
        born: presence from which it may get an identity of its own.
        ranges: largest activations of the backbone's convolutions, for computing in 8 bits (see
            `stille.video.model.quantized`); empty: not measured.

    Raises:
        ConfigError: sizes that do not fit each other.
    """

    width: int = 640
    height: int = 352
    backbone: Literal["plain", "coco"] = "plain"
    widths: tuple[int, ...] = (24, 48, 96, 192, 320)
    depths: tuple[int, ...] = (1, 2, 3, 2)
    dim: int = 256
    heads: int = 8
    layers: int = 4
    ffn: int = 1024
    points: int = 4
    queries: int = 64
    history: bool = True
    carried: int = 32
    carry: float = 0.3
    pooled_frames: int = 4
    pooled_side: int = 8
    object_frames: int = 16
    words: int = 50
    identity_layers: int = 2
    long_memory: LongMemory = "hsa"
    long_tokens: int = 7680
    leaf: int = 16
    keep: int = 8
    long_step: float = 0.5
    doubt: float = 3.0
    shown: float = 0.4
    born: float = 0.6
    ranges: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.width % 32 or self.height % 32 or self.width <= 0 or self.height <= 0:
            raise ConfigError(f"pictures of {self.width}x{self.height}: expected multiples of 32")
        if self.backbone not in ("plain", "coco"):
            raise ConfigError(f"backbone is {self.backbone!r}: expected plain or coco")
        if len(self.widths) != 5 or len(self.depths) != 4:
            raise ConfigError(f"widths {self.widths} and depths {self.depths}: expected five and four numbers")
        if self.dim % self.heads or self.dim % 8:
            raise ConfigError(f"dim is {self.dim}: expected a multiple of 8 and of the {self.heads} heads")
        if not 0 < self.carried < self.queries <= self.cells:
            raise ConfigError(
                f"{self.queries} queries, {self.carried} of them carried: expected fewer carried than queries, and at "
                f"most the {self.cells} cells of the feature maps"
            )
        if self.words <= self.carried:
            raise ConfigError(f"{self.words} words for {self.carried} objects of a frame: expected more words")
        if self.long_memory not in LONG_MEMORIES:
            raise ConfigError(f"long_memory is {self.long_memory!r}: expected one of {', '.join(LONG_MEMORIES)}")
        if self.leaf <= 0 or self.long_tokens % self.leaf or self.leaves <= self.carried:
            raise ConfigError(
                f"a long memory of {self.long_tokens} tokens in leaves of {self.leaf}: expected a multiple, and more "
                f"leaves than the {self.carried} objects of a frame"
            )
        if not 0 < self.keep <= self.leaves:
            raise ConfigError(f"keep is {self.keep}: expected 1 to {self.leaves} leaves")

    @property
    def cells(self) -> int:
        """Of the feature maps at strides 8, 16 and 32."""
        return sum((self.width // stride) * (self.height // stride) for stride in STRIDES)

    @property
    def leaves(self) -> int:
        """Of the long memory."""
        return self.long_tokens // self.leaf

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StilleCamConfig:
        """
        Raises:
            ConfigError: an unknown field, or sizes that do not fit.
        """
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"the model's configuration has unknown fields: {', '.join(unknown)}")
        given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        return cls(**given)


BASE = StilleCamConfig()
TINY = replace(
    BASE, width=160, height=96, widths=(8, 16, 24, 48, 64), depths=(1, 1, 1, 1), dim=64, heads=4, layers=2, ffn=128,
    queries=24, carried=12, pooled_side=4, words=20, long_tokens=640,
)  # fmt: skip
COCO = replace(BASE, backbone="coco", widths=(32, 32, 64, 128, 256), depths=(1, 2, 2, 3))
PRESETS = {"base": BASE, "coco": COCO, "tiny": TINY}
