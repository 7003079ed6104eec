"""The page in a real browser: a zone drawn by mouse makes an event, which is seen, marked and asked about."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from stille.video.rules import load_rules
from stille.video.store import Filter, Store
from stille.web.log import Log

WAIT_MS = 60_000  # of a machine that has other work


class Clerk(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint whose model counts whatever is asked, and then says something wrong."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["tool_choice"] == "none":
            delta, reason = {"content": "There were 4711 of them."}, "stop"
        else:
            tool = next(t["function"] for t in asked["tools"] if t["function"]["name"] == "count_events")
            first = {name: what["enum"][0] for name, what in tool["parameters"]["properties"].items()}
            call = {"index": 0, "id": "c1", "type": "function",
                    "function": {"name": "count_events", "arguments": json.dumps(first)}}  # fmt: skip
            delta, reason = {"tool_calls": [call]}, "tool_calls"
        parts = [
            {"delta": {"role": "assistant", **delta}, "finish_reason": None},
            {"delta": {}, "finish_reason": reason},
        ]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for part in parts:
            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": asked["model"],
                     "choices": [{"index": 0, **part}]}  # fmt: skip
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def clerk():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Clerk)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_drawn_zone_becomes_an_event_that_is_seen_marked_and_counted(hall, browser, clerk):
    folder, url = hall(clerk)
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: errors.append(request.url) if not request.url.startswith((url, "blob:", "data:")) else None,
    )

    # A zone over most of the picture, by mouse, with a rule of its own.
    page.goto(f"{url}/zones")
    page.get_by_role("button", name="Draw zone").click()
    pad = page.locator(".st-editor[data-tool=zone]")
    page.wait_for_function("document.querySelector('.st-editor img').naturalWidth > 0")
    pad.locator("svg").wait_for()
    box = pad.bounding_box()
    corners = [(0.05, 0.1), (0.95, 0.1), (0.95, 0.95), (0.05, 0.95)]
    for x, y in [*corners, corners[0]]:
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.get_by_label("Name", exact=True).fill("floor")
    page.get_by_label("New rule for it").click()
    page.get_by_role("option", name="intrusion").click()
    page.get_by_label("Id of the rule").fill("walking")
    page.get_by_role("button", name="Save").click()
    page.locator(".st-editor g[data-name=floor]").wait_for()
    rules = load_rules(folder / "rules.yaml")
    drawn = next(zone for zone in rules.zones if zone.name == "floor")
    assert np.array(drawn.points) == pytest.approx(np.array(corners), abs=0.01)
    assert rules.rule("walking").zones == ("floor",)
    text = (folder / "rules.yaml").read_text()
    assert "# over the gate" in text
    assert "# nobody can get there" in text

    # Its first corner is dragged, and the file follows.
    page.get_by_role("button", name="Select").click()
    page.locator(".st-editor g.chosen circle.st-corner").first.wait_for()
    corner = page.locator(".st-editor g.chosen circle.st-corner").first.bounding_box()
    page.mouse.move(corner["x"] + corner["width"] / 2, corner["y"] + corner["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.15 * box["width"], box["y"] + 0.2 * box["height"], steps=3)
    page.mouse.up()
    page.get_by_text("floor is changed").first.wait_for()
    (x, y), *rest = next(zone for zone in load_rules(folder / "rules.yaml").zones if zone.name == "floor").points
    assert (x, y) == (pytest.approx(0.15, abs=0.01), pytest.approx(0.2, abs=0.01))
    assert rest == list(drawn.points[1:])

    # The engine works under the new rule: an alarm on the wall, an event in the list, its clip plays.
    page.goto(url)
    page.locator(".st-tile.st-alarm[data-camera=hall]").wait_for()
    page.locator(".st-box").first.wait_for()
    assert page.evaluate("document.querySelector('.st-tile img').naturalWidth") == 320
    page.goto(f"{url}/events")
    row = page.locator(".st-event", has_text="walking").last
    row.locator("img.st-thumb").wait_for()
    row.click()
    page.wait_for_function("(document.querySelector('video') || {}).currentTime > 0.1")
    page.get_by_role("button", name="False alarm").click()
    page.locator(".q-dialog .st-chip", has_text="false alarm").wait_for()
    page.keyboard.press("Escape")
    log = Log(Store(folder / "out" / "events.db"))
    entries, _ = log.find(Filter(), "false alarm")
    assert [entry.event.rule for entry in entries] == ["walking"]

    # The figure is the log's, the call stands beside it, and what the model makes up is left out.
    page.goto(f"{url}/ask")
    page.get_by_placeholder("near misses").fill("how many times was somebody walking today")
    page.get_by_role("button", name="Ask", exact=True).click()
    said = page.locator(".st-answer").inner_text()
    counted = sum(log.store.count(Filter(rules=["walking"])).values())
    assert said.split()[0].isdigit()
    assert 1 <= int(said.split()[0]) <= counted
    assert 'count_events(what="walking", where="any", when="today")' in page.locator(".st-call").inner_text()
    assert "4711" not in page.content()
    log.store.close()

    # Taken away again, by the button that says what goes with it.
    page.goto(f"{url}/zones")
    page.get_by_role("button", name="Remove floor").click()
    page.get_by_text("go with it: walking").wait_for()
    page.get_by_role("button", name="Remove", exact=True).click()
    page.get_by_text("floor is removed").first.wait_for()
    assert [zone.name for zone in load_rules(folder / "rules.yaml").zones] == ["gate"]
    assert errors == []
    page.close()
