"""The camera's pictures of an hour, one after the other, each with its truth.

Shapes: H, W picture; N objects of a frame; A attributes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
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


@dataclass
class _Body:
    """One object in a pose: all that does not change until it moves.

    Attributes:
        near: whether it may be in the picture. shape, shadow, mirror: made when they are needed.
    """

    pose: tuple[float, ...]
    mesh: Mesh
    place: np.ndarray
    near: bool
    shape: paint.Shape | None = None
    shadow: list[tuple[np.ndarray, int]] | None = None
    mirror: list[tuple[np.ndarray, list[float]]] | None = None


class Painter:
    """Looks at a story: `frame` gives what the camera shows at a moment, in any order of moments.

    Args:
        size: W, H of the picture.
    """

    def __init__(self, told: Story, size: Size) -> None:
        self.told, self.size = told, size
        rng = np.random.default_rng([told.seed, 3])
        self.light = paint.light(rng)
        self.background = paint.background(told.layout, self.light, rng)
        furniture = paint.furniture(told.layout, told.decoys, rng)
        self.static = paint.shapes([furniture], told.layout.camera, self.light)[0].faces
        self.kept: dict[int, _Body] = {}
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
        """The picture before it is coded, and its truth."""
        shown, number, static = self._look(second)
        standing = [body for track, body in shown if not (track.kind == PALLET and track.now("slot", second))]
        picture = self._floor(standing)
        parts = [(paint.STATIC, one) for one in static]
        parts += [(k + 1, body.shape.faces) for k, (_, body) in enumerate(shown) if body.shape is not None]
        paint.draw(picture, number, parts)
        return self.develop(picture, index, second), self._truth(index, second, shown, number)

    def truth(self, index: int, second: float) -> FrameTruth:
        """The same without the picture."""
        shown, number, static = self._look(second)
        parts = [(paint.STATIC, one) for one in static]
        parts += [(k + 1, body.shape.faces) for k, (_, body) in enumerate(shown) if body.shape is not None]
        paint.draw(None, number, parts)
        return self._truth(index, second, shown, number)

    def _look(self, second: float) -> tuple[list[tuple[Track, _Body]], np.ndarray, list[paint.Faces]]:
        """Objects of which some part is within the picture's edges, an empty half picture, and faces of what else is
        there."""
        camera, (width, height) = self.told.layout.camera, self.size
        found: list[tuple[Track, _Body]] = []
        for track in self.told.tracks:
            if track.key[0][0] <= second <= track.time + 1 and track.now("there", second):
                body = self.body(track, second)
                if body.near:
                    found.append((track, body))
        self.kept = {track.identity: body for track, body in found}
        new = [body for _, body in found if body.shape is None]
        for body, shape in zip(new, paint.shapes([body.mesh for body in new], camera, self.light), strict=True):
            body.shape = shape
        shown = [(t, b) for t, b in found if b.shape and _overlaps(b.shape.outline_4, width, height)]
        dropped = [
            meshes.carton().moved(x + 0.5 * math.sin(h), y + 0.5 * math.cos(h), 0, h)
            for track, body in shown
            if track.kind == PERSON and track.now("dropped", second)
            for x, y, h in [(*body.place.tolist(), body.pose[2])]
        ]
        static = [self.static, *(shape.faces for shape in paint.shapes(dropped, camera, self.light))]
        return shown, np.zeros((height // 2, width // 2), np.uint8), static

    def _floor(self, standing: list[_Body]) -> np.ndarray:
        """The empty hall with the shadows of bodies, and their mirror pictures if its floor shines."""
        camera, (width, height) = self.told.layout.camera, self.size
        for body in standing:
            if body.shadow is None:
                body.shadow = paint.shadow_outlines(body.mesh, camera, self.light)
        shadow = paint.shadows((height, width), [one for body in standing for one in body.shadow or ()])
        picture = cv2.multiply(self.background, cv2.merge([shadow] * 3), scale=1 / 255, dtype=cv2.CV_8U)
        if self.light.gloss:
            over = picture.copy()
            for body in standing:
                if body.mirror is None:
                    body.mirror = paint.mirror_outlines(body.mesh, camera)
                for hull, colour in body.mirror:
                    cv2.fillConvexPoly(over, hull, colour, cv2.LINE_AA, 4)
            over = cv2.blur(over, (5, 5))
            cv2.addWeighted(over, self.light.gloss, picture, 1 - self.light.gloss, 0, picture)
        return picture

    def _truth(self, index: int, second: float, shown: list[tuple[Track, _Body]], number_HW: np.ndarray) -> FrameTruth:
        width, height = self.size
        shapes = [body.shape for _, body in shown if body.shape is not None]
        count = np.bincount(number_HW.ravel(), minlength=len(shown) + 1)[1:]
        for shape in shapes:
            shape.area = paint.extent(shape.faces) if shape.area is None else shape.area
        area = [max(shape.area or 0.0, 1.0) for shape in shapes]
        visible = np.minimum(count / np.array(area), 1.0) if area else np.zeros(0)
        box = np.array([shape.outline_4 for shape in shapes]).reshape(-1, 4)
        box = np.clip(box, 0, np.array([width, height, width, height]))
        taken = {int(track.now("slot", second)) for track in self.pallets if track.now("there", second)}
        slots = {slot.name: k + 1 in taken for k, slot in enumerate(self.told.layout.slots)}
        return FrameTruth(
            index, self.told.begins + second, second, self.size, box.astype(np.float32), visible.astype(np.float32),
            np.array([t.kind for t, _ in shown], np.int64), np.array([t.identity for t, _ in shown], np.int64),
            np.array([self.attributes(t, second) for t, _ in shown], np.float32).reshape(-1, len(ATTRIBUTES)),
            np.array([b.place for _, b in shown], np.float32).reshape(-1, 2), slots, self.boxes, number_HW,
        )  # fmt: skip

    def attributes(self, track: Track, second: float) -> list[float]:
        names = {PERSON: ("helmet", "vest", "carrying", "lying"), FORKLIFT: ("loaded",), CART: ("loaded",), PALLET: ()}
        return [float(track.now(a, second) > 0) if a in names[track.kind] else math.nan for a in ATTRIBUTES]

    def body(self, track: Track, second: float) -> _Body:
        """The object in the world; the one from before if it has not moved."""
        x, y, heading, way = track.spot(second)

        def on(name: str) -> bool:
            return track.now(name, second) > 0

        if track.kind == FORKLIFT:
            lift = track.now("lift", second)
            pose = (x, y, heading, lift)
            make = lambda: _forklift(self.trucks[track.seed % len(self.trucks)], lift).moved(x, y, 0, heading)  # noqa: E731
        elif track.kind == PALLET:
            z = track.now("z", second)
            pose = (x, y, heading, z)
            make = lambda: _pallet(track.seed).moved(x, y, z, heading)  # noqa: E731
        elif track.kind == CART:
            loaded = on("loaded")
            pose = (x, y, heading)
            make = lambda: _cart(track.seed, loaded).moved(x, y, 0, heading)  # noqa: E731
        else:
            pose, make = self._person(track, second, on, (x, y, heading, way))
        kept = self.kept.get(track.identity)
        if kept is not None and kept.pose == pose:
            return kept
        mesh, (width, height) = make(), self.size
        pixel, depth = self.told.layout.camera.project(mesh.corner_V3.mean(0)[None])
        (across, down), far = pixel[0], depth[0]
        near = bool(far > NEAREST_M and abs(across / width - 0.5) < 0.9 and abs(down / height - 0.5) < 1.1)
        return _Body(pose, mesh, np.array([x, y]), near)

    def _person(
        self, track: Track, second: float, on: Callable[[str], bool], spot: tuple[float, float, float, float]
    ) -> tuple[tuple[float, ...], Callable[[], Mesh]]:
        look, (x, y, heading, way) = track.looks, spot
        assert look is not None
        seated = on("driver")
        walks = not seated and track.spot(second + 0.15)[3] - track.spot(second - 0.15)[3] > 0.06
        steps = round(way / STEP_M * 16) % 16 if walks else 0
        states = tuple(on(name) for name in ("helmet", "vest", "carrying", "pushing", "helmet_in_hand", "crouch"))
        tilt, z = 0.0, 0.32 if seated else 0.0
        if on("lying"):
            since = max(t for t, v in track.state["lying"] if v and t <= second)
            tilt, z = math.pi / 2 * min((second - since) / 0.6, 1.0), 0.14
        # Turned about the feet, then shifted so that the middle of the body comes to lie where the feet were.
        ahead = 0.8 * math.sin(tilt)
        at = (x - ahead * math.sin(heading), y - ahead * math.cos(heading), z, heading, tilt)
        pose = (x, y, heading, tilt, steps, *map(float, states))
        return pose, lambda: _person(look, steps, walks, seated, *states).moved(*at)

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
def _painter(seed: int, size: Size) -> Painter:
    return Painter(story(seed, size), size)


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


@lru_cache(64)
def _forklift(colour: meshes.Colour, lift: float) -> Mesh:
    return meshes.forklift(colour, lift, None)


@lru_cache(256)
def _pallet(seed: int) -> Mesh:
    return meshes.pallet(np.random.default_rng(seed))


@lru_cache(64)
def _cart(seed: int, loaded: bool) -> Mesh:
    tone = ((60, 90, 150), (150, 60, 50), (70, 74, 80))[seed % 3]
    return meshes.cart(tone, loaded)
