"""The page's own thread: uvicorn on a socket that is bound before anything else begins."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING

import uvicorn

from stille.errors import ConfigError
from stille.web.access import Access

if TYPE_CHECKING:
    from stille.web.site import Site

START_S = 30.0


class PageServer:
    """
    Args:
        port: 0 picks a free one.
        password: see `Access`.

    Attributes:
        url: of the page.

    Raises:
        ConfigError: the address cannot be used, or is open to others without a password.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", password: str | None = None):
        Access(_nothing, host, password)  # before the socket is there
        self.host, self._password = host, password
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((host, port), family=family, backlog=128)
        except (OSError, OverflowError, UnicodeError) as error:
            raise ConfigError(f"the page cannot listen on {host}:{port}: {error}; choose another port") from error
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.url = f"http://{f'[{name}]' if ':' in name else name}:{self._socket.getsockname()[1]}"
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, site: Site) -> None:
        """Serve it, from now on and beside whatever else the process does.

        Raises:
            ConfigError: it does not start.
        """
        from stille.web.app import create_app

        config = uvicorn.Config(
            create_app(site, self.host, self._password), log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=1, ws_max_size=1 << 20, lifespan="on", proxy_headers=False,
        )  # fmt: skip
        self._server = server = uvicorn.Server(config)
        started = threading.Event()

        async def serve() -> None:
            async def tell() -> None:
                while not server.started:
                    await asyncio.sleep(0.02)
                started.set()

            telling = asyncio.create_task(tell())
            await server.serve(sockets=[self._socket])
            telling.cancel()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), name="stille-page", daemon=True)
        self._thread.start()
        if not started.wait(START_S):
            raise ConfigError(f"the page at {self.url} has not started within {START_S:g} s; the log says why")

    def close(self, wait_s: float = 3.0) -> None:
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(wait_s)
        self._socket.close()


async def _nothing(*_: object) -> None:
    pass
