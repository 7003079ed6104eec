"""A real RTSP server of looped H.264 files, by gst-rtsp-server. Run by Debian's python3, which has GStreamer:

    apt-get install -y --no-install-recommends \
        python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-{base,good,bad}
    /usr/bin/python3 server.py --port 0 --fps 30 --user viewer --password secret a=a.h264 b=b.h264

Each file is an Annex B stream with access unit delimiters and without B-frames; it is served in real time at
rtsp://127.0.0.1:PORT/NAME, to all clients the same, from its beginning when the first one comes. Prints the port.
"""

import argparse
import re
import sys

import gi  # pyright: ignore[reportMissingImports]

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402  # pyright: ignore[reportMissingImports]

DELIMITER = re.compile(rb"\x00\x00\x00\x01\x09")


class LoopedFile(GstRtspServer.RTSPMediaFactory):
    """One file, its access units pushed one by one with their times."""

    def __init__(self, path, fps):
        super().__init__()
        with open(path, "rb") as file:
            data = file.read()
        starts = [found.start() for found in DELIMITER.finditer(data)]
        self.units = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
        self.step = Gst.SECOND // fps
        self.set_shared(True)
        self.set_launch(
            "( appsrc name=source is-live=true format=time max-buffers=4 "
            "caps=video/x-h264,stream-format=byte-stream,alignment=au "
            "! h264parse ! video/x-h264,alignment=au ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
        )

    def do_configure(self, media):
        source = media.get_element().get_child_by_name("source")
        source.connect("need-data", self.push, [0])

    def push(self, source, _length, count):
        buffer = Gst.Buffer.new_wrapped(self.units[count[0] % len(self.units)])
        buffer.pts = buffer.dts = count[0] * self.step
        buffer.duration = self.step
        count[0] += 1
        source.emit("push-buffer", buffer)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="0")
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=options.port)
    if options.user:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(options.user, options.password), token)
        server.set_auth(auth)
    for pair in options.files:
        name, _, path = pair.partition("=")
        factory = LoopedFile(path, options.fps)
        if options.user:
            factory.add_role_from_structure(
                Gst.Structure.new_from_string(
                    "viewer, media.factory.access=(boolean)true, media.factory.construct=(boolean)true"
                )
            )
        server.get_mount_points().add_factory(f"/{name}", factory)
    if not server.attach(None):
        sys.exit(f"port {options.port} is taken")
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
