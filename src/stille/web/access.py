"""Who may see the page: this machine's own browser, or who knows the password.

Without a password only requests to the loopback address are answered: by the name that they were sent to, so that a
foreign page whose name was made to point here (DNS rebinding) gets nothing. With one, a browser gets a session cookie
for it, programs send it as `Authorization: Bearer`. A request that a page of another origin makes is refused in any
case, the socket of the page included.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stille.errors import ConfigError

COOKIE = "stille_page"
SESSION_S = 12 * 3600.0
FORM_BYTES = 4096
TRIES, TRIES_S = 10, 60.0
"""Wrong passwords that are looked at in such a time, whoever sends them."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_PASSWORD = 12
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self'; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; font-src 'self' data:; connect-src 'self' ws: wss:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'; object-src 'none'"
)


class Access:
    """One ASGI wrapper around the whole application.

    Args:
        host: that the page is bound to.
        password: None: nobody but this machine; needs a loopback `host`.

    Raises:
        ConfigError: a page for other machines has no password, or one that can be guessed.
    """

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1", password: str | None = None):
        if password is None and host not in LOOPBACK:
            raise ConfigError(
                f"a page at {host} can be reached from other machines: set STILLE_PAGE_PASSWORD ({MIN_PASSWORD} "
                "characters or more), or bind it to 127.0.0.1"
            )
        if password is not None and len(password) < MIN_PASSWORD:
            raise ConfigError(f"the page's password has {len(password)} characters; expected {MIN_PASSWORD} or more")
        self.app = app
        self._password = None if password is None else _digest(password)
        self._sessions: dict[bytes, float] = {}  # digest of the cookie, until when
        self._wrong: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            if self._foreign(scope, headers) or not self._known(headers):
                await receive()
                await send({"type": "websocket.close", "code": 4401})
                return
            await self.app(scope, receive, send)
            return

        async def send_strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["X-Content-Type-Options"] = "nosniff"
                answer["X-Frame-Options"] = "DENY"
                answer["Referrer-Policy"] = "same-origin"
                answer["Content-Security-Policy"] = POLICY
                answer["Cross-Origin-Resource-Policy"] = "same-origin"
                for name in [name for name in answer if name.startswith("access-control-")]:
                    del answer[name]  # the page's socket would allow every origin
                answer.setdefault("Cache-Control", "no-store")
            await send(message)

        await (await self._answer(scope, headers, receive) or self.app)(scope, receive, send_strict)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive) -> Response | None:
        """What is answered in place of the application; None: it may answer itself."""
        if self._foreign(scope, headers):
            return PlainTextResponse("This page answers only requests of its own origin.", 403)
        if self._password is None:
            return None
        path, method = scope["path"], scope["method"]
        if path == "/login" and method == "POST":
            return await self._login(scope, headers, receive)
        if path == "/logout" and method == "POST":
            self._sessions.pop(_digest(_cookie(headers)), None)
            return _gone(RedirectResponse("/login", 303))
        if self._known(headers):
            return RedirectResponse("/", 303) if path == "/login" else None
        if path == "/login" or (method == "GET" and "text/html" in headers.get("accept", "")):
            return self._form(200 if path == "/login" else 401)
        return PlainTextResponse("Log in first, or send 'Authorization: Bearer <password>'.", 401)

    def _foreign(self, scope: Scope, headers: Headers) -> bool:
        """Whether a page of another origin makes this request, or it came by a name that is not this machine's."""
        host = headers.get("host", "")
        if self._password is None and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return True
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return True
        # Browsers say where a request comes from; following a link to the page is allowed.
        site, method = headers.get("sec-fetch-site", "none"), scope.get("method", "GET")
        if site in ("same-origin", "none"):
            return False
        return not (method == "GET" and headers.get("sec-fetch-mode") == "navigate" and scope["type"] == "http")

    def _known(self, headers: Headers) -> bool:
        if self._password is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._right(given.strip())
        return self._sessions.get(_digest(_cookie(headers)), 0.0) > time.monotonic()

    def _right(self, given: str) -> bool:
        """Compares in a time that tells nothing. After some wrong ones in a minute none is right for the rest of it."""
        assert self._password is not None
        now = time.monotonic()
        self._wrong = [when for when in self._wrong if now - when < TRIES_S]
        if len(self._wrong) >= TRIES:
            return False
        right = hmac.compare_digest(_digest(given), self._password)
        if not right:
            self._wrong.append(now)
        return right

    async def _login(self, scope: Scope, headers: Headers, receive: Receive) -> Response:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > FORM_BYTES:
                return PlainTextResponse("The form is too large.", 413)
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0]
        if not self._right(given):
            await asyncio.sleep(0.3)
            full = len(self._wrong) >= TRIES
            return self._form(429 if full else 401, "Too many tries: wait a minute." if full else "That is not it.")
        now, token = time.monotonic(), secrets.token_urlsafe(32)
        self._sessions = {known: until for known, until in self._sessions.items() if until > now}
        self._sessions[_digest(token)] = now + SESSION_S
        answer = RedirectResponse("/", 303)
        secure = scope.get("scheme") == "https"
        answer.set_cookie(COOKIE, token, max_age=int(SESSION_S), httponly=True, samesite="strict", secure=secure)
        return answer

    def _form(self, status: int, problem: str = "") -> Response:
        page = (files("stille.web") / "static" / "login.html").read_text("utf-8")
        return HTMLResponse(page.replace("{problem}", problem), status)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _gone(answer: Response) -> Response:
    answer.delete_cookie(COOKIE)
    return answer
