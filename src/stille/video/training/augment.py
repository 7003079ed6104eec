"""Recorded pictures and boxes as another camera would have given them.

T frames, N objects of a piece, M of a clip, H, W picture. Boxes are corners in 0..1 of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

MOST = 40
"""Objects of a clip; a cell of a grid that would exceed it stays empty."""

BARELY = 0.01
"""Visible share of what is neither asked for nor forbidden."""

LEAST = 4.0
"""Pixels of the shorter side of a box; smaller ones are neither asked for nor forbidden."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a clip is made of: a stretch of a recording, or a picture that is repeated (`still`)."""

    picture_T: list[np.ndarray]
    time_T: np.ndarray
    kind_N: np.ndarray
    box_TN4: np.ndarray
    visible_TN: np.ndarray
    ignored_TN: np.ndarray
    still: bool


@dataclass(frozen=True, slots=True)
class Clip:
    """As one row of `Clips`."""

    frame_THW3: np.ndarray
    time_T: np.ndarray
    kind_M: np.ndarray
    box_TM4: np.ndarray
    visible_TM: np.ndarray


def make_clip(pieces: list[Piece], size: tuple[int, int], random: Generator) -> Clip:
    """One piece, or a square number of them in a grid, over the same times."""
    wide, high = size
    side = round(len(pieces) ** 0.5)
    frames = len(pieces[0].time_T)
    frame_THW3 = np.empty((frames, high, wide, 3), np.uint8)
    frame_THW3[:] = random.integers(40, 200, 3, dtype=np.uint8)
    kinds, boxes, visibles = [], [], []
    for at, piece in enumerate(pieces):
        if at and sum(map(len, kinds)) + len(piece.kind_N) > MOST:
            continue
        row, column = divmod(at, side)
        x0, x1 = column * wide // side, (column + 1) * wide // side
        y0, y1 = row * high // side, (row + 1) * high // side
        box, visible = _seen(piece, frame_THW3[:, y0:y1, x0:x1], random, alone=side == 1)
        boxes.append(box + np.array([x0, y0, x0, y0], np.float32))
        kinds.append(piece.kind_N)
        visibles.append(visible)
    kind_M, box_TM4, visible_TM = np.concatenate(kinds), np.concatenate(boxes, 1), np.concatenate(visibles, 1)
    if random.random() < 0.25:
        visible_TM = _pillar(frame_THW3, box_TM4, visible_TM, random)
    there = visible_TM > 0
    box_TM4 = np.where(there[..., None], box_TM4 / np.array([wide, high] * 2, np.float32), 0).astype(np.float32)
    _look(frame_THW3, random)
    used = there.any(0)
    return Clip(frame_THW3, pieces[0].time_T, kind_M[used], box_TM4[:, used], visible_TM[:, used])


def _seen(piece: Piece, out_THW3: np.ndarray, random: Generator, alone: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draws a piece, and says where its objects are: pixels of `out` [T, N, 4], visible shares [T, N]."""
    frames, high, wide, _ = out_THW3.shape
    tall, broad, _ = piece.picture_T[0].shape
    source = np.array([broad, tall], np.float64)
    cell = np.array([wide, high], np.float64)
    stretch = np.exp(random.uniform(-0.15, 0.15) * np.array([1, -1]))
    low, most = (0.7, 2.2) if alone else (0.8, 1.6)
    zoom = float(np.exp(random.uniform(np.log(low), np.log(most))))
    scale_2 = (cell / source).max() * zoom * stretch
    moving = piece.still or random.random() < 0.25
    grow = float(np.exp(random.uniform(-0.2, 0.2))) if moving else 1.0
    drift_2 = random.uniform(-0.3, 0.3, 2) * cell / scale_2 if moving else np.zeros(2)
    shake = random.uniform(0.3, 1.5) if random.random() < 0.15 else 0.0

    asked = np.argwhere((piece.visible_TN > 0) & ~piece.ignored_TN)
    if len(asked) and random.random() < 0.8:  # somebody is to be in the picture
        box = piece.box_TN4[tuple(asked[random.integers(len(asked))])].astype(np.float64)
        middle_2 = (box[:2] + box[2:]) / 2 * source + random.uniform(-0.4, 0.4, 2) * cell / scale_2
    else:
        middle_2 = random.uniform(0, 1, 2) * source
    flipped = random.random() < 0.5
    fill = tuple(float(x) for x in piece.picture_T[0][::8, ::8].reshape(-1, 3).mean(0))

    boxes = piece.box_TN4 * np.tile(source, 2).astype(np.float32)
    found = np.empty_like(boxes)
    course_T = np.linspace(-0.5, 0.5, frames) if frames > 1 else np.zeros(1)
    for t, (picture, course) in enumerate(zip(piece.picture_T, course_T, strict=True)):
        scale = scale_2 * grow**course
        half = cell / scale / 2
        spare = np.abs(source / 2 - half)  # the window stays in the picture, or the picture in the window
        centre = (middle_2 + drift_2 * course - source / 2).clip(-spare, spare) + source / 2
        centre = centre + shake * random.standard_normal(2)
        across = -scale[0] if flipped else scale[0]
        shift = cell / 2 - np.array([across, scale[1]]) * centre
        _draw(picture, out_THW3[t], across, scale[1], shift, fill)
        found[t] = boxes[t] * np.array([across, scale[1]] * 2) + np.tile(shift, 2)
    if flipped:
        found = found[..., [2, 1, 0, 3]]
    inside = found.clip(0, np.tile(cell, 2)).astype(np.float32)
    share = (inside[..., 2:] - inside[..., :2]).prod(-1) / (found[..., 2:] - found[..., :2]).prod(-1).clip(min=1e-6)
    visible = (piece.visible_TN * share).astype(np.float32)
    tiny = (inside[..., 2:] - inside[..., :2]).min(-1) < LEAST
    doubtful = (piece.ignored_TN | tiny) & (visible > 0)
    return inside, np.where(doubtful, np.float32(BARELY), visible)


def _draw(
    picture: np.ndarray, out_HW3: np.ndarray, across: float, down: float, shift: np.ndarray, fill: tuple[float, ...]
) -> None:
    """Pixel (x, y) goes to (across x + shift, down y + shift)."""
    while min(abs(across), down) < 0.6 and min(picture.shape[:2]) > 16:
        tall, broad = picture.shape[:2]
        picture = cv2.resize(picture, (broad // 2, tall // 2), interpolation=cv2.INTER_AREA)
        across, down = across * broad / (broad // 2), down * tall / (tall // 2)
    # pixels' centres lie at halves
    matrix = np.array([[across, 0, shift[0] + across / 2 - 0.5], [0, down, shift[1] + down / 2 - 0.5]])
    high, wide, _ = out_HW3.shape
    out_HW3[:] = cv2.warpAffine(picture, matrix, (wide, high), flags=cv2.INTER_LINEAR, borderValue=fill)


def _pillar(frame_THW3: np.ndarray, box_TM4: np.ndarray, visible_TM: np.ndarray, random: Generator) -> np.ndarray:
    """Something upright in front of everything, and what is visible beside it."""
    _, high, wide, _ = frame_THW3.shape
    x0 = random.uniform(0, 0.95) * wide
    x1 = x0 + random.uniform(0.02, 0.1) * wide
    y0 = random.uniform(-0.5, 0.5) * high
    y1 = y0 + random.uniform(0.5, 1.5) * high
    colour = random.integers(0, 255, 3).astype(np.uint8)
    left, right, top, bottom = (round(x) for x in (x0, min(x1, wide), max(y0, 0), min(y1, high)))
    shade = np.linspace(0.6, 1.2, right - left)[None, :, None] * colour
    frame_THW3[:, top:bottom, left:right] = shade.clip(0, 255).astype(np.uint8)
    hidden = np.array([left, top, right, bottom], np.float32)
    low, most = np.maximum(box_TM4[..., :2], hidden[:2]), np.minimum(box_TM4[..., 2:], hidden[2:])
    covered = (most - low).clip(min=0).prod(-1) / (box_TM4[..., 2:] - box_TM4[..., :2]).prod(-1).clip(min=1e-6)
    left_over = (1 - covered).clip(0, 1).astype(np.float32)
    return np.where(visible_TM > BARELY, visible_TM * left_over, visible_TM)


def _look(frame_THW3: np.ndarray, random: Generator) -> None:
    """Light, colours, sharpness, noise and compression, in place: mostly alike in all frames, as of one camera."""
    frames, high, wide, _ = frame_THW3.shape
    grey = np.full((3, 3), [0.299, 0.587, 0.114])
    colourful = 0.0 if random.random() < 0.1 else random.uniform(0.4, 1.4)
    colours = colourful * np.eye(3) + (1 - colourful) * grey
    colours = colours * np.exp(random.normal(0, 0.06, (3, 1))) * np.exp(random.normal(0, 0.2))
    dark = random.uniform(-25, 15)
    table = (255 * np.linspace(0, 1, 256) ** np.exp(random.normal(0, 0.2))).round().clip(0, 255).astype(np.uint8)
    change_T = np.exp(random.normal(0, 0.15) * np.linspace(-1, 1, frames) * (random.random() < 0.3))
    change_T = change_T * np.exp(random.normal(0, 0.03, frames) * (random.random() < 0.2))
    coarse = random.uniform(0.4, 0.9) if random.random() < 0.25 else None
    blur = random.uniform(0.5, 1.5) if random.random() < 0.2 else None
    noise = random.uniform(2, 12) if random.random() < 0.4 else None
    quality = int(random.integers(25, 85)) if random.random() < 0.4 else None
    grain = None
    if noise is not None:
        grain = (noise * random.standard_normal((high + 32, wide + 32, 3), np.float32)).astype(np.int16)
    for t in range(frames):
        frame = frame_THW3[t]
        if coarse is not None:
            small = cv2.resize(frame, None, fx=coarse, fy=coarse, interpolation=cv2.INTER_AREA)
            frame = cv2.resize(small, (wide, high), interpolation=cv2.INTER_LINEAR)
        if blur is not None:
            frame = cv2.GaussianBlur(frame, (0, 0), blur)
        frame = cv2.transform(frame, np.c_[colours * change_T[t], np.full(3, dark)])
        frame = cv2.LUT(frame, table)
        if grain is not None:
            y, x = random.integers(32, size=2)
            frame = cv2.add(frame, grain[y : y + high, x : x + wide], dtype=cv2.CV_8U)
        if quality is not None:
            _, packed = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
            frame = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        frame_THW3[t] = frame
