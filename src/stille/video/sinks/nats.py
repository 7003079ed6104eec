"""Events to NATS."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stille.video.errors import SinkError
from stille.video.sinks.lanes import RefusedError
from stille.video.types import Event

if TYPE_CHECKING:
    from nats.aio.client import Client

SCHEMES = ("nats", "tls", "ws", "wss")


class Nats:
    """Each change is a message on `subject.camera.rule`, with `Nats-Msg-Id: id:revision`.

    With a stream (JetStream) a change counts as sent once the server has stored it, and what comes twice within the
    stream's window is stored once. Without, once the server has it: who does not listen then, never gets it.

    Args:
        url: nats://, tls://, ws:// or wss://, user and password in it; several servers of a cluster with commas.
        subject: the first part of all subjects.
        stream: made for `subject.>` if there is none of this name; its limits are the server's and can be changed.
        credentials: file of a user's JWT and seed.
        timeout_s: until the server has to have answered.

    Raises:
        SinkError: the URL or the names will not do.
    """

    def __init__(
        self, url: str, subject: str = "stille", stream: str | None = None, credentials: str | None = None,
        timeout_s: float = 10.0, withheld: bool = False, name: str | None = None,
    ):  # fmt: skip
        self._servers = [one.strip() for one in url.split(",")]
        hosts = []
        for one in self._servers:
            parts = urlsplit(one)
            if parts.scheme not in SCHEMES or not parts.hostname:
                raise SinkError(
                    f"NATS server {parts.hostname or parts.scheme!r}: expected nats://HOST:PORT or tls://..."
                )
            hosts.append(f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname)
        if not subject or any(not part or _token(part) != part for part in subject.split(".")):
            raise SinkError(f"NATS subject {subject!r}: expected words with dots between them")
        if stream is not None and _token(stream) != stream:
            raise SinkError(f"NATS stream {stream!r}: expected a name without spaces, dots, * and >")
        self.name = name or f"nats:{','.join(hosts)}"
        self.withheld = withheld
        self._subject, self._stream, self._credentials = subject, stream, credentials
        self._timeout_s = timeout_s
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def send(self, event: Event) -> None:
        self._run(self._send(event))

    def close(self) -> None:
        """What the server has not got yet is sent again next time; nothing waits here."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        with suppress(Exception):  # it is gone already
            asyncio.run_coroutine_threadsafe(self._leave(), loop).result(self._timeout_s)
        loop.call_soon_threadsafe(loop.stop)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """In the loop that also answers the server's pings, which has a thread of its own."""
        if self._loop is None:
            self._loop = loop = asyncio.new_event_loop()
            threading.Thread(target=_live, args=(loop,), name="stille-nats", daemon=True).start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            future.result(2 * self._timeout_s)
        except (TimeoutError, CancelledError) as error:
            future.cancel()
            raise SinkError(f"{self.name}: the server did not answer within {self._timeout_s:g} s") from error

    async def _send(self, event: Event) -> None:
        from nats.errors import MaxPayloadError

        client = self._client if self._client is not None and self._client.is_connected else await self._connect()
        subject = f"{self._subject}.{_token(event.camera)}.{_token(event.rule)}"
        headers = {"Nats-Msg-Id": f"{event.id}:{event.revision}"}
        body = event.model_dump_json().encode()
        try:
            if self._stream is not None:
                await client.jetstream(timeout=self._timeout_s).publish(
                    subject, body, stream=self._stream, headers=headers
                )
            else:
                await client.publish(subject, body, headers=headers)
                await client.flush(max(1, round(self._timeout_s)))
        except MaxPayloadError as error:
            raise RefusedError(f"{self.name}: an event of {len(body)} bytes is larger than the server takes") from error
        except Exception:
            await self._leave()
            raise

    async def _connect(self) -> Client:
        import nats

        await self._leave()
        trouble: list[Exception] = []

        async def note(error: Exception) -> None:
            trouble.append(error)

        tls = (
            ssl.create_default_context()
            if any(urlsplit(one).scheme in ("tls", "wss") for one in self._servers)
            else None
        )
        try:
            client = await nats.connect(
                self._servers, name="stille", allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0,
                connect_timeout=max(1, round(self._timeout_s)),
                error_cb=note, tls=tls, user_credentials=self._credentials,
            )  # fmt: skip
        except Exception as error:
            why = trouble[-1] if trouble else error
            raise SinkError(f"{self.name}: {str(why) or type(why).__name__}") from error
        self._client = client
        if self._stream is not None:
            await self._make_stream(client)
        return client

    async def _make_stream(self, client: Client) -> None:
        from nats.js.errors import NotFoundError

        streams = client.jetstream(timeout=self._timeout_s)
        try:
            await streams.stream_info(self._stream or "")
        except NotFoundError:
            await streams.add_stream(name=self._stream, subjects=[f"{self._subject}.>"])

    async def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # a connection that is broken
                await client.close()


def _live(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _token(name: str) -> str:
    """A name as one part of a subject."""
    return "".join("_" if c in ".*>" or c.isspace() or not c.isprintable() else c for c in name) or "_"
