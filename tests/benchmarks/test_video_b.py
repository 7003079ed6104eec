"""The harness of generator B: it tells good perception from bad, goes on after a stop, and seals seeds by weights."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from stille.evals.events import score_events  # noqa: E402
from stille.evals.warehouse.stream import ATTRIBUTES  # noqa: E402
from stille.video.types import NOBODY, Frame, Seen  # noqa: E402
from video_sides.judge import Strictness, rules_of  # noqa: E402
from video_sides.kept import Kept, joined  # noqa: E402
from video_sides.measure import Job, Settings, judge, search, tallies, tracking_score  # noqa: E402
from video_sides.oracle import oracle  # noqa: E402
from video_sides.strong import Tracking, smoothed  # noqa: E402
from video_sides.studio import Camera, Studio  # noqa: E402
from video_sides.watch import Files, SingleFrames, progress, watch  # noqa: E402

RATE, CAMERA = 5.0, Camera(3, start=100.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """20 seconds of one camera: a run that is stopped after its first frame, and one that goes on from there."""
    folder = tmp_path_factory.mktemp("b")
    for until in (0.0, time.monotonic() + 60):
        first = progress(folder)
        with Studio([CAMERA], first, 100, RATE, 2, paint=False) as studio:
            assert watch({}, [CAMERA], studio, folder, until) == (1 if not first else 100)
    return folder


def test_a_run_that_was_stopped_goes_on_and_misses_nothing(folder):
    truth = Files(folder, CAMERA).load("truth")
    assert np.allclose(np.diff(truth.time_T), 1 / RATE)
    assert len(truth) == 100
    assert len(Files(folder, CAMERA).places()) == len(truth.score_N) == truth.count_T.sum()
    again = [replace(one, time=0.0) for one in truth.seen("b3", (640, 352), ["A1"] * truth.slot_TS.shape[1])]
    assert [len(one) for one in again] == truth.count_T.tolist()
    assert truth.only(truth.score_N > 2).count_T.sum() == 0


def test_truth_is_best_and_damage_is_worse(folder):
    pytest.importorskip("trackeval", reason="TrackEval is not installed")

    def figures(damage: float):
        judged = [judge(Job(folder, CAMERA, Settings(least=0.0), RATE, damage=damage))]
        score = tracking_score(judged)
        return score.hota, score.idf1, score_events(list(tallies(judged).values())).f1

    best, hurt = figures(0.0), figures(0.7)
    assert best[0] > 90
    assert best[1] > 97
    assert hurt[0] < 60 > hurt[1]
    assert best[2] >= hurt[2]


def test_byte_track_gives_identities_and_medians(folder):
    pytest.importorskip("trackers", reason="roboflow's trackers is not installed")
    pytest.importorskip("trackeval", reason="TrackEval is not installed")
    judged = judge(Job(folder, CAMERA, Settings(Tracking(), 0.0), RATE, damage=0.0, events=False))
    assert 70 < tracking_score([judged]).idf1 < 100
    seen = oracle(Files(folder, CAMERA).load("truth"))
    calm = smoothed(seen, 15)
    assert np.std(calm.score_N[calm.identity_N == calm.identity_N[0]]) < np.std(
        seen.score_N[seen.identity_N == calm.identity_N[0]]
    )


def test_single_frames_are_the_model_without_a_past():
    torch = pytest.importorskip("torch")
    from stille.video.model import TINY, StilleCam, StilleCamNet

    torch.manual_seed(0)
    network = StilleCamNet(TINY)
    torch.nn.init.normal_(network.decoder.presence.weight, std=0.3)
    cam = StilleCam(network, dtype=torch.float32)
    image = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    frames = [Frame("a", 0, 5.0, 0.0, image), Frame("b", 0, 7.0, 0.0, image[::-1].copy())]
    alone = SingleFrames(cam)
    first, again, with_past = alone.see(frames), alone.see(frames), cam.see(frames)
    for one, two, mine in zip(first, again, with_past, strict=True):
        assert np.array_equal(one.box_N4, two.box_N4), "nothing is remembered"
        assert (one.identity_N == NOBODY).all()
        on = one.score_N >= cam.config.shown
        assert np.allclose(one.score_N[on], mine.score_N, atol=1e-5)
        assert np.allclose(one.box_N4[on], mine.box_N4, atol=1e-2)


def test_parts_are_joined_as_they_were_cut():
    row = np.zeros((3, len(ATTRIBUTES)), np.float32)
    box, kind, score, who = np.ones((3, 4)), np.zeros(3), np.ones(3), np.arange(3)
    seen = [Seen("c", k, float(k), (64, 64), box, kind, score, who, row, {"A": 0.5}) for k in range(4)]
    whole = Kept.of(seen, ["A", "B"])
    assert joined([Kept.of(seen[:1], ["A", "B"]), Kept.of(seen[1:], ["A", "B"])]).identity_N.tolist() == (
        whole.identity_N.tolist()
    )
    assert list(whole.seen("c", (64, 64), ["A", "B"]))[2].slots == {"A": 0.5}


def test_search_takes_what_is_better_and_strictness_reaches_the_rules():
    best = search(Settings(), {"least": (0.1, 0.5, 0.9), "threshold": (0.2, 0.0)}, lambda tried: [
        -abs(one.least - 0.5) - one.threshold for one in tried
    ], lambda text: None)  # fmt: skip
    assert (best.least, best.threshold) == (0.5, 0.0)
    text = "version: 1\nrules: [{id: a, type: no_vest, dwell: 2.0}, {id: b, type: pallet_extra, dwell: 4}]"
    strict = rules_of(text, Strictness(0.7, 3.0, 0.9, 0.5))
    assert [rule.min_score for rule in strict.rules] == [0.7, 0.7]
    assert [rule.dwell for rule in strict.rules] == [1.0, 2.0]
    assert [rule.sure for rule in strict.rules] == [-3.0, 0.9]  # type: ignore[attr-defined]


def test_seeds_are_sealed_for_weights_only(tmp_path):
    command = [sys.executable, "benchmarks/video_b.py", "--oracle", "0", "--cache", str(tmp_path / "c"), "--sealed"]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert ran.returncode != 0
    assert "--sealed goes with --model" in ran.stderr
