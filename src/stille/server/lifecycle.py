"""Running the application under uvicorn: a socket bound early, draining on the first signal, out on the second."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from stille.errors import ConfigError
from stille.server.state import ServerState

log = logging.getLogger("stille.server")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def bind(host: str, port: int) -> socket.socket:
    """A listening address, taken before the model is loaded so that a conflict shows at once.

    Raises:
        ConfigError: the port is taken, not allowed, or the host is not an address of this machine.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error
    sock = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; choose another with --port (0 picks a free one)"
        ) from error
    return sock


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling (which would end the process by the signal, not with 0)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_server(app: FastAPI, sock: socket.socket, *, on_started: Callable[[], None] | None = None) -> int:
    """Serve `app` on `sock` until a signal; returns the exit status.

    The first SIGTERM or SIGINT drains: new work gets 503, running requests finish, for at most
    `settings.drain_timeout_s`; what still runs then is aborted. A second signal ends the process at once.
    """
    return asyncio.run(_serve(app, sock, on_started))


async def _serve(app: FastAPI, sock: socket.socket, on_started: Callable[[], None] | None) -> int:
    state: ServerState = app.state.stille
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
        server_header=False,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    drain: asyncio.Task | None = None

    def on_signal(number: int) -> None:
        nonlocal drain
        if drain is not None:
            log.warning("second signal: leaving at once")
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(128 + number)
        log.info("%s: draining %d requests", signal.Signals(number).name, state.active)
        drain = loop.create_task(_drain(state, server))

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    announce = loop.create_task(_announce(server, on_started)) if on_started else None
    try:
        await server.serve(sockets=[sock])
    finally:
        for task in (announce, drain):
            if task is not None:
                task.cancel()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    return 0 if server.started else 1


async def _announce(server: uvicorn.Server, on_started: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.02)
    on_started()


async def _drain(state: ServerState, server: uvicorn.Server) -> None:
    state.draining = True
    if state.batches is not None:
        await state.batches.worker.stop()  # its lines go on at the next start; nobody waits for them
    deadline = time.monotonic() + state.settings.drain_timeout_s
    while state.active and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    if state.active:
        log.warning("drain timeout: aborting %d requests", state.active)
    # Ends the sequences that are left; their requests answer with an error, for which uvicorn waits.
    await state.engine.close()
    server.should_exit = True
