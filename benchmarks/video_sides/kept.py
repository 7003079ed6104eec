"""What was seen of a camera, frame after frame, as arrays that go to disk and back.

Shapes: T frames; N objects of all frames together; A attributes; S slots.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from stille.video.types import ATTRIBUTES, NOBODY, Seen

NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32), np.zeros(0, np.int32))


@dataclass(frozen=True, slots=True)
class Kept:
    """
    Attributes:
        time_T: float64, since 1970. count_T: objects of each frame, which are one after the other in the other arrays.
        score_N: probability; of a truth the share that is seen.
        slot_TS: probabilities.
    """

    time_T: np.ndarray
    count_T: np.ndarray
    box_N4: np.ndarray
    kind_N: np.ndarray
    score_N: np.ndarray
    identity_N: np.ndarray
    attribute_NA: np.ndarray
    slot_TS: np.ndarray

    @classmethod
    def of(cls, seen: Sequence[Seen], slots: Sequence[str]) -> Kept:
        def each(name: str, kind: type) -> np.ndarray:
            return np.concatenate([np.asarray(getattr(one, name), kind) for one in seen])

        return cls(
            np.array([one.time for one in seen]), np.array([len(one) for one in seen], np.int32),
            each("box_N4", np.float32), each("kind_N", np.int8), each("score_N", np.float32),
            each("identity_N", np.int32), each("attribute_NA", np.float32).reshape(-1, len(ATTRIBUTES)),
            np.array([[one.slots.get(n, np.nan) for n in slots] for one in seen], np.float32).reshape(len(seen), -1),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.time_T)

    @property
    def starts_T(self) -> np.ndarray:
        """Place of each frame's first object, and the end."""
        return np.concatenate([[0], np.cumsum(self.count_T)])

    @property
    def frame_N(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), self.count_T)

    def seen(self, camera: str, size: tuple[int, int], slots: Sequence[str]) -> Iterator[Seen]:
        """Frame by frame; slots of which nothing is known are left out."""
        starts = self.starts_T.tolist()
        kind_N, identity_N = self.kind_N.astype(np.int64), self.identity_N.astype(np.int64)
        for index, time in enumerate(self.time_T.tolist()):
            at = slice(starts[index], starts[index + 1])
            full = {n: float(p) for n, p in zip(slots, self.slot_TS[index], strict=True) if np.isfinite(p)}
            yield Seen(
                camera, index, time, size, self.box_N4[at], kind_N[at], self.score_N[at], identity_N[at],
                self.attribute_NA[at], full,
            )  # fmt: skip

    def only(self, keep_N: np.ndarray) -> Kept:
        """Some of the objects."""
        count_T = np.bincount(self.frame_N[keep_N], minlength=len(self)).astype(np.int32)
        parts = {name: getattr(self, name)[keep_N] for name in OBJECTS}
        return replace(self, count_T=count_T, **parts)

    def nobody(self) -> Kept:
        """The same without identities."""
        return replace(self, identity_N=np.full_like(self.identity_N, NOBODY))

    def save(self, path: Path) -> None:
        """The file is there whole or not at all."""
        scratch = path.with_suffix(f".{os.getpid()}")
        with scratch.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})
        os.replace(scratch, path)

    @classmethod
    def load(cls, path: Path) -> Kept:
        with np.load(path) as file:
            return cls(**{field.name: file[field.name] for field in fields(cls)})


OBJECTS = ("box_N4", "kind_N", "score_N", "identity_N", "attribute_NA")


def joined(parts: Iterable[Kept]) -> Kept:
    """One after the other."""
    parts = list(parts)
    return Kept(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Kept)))
