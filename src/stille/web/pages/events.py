"""The list of events, and one of them with its clip."""

from __future__ import annotations

import time
from typing import Any

from nicegui import ui

from stille.video.rules.periods import EXPECTED, period
from stille.video.store import Filter
from stille.web.log import Entry, Verdict
from stille.web.pages.frame import at, chip, colour, lasting, place, told
from stille.web.site import Site

PAGE = 25
SPANS = ("all time", "last hour", "today", "yesterday", "last 7 days", "last 30 days")
TONES = {"open": "#ff5d5d", "closed": "#8b98a7", "acknowledged": "#3fd07a", "false alarm": "#f5b642"}


class Viewer:
    """A dialog that shows one event, with what can be said of it."""

    def __init__(self, site: Site):
        self.site = site
        with ui.dialog() as self.dialog, ui.card().classes("st-panel").style("width: 860px; max-width: 94vw"):
            self.body = ui.column().classes("w-full gap-3")
        self._shown: tuple[str, str | None, str | None] | None = None  # event, snapshot, clip
        ui.timer(1.0, self._again)

    def show(self, id: str) -> None:
        with told():
            self._fill(id)
            self.dialog.open()

    def _again(self) -> None:
        """Show evidence that has been written meanwhile."""
        if not self.dialog.value or self._shown is None or self._shown[2] is not None:
            return
        entry = self.site.log.get(self._shown[0])
        if entry is not None and (entry.event.id, entry.event.snapshot, entry.event.clip) != self._shown:
            self._fill(entry.event.id)

    def _fill(self, id: str) -> None:
        entry = self.site.log.get(id)
        self._shown = (id, entry.event.snapshot, entry.event.clip) if entry is not None else None
        self.body.clear()
        with self.body:
            if entry is None:
                ui.label("This event is kept no longer.").classes("st-dim")
                return
            event, zone = entry.event, self.site.rules.rules.timezone
            with ui.row().classes("w-full items-center gap-2"):
                chip(event.rule, colour(event.rule))
                ui.label(place(event)).style("font-weight: 600")
                badges(entry)
                ui.space()
                ui.button(icon="close", on_click=self.dialog.close).props("flat round dense color=grey")
            if event.clip:
                ui.html(
                    f'<video class="st-video" controls autoplay muted loop playsinline src="/events/{event.id}/clip">'
                    "</video>", sanitize=False,
                )  # fmt: skip
            elif event.snapshot:
                ui.html(f'<img class="st-video" src="/events/{event.id}/snapshot">', sanitize=False)
            ui.label(event.reason).style("font-size: 16px")
            facts = {"began": at(event.began, zone), "lasted": lasting(event), "confidence": f"{event.confidence:.0%}",
                     **event.facts, "id": event.id}  # fmt: skip
            with ui.element("div").style("display: grid; grid-template-columns: auto 1fr; gap: 3px 18px"):
                for name, value in facts.items():
                    ui.label(name).classes("st-dim")
                    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
                    ui.label(shown).classes("st-mono")
            note = (
                ui.input("Note", value=entry.mark.note if entry.mark else "").classes("w-full").props("dense outlined")
            )
            with ui.row().classes("gap-2"):
                for verdict, icon in (("acknowledged", "check"), ("false alarm", "block")):
                    ui.button(
                        verdict.capitalize(), icon=icon, on_click=lambda _, v=verdict: self._mark(id, v, note.value)
                    ).props("unelevated no-caps" if entry.mark and entry.mark.verdict == verdict else "outline no-caps")
                if entry.mark:
                    ui.button("Take back", on_click=lambda: self._mark(id, None, "")).props("flat no-caps color=grey")
            if entry.mark:
                ui.label(f"{entry.mark.verdict}, {at(entry.mark.time, zone)}").classes("st-dim")

    def _mark(self, id: str, verdict: Any, note: str | None) -> None:
        with told():
            if verdict is None:
                self.site.log.unmark(id)
            else:
                request = ui.context.client.request
                by = request.client.host if request is not None and request.client else ""
                self.site.log.mark(id, verdict, note or "", by)
            self._fill(id)


def opens(listed: Any, viewer: Viewer) -> None:
    """A click on an event in a list opens it. The list listens, as its rows are made anew whenever one changes."""
    pick = "(e) => { const row = e.target.closest('[data-event]'); if (row) emit(row.dataset.event); }"
    listed.on("click", lambda event: viewer.show(str(event.args)), js_handler=pick)


def badges(entry: Entry) -> None:
    chip(entry.event.state, TONES[entry.event.state])
    if entry.event.withheld:
        chip("withheld", "#d08bff")
    if entry.mark is not None:
        chip(entry.mark.verdict, TONES[entry.mark.verdict])


def short(site: Site, entry: Entry) -> None:
    """An event in the bar beside the wall."""
    event = entry.event
    with ui.element("div").classes("st-event small").props(f'data-event="{event.id}"'):
        _thumb(entry)
        with ui.column().classes("gap-0"):
            with ui.row().classes("items-center gap-2 no-wrap"):
                chip(event.rule, colour(event.rule))
                if event.state == "open":
                    chip("open", TONES["open"])
            when = at(event.began, site.rules.rules.timezone, day=False)
            ui.label(f"{place(event)}, {when}").classes("st-dim")


def _row(site: Site, entry: Entry) -> None:
    event = entry.event
    row = ui.element("div").classes("st-event")
    with row.props(f'data-event="{event.id}"'):
        _thumb(entry)
        with ui.column().classes("gap-1"):
            with ui.row().classes("items-center gap-2"):
                chip(event.rule, colour(event.rule))
                ui.label(place(event)).style("font-weight: 600")
                badges(entry)
            ui.label(event.reason).classes("st-what")
        with ui.column().classes("items-end gap-0"):
            ui.label(at(event.began, site.rules.rules.timezone)).style("font-size: 13px; white-space: nowrap")
            ui.label(f"{lasting(event)}, {event.confidence:.0%}").classes("st-dim")


def _thumb(entry: Entry) -> None:
    if entry.event.snapshot:
        source = f"/events/{entry.event.id}/snapshot"
        ui.html(f'<img class="st-thumb" loading="lazy" src="{source}">', sanitize=False)
    else:
        with ui.element("div").classes("st-thumb flex items-center justify-center"):
            ui.icon("image_not_supported", size="20px").style("color: #39434f")


def build(site: Site) -> None:
    viewer = Viewer(site)
    rules = site.rules.rules
    known = site.log.store.names()
    ids = sorted({rule.id for rule in rules.rules} | set(known["rule"]))
    cameras = sorted(set(site.stats()) | set(known["camera"]))
    page, shown = {"offset": 0}, dict[str, Any]()

    def again() -> None:
        page["offset"] = 0
        look()

    with ui.row().classes("st-panel w-full items-end gap-4"):

        def pick(title: str, options: Any, value: Any, several: bool = False, width: int = 170) -> Any:
            made = ui.select(options, label=title, value=value, multiple=several, clearable=several, on_change=again)
            return made.props("dense outlined options-dense").style(f"width: {width}px")

        rule = pick("Rules", ids, [], several=True, width=220)
        camera = pick("Cameras", cameras, [], several=True, width=220)
        span = ui.select(list(SPANS), label="Time", value="all time", with_input=True, new_value_mode="add",
                         on_change=again).props("dense outlined").style("width: 190px")  # fmt: skip
        span.tooltip(f"or in words: {EXPECTED}")
        state = pick("State", {"": "open and closed", "open": "open", "closed": "closed"}, "")
        marks = pick("Marked", {"": "any", "none": "not yet", "acknowledged": "acknowledged",
                                "false alarm": "false alarm"}, "", width=150)  # fmt: skip
        words = ui.input("Words", on_change=again).props("dense outlined debounce=300 clearable").style("width: 180px")
        withheld = ui.switch("withheld too", on_change=again).props("dense").classes("st-dim q-pb-sm")
    with ui.column().classes("st-panel w-full"):
        with ui.row().classes("w-full items-center"):
            total = ui.label().classes("st-dim")
            ui.space()
            newer = ui.button(icon="chevron_left", on_click=lambda: turn(-PAGE)).props("flat round dense")
            older = ui.button(icon="chevron_right", on_click=lambda: turn(PAGE)).props("flat round dense")
        listed = ui.column().classes("w-full gap-1")
        opens(listed, viewer)

    def turn(by: int) -> None:
        page["offset"] = max(0, page["offset"] + by)
        look()

    def look() -> None:
        with told():
            since, until = None, None
            if span.value and span.value != "all time":
                since, until = period(span.value, time.time(), rules.timezone)
            which = Filter(since, until, rules=rule.value or None, cameras=camera.value or None,
                           text=words.value or None, state=state.value or None,
                           withheld=None if withheld.value else False)  # fmt: skip
            verdict: Verdict | Any = marks.value or None
            entries, count = site.log.find(which, verdict, PAGE, page["offset"])
            key = (count, page["offset"], [(e.event.id, e.event.revision, e.mark) for e in entries])
            if key == shown.get("key"):
                return
            shown["key"] = key
            first, last = page["offset"] + 1, page["offset"] + len(entries)
            total.set_text(f"{first} to {last} of {count}" if entries else "No events.")
            newer.set_visibility(page["offset"] > 0)
            older.set_visibility(last < count)
            listed.clear()
            with listed:
                for entry in entries:
                    _row(site, entry)

    look()
    ui.timer(1.5, look)
