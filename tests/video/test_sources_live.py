"""Live sources against real servers: RTSP that dies and comes back, refused logins, silence, HLS."""

import functools
import http.server
import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from stille.video.errors import SourceError
from stille.video.sources import ReadError, open_source
from stille.video.types import Trouble
from tests.video.rtsp.serve import RtspServer, need_server, write_annexb, write_video


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RtspServer]:
    need_server()
    folder = tmp_path_factory.mktemp("rtsp")
    files = {
        "dock": write_video(folder / "dock.h264"),
        "mixed": write_annexb(folder / "mixed.h264", [(15, (160, 96)), (15, (96, 160))]),
    }
    server = RtspServer(files, user="viewer", password="s#cret")
    yield server
    server.kill()


LOGIN = "viewer:s%23cret@"


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_frames_of_a_real_stream_come_in_time(server: RtspServer, transport: str) -> None:
    source = open_source(server.url("dock", LOGIN) + f"#name=dock,transport={transport}")
    frames = list(itertools.islice(source, 10))
    assert {frame.size for frame in frames} == {(160, 96)}
    assert 8 / 15 < frames[-1].time - frames[0].time < 14 / 15
    assert abs(frames[-1].time - time.time()) < 0.5
    assert all(b.time > a.time and b.index > a.index for a, b in itertools.pairwise(frames))


def test_a_server_that_dies_and_comes_back(server: RtspServer, caplog: pytest.LogCaptureFixture) -> None:
    troubles: list[Trouble] = []
    source = open_source(server.url("dock", LOGIN) + "#name=dock,retry=0.2,timeout=3", on_trouble=troubles.append)
    frames = iter(source)
    first = next(frames)
    server.kill()
    threading.Timer(0.5, server.start).start()
    with caplog.at_level(logging.WARNING):
        last = next(frame for frame in frames if len(troubles) > 1)
    assert [(t.kind, t.over) for t in troubles] == [("offline", False), ("offline", True)]
    assert first.time < troubles[0].since < troubles[1].time
    assert troubles[1].since == troubles[0].since
    assert last.time > first.time
    assert source.counters.reconnects >= 1
    assert "trying again" in caplog.text
    assert "cret" not in caplog.text


@pytest.mark.parametrize(
    ("login", "path", "reason"), [("viewer:wrong@", "dock", "access"), (LOGIN, "attic", "missing")]
)
def test_a_wrong_login_is_told_apart_from_a_wrong_path(server: RtspServer, login: str, path: str, reason: str) -> None:
    with pytest.raises(ReadError) as caught:
        next(iter(open_source(server.url(path, login) + "#attempts=1")))
    assert caught.value.reason == reason


def test_a_stream_may_change_its_size(server: RtspServer) -> None:
    troubles: list[Trouble] = []
    source = open_source(server.url("mixed", LOGIN), on_trouble=troubles.append)
    sizes = {frame.size for frame in itertools.islice(source, 25)}
    assert sizes == {(160, 96), (96, 160)}
    assert [(t.kind, t.over) for t in troubles] == [("size", False)]


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_says_nothing_hangs_nobody(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        port = silent.getsockname()[1]
        with pytest.raises(ReadError) as caught:
            next(iter(open_source(f"{scheme}://127.0.0.1:{port}/x#attempts=1,timeout=0.4")))
    assert caught.value.reason == "silent"
    assert time.monotonic() - begun < 3


def test_a_source_that_waits_to_try_again_closes_at_once() -> None:
    source = open_source("rtsp://127.0.0.1:9/x#retry=60")
    threading.Timer(0.2, source.close).start()
    begun = time.monotonic()
    assert list(source) == []
    assert time.monotonic() - begun < 2


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
        server.shutdown()


def test_hls_and_files_over_http_are_read_to_their_end(web: tuple[str, Path]) -> None:
    url, folder = web
    video = write_video(folder / "hall.mp4", 30)
    with av.open(str(video)) as whole, av.open(str(folder / "hall.m3u8"), "w", options={"hls_time": "0.5"}) as hls:
        stream = hls.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                hls.mux(packet)
    for name in ("hall.mp4", "hall.m3u8"):
        source = open_source(f"{url}/{name}#attempts=1")
        assert len(list(source)) == 30
        assert not source.live


def test_a_playlist_from_outside_reads_no_file_of_ours(web: tuple[str, Path]) -> None:
    url, folder = web
    secret = write_video(folder.parent / "secret.ts", 10)
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    (folder / "trap.m3u8").write_text(text)
    with pytest.raises(SourceError):
        list(open_source(f"{url}/trap.m3u8#attempts=1,timeout=1"))


def test_a_missing_webcam_is_offline() -> None:
    with pytest.raises(ReadError) as caught:
        next(iter(open_source("/dev/video77#attempts=1")))
    assert caught.value.reason == "missing"
