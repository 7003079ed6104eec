"""What a source is called: one grammar for the command line, configuration files and Python.

    SOURCE  = ADDRESS [ "#" OPTION { "," OPTION } ]
    ADDRESS = file | folder of images | rtsp[s]:// | http[s]:// (HLS, MJPEG, a file) | /dev/videoN, or N alone
    OPTION  = key "=" value, or key alone, which means yes

    rtsp://viewer:secret@10.0.0.5/stream2#name=dock3,fps=5,size=640x360
    recordings/monday.mp4#realtime,loop

A "#" in the name of a file that exists is part of the name. What follows "#" is never sent to a server.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from stille.video.errors import SourceError

Kind = Literal["file", "folder", "rtsp", "http", "webcam"]

_WEBCAM = re.compile(r"(?:/dev/video)?(\d{1,3})")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_CREDENTIALS = re.compile(r"(://)\S*@")
_SECRETS = re.compile(r"(?i)\b(pass\w*|pwd|user\w*|token|\w*key|\w*secret|auth\w*|sig\w*|credentials?)=[^&\s'\"]*")
_YES, _NO = ("", "1", "yes", "true", "on"), ("0", "no", "false", "off")


@dataclass(frozen=True)
class Options:
    """How a source is read.

    Attributes:
        name: of the camera; None: from the address.
        size: width and height that pictures are scaled to fit in, never larger than they come; None: as they come.
        fps: pictures per second that are wanted; the others are dropped before they are converted. None: all.
        decode: "nonref" leaves out frames that no other needs, "keyframes" all but keyframes.
        transport: of RTSP.
        loop: a file or folder begins again at its end.
        realtime: a file or folder is read at the speed at which it was taken, as a camera would send it.
        start: seconds since 1970 at which a file or folder begins; in text also ISO 8601. None: what the file says,
            else when it was last written less its length. With `realtime`: now.
        rate: of a folder's images, per second.
        timeout: seconds that opening and each read may take.
        threads: that decode this source.
        hardware: a device type of libav ("cuda", "vaapi", "qsv") that decodes; there is no silent fallback.
        attempts: in a row that may fail before a live source gives up; None: it never does.
        retry: seconds before a live source is opened again; they double with each failure, up to 30.
    """

    name: str | None = None
    size: tuple[int, int] | None = None
    fps: float | None = None
    decode: Literal["all", "nonref", "keyframes"] = "all"
    transport: Literal["tcp", "udp"] = "tcp"
    loop: bool = False
    realtime: bool = False
    start: float | None = None
    rate: float = 25.0
    timeout: float = 10.0
    threads: int = 1
    hardware: str | None = None
    attempts: int | None = None
    retry: float = 0.5

    def __post_init__(self) -> None:
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 16):
            raise SourceError(f"size is {self.size}; expected width and height of 16 pixels at least, like 640x360")
        for name in ("fps", "rate", "timeout", "retry"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e6:
                raise SourceError(f"{name} is {value}; expected a number above 0")
        for name in ("threads", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SourceError(f"{name} is {value}; expected 1 or more")
        for name, known in (("decode", ("all", "nonref", "keyframes")), ("transport", ("tcp", "udp"))):
            if getattr(self, name) not in known:
                raise SourceError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.name is not None and not re.fullmatch(r"[\w.-]{1,100}", self.name):
            raise SourceError(
                f"name is {self.name!r}; expected letters, digits, '_', '-' and '.', as it names files too"
            )


@dataclass(frozen=True)
class Address:
    """Where a source is.

    Attributes:
        target: for libav, password included: never to be shown.
        shown: the same for people, without user, password and tokens.
        name: of the camera.
    """

    kind: Kind
    target: str = field(repr=False)
    shown: str
    name: str


def parse(text: str, defaults: Options | None = None) -> tuple[Address, Options]:
    """Reads a source's text; options in it go before `defaults`.

    Raises:
        SourceError: it cannot be read, or names an option that there is not. Nothing is opened.
    """
    options = defaults if defaults is not None else Options()
    where, rest = text.strip(), ""
    scheme = _SCHEME.match(where)
    if scheme is not None or not Path(where).exists():
        where, _, rest = where.partition("#")
    if scheme is not None and "@" in rest:
        raise SourceError(f"{redact(text)}: write '#' and '@' in a user name or password as %23 and %40")
    if rest:
        options = dataclasses.replace(options, **_read_options(rest, where))
    if not where:
        raise SourceError(f"source {redact(text)!r} has no address; expected a file, folder, URL or /dev/videoN")
    kind, target, base = _locate(where, scheme[1].lower() if scheme else None)
    name = options.name or re.sub(r"[^\w.-]+", "-", base).strip("-.")[:100] or kind
    return Address(kind, target, redact(where), name), options


def redact(text: str) -> str:
    """The text without what stands before an "@" in a URL, and without the values of parameters that may be secret."""
    return _CREDENTIALS.sub(r"\1***@", _SECRETS.sub(lambda found: f"{found[1]}=***", text))


def _locate(where: str, scheme: str | None) -> tuple[Kind, str, str]:
    """Kind, what libav opens, and what to name the camera after."""
    if scheme == "file":
        where, scheme = where[len("file://") :], None
    if scheme in ("rtsp", "rtsps", "http", "https"):
        try:
            parts = urlsplit(where)
            host = parts.hostname, parts.port
        except ValueError:
            host = None, None
        if not host[0]:
            raise SourceError(
                f"{redact(where)}: no host and port can be read from it; in a user name or password write "
                "':', '/', '?', '#', '@' as %3A, %2F, %3F, %23, %40"
            )
        path = "" if "=" in parts.path else parts.path  # rtsp://camera/user=admin&password=secret
        kind: Kind = "rtsp" if scheme.startswith("rtsp") else "http"
        return kind, where, f"{host[0]}-{host[1]}{path}" if host[1] else f"{host[0]}{path}"
    if scheme is not None:
        raise SourceError(f"{redact(where)}: unknown scheme {scheme!r}; expected rtsp, rtsps, http, https or file")
    if (webcam := _WEBCAM.fullmatch(where)) and not Path(where).is_file():
        return "webcam", f"/dev/video{webcam[1]}", f"video{webcam[1]}"
    path = Path(where).expanduser().absolute()
    return ("folder" if path.is_dir() else "file"), str(path), path.stem or path.name


def _read_options(text: str, where: str) -> dict[str, object]:
    values: dict[str, object] = {}
    shown = redact(where)
    secret = shown != where  # then what stands after its "#" may be the rest of a password
    for part in text.split(","):
        key, given, value = part.partition("=")
        read = _READERS.get(key.strip())
        if read is None:
            given = "" if secret else f" {key.strip()!r}"
            raise SourceError(f"{shown}: unknown option{given}; there are {', '.join(sorted(_READERS))}")
        try:
            values[key.strip()] = read(value.strip() if given else "")
        except ValueError as error:
            given = "what it is" if secret else repr(value.strip())
            raise SourceError(f"{shown}: option {key.strip()} cannot be {given}; {error}") from None
    return values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("expected a number") from None


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None


def _yes(text: str) -> bool:
    if text.lower() in _YES + _NO:
        return text.lower() in _YES
    raise ValueError("expected yes or no")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None:
        raise ValueError("expected width and height, like 640x360")
    return int(found[1]), int(found[2])


def _moment(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("expected seconds since 1970 or ISO 8601, like 2026-05-04T06:00+02:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_READERS = {
    "name": str,
    "size": _size,
    "fps": _number,
    "decode": str,
    "transport": str,
    "loop": _yes,
    "realtime": _yes,
    "start": _moment,
    "rate": _number,
    "timeout": _number,
    "threads": _count,
    "hardware": str,
    "attempts": _count,
    "retry": _number,
}
