"""Cameras in a browser, as they are seen: MJPEG over HTTP.

Pictures are drawn and packed in the threads of those who look, once for all of them, and always the newest: without a
viewer nothing is done, and a slow one misses pictures and holds nobody.
"""

from __future__ import annotations

import hmac
import html
import io
import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

from stille.video.annotate import Moment
from stille.video.errors import VideoError

log = logging.getLogger(__name__)
VIEWERS = 16
"""Who may look at the same time."""
STALLED_S = 10.0
"""A viewer who takes nothing for so long is dropped."""
BUFFERED = 1 << 17
"""Bytes on their way to a viewer: who is slow sees the newest picture late by no more than that."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BOUNDARY = b"stille"


class Preview:
    """An output of an `Annotator`, on HTTP: `/` has all cameras, `/NAME.mjpg` is one live, `/NAME.jpg` one picture.

    Args:
        host: other than this machine's own needs a key.
        port: 0: any; `url` says which.
        key: that the address has to have, `?key=...`.

    Attributes:
        counts: "packed" pictures, "viewers" so far, "refused".

    Raises:
        VideoError: the port is taken, or there is no key for other machines.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8081, key: str | None = None):
        if host not in LOOPBACK and not key:
            raise VideoError(f"preview at {host}: other machines can see it, expected a key; without one, 127.0.0.1")
        self.key = key
        self.counts: Counter[str] = Counter()
        self._cameras: dict[str, _Camera] = {}
        self._viewers = 0
        self._change = threading.Condition()
        self._closed = False
        handler = type("Handler", (_Handler,), {"preview": self})
        server = type("Server", (_Server,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
        try:
            self._server = server((host, port), handler)
        except OSError as error:
            raise VideoError(f"preview at {host}:{port}: {error.strerror or error}; choose another port") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/" + (f"?key={quote(key)}" if key else "")
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="stille-preview", daemon=True
        )
        self._thread.start()

    def wants(self, camera: str) -> bool:
        """Whether somebody looks at it."""
        found = self._cameras.get(camera)
        if found is None:  # the page lists it from now on
            with self._change:
                found = self._cameras.setdefault(camera, _Camera())
        return found.viewers > 0

    def show(self, moment: Moment) -> None:
        """It takes the place of the one before."""
        with self._change:
            camera = self._cameras.setdefault(moment.frame.camera, _Camera())
            camera.moment, camera.number = moment, camera.number + 1
            self._change.notify_all()

    def close(self) -> None:
        """Viewers are sent away."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)

    # For viewers, each in a thread of its own

    def cameras(self) -> list[str]:
        return sorted(self._cameras)

    @contextmanager
    def looking(self, camera: str) -> Iterator[_Camera | None]:
        """Be counted as somebody who looks at it; None if there are too many already."""
        with self._change:
            found = self._cameras[camera]
            full = self._viewers >= VIEWERS
            self.counts["refused" if full else "viewers"] += 1
            if not full:
                self._viewers += 1
                found.viewers += 1
        try:
            yield None if full else found
        finally:
            if not full:
                with self._change:
                    self._viewers -= 1
                    found.viewers -= 1
                    if not found.viewers:
                        found.moment = found.packed = None

    def next(self, camera: _Camera, after: int, timeout_s: float) -> tuple[int, bytes] | None:
        """The newest picture beyond number `after` as JPEG, and its number; None if there is none in this time."""
        with self._change:
            news = lambda: self._closed or (camera.moment is not None and camera.number > after)  # noqa: E731
            if not self._change.wait_for(news, timeout_s) or self._closed:
                return None
        with camera.packing:
            moment, number = camera.moment, camera.number
            if moment is None:
                return None
            if camera.packed is None or camera.packed[0] != number:
                camera.packed = number, jpeg(moment)
                self.counts["packed"] += 1
            return camera.packed

    @property
    def closed(self) -> bool:
        return self._closed


@dataclass
class _Camera:
    viewers: int = 0
    moment: Moment | None = None
    number: int = 0
    packed: tuple[int, bytes] | None = None
    packing: threading.Lock = field(default_factory=threading.Lock)


def jpeg(moment: Moment) -> bytes:
    """Its picture."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(moment.image()).save(data, "JPEG", quality=80)
    return data.getvalue()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address) -> None:
        log.debug("a viewer went away", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    preview: Preview
    timeout = STALLED_S
    server_version = "stille"

    def setup(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFERED)
        super().setup()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if not self._may(parts.query):
            self.send_error(403, "the address needs its key")
            return
        name, _, ending = unquote(parts.path).strip("/").rpartition(".")
        if parts.path == "/":
            self._page(parts.query)
        elif ending not in ("jpg", "mjpg") or name not in self.preview.cameras():
            self.send_error(404, "there is no such camera")
        else:
            with self.preview.looking(name) as camera:
                if camera is None:
                    self.send_error(503, "too many viewers")
                elif ending == "jpg":
                    self._picture(camera)
                else:
                    self._stream(camera)

    def _may(self, query: str) -> bool:
        """With a key, who has it; without, who addresses this machine by its own name: no page elsewhere can make a
        browser do that by a name that it has pointed here."""
        if self.preview.key:
            given = parse_qs(query).get("key", [""])[0]
            return hmac.compare_digest(given.encode(), self.preview.key.encode())
        return urlsplit("//" + self.headers.get("Host", "")).hostname in LOOPBACK

    def _page(self, query: str) -> None:
        figures = "".join(
            f'<figure><img src="/{quote(name)}.mjpg{html.escape("?" + query if query else "")}" alt="">'
            f"<figcaption>{html.escape(name)}</figcaption></figure>"
            for name in self.preview.cameras()
        )
        style = (
            "body{background:#111;color:#ddd;font:14px sans-serif;margin:8px;display:grid;gap:8px;"
            "grid-template-columns:repeat(auto-fit,minmax(480px,1fr))}figure{margin:0}img{width:100%}"
        )
        head = f"<!doctype html><meta charset=utf-8><title>Stille</title><style>{style}</style>"
        body = head + (figures or "no camera yet")
        self._answer("text/html; charset=utf-8", body.encode())

    def _picture(self, camera: _Camera) -> None:
        found = self.preview.next(camera, 0, STALLED_S)
        if found is None:
            self.send_error(503, "the camera gives no pictures")
            return
        self._answer("image/jpeg", found[1])

    def _stream(self, camera: _Camera) -> None:
        self._head(f"multipart/x-mixed-replace; boundary={BOUNDARY.decode()}")
        number = 0  # who joins others sees at once what they see
        while not self.preview.closed:
            found = self.preview.next(camera, number, 1.0)
            if found is None:
                if self._left():
                    return
                continue
            number, data = found
            self.wfile.write(
                b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (BOUNDARY, len(data), data)
            )

    def _left(self) -> bool:
        """Whether the viewer has hung up."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except (BlockingIOError, TimeoutError):
            return False

    def _answer(self, kind: str, body: bytes) -> None:
        self._head(kind, len(body))
        self.wfile.write(body)

    def _head(self, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")  # other pages cannot show it
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args) -> None:
        log.debug("%s " + format, self.address_string(), *args)
