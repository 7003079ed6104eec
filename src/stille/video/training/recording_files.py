"""Labelled recordings as they lie on a disk.

A folder per recording holds a video or pictures (in it, or in its folder `frames`; in the order of their names),
`gt.txt` in MOTChallenge's form, and, if wanted, `recording.yaml` (`About`). A line of gt.txt is

    frame from 1, identity, left, top, width, height in pixels, confidence, class, visibility

of which the last three may be missing. Neither asked for nor forbidden are boxes of a confidence below 0.5, without
identity (-1), of a kind that is not `labelled`, and of the class "ignore". A kind that nobody labelled and that has no
such boxes is taught to be background: do not use recordings in which it is to be seen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stille.errors import ConfigError
from stille.video.types import KINDS

LONGEST = 640
"""Pixels of the longer side of pictures that are kept."""

FASTEST = 15.0
"""Frames per second that are kept; of faster recordings each second frame is, or each third."""

SURE = 0.5
"""Confidence from which a box is asked for."""

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".ts", ".webm")

IGNORE = "ignore"
"""Name of a class of regions of which nothing is known."""


class About(BaseModel):
    """recording.yaml.

    Attributes:
        licence, source, attribution: for people, and for the card of a model that learned from it.
        fps: frames per second; by default the video's, or 10.
        frames: how many were looked at, from the first one on; by default those up to the last one with a label, or all
            if none has a label.
        classes: names by number in gt.txt. Others than `KINDS` and "ignore" are background.
        labelled: kinds of which every object has a box.
        stills: the frames are pictures that have nothing to do with each other.
        weight: how often it is taken, relative to the others; by default the square root of its number of frames.
        files: names that the frames had at their source.
    """

    model_config = ConfigDict(extra="forbid")

    licence: str = ""
    source: str = ""
    attribution: str = ""
    fps: float | None = Field(default=None, gt=0, le=1000)
    frames: int | None = Field(default=None, ge=1)
    classes: dict[int, str] = {1: "person"}
    labelled: list[str] = ["person"]
    stills: bool = False
    weight: float | None = Field(default=None, gt=0)
    files: list[str] = []


@dataclass(frozen=True, slots=True)
class Recording:
    """N objects in F frames. Boxes that are ignored share places: the same place may be another thing in each frame.

    Attributes:
        name: of the folder.
        rate: frames per second.
        picture_F: decoded (uint8 RGB), or JPEG.
        kind_N: numbers of `KINDS`.
        box_FN4: float32, corners in 0..1 of the picture; 0 where there is none.
        visible_FN: float32, share that is seen; 0 where there is no box.
        ignored_FN: bool, boxes that are neither asked for nor forbidden.
    """

    name: str
    about: About
    rate: float
    picture_F: list[np.ndarray | bytes]
    kind_N: np.ndarray
    box_FN4: np.ndarray
    visible_FN: np.ndarray
    ignored_FN: np.ndarray

    def __len__(self) -> int:
        return len(self.picture_F)

    @property
    def still(self) -> bool:
        return self.about.stills or len(self) == 1

    def picture(self, index: int) -> np.ndarray:
        """uint8 RGB."""
        held = self.picture_F[index]
        return held if isinstance(held, np.ndarray) else decoded(held)


def decoded(jpeg: bytes) -> np.ndarray:
    """uint8 RGB."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "it was checked when it was read"
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_recording(folder: Path) -> Recording:
    """With its pictures as JPEG, of the frames that were looked at.

    Raises:
        ConfigError: its yaml, its labels or its pictures are not as they should be.
    """
    about = _about(folder / "recording.yaml")
    table = _labels(folder / "gt.txt")
    frames = table[:, 0].astype(int) - 1
    looked_at = about.frames or (int(frames.max()) + 1 if len(frames) else None)
    rate, every, pictures = _pictures(folder, about, looked_at)
    held, sizes = [], []
    for jpeg, size in pictures:
        held.append(jpeg)
        sizes.append(size)
    if not held or frames.max(initial=0) // every >= len(held):
        raise ConfigError(
            f"{folder} has labels up to frame {frames.max(initial=0) + 1}, and {len(held) * every} frames of pictures"
        )
    names = {number: name.lower() for number, name in about.classes.items()}
    places: dict[tuple[object, ...], int] = {}
    doubtful: Counter[int] = Counter()
    boxes: dict[tuple[int, int], tuple[np.ndarray, float, bool]] = {}
    for row, frame in zip(table, frames, strict=True):
        name = names.get(int(row[7]), "")
        if frame % every or name not in (*KINDS, IGNORE):
            continue
        at = int(frame) // every
        asked = name in about.labelled and row[6] >= SURE and row[1] > 0
        if asked:
            who = (KINDS.index(name), int(row[1]), at if about.stills else None)
        else:
            who = (0, "doubtful", doubtful[at])
            doubtful[at] += 1
        key = at, places.setdefault(who, len(places))
        if key in boxes:
            raise ConfigError(f"{folder / 'gt.txt'} has identity {int(row[1])} twice in frame {frame + 1}")
        box = np.concatenate([row[2:4], row[2:4] + row[4:6]]) / np.tile(sizes[at], 2)
        boxes[key] = box, row[8], not asked
    shape = len(held), len(places)
    box_FN4, visible_FN, ignored_FN = (
        np.zeros((*shape, 4), np.float32),
        np.zeros(shape, np.float32),
        np.zeros(shape, bool),
    )
    for key, (box, visible, ignored) in boxes.items():
        box_FN4[key], visible_FN[key], ignored_FN[key] = box, visible, ignored
    kind_N = np.array([who[0] for who in places], np.int64)
    return Recording(folder.name, about, rate / every, held, kind_N, box_FN4, visible_FN, ignored_FN)


def _about(path: Path) -> About:
    try:
        about = (
            About.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else About()
        )
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not as expected: {error}") from error
    if unknown := sorted(set(about.labelled) - set(KINDS)):
        raise ConfigError(f"{path}: labelled has {', '.join(unknown)}; the kinds are {', '.join(KINDS)}")
    return about


def _labels(path: Path) -> np.ndarray:
    """float64 [rows, 9]; confidence, class and visibility are 1 where they are missing or below 0."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(field) for field in line.split(",")[:9]]
        except ValueError:
            values = []
        if len(values) < 6 or not np.isfinite(values).all() or values[0] < 1 or min(values[4:6]) <= 0:
            raise ConfigError(
                f"{path}:{number}: {line!r}; expected frame from 1, identity, left, top, width, height (above 0) and, "
                "if wanted, confidence, class, visibility"
            )
        rows.append(
            [value if i < 6 or value >= 0 else 1.0 for i, value in enumerate(values + [1.0] * (9 - len(values)))]
        )
    table = np.array(rows).reshape(-1, 9)
    table[:, 8] = table[:, 8].clip(max=1)
    return table


def _pictures(
    folder: Path, about: About, count: int | None
) -> tuple[float, int, Iterator[tuple[bytes, tuple[int, int]]]]:
    """Frames per second at the source, of how many frames one is kept, and those: JPEG, size at the source."""
    inner = folder / "frames" if (folder / "frames").is_dir() else folder
    files = sorted(
        (file for file in inner.iterdir() if file.suffix.lower() in PICTURES), key=lambda f: _natural(f.name)
    )
    videos = [file for file in folder.iterdir() if file.suffix.lower() in VIDEOS]
    if len(videos) > 1 or bool(files) == bool(videos):
        raise ConfigError(
            f"{folder} has {len(files)} pictures and {len(videos)} videos: expected pictures, or one video"
        )
    rate = about.fps or (10.0 if files else _rate(videos[0]))
    every = 1 if about.stills else max(1, round(rate / FASTEST))
    if files:
        return rate, every, (_file(file) for file in files[:count:every])
    return rate, every, (_encoded(image) for image in islice(_video(videos[0]), 0, count, every))


def _rate(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        found = container.streams.video[0].average_rate if container.streams.video else None
    if not found:
        raise ConfigError(f"{path} does not say its frames per second: give fps in recording.yaml")
    return float(found)


def _video(path: Path) -> Iterator[np.ndarray]:
    """RGB."""
    import av
    import av.error

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except av.error.FFmpegError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _file(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A small JPEG is kept as it is."""
    raw = path.read_bytes()
    image = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR) if raw else None
    if image is None:
        raise ConfigError(f"{path} is no picture")
    if path.suffix.lower() in (".jpg", ".jpeg") and max(image.shape[:2]) <= LONGEST:
        return raw, (image.shape[1], image.shape[0])
    return _encoded(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _encoded(image: np.ndarray) -> tuple[bytes, tuple[int, int]]:
    high, wide = image.shape[:2]
    scale = LONGEST / max(wide, high)
    small = image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return jpeg.tobytes(), (wide, high)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
