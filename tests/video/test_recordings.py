"""Clips from labelled recordings: what of a folder is asked for, that boxes follow their objects, bad input."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.video.training.losses import Truth
from stille.video.training.recording_files import read_recording
from stille.video.training.recordings import Recordings, sample_frames

SIZE = (160, 96)
RED, BLUE = (220, 20, 20), (20, 20, 220)


def film(count: int, size: tuple[int, int] = (200, 120)) -> tuple[list[np.ndarray], list[str]]:
    """Grey pictures with a red square that goes right and a blue one that goes down, and their labels."""
    frames, lines = [], []
    for n in range(count):
        image = np.full((size[1], size[0], 3), 120, np.uint8)
        for who, colour, (x, y) in ((7, RED, (20 + 4 * n, 30)), (9, BLUE, (120, 10 + 2 * n))):
            image[y : y + 40, x : x + 24] = colour
            lines.append(f"{n + 1},{who},{x},{y},24,40,1,1,1")
        frames.append(image)
    return frames, lines


def put(folder: Path, frames: list[np.ndarray], lines: list[str], about: str = "") -> Path:
    (folder / "frames").mkdir(parents=True)
    for n, image in enumerate(frames):
        cv2.imwrite(str(folder / "frames" / f"{n}.png"), image[..., ::-1])
    (folder / "gt.txt").write_text("\n".join(lines) + "\n")
    if about:
        (folder / "recording.yaml").write_text(about)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Recordings:
    folder = tmp_path_factory.mktemp("recordings")
    put(folder / "a", *film(20), about="fps: 8\nlicence: CC0\n")
    put(folder / "b", *film(3), about="stills: true\n")
    put(folder / "c", *film(5))
    put(folder / "d", *film(9), about="weight: 3\n")
    return Recordings(folder, SIZE)


@settings(max_examples=12)
@given(seed=st.integers(0, 2**50), frames=st.integers(1, 9))
def test_boxes_are_where_the_objects_are_and_a_place_is_one_object(source, seed, frames):
    clips = source(seed, 2, frames)
    assert clips.frame_BTHW3.shape == (2, frames, SIZE[1], SIZE[0], 3)
    assert clips.frame_BTHW3.dtype == torch.uint8
    assert bool((clips.time_BT[:, 1:] > clips.time_BT[:, :-1]).all())
    assert clips.time_BT[:, 0].eq(0).all()
    assert clips.attribute_BTMA.isnan().all()
    assert clips.slot_BS4.shape == (2, 0, 4)
    gone = clips.visible_BTM == 0
    assert bool((clips.box_BTM4[gone] == 0).all())
    assert bool((clips.box_BTM4 >= 0).all() and (clips.box_BTM4 <= 1).all())
    assert not bool(((clips.kind_BM < 0)[:, None] & ~gone).any())
    hues = {}
    scale = torch.tensor(SIZE * 2)
    for b, t, m in (clips.visible_BTM > 0.8).nonzero().tolist():
        x0, y0, x1, y1 = (clips.box_BTM4[b, t, m] * scale).tolist()
        if min(x1 - x0, y1 - y0) < 14:
            continue
        inner = clips.frame_BTHW3[b, t, round(y0 + 4) : round(y1 - 4), round(x0 + 4) : round(x1 - 4)].float()
        around = clips.frame_BTHW3[b, t].float().mean((0, 1))
        red, _, blue = (inner.median(1).values.median(0).values - around).tolist()
        if abs(red - blue) > 60:  # not in a grey clip, nor behind a pillar, nor where both overlap
            hues.setdefault((b, m), []).append(red > blue)
    for seen in hues.values():
        assert sum(seen) <= 0.35 * len(seen) or sum(seen) >= 0.65 * len(seen)


def test_the_same_seed_gives_the_same_clips_whatever_else_is_asked_for(source):
    few, many, other = source(3, 2, 4), source(3, 3, 4), source(4, 2, 4)
    assert torch.equal(few.frame_BTHW3, many.frame_BTHW3[:2])
    assert torch.equal(few.time_BT, many.time_BT[:2])
    assert not torch.equal(few.frame_BTHW3, other.frame_BTHW3)


def test_pictures_that_do_not_fit_into_memory_give_the_same_clips(source, tmp_path):
    put(tmp_path / "a", *film(12))
    held, packed = Recordings(tmp_path, SIZE), Recordings(tmp_path, SIZE, memory=0)
    assert isinstance(held.recordings[0].picture_F[0], np.ndarray)
    assert isinstance(packed.recordings[0].picture_F[0], bytes)
    assert torch.equal(held(1, 1, 3).frame_BTHW3, packed(1, 1, 3).frame_BTHW3)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999), frames=st.integers(1, 40), count=st.integers(2, 60), rate=st.floats(0.5, 60),
    share=st.floats(0, 1),
)  # fmt: skip
def test_a_stretch_of_frames_holds_its_anchor_and_stays_in_the_recording(seed, frames, count, rate, share):
    anchor = round(share * (count - 1))
    index_T, time_T = sample_frames(np.random.default_rng(seed), frames, count, rate, anchor)
    assert anchor in index_T
    assert index_T.min() >= 0
    assert index_T.max() < count
    assert time_T[0] == 0
    steps = np.diff(time_T)
    assert (steps > 0).all()
    assert (np.abs(np.diff(index_T)) <= np.round(steps * rate)).all()


def test_doubtful_boxes_are_neither_asked_for_nor_forbidden(tmp_path):
    lines = [
        "1,1,10,10,30,60,1,1,1",
        "1,2,50,10,30,60,0.3,1,1",  # not sure
        "1,-1,90,10,30,60,0.9,1,1",  # nobody in particular
        "1,3,130,10,30,60,1,2,1",  # a forklift, and not all of them are labelled
        "1,4,170,10,20,60,1,3,1",  # a car is background
        "1,5,10,80,30,30,1,4,1",  # "ignore"
        "1,6,60,80,30,30",
        "1,8,100,80,30,30,1,1,0",  # hidden
    ]
    put(tmp_path / "a", film(2)[0], lines, "classes: {1: person, 2: forklift, 3: car, 4: ignore}\nlabelled: [person]\n")
    found = read_recording(tmp_path / "a")
    assert len(found) == 1  # of the second one nothing is known
    asked = (found.visible_FN > 0) & ~found.ignored_FN
    assert asked.sum() == 2
    assert ((found.visible_FN > 0) & found.ignored_FN).sum() == 4
    np.testing.assert_allclose(found.box_FN4[0, 0], [0.05, 10 / 120, 0.2, 70 / 120], atol=1e-6)
    source = Recordings(tmp_path, SIZE)
    for seed in range(6):
        truth = Truth.of(source(seed, 1, 2), visible=0.15)
        assert not bool((truth.present_BTM & truth.ignored_BTM).any())
    assert truth.ignored_BTM.any()


def test_a_recording_in_which_nothing_was_found_is_background(tmp_path):
    put(tmp_path / "a", film(4)[0], [])
    put(tmp_path / "b", film(4)[0], [], "frames: 3\n")
    assert [len(read_recording(tmp_path / name)) for name in "ab"] == [4, 3]
    clips = Recordings(tmp_path, SIZE)(1, 2, 2)
    assert not bool((clips.visible_BTM > 0).any())


def test_a_video_is_read_at_a_rate_that_training_can_use(tmp_path):
    frames, lines = film(30, (800, 480))
    (tmp_path / "a").mkdir()
    with av.open(str(tmp_path / "a" / "x.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 800, 480, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    (tmp_path / "a" / "gt.txt").write_text("\n".join(lines))
    found = read_recording(tmp_path / "a")
    assert (len(found), found.rate) == (15, 15)
    assert found.picture(0).shape == (384, 640, 3)
    np.testing.assert_allclose(found.box_FN4[3, 0] * [800, 480, 800, 480], [44, 30, 68, 70], atol=1e-3)
    red = found.picture(3)[round(0.8 * 50), round(0.8 * 56)]
    assert red[0] > red[2] + 100


@pytest.mark.parametrize(
    ("lines", "about", "said"),
    [
        (["1,1,10,10,0,5"], "", "gt.txt:1"),
        (["1,1,10,10,5,5", "1,1,20,10,5,5"], "", "identity 1 twice in frame 1"),
        (["x"], "", "expected frame from 1"),
        (["9,1,10,10,5,5"], "", "frame 9"),
        (["1,1,10,10,5,5"], "fps: -1", "recording.yaml"),
        (["1,1,10,10,5,5"], "labelled: [ghost]", "ghost"),
        (["1,1,10,10,5,5"], "colour: red", "colour"),
    ],
)
def test_what_is_wrong_in_a_recording_is_told(tmp_path, lines, about, said):
    put(tmp_path / "a", film(2)[0], lines, about)
    with pytest.raises(ConfigError, match=said):
        Recordings(tmp_path, SIZE)


def test_folders_without_recordings_pictures_or_sense(tmp_path, source):
    with pytest.raises(ConfigError, match="holds no recording"):
        Recordings(tmp_path / "nothing", SIZE)
    put(tmp_path / "a", [], ["1,1,10,10,5,5"])
    with pytest.raises(ConfigError, match="0 pictures and 0 videos"):
        Recordings(tmp_path, SIZE)
    (tmp_path / "a" / "frames" / "1.png").write_bytes(b"none")
    with pytest.raises(ConfigError, match="no picture"):
        Recordings(tmp_path, SIZE)
    with pytest.raises(ConfigError, match="1 or more"):
        source(0, 0, 4)
