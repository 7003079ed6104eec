"""The pipeline with real sources: nothing lost that it may not lose, the rest counted, errors kept to their camera."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from stille.video.errors import SourceError, VideoError
from stille.video.pipeline import Pipeline
from stille.video.sources.reader import Counters
from stille.video.types import Frame, Seen, Trouble
from tests.video.rtsp.serve import RtspServer, need_server, write_video

Paint = Callable[[int], np.ndarray]


class RedFinder:
    """Finds the red square of the test videos, and keeps what it was given."""

    def __init__(self, takes: float = 0.0):
        self.takes = takes
        self.batches: list[list[str]] = []
        self.forgotten: list[str] = []

    def see(self, frames: Sequence[Frame]) -> list[Seen]:
        self.batches.append([frame.camera for frame in frames])
        time.sleep(self.takes)
        return [self._find(frame) for frame in frames]

    def forget(self, camera: str) -> None:
        self.forgotten.append(camera)

    def _find(self, frame: Frame) -> Seen:
        image_HW3 = frame.image_HW3.astype(int)
        rows, columns = np.nonzero(image_HW3[..., 0] - image_HW3[..., 1:].max(-1) > 100)
        if not len(rows):
            return Seen.nothing(frame.camera, frame.index, frame.time, frame.size)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return Seen(
            frame.camera, frame.index, frame.time, frame.size, np.array([box], np.float32), np.zeros(1, np.int64),
            np.ones(1, np.float32), np.zeros(1, np.int64), np.zeros((1, 5), np.float32),
        )  # fmt: skip


class Painted:
    """A source whose frames are made, not decoded."""

    def __init__(
        self, name: str, paint: Callable[[int], np.ndarray], count: int | None, live: bool, pause: float = 0.0
    ):
        self.name, self.live, self.counters = name, live, Counters()
        self._paint, self._count, self._pause = paint, count, pause
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        for i in itertools.count() if self._count is None else range(self._count):
            if self._closed.wait(self._pause):
                return
            self.counters.frames += 1
            self.counters.delivered += 1
            yield Frame(self.name, i, 1000 + i / 10, time.monotonic(), self._paint(i))

    def close(self) -> None:
        self._closed.set()


NOISE = np.random.default_rng(0).integers(0, 9, (100, 96, 160, 3), np.uint8)


def still(i: int) -> np.ndarray:
    picture = 60 + NOISE[i % 100]
    picture[:, ::20] += 90
    return picture


def square(i: int) -> np.ndarray:
    picture = still(i)
    picture[30:50, 2 * i % 140 : 2 * i % 140 + 20] = (250, 20, 20)
    return picture


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "hall.mp4", 40)


def test_of_recordings_every_frame_is_seen_in_order_and_in_batches(video: Path) -> None:
    finder, seen = RedFinder(takes=0.002), defaultdict(list)
    with Pipeline(
        finder, on_seen=[lambda s, frame: seen[s.camera].append((s.index, frame.index, s.box_N4[0, 0]))]
    ) as p:
        names = [p.add(f"{video}#name=cam{i},start=0") for i in range(4)]
        p.run()
    for name in names:
        assert [(a, b) for a, b, _ in seen[name]] == [(i, i) for i in range(40)]
        assert np.allclose(np.diff([x for *_, x in seen[name]])[:30], 4, atol=1)
    stats = p.stats()
    assert {s.state for s in stats.values()} == {"ended"}
    assert sum(s.dropped for s in stats.values()) == 0
    assert all(s.seen == s.objects == 40 and 0 < s.latency_p50_s <= s.latency_p99_s for s in stats.values())
    assert max(map(len, finder.batches)) > 1
    assert all(len(set(batch)) == len(batch) for batch in finder.batches)


def test_of_live_sources_the_newest_frame_wins_and_each_drop_is_counted() -> None:
    finder, seen = RedFinder(takes=0.05), []
    with Pipeline(finder, on_seen=[lambda s, _: seen.append(s.index)], queue=1) as pipeline:
        pipeline.add(Painted("live", square, 200, live=True, pause=0.003))
        pipeline.run()
        stats = pipeline.stats()["live"]
    assert seen == sorted(set(seen))
    assert seen[-1] == 199
    assert stats.dropped > 100
    assert stats.dropped + stats.seen == stats.source.delivered == 200
    assert stats.latency_p99_s < 0.5  # old frames never pile up


def test_errors_stay_with_their_camera(video: Path, tmp_path: Path) -> None:
    class Fussy(RedFinder):
        def see(self, frames: Sequence[Frame]) -> list[Seen]:
            if any(frame.camera == "bad" and frame.index % 2 for frame in frames):
                raise RuntimeError("this picture is too much")
            return super().see(frames)

    good: list[int] = []

    def sink(seen: Seen, frame: Frame) -> None:
        if seen.camera == "good":
            good.append(seen.index)

    def broken(seen: Seen, frame: Frame) -> None:
        raise OSError("disk full")

    (tmp_path / "empty.mp4").touch()
    with Pipeline(Fussy(), on_seen=[broken, sink]) as pipeline:
        for text in (
            f"{video}#name=good",
            f"{video}#name=bad",
            f"{tmp_path}/empty.mp4",
            "rtsp://127.0.0.1:9/x#name=gone",
        ):
            pipeline.add(text)
        pipeline.run(until=lambda: len(good) == 40 and pipeline.stats()["bad"].state == "ended")
        time.sleep(0.01)
        stats = pipeline.stats()
    assert good == list(range(40))
    assert stats["good"].errors == 40  # of the sink
    assert stats["bad"].seen <= 20 < stats["bad"].errors
    assert stats["empty"].state == "failed"
    assert "empty" in (stats["empty"].error or "")
    assert stats["gone"].state == "offline"


def test_cameras_come_and_go_while_it_runs() -> None:
    finder, seen = RedFinder(), defaultdict(int)
    with Pipeline(finder, on_seen=[lambda s, _: seen.__setitem__(s.camera, seen[s.camera] + 1)]) as pipeline:
        pipeline.add(Painted("a", square, None, live=True, pause=0.005))
        steps = [lambda: pipeline.add(Painted("b", square, None, live=True, pause=0.005)), lambda: pipeline.remove("a")]

        def until() -> bool:
            if steps and seen["a"] > 10 and (len(steps) == 2 or seen["b"] > 5):
                steps.pop(0)()
            return not steps and seen["b"] > 30

        pipeline.run(until)
        with pytest.raises(VideoError, match="named 'a'; there are: b"):
            pipeline.remove("a")
        with pytest.raises(VideoError, match="already"):
            pipeline.add(Painted("b", square, 1, live=True))
        with pytest.raises(SourceError):
            pipeline.add("ftp://x")
        assert list(pipeline.stats()) == ["b"]
    assert finder.forgotten == ["a"]
    with pytest.raises(VideoError, match="closed"):
        pipeline.add(Painted("c", square, 1, live=True))


def test_the_gate_spares_perception_and_its_shadow_counts_what_that_loses() -> None:
    def run(mode: str, paint: Paint) -> tuple[int, int, int]:
        with Pipeline(RedFinder(), gate=mode, health=False) as pipeline:  # type: ignore[arg-type]
            pipeline.add(Painted("x", paint, 300, live=False))
            pipeline.run()
            stats = pipeline.stats()["x"]
        assert stats.gate is not None
        assert stats.seen + stats.gated == 300
        assert stats.gated == (stats.gate.skipped if mode == "on" else 0)
        return stats.gated, stats.gate.skipped, stats.gate_lost

    def parked(i: int) -> np.ndarray:
        picture = still(i)
        picture[30:50, 60:80] = (250, 20, 20)
        return picture

    gated, _, lost = run("on", still)
    assert gated > 200
    assert lost == 0
    assert run("on", square)[0] == 0
    _, skipped, lost = run("shadow", parked)
    assert lost == skipped > 200  # the parked square is in every frame


def test_health_troubles_reach_the_sinks() -> None:
    troubles: list[Trouble] = []
    with Pipeline(RedFinder(), on_trouble=[troubles.append]) as pipeline:
        dark = np.zeros((96, 160, 3), np.uint8)
        pipeline.add(Painted("x", lambda i: dark + i % 2 if 100 <= i < 250 else square(i), 400, live=False))
        pipeline.run()
    assert [(t.kind, t.over) for t in troubles if t.kind == "black"] == [("black", False), ("black", True)]


def test_real_streams_survive_a_server_that_is_killed(tmp_path: Path) -> None:
    need_server()
    files = {f"cam{i}": write_video(tmp_path / f"cam{i}.h264") for i in range(4)}
    server, seen, troubles = RtspServer(files), defaultdict(list), []
    down: list[float] = []
    try:
        with Pipeline(
            RedFinder(), on_seen=[lambda s, _: seen[s.camera].append(s)], on_trouble=[troubles.append], health=False
        ) as pipeline:
            for name in files:
                pipeline.add(server.url(name) + f"#name={name},fps=7.5,retry=0.2,timeout=3")

            def until() -> bool:
                if not down and len(seen) == 4:
                    server.kill()
                    down.append(time.time())
                    server.start()
                back = {t.camera for t in troubles if t.over}
                return len(back) == 4 and all(seen[name][-1].time > down[0] + 1 for name in files)

            pipeline.run(until)
            stats = pipeline.stats()
    finally:
        server.kill()
    for name in files:
        assert [t.over for t in troubles if t.camera == name and t.kind == "offline"] == [False, True]
        assert all(b.time > a.time for a, b in itertools.pairwise(seen[name]))
        assert stats[name].state == "running"
        assert stats[name].source.unwanted > 0
        assert stats[name].latency_p50_s < 0.5


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_ctrl_c_ends_it_cleanly(video: Path, number: int) -> None:
    program = f"""
from stille.video.pipeline import Pipeline
from stille.video.types import Seen
class Blind:
    def see(self, frames):
        print("seen", flush=True)
        return [Seen.nothing(f.camera, f.index, f.time, f.size) for f in frames]
with Pipeline(Blind()) as pipeline:
    pipeline.add({f"{video}#loop,realtime"!r})
    pipeline.add("rtsp://127.0.0.1:9/x")
    pipeline.run()
print("closed", pipeline.stats()["hall"].state)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "seen\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert out.endswith("closed removed\n")
    assert "Traceback" not in err
