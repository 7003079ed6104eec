"""The camera's pictures of an hour, one after the other, each with its truth.

Shapes: H, W picture; N objects of a frame; A attributes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from stille.errors import ConfigError
from stille.evals.warehouse import meshes, paint
from stille.evals.warehouse.codec import Recoder
from stille.evals.warehouse.layout import Size
from stille.evals.warehouse.meshes import Looks, Mesh
from stille.evals.warehouse.story import Story, story
from stille.evals.warehouse.tracks import STEP_M, Track
from stille.evals.warehouse.yard import CART, FORKLIFT, HOUR, PALLET, PERSON

ATTRIBUTES = ("helmet", "vest", "carrying", "loaded", "lying")
NEAREST_M = 1.0
"""Metres ahead of the lens from which on bodies are painted."""
DARK_S = 30.0
"""So long after the shift's end the lights go out but for some."""


@dataclass(frozen=True, slots=True)
class FrameTruth:
    """What a frame shows: N objects of which some part is within the picture's edges, hidden or not.

    Attributes:
        index: of the frame. time: seconds since 1970; second: since the hour's beginning.
        size: W, H.
        box_N4: float32 pixels, of the whole object, hidden parts included, cut at the picture's edge.
        visible_N: float32, share of the object's outline (beyond the edge as well) that is seen; 0 if it is hidden.
        kind_N, identity_N: int64.
        attribute_NA: float32, 1, 0 or nan where it does not apply.
        place_N2: float32, on the floor, metres.
        slots: by name, whether a pallet stands in it. slot_boxes: by name, in 0..1 of the picture.
        number_HW: uint8, at half size, who is seen where: 1 + place in the arrays above, 0 nobody.
    """

    index: int
    time: float
    second: float
    size: Size
    box_N4: np.ndarray
    visible_N: np.ndarray
    kind_N: np.ndarray
    identity_N: np.ndarray
    attribute_NA: np.ndarray
    place_N2: np.ndarray
    slots: Mapping[str, bool]
    slot_boxes: Mapping[str, tuple[float, float, float, float]]
    number_HW: np.ndarray


def warehouse(
    seed: int,
    frames: int,
    rate: float = 5.0,
    size: Size = (640, 352),
    start: float = 0.0,
    coded: bool = True,
) -> Iterator[tuple[np.ndarray, FrameTruth]]:
    """Frames of a seed's hour: uint8 RGB [H, W, 3] and the truth. The same arguments give the same frames.

    Args:
        start: seconds into the hour of the first frame.
        coded: send them through H.264.

    Raises:
        ConfigError: more than an hour, or a size that H.264 does not take.
    """
    if frames < 0 or rate <= 0 or start < 0 or start + (frames - 1) / rate >= HOUR:
        raise ConfigError(f"got {frames} frames at {rate:g}/s from {start:g} s on, expected them within one hour")
    if size[0] % 2 or size[1] % 2 or min(size) < 64:
        raise ConfigError(f"got a picture of {size[0]}x{size[1]}, expected even numbers from 64 on")
    return _stream(seed, frames, rate, size, start, coded)


def _stream(
    seed: int, frames: int, rate: float, size: Size, start: float, coded: bool
) -> Iterator[tuple[np.ndarray, FrameTruth]]:
    painter = _painter(seed, size)
    second_T = start + np.arange(frames) / rate
    if not coded:
        for index, second in enumerate(second_T.tolist()):
            yield painter.frame(index, second)
        return
    pixels = size[0] * size[1]
    bits = int(painter.quality * pixels * min(rate, 12) ** 0.6 * 0.35)
    recoder = Recoder(size, rate, bits)
    waiting: deque[FrameTruth] = deque()
    for index, second in enumerate(second_T.tolist()):
        image, truth = painter.frame(index, second)
        waiting.append(truth)
        for decoded in recoder.feed(image):
            yield decoded, waiting.popleft()
    for decoded in recoder.end():
        yield decoded, waiting.popleft()


class _Painter:
    def __init__(self, told: Story, size: Size) -> None:
        self.told, self.size = told, size
        rng = np.random.default_rng([told.seed, 3])
        self.light = paint.light(rng)
        self.background = paint.background(told.layout, self.light, rng)
        furniture = paint.furniture(told.layout, told.decoys, rng)
        self.static = paint.shapes([furniture], told.layout.camera, self.light)[0].faces
        self.kept: dict[int, tuple[tuple[float, ...], paint.Shape]] = {}
        self.pallets = [track for track in told.tracks if track.kind == PALLET]
        self.boxes = {slot.name: slot.box(told.layout.camera) for slot in told.layout.slots}
        self.trucks = [(235, 170, 30), (210, 60, 40), (70, 120, 70), (220, 220, 216), (60, 100, 170)]
        grain = rng.normal(0, float(rng.uniform(1.5, 6.0)), (size[1] * 2, size[0] * 2)).astype(np.float32)
        self.noise = cv2.merge([grain] * 3)
        self.exposure, self.blur = float(rng.uniform(0.8, 1.15)), float(rng.choice([0.0, 0.45, 0.8]))
        x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
        self.vignette = (1 - float(rng.uniform(0.05, 0.3)) * (x**2 + y**2) / 2).astype(np.float32)
        self.vignette = cv2.merge([self.vignette] * 3)
        self.quality = float(rng.choice([0.35, 0.6, 1.1]))
        self.flicker = float(rng.choice([0.0, 0.0, 0.03]))

    def frame(self, index: int, second: float) -> tuple[np.ndarray, FrameTruth]:
        camera, (width, height) = self.told.layout.camera, self.size
        found: list[tuple[Track, Mesh, np.ndarray, tuple[float, ...]]] = []
        for track in self.told.tracks:
            if track.key[0][0] <= second <= track.time + 1 and track.now("there", second):
                mesh, place, pose = self.body(track, second)
                pixel, depth = camera.project(mesh.corner_V3.mean(0)[None])
                if (
                    depth[0] > NEAREST_M
                    and abs(pixel[0, 0] / width - 0.5) < 0.9
                    and abs(pixel[0, 1] / height - 0.5) < 1.1
                ):
                    found.append((track, mesh, place, pose))
        new = [one for one in found if one[3] != self.kept.get(one[0].identity, ((), None))[0]]
        for (track, _, _, pose), shape in zip(
            new, paint.shapes([one[1] for one in new], camera, self.light), strict=True
        ):
            self.kept[track.identity] = pose, shape
        self.kept = {one[0].identity: self.kept[one[0].identity] for one in found}
        shapes = [self.kept[one[0].identity][1] for one in found]
        inside = [_overlaps(shape.outline_4, width, height) for shape in shapes]
        found = [one for one, i in zip(found, inside, strict=True) if i]
        shapes = [shape for shape, i in zip(shapes, inside, strict=True) if i]
        standing = [one[1] for one in found if not (one[0].kind == PALLET and one[0].now("slot", second))]
        shadow = paint.shadows((height, width), camera, self.light, standing)
        picture = cv2.multiply(self.background, cv2.merge([shadow] * 3), scale=1 / 255, dtype=cv2.CV_8U)
        if self.light.gloss:
            self.mirror(picture, standing)
        number = np.zeros((height // 2, width // 2), np.uint8)
        dropped = [
            meshes.carton().moved(p[0] + 0.5 * math.sin(h), p[1] + 0.5 * math.cos(h), 0, h)
            for track, _, p, (_, _, h, *_) in found
            if track.kind == PERSON and track.now("dropped", second)
        ]
        static = [self.static, *(shape.faces for shape in paint.shapes(dropped, camera, self.light))]
        paint.draw(
            picture,
            number,
            [*((paint.STATIC, one) for one in static), *((k + 1, shape.faces) for k, shape in enumerate(shapes))],
        )
        count = np.bincount(number.ravel(), minlength=len(found) + 1)[1:]
        area = []
        for shape in shapes:
            shape.area = paint.extent(shape.faces) if shape.area is None else shape.area
            area.append(max(shape.area, 1.0))
        visible = np.minimum(count / np.array(area), 1.0) if area else np.zeros(0)
        box = np.array([shape.outline_4 for shape in shapes]).reshape(-1, 4)
        box = np.clip(box, 0, np.array([width, height, width, height]))
        taken = {int(track.now("slot", second)) for track in self.pallets if track.now("there", second)}
        slots = {slot.name: k + 1 in taken for k, slot in enumerate(self.told.layout.slots)}
        truth = FrameTruth(
            index, self.told.begins + second, second, self.size, box.astype(np.float32), visible.astype(np.float32),
            np.array([t.kind for t, *_ in found], np.int64), np.array([t.identity for t, *_ in found], np.int64),
            np.array([self.attributes(t, second) for t, *_ in found], np.float32).reshape(-1, len(ATTRIBUTES)),
            np.array([p for _, _, p, _ in found], np.float32).reshape(-1, 2), slots, self.boxes, number,
        )  # fmt: skip
        return self.develop(picture, index, second), truth

    def attributes(self, track: Track, second: float) -> list[float]:
        names = {PERSON: ("helmet", "vest", "carrying", "lying"), FORKLIFT: ("loaded",), CART: ("loaded",), PALLET: ()}
        return [float(track.now(a, second) > 0) if a in names[track.kind] else math.nan for a in ATTRIBUTES]

    def body(self, track: Track, second: float) -> tuple[Mesh, np.ndarray, tuple[float, ...]]:
        """The body in the world, its place on the floor, and what decides how it looks."""
        x, y, heading, way = track.spot(second)
        place = np.array([x, y])

        def on(name: str) -> bool:
            return track.now(name, second) > 0

        if track.kind == FORKLIFT:
            colour, lift = self.trucks[track.seed % len(self.trucks)], track.now("lift", second)
            return meshes.forklift(colour, lift, None).moved(x, y, 0, heading), place, (x, y, heading, lift)
        if track.kind == PALLET:
            z = track.now("z", second)
            return _pallet(track.seed).moved(x, y, z, heading), place, (x, y, z, heading)
        if track.kind == CART:
            return _cart(track.seed, on("loaded")).moved(x, y, 0, heading), place, (x, y, heading)
        assert track.looks is not None
        seated = on("driver")
        walks = not seated and track.spot(second + 0.15)[3] - track.spot(second - 0.15)[3] > 0.06
        steps = round(way / STEP_M * 16) % 16 if walks else 0
        states = tuple(on(name) for name in ("helmet", "vest", "carrying", "pushing", "helmet_in_hand", "crouch"))
        mesh = _person(track.looks, steps, walks, seated, *states)
        tilt, z = 0.0, 0.32 if seated else 0.0
        if on("lying"):
            since = max(t for t, v in track.state["lying"] if v and t <= second)
            tilt = math.pi / 2 * min((second - since) / 0.6, 1.0)
            # Turned about the feet, then shifted so that the middle of the body comes to lie where the feet were.
            x, y, z = x - 0.8 * math.sin(tilt) * math.sin(heading), y - 0.8 * math.sin(tilt) * math.cos(heading), 0.14
        pose = (x, y, heading, tilt, steps, *map(float, states))
        return mesh.moved(x, y, z, heading, tilt), place, pose

    def mirror(self, picture: np.ndarray, bodies: list[Mesh]) -> None:
        """Faint mirror pictures on a floor that shines."""
        over, camera = picture.copy(), self.told.layout.camera
        for mesh in bodies:
            colour = (mesh.colour_F3.mean(0) * 0.8).tolist()
            for low, high in ((0.0, 0.95), (0.8, 9.0)):
                part_N3 = mesh.corner_V3[(mesh.corner_V3[:, 2] >= low) & (mesh.corner_V3[:, 2] < high)]
                pixel, depth = camera.project(part_N3 * np.array([1, 1, -1]))
                if len(part_N3) > 2 and depth.min() > paint.NEAR:
                    hull = cv2.convexHull(pixel.astype(np.float32))[:, 0]
                    cv2.fillConvexPoly(over, paint.fixed(hull), colour, cv2.LINE_AA, 4)
        over = cv2.blur(over, (5, 5))
        cv2.addWeighted(over, self.light.gloss, picture, 1 - self.light.gloss, 0, picture)

    def develop(self, picture: np.ndarray, index: int, second: float) -> np.ndarray:
        """What the sensor makes of it: blur, exposure, noise, vignette, night, the clock in the corner."""
        rng = np.random.default_rng([self.told.seed, 4, round(second * 1000)])
        if self.blur:
            picture = cv2.GaussianBlur(picture, (0, 0), self.blur)
        dark = second > self.told.closing + DARK_S
        gain = self.exposure * (0.5 if dark else 1.0) * (1 + self.flicker * math.sin(second * 9.7))
        image = cv2.multiply(picture, self.vignette, scale=gain, dtype=cv2.CV_32F)
        if dark or self.light.grey:
            grey = cv2.merge([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)] * 3)
            image = grey if self.light.grey else cv2.addWeighted(image, 0.45, grey, 0.55, 0)
        x, y = rng.integers(self.size[0]), rng.integers(self.size[1])
        noise = self.noise[y : y + self.size[1], x : x + self.size[0]]
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
        day = np.datetime64(int(self.told.begins + second), "s")
        cv2.putText(
            image, str(day).replace("T", " "), (8, self.size[1] - 8), cv2.FONT_HERSHEY_PLAIN, 0.8, (235,) * 3, 1
        )
        return image


@lru_cache(2)
def _painter(seed: int, size: Size) -> _Painter:
    return _Painter(story(seed, size), size)


def _overlaps(outline_4: np.ndarray, width: int, height: int) -> bool:
    x0, y0, x1, y1 = outline_4.tolist()
    return x1 > 1 and y1 > 1 and x0 < width - 1 and y0 < height - 1 and x0 < x1 < 1e6 and y0 < y1 < 1e6


@lru_cache(4096)
def _person(
    look: Looks, steps: int, walks: bool, seated: bool, helmet: bool, vest: bool, carrying: bool, pushing: bool,
    in_hand: bool, crouch: bool,
) -> Mesh:  # fmt: skip
    return meshes.person(
        look, steps * math.pi / 8, float(walks), helmet, vest, carrying, in_hand, float(crouch), seated, pushing
    )


@lru_cache(256)
def _pallet(seed: int) -> Mesh:
    return meshes.pallet(np.random.default_rng(seed))


@lru_cache(64)
def _cart(seed: int, loaded: bool) -> Mesh:
    tone = ((60, 90, 150), (150, 60, 50), (70, 74, 80))[seed % 3]
    return meshes.cart(tone, loaded)
