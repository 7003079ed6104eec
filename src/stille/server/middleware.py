"""One ASGI wrapper around the whole application: request id, API key, draining, body limit, access log.

It is plain ASGI on purpose: wrappers that re-buffer responses hide client disconnects from streaming endpoints.
"""

import hmac
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stille.server.errors import ApiError, as_api_error, unavailable
from stille.server.logs import access
from stille.server.metrics import ServerMetrics
from stille.server.settings import ServerSettings
from stille.server.state import ServerState

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/docs", "/openapi.json"})
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
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await refusal.response()(scope, receive, send_with_id)
            else:
                await self.app(scope, _limited(receive, self.settings.max_body_bytes), send_with_id)
        except Exception as error:
            # Last resort, here rather than in the framework so that this answer has its request id too.
            answer = as_api_error(error).response()
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

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        path = scope["path"]
        if path in OPEN_PATHS:
            return None
        if self.settings.api_key is not None and scope["method"] != "OPTIONS":
            scheme, _, token = headers.get("authorization", "").partition(" ")
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
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.settings.max_body_bytes:
            return _too_large(self.settings.max_body_bytes)
        return None


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than this server's limit of {limit} bytes.",
        code="body_too_large",
        headers={"Connection": "close"},
    )


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
