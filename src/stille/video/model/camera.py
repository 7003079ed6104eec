"""`StilleCam`: frames of any cameras in, what is seen in them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stille.video.errors import VideoError
from stille.video.model.identity import Context
from stille.video.model.memory import Memory, recall
from stille.video.model.network import Objects, StilleCamNet
from stille.video.model.words import Settled, WordTable, settle
from stille.video.types import Frame, Seen

AT_ONCE = 64
"""Most pictures that go through the backbone together."""


@dataclass(slots=True)
class _Result:
    """Of one frame: objects that are shown."""

    box_N4: np.ndarray
    kind_N: np.ndarray
    score_N: np.ndarray
    identity_N: np.ndarray
    attribute_NA: np.ndarray
    slot_S: np.ndarray


class StilleCam:
    """Perception with identities, for as many cameras as are shown to it.

    A camera joins with its first frame and stays until `forget`. Its state is a row of `memory`; `state` and
    `set_state` take it elsewhere. Not for several threads at a time.

    Args:
        network: the trained one; it is taken over: evaluation mode, batch norms folded, cast.
        device: where to compute.
        dtype: of weights and activations; None: bfloat16 on GPUs and on CPUs that multiply in it, else float32.
    """

    def __init__(self, network: StilleCamNet, device: torch.device | str = "cpu", dtype: torch.dtype | None = None):
        self.device = torch.device(device)
        self.dtype = dtype or default_dtype(self.device)
        self.config = network.config
        network = network.eval().requires_grad_(False)
        network.backbone.fold()
        self.network = network.to(self.device, self.dtype)
        self.memory = Memory.empty(self.config, 1, self.device, self.dtype)
        self._rows: dict[str, int] = {}
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
        self._slots[camera] = list(slots), boxes.to(self.device)

    @torch.inference_mode()
    def forget(self, camera: str) -> None:
        """Of a camera that left; nothing happens if it is unknown. If it comes back, its identities are new ones."""
        row = self._rows.pop(camera, None)
        self._slots.pop(camera, None)
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
        return self.memory.row(self._rows[camera])

    @torch.inference_mode()
    def set_state(self, camera: str, state: dict[str, Tensor]) -> None:
        """Go on with a camera where it was when `state` was taken.

        Raises:
            VideoError: a state of another model.
        """
        self.memory.check(state)
        row = self._row(camera)  # which may replace the memory by a larger one
        self.memory.set_row(row, state)

    def warm(self) -> None:
        """See one empty frame, so that later ones take no longer than usual."""
        name = "\0warm"
        image = np.zeros((self.config.height, self.config.width, 3), np.uint8)
        self.see([Frame(name, 0, 0.0, 0.0, image)])
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
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
                raise VideoError(
                    f"frame {frame.index} of camera {frame.camera!r} is {image.dtype} {image.shape}: expected uint8 "
                    "[height, width, 3], RGB"
                )
        if not frames:
            return []
        turns = range(0, len(frames), AT_ONCE)
        maps = [self.network.maps(self._pictures(frames[i : i + AT_ONCE])) for i in turns]
        features = [torch.cat(parts) if len(maps) > 1 else parts[0] for parts in zip(*maps, strict=True)]
        results: dict[int, _Result] = {}
        for turn in _turns(frames):
            at = torch.tensor(turn, device=self.device)
            rows = torch.tensor([self._row(frames[i].camera) for i in turn], device=self.device)
            time = torch.tensor([frames[i].time for i in turn], dtype=torch.float64, device=self.device)
            objects, settled = self._step([x[at] for x in features], rows, time)
            slots = self._look_at_slots(features[1][at], [frames[i].camera for i in turn])
            for i, result in zip(turn, self._results(objects, settled, slots), strict=True):
                results[i] = result
        return [self._seen(frame, results[i]) for i, frame in enumerate(frames)]

    def _row(self, camera: str) -> int:
        if camera not in self._rows:
            free = set(range(self.memory.rows)) - set(self._rows.values())
            if not free:
                free = {self.memory.rows}
                self.memory = self.memory.grown(self.config, max(1, self.memory.rows // 2))
            row = self._rows[camera] = min(free)
            if camera in self._next:
                self.memory.next_R[row] = self._next.pop(camera)
        return self._rows[camera]

    def _pictures(self, frames: Sequence[Frame]) -> Tensor:
        """uint8 [N, height, width, 3] of the model's size, on the device."""
        images = [
            torch.from_numpy(np.require(frame.image_HW3, requirements=("C", "W"))).to(self.device) for frame in frames
        ]
        return torch.stack([resized(image[None], self.config.width, self.config.height)[0] for image in images])

    def _step(self, maps: Sequence[Tensor], rows_B: Tensor, time_B: Tensor) -> tuple[Objects, Settled]:
        """One frame of each of the rows' cameras; what is remembered changes."""
        net, memory, config = self.network, self.memory, self.config
        _, _, recent, objects = net.look(maps, memory.recent(rows_B), time_B)
        memory.set_recent(rows_B, recent)
        score = objects.presence_BK.sigmoid()
        shown = score >= config.shown
        x, position = net.identity.describe(objects.token_BKC, objects.box_BK4)
        context = self._context(rows_B, net.identity.query(x, position), time_B)
        together = shown[:, None, None] | torch.eye(config.carried, dtype=torch.bool, device=shown.device)
        logits = net.identity(x, position, context, together)
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
        kv = net.identity.remember(x, position, settled.word_BK)
        memory.add_seen(rows_B, kv, settled.word_BK, time_B)
        memory.add_long(rows_B, kv, settled.word_BK, time_B, config.long_step)
        return objects, settled

    def _context(self, rows_B: Tensor, query_BQC: Tensor, time_B: Tensor) -> Context:
        memory = self.memory
        kv = memory.seen_RFK2C[rows_B].flatten(1, 2)
        word = memory.seen_word_RFK[rows_B].flatten(1)
        age = (time_B[:, None] - memory.seen_time_RF[rows_B]).repeat_interleave(self.config.carried, 1)
        age = torch.where(word >= 0, age, 0.0)
        old, own = recall(memory, rows_B, query_BQC, time_B, self.config)
        if old is None:
            return Context(kv, word, age[:, None])
        if own:
            return Context(kv, word, age[:, None], None, old.kv, old.word, old.age)
        return Context(
            torch.cat([kv, old.kv], 1), torch.cat([word, old.word], 1), torch.cat([age, old.age], 1)[:, None]
        )

    def _look_at_slots(self, fine: Tensor, cameras: list[str]) -> list[Tensor]:
        """Probabilities, for each camera as many as it has slots."""
        boxes = [self._slots[name][1] if name in self._slots else None for name in cameras]
        most = max((len(box) for box in boxes if box is not None), default=0)
        if most == 0:
            return [torch.zeros(0)] * len(cameras)
        padded = torch.zeros(len(cameras), most, 4, device=self.device)
        for row, box in enumerate(boxes):
            if box is not None:
                padded[row, : len(box)] = box
        found = self.network.slots(fine, padded).sigmoid().cpu()
        return [row[: 0 if box is None else len(box)] for row, box in zip(found, boxes, strict=True)]

    def _results(self, objects: Objects, settled: Settled, slots: list[Tensor]) -> list[_Result]:
        score = objects.presence_BK.sigmoid()
        flat = torch.cat([objects.box_BK4, score[..., None], settled.attribute_BKA], -1).float().cpu().numpy()
        whole = torch.stack([objects.kind_BKG.argmax(-1), settled.identity_BK], -1).cpu().numpy()
        results = []
        for number, identity, slot in zip(flat, whole, slots, strict=True):
            on = number[:, 4] >= self.config.shown
            number, identity = number[on], identity[on]
            results.append(
                _Result(number[:, :4], identity[:, 0], number[:, 4], identity[:, 1], number[:, 5:], slot.numpy())
            )
        return results

    def _seen(self, frame: Frame, found: _Result) -> Seen:
        wide, high = frame.size
        names = self._slots[frame.camera][0] if frame.camera in self._slots else []
        box = found.box_N4.clip(0, 1) * np.array([wide, high, wide, high], np.float32)
        slots = {name: float(p) for name, p in zip(names, found.slot_S, strict=True)}
        return Seen(
            frame.camera, frame.index, frame.time, frame.size, box, found.kind_N, found.score_N, found.identity_N,
            found.attribute_NA, slots,
        )  # fmt: skip


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


def resized(frame_NHW3: Tensor, width: int, height: int) -> Tensor:
    """uint8 pictures of another size, antialiased; the aspect is not kept."""
    if frame_NHW3.shape[1:3] == (height, width):
        return frame_NHW3
    picture = frame_NHW3.permute(0, 3, 1, 2)
    on_gpu = picture.is_cuda
    out = interpolate(picture.float() if on_gpu else picture, (height, width), mode="bilinear", antialias=True)
    if on_gpu:
        out = out.round_().clamp_(0, 255).to(torch.uint8)
    return out.permute(0, 2, 3, 1).contiguous()


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
