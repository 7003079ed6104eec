"""Pictures of any size on their way into the model, and boxes on their way back."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.video.model import TINY, StilleCam
from stille.video.model.pictures import GREY, fitted, letterboxed, to_network, to_picture
from stille.video.types import Frame
from tests.video.painted import awake

CPU = torch.device("cpu")
SMALL = replace(
    TINY, width=96, height=64, widths=(8, 16, 24, 32, 48), layers=2, queries=20, carried=10, pooled_side=2, words=14,
    object_frames=3, long_tokens=256, leaf=4, keep=3, carry=0.05, shown=0.05, born=0.05,
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(40, 900), st.integers(40, 900)), st.sampled_from([(640, 352), (448, 256)]), st.data())
def test_what_is_painted_comes_back_in_the_pictures_own_pixels(size, whole, data):
    wide, high = size
    x0, y0 = (data.draw(st.integers(0, side // 2)) for side in size)
    x1, y1 = (data.draw(st.integers(low + side // 3, side)) for low, side in ((x0, wide), (y0, high)))
    image = np.zeros((high, wide, 3), np.uint8)
    image[y0:y1, x0:x1, 0] = 255
    fit = fitted(size, whole)
    picture = letterboxed([image], [fit], CPU)[0]
    assert picture.shape == (whole[1], whole[0], 3)
    border = torch.ones(picture.shape[:2], dtype=torch.bool)
    border[fit.top : fit.top + fit.high, fit.left : fit.left + fit.wide] = False
    assert (picture[border] == GREY).all()
    scale = fit.wide / wide, fit.high / high
    assert abs(scale[0] / scale[1] - 1) < 1 / 32 + 1 / min(fit.wide, fit.high)
    red = (picture[..., 0] >= 128) & (picture[..., 1] < 64)
    rows, columns = red.any(1).nonzero(), red.any(0).nonzero()
    found = torch.tensor([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]) / torch.tensor([*whole, *whole])
    box = to_picture(found, fit.inside)[0] * torch.tensor([wide, high, wide, high])
    near = torch.tensor([1 / scale[0], 1 / scale[1]] * 2).clamp(min=1) * 1.01
    assert ((box - torch.tensor([x0, y0, x1, y1])).abs() <= near).all()
    torch.testing.assert_close(to_network(to_picture(found, fit.inside), fit.inside), found)


def noise(seed: int, width: int, height: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_narrow_picture_is_seen_as_the_same_with_its_border():
    bare, framed = (StilleCam(awake(SMALL, 3), dtype=torch.float32) for _ in range(2))
    bare.watch_slots("gate", {"A": (0.25, 0.25, 0.75, 0.5)})
    framed.watch_slots("gate", {"A": (16 / 96 + 0.25 * 64 / 96, 0.25, 16 / 96 + 0.75 * 64 / 96, 0.5)})
    some = 0
    for i in range(4):
        image = np.roll(noise(0, 64, 64), 3 * i, 1)
        wider = np.pad(image, ((0, 0), (16, 16), (0, 0)), constant_values=GREY)
        a = bare.see([Frame("gate", i, 1.7e9 + i / 5, 0.0, torch.from_numpy(image))])[0]  # pyright: ignore
        b = framed.see([Frame("gate", i, 1.7e9 + i / 5, 0.0, wider)])[0]
        box = (b.box_N4 - [16, 0, 16, 0]).clip(0, 64)
        inside = (box[:, 2:] > box[:, :2]).all(1)
        np.testing.assert_allclose(a.box_N4, box[inside], atol=2e-2)
        np.testing.assert_array_equal(a.identity_N, b.identity_N[inside])
        np.testing.assert_allclose(a.slots["A"], b.slots["A"], atol=1e-4)
        some += len(a)
    assert some > 8


def test_carried_objects_stay_where_they_are_in_a_picture_whose_aspect_changes():
    cam = StilleCam(awake(SMALL, 3), dtype=torch.float32)
    for i in range(3):
        cam.see([Frame("gate", i, 1.7e9 + i / 5, 0.0, noise(i, 64, 64))])
    state = cam.state("gate")
    by_hand = {name: x.clone() for name, x in state.items()}
    by_hand["inside_4"] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    centre, width = state["box_RK4"][:, 0], state["box_RK4"][:, 2]
    by_hand["box_RK4"][:, 0], by_hand["box_RK4"][:, 2] = (centre * 96 - 16) / 64, width * 96 / 64
    frame = Frame("gate", 3, 1.7e9 + 0.6, 0.0, noise(3, 192, 128))
    seen = []
    for held in (state, by_hand, {**by_hand, "box_RK4": state["box_RK4"]}):
        other = StilleCam(awake(SMALL, 3), dtype=torch.float32)
        other.set_state("gate", held)
        seen.append(other.see([frame])[0])
        assert other.state("gate")["inside_4"].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert len(seen[0]) > 3
    np.testing.assert_allclose(seen[0].box_N4, seen[1].box_N4, atol=1e-2)
    np.testing.assert_array_equal(seen[0].identity_N, seen[1].identity_N)
    assert seen[1].box_N4.shape != seen[2].box_N4.shape or abs(seen[1].box_N4 - seen[2].box_N4).max() > 1
