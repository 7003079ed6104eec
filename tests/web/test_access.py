"""Who gets in."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from stille.errors import ConfigError
from stille.web.access import TRIES, Access

PASSWORD = "correct horse battery"


async def hello(request):
    return PlainTextResponse("hello", headers={"Access-Control-Allow-Origin": "*"})


async def socket(websocket):
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


def client(password: str | None = None, url: str = "http://127.0.0.1:8080", **more) -> TestClient:
    app = Starlette(routes=[Route("/{path:path}", hello, methods=["GET", "POST"]), WebSocketRoute("/ws", socket)])
    host = "127.0.0.1" if password is None else "0.0.0.0"
    return TestClient(Access(app, host, password), url, follow_redirects=False, **more)


def test_a_page_for_others_needs_a_password():
    for host, password in (("0.0.0.0", None), ("10.0.0.5", None), ("127.0.0.1", "short")):
        with pytest.raises(ConfigError, match=r"12 or more|STILLE_PAGE_PASSWORD"):
            Access(hello, host, password)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "evil.example"}, 403),  # a name that was made to point here
        ({"host": ""}, 403),
        ({"origin": "http://127.0.0.1:8080"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),  # <img> of another page
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),  # a link
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_other_pages_get_nothing_from_this_machines_own(headers, status):
    answer = client().get("/events/x/clip", headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-frame-options"] == "DENY"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert client().post("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status_code == 403


def test_the_socket_is_held_to_the_same():
    with client().websocket_connect("/ws", headers={"host": "127.0.0.1:8080"}) as open:
        assert open.receive_text() == "hello"
    for headers in ({"host": "127.0.0.1:8080", "origin": "http://evil.example"}, {"host": "evil.example"}):
        with pytest.raises(WebSocketDisconnect), client().websocket_connect("/ws", headers=headers):
            pass
    with pytest.raises(WebSocketDisconnect), client(PASSWORD).websocket_connect("/ws"):
        pass


def test_the_password_opens_and_the_cookie_keeps_open(monkeypatch):
    there = client(PASSWORD, "http://10.0.0.5:8080")
    assert there.get("/live/hall").status_code == 401
    form = there.get("/", headers={"accept": "text/html"})
    assert (form.status_code, 'type="password"' in form.text, "hello" in form.text) == (401, True, False)
    monkeypatch.setattr("asyncio.sleep", _at_once)
    assert there.post("/login", data={"password": "wrong"}).status_code == 401
    assert not there.cookies
    opened = there.post("/login", data={"password": PASSWORD})
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert there.get("/live/hall").text == "hello"
    forged = client(PASSWORD, "http://10.0.0.5:8080", cookies={"stille_page": "x" * 43})
    assert forged.get("/").status_code == 401
    assert there.post("/logout").status_code == 303
    assert there.get("/live/hall").status_code == 401


def test_programs_send_the_password_and_guessing_is_slow(monkeypatch):
    monkeypatch.setattr("asyncio.sleep", _at_once)
    there = client(PASSWORD, "http://10.0.0.5:8080")
    right, wrong = ({"authorization": f"Bearer {word}"} for word in (PASSWORD, "wrong"))
    assert there.get("/health", headers=right).status_code == 200
    for _ in range(TRIES):
        assert there.get("/health", headers=wrong).status_code == 401
    assert there.get("/health", headers=right).status_code == 401  # until a minute has gone
    assert there.post("/login", data={"password": PASSWORD}).status_code == 429
    assert there.post("/login", content=b"password=" + b"x" * 5000).status_code == 413


async def _at_once(_: float) -> None:
    pass
