"""Recordings and their clocks: what there is is read, what is wrong with it is said, nothing secret is shown."""

import dataclasses
import itertools
import logging
import time
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.video.errors import SourceError
from stille.video.sources import Options, ReadError, open_source, parse, redact
from stille.video.sources.clocks import FileClock, LiveClock
from stille.video.types import Frame, Trouble
from tests.video.rtsp.serve import write_annexb, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "hall.mp4", 30)


def red(frame: Frame) -> float:
    """Column of the middle of the red square."""
    image_HW3 = frame.image_HW3.astype(int)
    return float(np.nonzero((image_HW3[..., 0] - image_HW3[..., 1:].max(-1) > 100).sum(0))[0].mean())


# The grammar


def test_a_source_says_where_and_how() -> None:
    address, options = parse(
        "rtsp://viewer:s%23cret@10.0.0.5:8554/a/b?x=1#name=dock3,fps=2.5,size=640x360,loop,realtime=no"
    )
    assert (address.kind, address.name) == ("rtsp", "dock3")
    assert address.target == "rtsp://viewer:s%23cret@10.0.0.5:8554/a/b?x=1"
    assert options == Options(name="dock3", fps=2.5, size=(640, 360), loop=True)
    assert parse("rtsp://10.0.0.5/cam/1")[0].name == "10.0.0.5-cam-1"
    assert [parse(text)[0].target for text in ("3", "/dev/video3")] == ["/dev/video3"] * 2
    assert parse("a.mp4#start=2026-05-04T06:00+02:00")[1].start == 1777867200.0
    assert parse("a.mp4#fps=5", Options(fps=1, decode="keyframes"))[1] == Options(fps=5, decode="keyframes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no address"),
        ("ftp://camera/x", "unknown scheme 'ftp'"),
        ("rtsp://camera:port/x", "no host and port"),
        ("a.mp4#speed=2", "unknown option 'speed'"),
        ("a.mp4#size=640", "like 640x360"),
        ("a.mp4#fps=0", "above 0"),
        ("a.mp4#loop=maybe", "expected yes or no"),
        ("a.mp4#transport=carrier", "expected one of tcp, udp"),
        ("a.mp4#name=a/b", "letters, digits"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(text)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"])).map("Zq7{}Zq7".format), st.booleans())
def test_a_password_is_never_shown(password: str, as_parameter: bool) -> None:
    quoted = password.replace("&", "_").replace("'", "_").replace('"', "_")
    text = f"rtsp://10.0.0.5/user=admin&password={quoted}" if as_parameter else f"rtsp://admin:{password}@10.0.0.5/x"
    assert "Zq7" not in redact(text)
    try:
        shown = repr(parse(text)[0])
    except SourceError as error:
        shown = str(error)
    assert "Zq7" not in shown


def test_nor_by_a_source_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    troubles: list[Trouble] = []
    source = open_source("rtsp://admin:Zq7secret@127.0.0.1:9/x#attempts=2,retry=0.01", on_trouble=troubles.append)
    with caplog.at_level(logging.DEBUG), pytest.raises(ReadError) as caught:
        next(iter(source))
    shown = repr(caught.value) + repr(caught.value.__cause__) + caplog.text + repr(troubles) + repr(vars(source))
    assert caught.value.reason == "unreachable"
    assert "Zq7secret" not in shown
    assert "127.0.0.1:9" in str(caught.value)


# Recordings


def test_a_file_is_read_to_its_end_in_the_working_size(video: Path) -> None:
    source = open_source(f"{video}#size=80x80,start=1000")
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(30))
    assert np.allclose([frame.time for frame in frames], 1000 + np.arange(30) / 15, atol=1e-3)
    assert {frame.size for frame in frames} == {(80, 48)}  # aspect kept
    assert np.allclose(
        np.diff([red(frame) for frame in frames]), 2, atol=1
    )  # the square moves 4 pixels a frame, halved
    assert source.counters.delivered == 30


def test_fewer_frames_per_second_are_evenly_chosen(video: Path) -> None:
    source = open_source(f"{video}#fps=5")
    assert [frame.index for frame in source] == list(range(0, 30, 3))
    assert (source.counters.frames, source.counters.unwanted) == (30, 20)
    assert [frame.index for frame in open_source(f"{video}#fps=4,start=0")][:5] == [0, 4, 8, 11, 15]
    keyframes = open_source(f"{video}#decode=keyframes")
    assert len(list(keyframes)) == 5


def test_a_loop_goes_on_in_time(video: Path) -> None:
    source = open_source(f"{video}#loop,start=0")
    frames = list(itertools.islice(source, 75))
    assert np.allclose(np.diff([frame.time for frame in frames]), 1 / 15, atol=2e-3)
    assert [frame.index for frame in frames] == list(range(75))


def test_at_the_speed_of_a_camera(video: Path) -> None:
    begun = time.time()
    frames = list(itertools.islice(open_source(f"{video}#realtime"), 8))
    assert 7 / 15 <= time.time() - begun < 2
    assert abs(frames[0].time - begun) < 1
    late = [time.monotonic() - time.time() + frame.time for frame in frames]
    assert all(frame.arrived >= due - 0.005 for frame, due in zip(frames, late, strict=True))


def test_a_folder_of_images_in_their_order(tmp_path: Path, video: Path) -> None:
    with av.open(str(video)) as container:
        for i, frame in enumerate(itertools.islice(container.decode(video=0), 12)):
            frame.to_image().save(tmp_path / f"shot {i} 100%d.png")
    (tmp_path / "shot 5 100%d.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    source = open_source(f"{tmp_path}#rate=2,start=100")
    frames = list(source)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert source.counters.corrupt == 1
    assert np.all(np.diff([red(frame) for frame in frames]) > 2)
    assert frames[0].time == 100
    assert np.allclose(np.diff([frame.time for frame in frames]), 0.5)


def test_a_change_of_size_is_a_trouble_and_frames_go_on(tmp_path: Path) -> None:
    troubles: list[Trouble] = []
    file = write_annexb(tmp_path / "mixed.h264", [(10, (160, 96)), (10, (96, 160)), (10, (160, 96))])
    source = open_source(f"{file}#size=80x80", on_trouble=troubles.append)
    sizes = [frame.size for frame in source]
    assert sizes == [(80, 48)] * 10 + [(48, 80)] * 10 + [(80, 48)] * 10
    assert [(t.kind, t.over, t.detail) for t in troubles] == [("size", False, "from 160x96 to 96x160")]
    assert source.counters.size_changes == 2


def test_corrupt_packets_are_skipped_and_counted(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "whole.ts", 60).read_bytes())
    rng = np.random.default_rng(0)
    for start in range(30 * 188, len(data) - 188, 40 * 188):
        data[start + 20 : start + 120] = rng.bytes(100)
    (tmp_path / "damaged.ts").write_bytes(data)
    source = open_source(str(tmp_path / "damaged.ts"))
    frames = list(source)
    assert source.counters.corrupt > 0
    assert 20 < len(frames) < 60
    assert all(b.time > a.time for a, b in itertools.pairwise(frames))


def test_a_file_that_is_no_video_says_what_is_wrong(tmp_path: Path, video: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:2000])
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "folder").mkdir()
    expected = {"empty.mp4": "empty", "cut.mp4": "truncated", "noise.mp4": "damaged", "folder": "no image"}
    for name, message in {**expected, "none": "not found"}.items():
        with pytest.raises(ReadError, match=message):
            list(open_source(f"{tmp_path / name}#loop"))
    with pytest.raises(ReadError, match="'abacus'"):
        list(open_source(f"{video}#hardware=abacus"))
    (tmp_path / "cut.ts").write_bytes(write_video(tmp_path / "long.ts", 60).read_bytes()[:-3000])
    assert 30 < len(list(open_source(str(tmp_path / "cut.ts")))) < 60


def test_a_recording_knows_when_it_began(tmp_path: Path) -> None:
    file = write_video(tmp_path / "dated.mp4", 5, creation_time="2026-03-01T12:00:00Z")
    assert next(iter(open_source(str(file)))).time == 1772366400.0


# Clocks


@settings(max_examples=10, deadline=None)
@given(st.floats(-100e-6, 100e-6), st.integers(0, 2**32 - 1), st.floats(0, 1e5))
def test_a_live_clock_follows_a_camera_whose_clock_drifts(drift: float, seed: int, first: float) -> None:
    rng = np.random.default_rng(seed)
    clock, last, errors = LiveClock(), -np.inf, []
    for i in range(4000):
        taken = i / 5
        arrival = 50 + taken + float(rng.exponential(0.03)) * (rng.random() < 0.7)
        moment, jump = clock.map(first + taken * (1 + drift), arrival, wall=1e9 + arrival)
        assert jump is None
        assert moment > last
        last = moment
        errors.append(moment - (1e9 + 50 + taken))
    assert np.abs(errors[100:]).max() < 0.02  # the drift alone would come to 0.08 s


def test_a_live_clock_says_when_something_jumps() -> None:
    clock = LiveClock()

    def play(count: int, stream: float, arrival: float, wall: float = 1e9) -> list[tuple[float, str | None]]:
        return [clock.map(stream + i / 10, arrival + i / 10, wall + arrival + i / 10) for i in range(count)]

    assert play(50, 0, 0)[-1] == (pytest.approx(1e9 + 4.9), None)
    forward = play(50, 1000, 5)
    assert "forward by 995" in (forward[0][1] or "")
    assert forward[-1] == (pytest.approx(1e9 + 9.9), None)
    back = play(50, 3, 10)
    assert "back by" in (back[0][1] or "")
    assert back[-1] == (pytest.approx(1e9 + 14.9), None)
    machine = play(50, 8, 15, 1e9 - 3600)
    assert "machine was put back by 3600.0 s" in (machine[0][1] or "")
    assert machine[-1] == (pytest.approx(1e9 - 3600 + 19.9), None)
    gap = play(50, 43, 50, 1e9 - 3600)  # the network stood still, the camera went on: no jump
    assert [jump for _, jump in gap] == [None] * 50
    slow = play(150, 48, 75, 1e9 - 3600)  # the camera's clock stood still for 20 s
    assert sum(jump is not None for _, jump in slow) == 1
    assert slow[-1][0] == pytest.approx(1e9 - 3600 + 89.9, abs=0.1)
    assert clock.jumps == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=2, max_size=40))
def test_a_files_time_never_goes_back(stamps: list[float | None]) -> None:
    clock = FileClock(1e9)
    times = [clock.map(stamp, 0.04)[0] for stamp in stamps]
    assert times[0] == 1e9
    assert all(0 < b - a <= 3600.1 for a, b in itertools.pairwise(times))


def test_counters_account_for_every_frame(video: Path) -> None:
    source = open_source(f"{video}#fps=5")
    list(source)
    counters = dataclasses.asdict(source.counters)
    assert counters["frames"] == sum(counters[k] for k in ("delivered", "unwanted", "late", "corrupt"))
