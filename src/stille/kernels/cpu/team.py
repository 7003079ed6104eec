"""Helper threads for the compiled step: one team per process and target, asleep between steps.

The helpers live inside compiled code and never need the interpreter's lock, so a busy Python thread (a server's event
loop) cannot delay them.
"""

import atexit
import ctypes
import logging
import threading

import numpy as np

from stille.errors import UnsupportedError
from stille.kernels.cpu import job as J
from stille.kernels.cpu import step
from stille.kernels.cpu.formats import aligned_bytes
from stille.kernels.cpu.simd import Target

logger = logging.getLogger(__name__)

_teams: dict[tuple[str, str], "Team"] = {}
_teams_lock = threading.Lock()


def team_for(target: Target) -> "Team":
    """The process's team for a target."""
    with _teams_lock:
        key = (target.isa, target.kv)
        if key not in _teams:
            _teams[key] = Team(target)
        return _teams[key]


class Team:
    """Runs jobs, one at a time, on the calling thread and as many helpers as the job asks for.

    Raises:
        UnsupportedError: the platform has no POSIX threads.
    """

    def __init__(self, target: Target):
        self.target = target
        self._memory = aligned_bytes(1024)
        base = self._memory.ctypes.data
        self._control = base
        fields = self._memory[: 8 * step.CONTROL_FIELDS].view(np.int64)
        fields[step.MUTEX], fields[step.CONDITION] = base + 256, base + 512
        try:
            self._libc = ctypes.CDLL(None)
            for call, place in (("pthread_mutex_init", base + 256), ("pthread_cond_init", base + 512)):
                getattr(self._libc, call)(ctypes.c_void_p(place), None)
            _ = self._libc.sched_yield
        except (OSError, TypeError, AttributeError) as error:
            raise UnsupportedError(f"the CPU kernels need POSIX threads, which this platform lacks: {error}") from error
        self._fields = fields
        self._helpers: list[threading.Thread] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def run(self, job: np.ndarray) -> None:
        """Compute a job and return when it is finished; safe to call from any thread.

        Args:
            job: int64[JOB_FIELDS], see `job.py`; the memory that it points to must live until this returns.
        """
        with self._lock:
            for number in range(len(self._helpers) + 1, int(job[J.THREADS])):
                helper = threading.Thread(
                    target=step.enter,
                    args=(self.target, self._control, 0, number),
                    name=f"stille-cpu-{number}",
                    daemon=True,
                )
                helper.start()
                self._helpers.append(helper)
            step.enter(self.target, self._control, job.ctypes.data, 0)

    def close(self) -> None:
        """Send the helpers home; a later `run` starts new ones."""
        with self._lock:
            if self._helpers:
                mutex, condition = (ctypes.c_void_p(int(self._fields[f])) for f in (step.MUTEX, step.CONDITION))
                self._libc.pthread_mutex_lock(mutex)
                self._fields[step.STOP] = 1
                self._libc.pthread_mutex_unlock(mutex)
                self._libc.pthread_cond_broadcast(condition)
                for helper in self._helpers:
                    helper.join()
                self._fields[step.STOP] = 0
                self._helpers.clear()
