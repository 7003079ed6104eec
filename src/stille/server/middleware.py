"""One ASGI wrapper around the whole application: request id, API key, draining, body limit, access log.

It is plain ASGI on purpose: wrappers that re-buffer responses hide client disconnects from streaming endpoints.
"""

import asyncio
import contextlib
import hmac
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stille.server.errors import ApiError, as_api_error, error_response, unavailable
from stille.server.logs import access
from stille.server.messages_errors import is_messages_path
from stille.server.metrics import ServerMetrics
from stille.server.settings import ServerSettings
from stille.server.state import ServerState

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/docs", "/openapi.json"})
UPLOAD_PATH = "/v1/files"
FORM_BYTES = 8192
"""What the form of an upload may take beside its file."""
LINGER_S = 30.0
"""How long an upload that is too large is read on after it was refused."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestScope:
    """Wraps every HTTP request.

    Sets `request.state.request_id`; answers 401, 503 and 413 itself; counts and logs every request.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, state: ServerState, metrics: ServerMetrics):
        self.app = app
        self.settings = settings
        self.state = state
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 499  # what is logged if the client leaves before an answer
        probe = scope["path"] in OPEN_PATHS
        self.state.active += not probe

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer_headers = MutableHeaders(scope=message)
                answer_headers["X-Request-Id"] = request_id
                if is_messages_path(scope["path"]):
                    answer_headers["request-id"] = request_id  # where Anthropic's clients look for it
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                answer = error_response(refusal, scope)
                if scope["path"] == UPLOAD_PATH and refusal.status_code == 413:
                    await _answer_and_discard(answer, scope, receive, send_with_id)
                else:
                    await answer(scope, receive, send_with_id)
            else:
                await self.app(scope, _limited(receive, self._limit(scope["path"])), send_with_id)
        except Exception as error:
            # Last resort, here rather than in the framework so that this answer has its request id too.
            answer = error_response(as_api_error(error), scope)
            if status != 499:
                raise
            await answer(scope, receive, send_with_id)
        finally:
            self.state.active -= not probe
            elapsed = time.perf_counter() - started
            # The route template, not the path: a path would make one time series per id that anyone asks for.
            route = getattr(scope.get("route"), "path", None) or "unmatched"
            self.metrics.observe_http(scope["method"], route, status)
            access.log(
                10 if probe else 20,
                "%s %s -> %d in %.3f s",
                scope["method"],
                scope["path"],
                status,
                elapsed,
                extra={"fields": {"request_id": request_id, "status": status, **scope["state"].get("log_fields", {})}},
            )

    def _limit(self, path: str) -> int:
        """Most bytes of a body."""
        return self.settings.max_file_bytes + FORM_BYTES if path == UPLOAD_PATH else self.settings.max_body_bytes

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        path = scope["path"]
        if path in OPEN_PATHS:
            return None
        if self.settings.api_key is not None and scope["method"] != "OPTIONS":
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if not token and "x-api-key" in headers:  # Anthropic's name of it
                scheme, token = "bearer", headers["x-api-key"]
            expected = self.settings.api_key.encode()
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), expected):
                message = (
                    "Incorrect API key provided."
                    if token
                    else "No API key provided: send it as 'Authorization: Bearer <key>'."
                )
                return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if self.state.draining and scope["method"] == "POST":
            return unavailable("The server is shutting down and takes no new requests.")
        length, limit = headers.get("content-length", ""), self._limit(path)
        if length.isdigit() and int(length) > limit:
            return _too_large(limit)
        return None


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than this server's limit of {limit} bytes.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


async def _answer_and_discard(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once, but read on for a while: clients look for an answer after they have sent everything, and one that
    is cut off before sees a broken connection instead."""

    async def unfinished(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await answer(scope, receive, unfinished)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _limited(receive: Receive, limit: int) -> Receive:
    """`receive` that raises a 413 once the chunks of a body without Content-Length exceed the limit."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
        return message

    return limited
