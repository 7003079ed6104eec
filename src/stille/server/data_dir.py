"""The directory of what survives a restart, and the lock that keeps a second server out of it."""

import fcntl
import os
from pathlib import Path

from stille.errors import ConfigError

LOCK_NAME = "lock"


class DataLock:
    """Holds a data directory for this server until `release`, or the end of the process, however it ends.

    Args:
        path: the directory; it is made, for its owner only, if it does not exist.

    Raises:
        ConfigError: another server holds it, or it cannot be used.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The file stays when the lock is gone: to remove it would let two servers lock two files of one name.
            self._file = (path / LOCK_NAME).open("a+")
        except OSError as error:
            raise ConfigError(f"cannot use the data directory {path}: {error}; choose another (--data-dir)") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(0)
            self._file.write(f"{os.getpid()}\n")
            self._file.flush()
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise ConfigError(
                f"the data directory {path} is in use by another server (process {holder}); stop that one, or give "
                "this one a directory of its own (--data-dir)"
            ) from error
        except OSError as error:
            self._file.close()
            raise ConfigError(f"cannot lock the data directory {path}: {error}; choose another (--data-dir)") from error

    def release(self) -> None:
        """Let another server have the directory. May be called twice."""
        self._file.close()
