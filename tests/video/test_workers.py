"""Decoding in processes: the same as in threads, by real processes that are really killed."""

import os
import signal
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stille.video.errors import VideoError
from stille.video.gate import MotionGate
from stille.video.pipeline import Pipeline
from tests.video.rtsp.serve import write_video
from tests.video.test_pipeline import RedFinder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "hall.mp4", 40)


def test_recordings_are_seen_whole_and_as_threads_see_them(video: Path) -> None:
    """Among them one that changes nothing when frames are kept: their memory is not used again."""

    def look(workers: int):
        seen, kept = defaultdict(list), []

        def sink(found, frame):
            seen[found.camera].append((found.index, found.time, *found.box_N4[0]))
            kept.append((frame.image_HW3[::8], int(frame.image_HW3[::8].sum())))

        with Pipeline(RedFinder(), on_seen=[sink], workers=workers) as pipeline:
            for i in range(3):
                pipeline.add(f"{video}#name=cam{i},start=0")
            with pytest.raises(VideoError, match="cam1"):
                pipeline.add(f"{video}#name=cam1")
            pipeline.run()
            stats = pipeline.stats()
        assert all(int(image.sum()) == total for image, total in kept)
        return dict(seen), {name: (s.state, s.source.delivered, s.seen, s.dropped) for name, s in stats.items()}

    threads, processes = look(0), look(2)
    assert threads == processes
    assert processes[1]["cam0"] == ("ended", 40, 40, 0)


@pytest.mark.slow
def test_newest_wins_and_memory_stays(video: Path) -> None:
    """A live camera faster than perception: every frame is seen or counted, few are ever on their way."""
    finder, addresses = RedFinder(takes=0.15), set()
    with Pipeline(finder, on_seen=[lambda _, f: addresses.add(f.image_HW3.ctypes.data)], queue=1, workers=1) as p:
        p.add(f"{video}#name=live,realtime=true")
        p.run()
        stats = p.stats()["live"]
    assert stats.dropped > 5
    assert stats.seen + stats.dropped == stats.source.delivered == 40
    assert len(addresses) <= 1 + 6 + 2


def openings(indices: list[int]) -> int:
    """A source counts from 0 each time; its first frames may be late, and are left out then."""
    return 1 + sum(b <= a for a, b in pairwise(indices))


@pytest.mark.slow
def test_a_child_that_is_killed_is_replaced(video: Path, tmp_path: Path) -> None:
    """Its live camera goes on, its recording has failed, cameras of other children notice nothing."""
    indices: defaultdict[str, list[int]] = defaultdict(list)
    with Pipeline(RedFinder(takes=0.001), on_seen=[lambda s, _: indices[s.camera].append(s.index)], workers=2) as p:
        p.add(f"{video}#name=live,realtime=true,loop=true")
        p.add(f"{video}#name=other,realtime=true,loop=true")
        long = write_video(tmp_path / "long.mp4", 2000, (64, 48))
        p.add(f"{long}#name=film")  # with `live`, in the first child
        assert p._decoders is not None
        victim = p._decoders._children[0]._process.pid
        p.run(until=lambda: len(indices["film"]) > 20 and len(indices["live"]) > 3)
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 20
        p.run(
            until=lambda: (
                (p.stats()["film"].state == "failed" and openings(indices["live"]) > 1) or time.monotonic() > deadline
            )
        )
        stats = p.stats()
        children = [child._process for child in p._decoders._children]
    assert stats["film"].state == "failed"
    assert "process" in (stats["film"].error or "")
    assert openings(indices["live"]) == 2
    assert openings(indices["other"]) == 1
    assert all(child.poll() is not None for child in children)  # nothing is left behind


def test_removed_cameras_and_bad_input(video: Path) -> None:
    with Pipeline(RedFinder(), workers=1, gate="on") as pipeline:
        pipeline.add(f"{video}#name=a,realtime=true,loop=true")
        pipeline.run(until=lambda: pipeline.stats()["a"].seen > 2)
        last = pipeline.remove("a")
        assert last.state == "removed"
        assert last.seen > 2
        assert pipeline.add(f"{video}#name=a") == "a"
        pipeline.add("nowhere.mp4")
        pipeline.run()
        stats = pipeline.stats()
        assert (stats["a"].state, stats["a"].seen + stats["a"].gated) == ("ended", 40)
        assert stats["a"].gate is not None
        assert stats["a"].gate.looked == 40
        assert stats["nowhere"].state == "failed"
        with pytest.raises(VideoError, match="reach a decoding process"):
            pipeline.add(Unsendable())  # type: ignore[arg-type]
    with pytest.raises(VideoError, match="make_gate"):
        Pipeline(RedFinder(), workers=1, gate="on", make_gate=lambda: MotionGate())


class Unsendable:
    name, live = "x", True

    def __init__(self):
        self.image = np.zeros(3)
        self.lock = lambda: None
