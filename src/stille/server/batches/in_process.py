"""One request through the application, without a socket: what a client would be answered."""

import asyncio
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Message

from stille._version import __version__


def has_route(app: FastAPI, path: str) -> bool:
    """Whether a POST to a path would be answered by a route of it."""
    scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)


async def post(app: ASGIApp, path: str, body: bytes, api_key: str | None) -> tuple[int, dict[str, str], bytes]:
    """POST a JSON document to the application's own route, with its validation, limits and errors.

    Cancelling the caller ends the request as a client does that goes away.

    Returns:
        Status, headers (names in lower case) and body of the answer.
    """
    headers = [
        (b"host", b"batch"),
        (b"user-agent", f"stille-batch/{__version__}".encode()),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if api_key is not None:
        headers.append((b"authorization", f"Bearer {api_key}".encode()))
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "state": {},
    }
    sent, status = False, 500
    answer_headers: dict[str, str] = {}
    chunks: list[bytes] = []
    never = asyncio.Event()

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await never.wait()  # nobody hangs up; whoever waits for that is cancelled at the end
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            answer_headers.update(Headers(raw=list(message["headers"])))
        elif message["type"] == "http.response.body":
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, answer_headers, b"".join(chunks)
