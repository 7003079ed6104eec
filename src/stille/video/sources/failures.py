"""libav's errors as ours: what happened and what to do, told without the address, which may hold a password."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Literal

from stille.video.errors import SourceError

if TYPE_CHECKING:
    import av.error

Reason = Literal["access", "missing", "unreachable", "silent", "damaged", "hardware", "ended"]

_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}


class ReadError(SourceError):
    """A source could not be opened or read.

    Attributes:
        reason: "access" (credentials refused), "missing" (no such file, path or device), "unreachable" (no server
            there), "silent" (nothing came within the timeout), "damaged", "hardware", "ended" (the server hung up).
    """

    def __init__(self, reason: Reason, shown: str, what: str):
        super().__init__(f"{shown}: {what}")
        self.reason: Reason = reason
        self.what = what


def explain(error: av.error.FFmpegError | OSError, shown: str, waited: float, timeout: float) -> ReadError:
    """What an error of libav means.

    Args:
        waited: seconds that the call took: libav names several errors for a timeout, or none.
    """
    import av.error as codes

    text = error.strerror or type(error).__name__
    if isinstance(error, codes.HTTPUnauthorizedError | codes.HTTPForbiddenError):
        return ReadError("access", shown, f"the user name or password was refused ({text}); check both")
    if isinstance(error, codes.HTTPNotFoundError | FileNotFoundError):
        return ReadError("missing", shown, f"not found ({text}); check the path")
    if isinstance(error, PermissionError):
        return ReadError("access", shown, f"may not be read ({text}); check its permissions")
    if isinstance(error, codes.ExitError | TimeoutError) or waited >= 0.95 * timeout:
        return ReadError("silent", shown, f"no answer within {timeout:g} s; check the device and the network")
    if isinstance(error, codes.EOFError):
        return ReadError("ended", shown, "the stream ended")
    if isinstance(error, ConnectionError) or error.errno in _UNREACHABLE:
        return ReadError("unreachable", shown, f"cannot be reached ({text}); check host, port and network")
    if isinstance(error, codes.InvalidDataError):
        return ReadError("damaged", shown, "holds no video that can be read: damaged, truncated or of another format")
    return ReadError("unreachable", shown, f"cannot be read ({text})")
