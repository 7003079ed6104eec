"""A TCP proxy in front of an RTSP server that spoils what passes, as networks and cameras do."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress

TIME_AT, PAYLOAD_AT = 4, 14  # in an RTP packet of H.264: its timestamp, and what may be damaged unseen by RTP


class Proxy:
    """One port in front of one server. RTSP in TCP: between its texts lie packets `$`, channel, two bytes of length.

    Attributes, to be set at any time:
        stalled: nothing passes any more, and nobody hangs up.
        corrupt: share of video packets with a byte that is not as it was.
        jump_s: seconds by which the stream's timestamps are off.
        garbage: packets lose their framing.
        refused: who connects is hung up on.
    """

    def __init__(self, target: int):
        self.target, self.port = target, 0
        self.stalled, self.garbage, self.refused = False, False, False
        self.corrupt, self.jump_s = 0.0, 0.0
        self._loop = asyncio.new_event_loop()
        self._random = random.Random(target)
        self._open: set[asyncio.StreamWriter] = set()
        ready = threading.Event()
        threading.Thread(target=self._work, args=(ready,), name=f"proxy of {target}", daemon=True).start()
        ready.wait(10)

    def reset(self) -> None:
        """Hang up on everybody."""
        self._loop.call_soon_threadsafe(lambda: [writer.transport.abort() for writer in list(self._open)])

    def _work(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)

        async def begin() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        self._loop.create_task(begin())
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self.refused:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            self._open.add(back)
            tasks = [asyncio.create_task(self._plain(reader, back)), asyncio.create_task(self._spoiled(there, writer))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            back.close()
            self._open.discard(back)
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            with suppress(Exception):
                writer.close()

    async def _plain(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def _spoiled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while first := await reader.read(1):
                while self.stalled:
                    await asyncio.sleep(0.1)
                if first == b"$":
                    head = await reader.readexactly(3)
                    packet = bytearray(await reader.readexactly(int.from_bytes(head[1:], "big")))
                    if head[0] == 0:
                        self._spoil(packet)
                    data = first + head + packet
                    if self.garbage:
                        data = bytes(self._random.randrange(256) for _ in range(64))
                else:
                    data = first + (await reader.readuntil(b"\n") if first != b"\n" else b"")
                writer.write(data)
                await writer.drain()

    def _spoil(self, packet: bytearray) -> None:
        if self.jump_s and len(packet) >= 12:
            moment = int.from_bytes(packet[TIME_AT : TIME_AT + 4], "big") + round(90_000 * self.jump_s)
            packet[TIME_AT : TIME_AT + 4] = (moment % 2**32).to_bytes(4, "big")
        if len(packet) > PAYLOAD_AT + 8 and self._random.random() < self.corrupt:
            packet[self._random.randrange(PAYLOAD_AT, len(packet))] ^= 1 << self._random.randrange(8)
