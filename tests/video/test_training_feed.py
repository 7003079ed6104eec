"""Which clips a step gets, and how well tracks are followed."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.video.scenes.clips import Clips
from stille.video.training import VideoTrainConfig
from stille.video.training.feed import POOL, Feed, Phase, joined, mirrored, tinted
from stille.video.training.hota import hota
from tests.video.painted import painted

SIZE = (64, 32)


def same(a: Clips, b: Clips) -> bool:
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(Clips))
    return all(torch.allclose(x.double(), y.double(), equal_nan=True) for x, y in pairs)


def test_a_mirrored_clip_is_the_same_after_twice_and_shows_the_same_pixels_in_its_boxes():
    clips = painted(3, 2, 2, size=SIZE)
    turned = mirrored(clips)
    assert same(mirrored(turned), clips)
    assert not same(turned, clips)
    for m in range(3):
        for each in (clips, turned):
            x0, y0, x1, y1 = (each.box_BTM4[0, 0, m] * torch.tensor(SIZE * 2)).round().int().tolist()
            piece = each.frame_BTHW3[0, 0, y0:y1, x0:x1]
            if each is clips:
                before = piece
        assert torch.equal(before.flip(1), piece)
    empty = replace(clips, box_BTM4=torch.zeros_like(clips.box_BTM4))
    assert not mirrored(empty).box_BTM4.any()  # what is not there stays nowhere


def test_clips_with_other_places_are_joined():
    a, b = painted(1, 2, 3, size=SIZE, objects=2), painted(2, 1, 3, size=SIZE, objects=5)
    both = joined(a, replace(b, slot_BS4=b.slot_BS4[:, :0], occupied_BTS=b.occupied_BTS[:, :, :0]))
    assert both.kind_BM[:2, 2:].eq(-1).all()
    assert both.attribute_BTMA[:2, :, 2:].isnan().all()
    assert both.occupied_BTS[2].isnan().all()
    assert torch.equal(both.box_BTM4[:2, :, :2], a.box_BTM4)
    assert torch.equal(both.kind_BM[2:], b.kind_BM)


def feed(asked: list[int], repeats: int = 2, share: float = 0.0) -> Feed:
    def source(seed: int, clips: int, frames: int) -> Clips:
        asked.append(seed)
        return painted(seed, clips, frames, size=SIZE)

    config = VideoTrainConfig(steps=1, repeats=repeats, recordings_share=share)
    return Feed(
        source, (lambda s, n, t: painted(s + 77, n, t, size=SIZE)) if share else None, config, torch.device("cpu")
    )


def test_each_clip_is_rendered_once_and_shown_again_otherwise():
    asked: list[int] = []
    fed, phase = feed(asked), Phase(2, 1)
    shown = [fed.take(step, phase) for step in range(4 * POOL)]
    assert asked == list(range(2 * POOL))
    for first in range(POOL):
        one, two = shown[first], shown[first + POOL]
        assert torch.equal(mirrored(one).box_BTM4, two.box_BTM4)
        assert not torch.equal(mirrored(one).frame_BTHW3, two.frame_BTHW3)
    late = feed([])
    assert same(late.take(POOL + 3, phase), shown[POOL + 3])  # as if it had been there from the beginning


def test_recordings_take_their_share():
    fed = feed([], share=0.25)
    clips = fed.take(5, Phase(8, 2))
    assert clips.shape[:2] == (8, 2)
    assert torch.equal(clips.frame_BTHW3[6:], painted(5 + 77, 2, 2, size=SIZE).frame_BTHW3)
    assert torch.equal(clips.frame_BTHW3[:6], painted(5, 6, 2, size=SIZE).frame_BTHW3)
    fed.close()


def test_tints_keep_pictures_alike():
    clips = painted(3, 4, 1, size=SIZE)
    other = tinted(clips, torch.Generator().manual_seed(1)).frame_BTHW3
    assert 2 < (other.float() - clips.frame_BTHW3.float()).abs().mean() < 40


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_hota_is_that_of_trackeval(seed):
    trackeval = pytest.importorskip("trackeval")
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(int(random.integers(1, 8))):
        objects = random.permutation(5)[: random.integers(0, 6)]
        names = random.permutation(6)[: random.integers(0, 7)]
        frames.append((objects, names, random.random((len(objects), len(names))) ** 0.5))
    who, names = (np.unique(np.concatenate([f[i] for f in frames])) for i in (0, 1))
    data = {
        "num_timesteps": len(frames), "num_gt_ids": len(who), "num_tracker_ids": len(names),
        "num_gt_dets": sum(len(f[0]) for f in frames), "num_tracker_dets": sum(len(f[1]) for f in frames),
        "gt_ids": [np.searchsorted(who, f[0]) for f in frames],
        "tracker_ids": [np.searchsorted(names, f[1]) for f in frames],
        "similarity_scores": [f[2] for f in frames],
    }  # fmt: skip
    if len(who) and len(names):
        expected = trackeval.metrics.HOTA().eval_sequence(data)["HOTA"].mean()
        assert hota(frames) == pytest.approx(expected, abs=1e-9)
    else:
        assert hota(frames) == float(len(who) == len(names))
