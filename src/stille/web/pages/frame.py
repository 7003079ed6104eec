"""What all pages have: the head with its ways, colours, and the words for events."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from nicegui import ui
from nicegui.element import Element

from stille.errors import StilleError
from stille.video.types import Event
from stille.web.site import Site

WAYS = (
    ("/", "Live", "videocam"),
    ("/events", "Events", "notifications"),
    ("/timeline", "Timeline", "view_timeline"),
    ("/zones", "Zones", "polyline"),
    ("/ask", "Ask", "chat_bubble_outline"),
    ("/cameras", "Cameras", "monitor_heart"),
)
PALETTE = ("#ff7b72", "#f5b642", "#2dd4bf", "#8b9dff", "#d08bff", "#6cc7ff", "#ff9e64", "#9ad26a", "#ff8ac4", "#c9a36b")
STATIC = Path(str(files("stille.web") / "static"))


class Tile(Element, component=STATIC / "stille_tile.js"):
    """A camera's live picture."""

    def __init__(self, camera: str, fps: float, on_pick: Callable[[str], Any]):
        super().__init__()
        self.props["camera"], self.props["fps"] = camera, fps
        self.on("pick", lambda event: on_pick(str(event.args)))

    def show(self, **props: Any) -> None:
        """Set properties; only what has changed is sent."""
        if any(self.props.get(name) != value for name, value in props.items()):
            self.props.update(props)
            self.update()


class Editor(Element, component=STATIC / "stille_editor.js"):
    """Zones and lines on a camera's picture."""


class Timeline(Element, component=STATIC / "stille_timeline.js"):
    """Events as bars."""


@contextmanager
def frame(site: Site, here: str, private: bool) -> Iterator[None]:
    ui.colors(primary="#2dd4bf", secondary="#8b9dff", accent="#f5b642", dark="#131920", dark_page="#0b0f14",
              positive="#3fd07a", negative="#ff5d5d", warning="#f5b642", info="#6cc7ff")  # fmt: skip
    ui.add_css((STATIC / "style.css").read_text("utf-8"))
    with ui.header().classes("st-head items-center q-py-xs q-px-lg").style("min-height: 54px; gap: 6px"):
        ui.html("Stille <span>watch</span>", sanitize=False).classes("st-logo q-mr-md")
        for path, title, icon in WAYS:
            with ui.link(target=path).classes("st-nav" + (" here" if path == here else "")):
                ui.icon(icon, size="18px")
                ui.label(title)
        ui.space()
        alarms = ui.element("span").classes("st-chip")
        with alarms:
            told = ui.label()

        def count() -> None:
            n = len(site.open_events())
            told.set_text(f"{n} open" if n else "all quiet")
            alarms.style(f"--c: {'#ff5d5d' if n else '#3fd07a'}")

        count()
        ui.timer(1.0, count)
        if private:
            ui.html(
                '<form method="post" action="/logout"><button class="st-nav">Log out</button></form>', sanitize=False
            )
    with ui.column().classes("st-page"):
        banner(site)
        yield


def banner(site: Site) -> None:
    """What is wrong with the rules file, as long as it is."""
    with ui.element("div").classes("st-panel w-full").style("border-color: #ff5d5d") as panel:
        ui.html("<h2>The rules file is wrong; the rules before it are in use</h2>", sanitize=False)
        text = ui.label().classes("st-mono").style("white-space: pre-wrap; color: #ffb3b3")

    def look() -> None:
        panel.set_visibility(site.rules.problem is not None)
        text.set_text(site.rules.problem or "")

    look()
    ui.timer(1.0, look)


def colour(rule: str) -> str:
    """The same for the same rule, everywhere."""
    return PALETTE[hashlib.sha256(rule.encode()).digest()[0] % len(PALETTE)]


def chip(text: str, tone: str) -> None:
    with ui.element("span").classes("st-chip").style(f"--c: {tone}"):
        ui.label(text)


def heading(text: str) -> None:
    with ui.element("h2"):
        ui.label(text)


def at(moment: float, timezone: str, day: bool = True) -> str:
    return datetime.fromtimestamp(moment, ZoneInfo(timezone)).strftime("%d %b %Y, %H:%M:%S" if day else "%H:%M:%S")


def lasting(event: Event) -> str:
    """How long it went on, or has gone on so far."""
    seconds = max(0.0, (event.ended if event.ended is not None else max(event.changed, time.time())) - event.began)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def place(event: Event) -> str:
    return f"{event.camera} / {event.zone}" if event.zone else event.camera


@contextmanager
def told() -> Iterator[None]:
    """Errors that people can mend are shown to them."""
    try:
        yield
    except StilleError as error:
        ui.notify(str(error), type="negative", multi_line=True, timeout=8000, classes="st-mono")
