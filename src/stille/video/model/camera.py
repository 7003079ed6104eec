"""`StilleCam`: frames of any cameras in, what is seen in them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from stille.video.errors import VideoError
from stille.video.model import boxes, compiled, on_cpu, on_gpu, quantized, results
from stille.video.model.compiled import Compiled
from stille.video.model.decoder import Recent
from stille.video.model.identity import Context
from stille.video.model.memory import Memory, recall
from stille.video.model.network import Objects, StilleCamNet
from stille.video.model.pictures import Fit, fitted, letterboxed, to_network, to_picture, uploaded
from stille.video.model.pictures import resized as resized
from stille.video.model.words import Settled, WordTable, settle
from stille.video.types import NOBODY, Frame, Seen

AT_ONCE = 64
"""Most pictures that go through the backbone together."""
INSIDE, WHOLE = "inside_4", (0.0, 0.0, 1.0, 1.0)
"""In a camera's state: where its picture lies in the network's, see `Fit.inside`; and if it fills that."""


class StilleCam:
    """Perception with identities, for as many cameras as are shown to it.

    A camera joins with its first frame and stays until `forget`. Its state is a row of `memory`; `state` and
    `set_state` take it elsewhere. Not for several threads at a time.

    Pictures are uint8 [H, W, 3] of any size, arrays or tensors. Those that are on the GPU already stay there; whoever
    made them on another stream than the current one waits for that first.

    Args:
        network: the trained one; it is taken over: evaluation mode, batch norms folded, cast.
        device: where to compute.
        dtype: of weights and activations; None: bfloat16 on GPUs and on CPUs that multiply in it, else float32.
        int8: whether the backbone computes in 8 bits; None: on a CPU that is fast at it, if no dtype is asked for and
            the configuration has the ranges of its activations.
        graphs: whether batches are filled up to few sizes, each of which is one CUDA graph on a GPU.
        compile: whether a GPU computes by `torch.compile`, which takes a minute or two at the first frame; where that
            fails, it goes on without.

    Raises:
        VideoError: 8 bits that this device, or this model without ranges, cannot compute in.
    """

    def __init__(
        self,
        network: StilleCamNet,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        int8: bool | None = None,
        graphs: bool = False,
        compile: bool = False,
    ):
        self.device = torch.device(device)
        can = self.device.type == "cpu" and quantized.supported() and bool(network.config.ranges)
        if int8 and not can:
            raise VideoError(
                f"no 8 bits on {self.device}: they take a CPU with AVX512-VNNI and a model whose configuration has the "
                f"ranges of its activations (this one has {len(network.config.ranges)}); leave int8 out"
            )
        self.dtype = dtype or default_dtype(self.device)
        self.config = network.config
        network = network.eval().requires_grad_(False)
        network.backbone.fold()
        self._int8: quantized.Int8Backbone | None = None
        size = self.config.width, self.config.height
        if int8 or (int8 is None and dtype is None and can):
            self._int8 = quantized.Int8Backbone(network.backbone, dict(self.config.ranges), size, self.dtype)
        self.network = network.to(self.device, self.dtype)
        if self.device.type == "cpu":
            on_cpu.adapt(self.network)
        else:
            on_gpu.adapt(self.network)
        self.memory = Memory.empty(self.config, 1, self.device, self.dtype)
        self._compute: Any = self.network.maps if self._int8 is None else self._int8
        self._find, self._identify = self._found, self._identified
        compile = compile and self.device.type == "cuda"
        if compile:
            self._compute, self._find = Compiled(self.network.maps), Compiled(self._found)
            self._identify = Compiled(self._identified, lambda: self.memory.tensors().values())
        least = compiled.LEAST if compile else 1
        self._rooms = on_gpu.Rooms(self._whole, self.device, size, least) if graphs else None
        self._rows: dict[str, int] = {}
        self._inside: dict[str, tuple[float, ...]] = {}  # where each camera's last picture lay in the network's
        self._next: dict[str, Tensor] = {}  # first identities of cameras that left and may come back
        self._slots: dict[str, tuple[list[str], Tensor]] = {}

    @property
    def cameras(self) -> list[str]:
        """Those that are remembered."""
        return list(self._rows)

    def watch_slots(self, camera: str, slots: Mapping[str, tuple[float, float, float, float]]) -> None:
        """From now on say of these rack slots whether something stands in them; in place of those from before.

        Args:
            slots: boxes by name: x0, y0, x1, y1 in 0..1 of the picture.

        Raises:
            VideoError: not such a box.
        """
        for name, box in slots.items():
            if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
                raise VideoError(
                    f"slot {name!r} of camera {camera!r} is {tuple(box)}: expected x0, y0, x1, y1 in 0..1 of the "
                    "picture, x0 < x1, y0 < y1"
                )
        boxes = torch.tensor([list(box) for box in slots.values()], dtype=torch.float32).view(-1, 4)
        self._slots[camera] = list(slots), boxes

    @torch.inference_mode()
    def forget(self, camera: str) -> None:
        """Of a camera that left; nothing happens if it is unknown. If it comes back, its identities are new ones."""
        row = self._rows.pop(camera, None)
        self._slots.pop(camera, None)
        self._inside.pop(camera, None)
        if row is not None:
            self._next[camera] = self.memory.next_R[row].clone()
            self.memory.reset(row, self.config)

    def state(self, camera: str) -> dict[str, Tensor]:
        """All that is remembered of a camera, on the CPU.

        Raises:
            VideoError: it is unknown.
        """
        if camera not in self._rows:
            raise VideoError(f"camera {camera!r} has no state; known are: {', '.join(self._rows) or 'none'}")
        inside = torch.tensor(self._inside.get(camera, WHOLE), dtype=torch.float64)
        return {**self.memory.row(self._rows[camera]), INSIDE: inside}

    @torch.inference_mode()
    def set_state(self, camera: str, state: dict[str, Tensor]) -> None:
        """Go on with a camera where it was when `state` was taken.

        Raises:
            VideoError: a state of another model.
        """
        held = {name: x for name, x in state.items() if name != INSIDE}
        self.memory.check(held)
        row = self._row(camera)  # which may replace the memory by a larger one
        self.memory.set_row(row, held)
        self._inside[camera] = tuple(state[INSIDE].tolist()) if INSIDE in state else WHOLE

    def warm(self, cameras: int = 1) -> None:
        """See an empty frame of so many cameras at once, and of fewer where sizes of batches matter, so that later ones
        take no longer than usual."""
        names = [f"\0warm{i}" for i in range(cameras)]
        image = np.zeros((self.config.height, self.config.width, 3), np.uint8)
        frames = [Frame(name, 0, 0.0, 0.0, image) for name in names]
        self.see(frames)
        for size in self._rooms.sizes(cameras) if self._rooms is not None else ():
            self.see(frames[:size])
        for name in names:
            self.forget(name)
            self._next.pop(name)

    @torch.inference_mode()
    def see(self, frames: Sequence[Frame]) -> list[Seen]:
        """What is seen in frames, in their order. Several frames of one camera are taken in the order given.

        Raises:
            VideoError: an image is not uint8 [H, W, 3], or empty.
        """
        for frame in frames:
            image: Any = frame.image_HW3
            if (
                image.dtype not in (np.uint8, torch.uint8)
                or image.ndim != 3
                or image.shape[-1] != 3
                or 0 in image.shape
            ):
                raise VideoError(
                    f"frame {frame.index} of camera {frame.camera!r} is {image.dtype} {tuple(image.shape)}: expected "
                    "uint8 [height, width, 3], RGB"
                )
        if not frames:
            return []
        fits = [fitted(frame.size, (self.config.width, self.config.height)) for frame in frames]
        turns = _turns(frames)
        told = [[self._told(frames[i], fits[i]) for i in turn] for turn in turns]  # makes room in memory for all
        if self._rooms is not None and len(turns) == 1:
            room = self._rooms.room(len(frames))
            if room is not None:
                return self._see_in(self._rooms, room, frames, fits, told[0])
        features = self._maps([frame.image_HW3 for frame in frames], fits)
        seen: dict[int, Seen] = {}
        for turn, rows in zip(turns, told, strict=True):
            shown = [frames[i] for i in turn]
            self._move(shown, [fits[i] for i in turn])
            at = uploaded(torch.tensor(turn), self.device)
            maps = features if len(turns) == 1 else [x.permute(0, 2, 3, 1)[at].permute(0, 3, 1, 2) for x in features]
            rows_B, time_B, inside = on_gpu.untold(uploaded(on_gpu.told(rows, len(rows)), self.device))
            number = results.numbers(*self._step(self._as_read(maps), rows_B, time_B), inside)
            seen |= zip(turn, self._told_back(shown, number, maps[1], inside), strict=True)
        return [seen[i] for i in range(len(frames))]

    def _see_in(
        self, rooms: on_gpu.Rooms, room: on_gpu.Room, frames: Sequence[Frame], fits: list[Fit], told: list[Any]
    ) -> list[Seen]:
        """All at once, in a batch of a size that was seen before."""
        count = len(frames)
        for i in range(0, count, AT_ONCE):
            part = slice(i, min(i + AT_ONCE, count))
            letterboxed([frame.image_HW3 for frame in frames[part]], fits[part], self.device, room.picture_BHW3[part])
        self._move(frames, fits)
        room.told_B6.copy_(uploaded(on_gpu.told(told, len(room.told_B6)), self.device))
        number, middle = rooms.run(room)
        inside = on_gpu.untold(room.told_B6)[2]
        return self._told_back(frames, number[:count], middle[:count], inside[:count])

    def _whole(self, picture_BHW3: Tensor, told_B6: Tensor) -> tuple[Tensor, ...]:
        """From pictures of the network's size to `results.numbers`, and the middle map: all on the device."""
        rows_B, time_B, inside = on_gpu.untold(told_B6)
        parts = [self._compute(part) for part in picture_BHW3.chunk(-(-len(picture_BHW3) // AT_ONCE))]
        maps = self._as_read(_joined(parts))
        return results.numbers(*self._step(maps, rows_B, time_B), inside), maps[1]

    def _told(self, frame: Frame, fit: Fit) -> tuple[float, ...]:
        """See `on_gpu.TOLD`."""
        return self._row(frame.camera), frame.time, *fit.inside

    def _maps(self, images: list[Any], fits: list[Fit]) -> list[Tensor]:
        parts = [slice(i, i + AT_ONCE) for i in range(0, len(images), AT_ONCE)]
        return _joined([self._compute(letterboxed(images[part], fits[part], self.device)) for part in parts])

    def _as_read(self, maps: list[Tensor]) -> list[Tensor]:
        return [x.as_subclass(on_cpu.Map) for x in maps] if self.device.type == "cpu" else maps

    def _move(self, frames: Sequence[Frame], fits: list[Fit]) -> None:
        """Take along what is carried on of cameras whose pictures lie elsewhere in the network's than before."""
        for frame, fit in zip(frames, fits, strict=True):
            inside = fit.inside
            before = self._inside.get(frame.camera, inside)
            self._inside[frame.camera] = inside
            if before != inside:
                row = self._rows[frame.camera]
                box_K4 = self.memory.box_RK4[row]
                box_K4.copy_(boxes.to_centred(to_network(to_picture(boxes.to_corners(box_K4), before), inside)))
                for corners in (self.memory.seen_box_RFK4[row], self.memory.long_box_RLE4[row]):
                    corners.copy_(to_network(to_picture(corners, before), inside))

    def _row(self, camera: str) -> int:
        if camera not in self._rows:
            first, step = (0, 1) if self._rooms is None else (on_gpu.SPARE + 1, 15)
            free = set(range(first, self.memory.rows)) - set(self._rows.values())
            if not free:
                free = {self.memory.rows}
                self.memory = self.memory.grown(self.config, max(step, self.memory.rows // 2))
                if self._rooms is not None:
                    self._rooms.clear()
            row = self._rows[camera] = min(free)
            if camera in self._next:
                self.memory.next_R[row] = self._next.pop(camera)
        return self._rows[camera]

    def _step(self, maps: Sequence[Tensor], rows_B: Tensor, time_B: Tensor) -> tuple[Objects, Settled]:
        """One frame of each of the rows' cameras; what is remembered changes."""
        memory, config = self.memory, self.config
        if config.history:
            _, _, recent, objects = self.network.look(maps, memory.recent(rows_B), time_B)
            memory.set_recent(rows_B, recent)
        else:
            objects = Objects(*self._find(maps, time_B))
        objects = self._worth_knowing(objects)
        score = objects.presence_BK.sigmoid()
        x, position, logits = self._identify(objects.token_BKC, objects.box_BK4, score, rows_B, time_B)
        table = WordTable(
            memory.identity_RW[rows_B], memory.last_RW[rows_B], memory.evidence_RWA[rows_B], memory.weight_RWA[rows_B],
            memory.next_R[rows_B],
        )  # fmt: skip
        settled, table = settle(
            table, logits, score, objects.kind_BKG.argmax(-1), objects.attribute_BKA, time_B, config.shown, config.born
        )
        memory.identity_RW[rows_B], memory.last_RW[rows_B], memory.next_R[rows_B] = (
            table.identity_BW,
            table.last_BW,
            table.next_B,
        )
        memory.evidence_RWA[rows_B], memory.weight_RWA[rows_B] = table.evidence_BWA, table.weight_BWA
        memory.forget_words(rows_B, settled.recycled_BW)
        kv = self.network.identity.remember(x, position, settled.word_BK)
        memory.add_long(rows_B, kv, settled.word_BK, objects.box_BK4, time_B, config.long_step)
        left = config.carried - score.shape[1]
        kv, box = pad(kv, (0, 0, 0, 0, 0, left)), pad(objects.box_BK4, (0, 0, 0, left))
        memory.add_seen(rows_B, kv, pad(settled.word_BK, (0, left), value=NOBODY), box, time_B)
        return objects, settled

    def _found(self, maps: Sequence[Tensor], time_B: Tensor) -> tuple[Tensor, ...]:
        """`Objects`, without the frames before; changes nothing, as `torch.compile` likes it."""
        nothing = Recent.empty(self.config, 1, self.device, self.dtype)  # the decoder does not look at it
        objects = self.network.look(maps, nothing, time_B)[-1]
        return objects.token_BKC, objects.box_BK4, objects.presence_BK, objects.kind_BKG, objects.attribute_BKA

    def _identified(
        self, token_BKC: Tensor, box_BK4: Tensor, score_BK: Tensor, rows_B: Tensor, time_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Descriptions of objects, where they are, and logits over words; changes nothing."""
        identity, shown = self.network.identity, score_BK >= self.config.shown
        x, position = identity.describe(token_BKC, box_BK4)
        context = self._context(rows_B, identity.query(x, position), time_B)
        together = shown[:, None, None] | torch.eye(score_BK.shape[1], dtype=torch.bool, device=shown.device)
        return x, position, identity(x, position, box_BK4, context, together)

    def _worth_knowing(self, objects: Objects) -> Objects:
        """On a CPU, where sizes may vary, without the last ones if they get no identity in any of the cameras."""
        if self.device.type != "cpu":
            return objects
        least = min(self.config.shown, self.config.born)
        known = torch.nonzero((objects.presence_BK.sigmoid() >= least).any(0))
        count = int(known[-1]) + 1 if len(known) else 1
        return Objects(*(getattr(objects, field.name)[:, :count] for field in fields(Objects)))

    def _context(self, rows_B: Tensor, query_BQC: Tensor, time_B: Tensor) -> Context:
        memory = self.memory
        kv = memory.seen_RFK2C[rows_B].flatten(1, 2)
        word, box = memory.seen_word_RFK[rows_B].flatten(1), memory.seen_box_RFK4[rows_B].flatten(1, 2)
        age = (time_B[:, None] - memory.seen_time_RF[rows_B]).repeat_interleave(self.config.carried, 1)
        age = torch.where(word >= 0, age, 0.0)
        old, own = recall(memory, rows_B, query_BQC, time_B, self.config)
        doubt = self.config.doubt
        if old is None:
            return Context(kv, word, box, age[:, None])
        if own:
            return Context(kv, word, box, age[:, None], None, old.kv, old.word, old.box, old.age, doubt=doubt)
        assert isinstance(old.kv, Tensor)
        pairs = (kv, old.kv), (word, old.word), (box, old.box), (age, old.age)
        kv, word, box, age = (torch.cat(pair, 1) for pair in pairs)
        return Context(kv, word, box, age[:, None], old=old.word.shape[1], doubt=doubt)

    def _told_back(self, frames: Sequence[Frame], number: Tensor, middle: Tensor, inside_B14: Tensor) -> list[Seen]:
        """Of `results.numbers`, with rack slots; what the device computes is waited for once."""
        parts = [number]
        boxes = results.slot_boxes(self._slots, [frame.camera for frame in frames])
        if boxes is not None:
            where = to_network(uploaded(boxes, self.device), inside_B14)
            parts.append(self.network.slots(middle, where).sigmoid())
        numbers, *slot = results.fetched(parts)
        return results.seen(frames, numbers, slot[0] if slot else None, self._slots, self.config.shown)


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where products in it are fast."""
    if device.type == "cuda":
        return torch.bfloat16
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (
        torch.bfloat16
        if fast and torch.backends.cpu.get_cpu_capability() == "AVX512" and _multiplies_bf16()
        else torch.float32
    )


def _multiplies_bf16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX, beyond being able to convert."""
    found = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(found()) if found is not None else False


def _joined(parts: list[Any]) -> list[Tensor]:
    """Maps of some pictures after each other."""
    return [torch.cat(maps) if len(parts) > 1 else maps[0] for maps in zip(*parts, strict=True)]


def _turns(frames: Sequence[Frame]) -> list[list[int]]:
    """Positions of frames such that no camera has two in a turn."""
    turns: list[list[int]] = []
    taken: dict[str, int] = {}
    for i, frame in enumerate(frames):
        turn = taken.get(frame.camera, -1) + 1
        taken[frame.camera] = turn
        if turn == len(turns):
            turns.append([])
        turns[turn].append(i)
    return turns
