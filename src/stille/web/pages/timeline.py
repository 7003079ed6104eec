"""All cameras over time, events as bars."""

from __future__ import annotations

import time

from nicegui import ui

from stille.web.pages.events import Viewer
from stille.web.pages.frame import Timeline, at, chip, colour, heading, lasting
from stille.web.site import Site

SPANS = {600: "10 min", 3600: "1 h", 6 * 3600: "6 h", 86400: "24 h", 7 * 86400: "7 days", 30 * 86400: "30 days"}
SHOWN = 1500


def build(site: Site) -> None:
    viewer = Viewer(site)
    view: dict[str, float | None] = {"span": 3600.0, "until": None}  # None: now
    with ui.column().classes("st-panel w-full"):
        with ui.row().classes("w-full items-center gap-3"):
            heading("Timeline")
            ui.space()
            ui.button(icon="chevron_left", on_click=lambda: shift(-1)).props("flat round dense")
            ui.toggle(SPANS, value=3600, on_change=lambda e: (view.update(span=float(e.value)), look())).props(
                "no-caps unelevated dense toggle-color=primary toggle-text-color=dark padding='4px 12px'"
            )
            ui.button(icon="chevron_right", on_click=lambda: shift(1)).props("flat round dense")
            ui.button("Now", on_click=lambda: shift(None)).props("flat no-caps dense")
            ui.button("Last event", on_click=lambda: last()).props("flat no-caps dense")
        between = ui.label().classes("st-dim")
        line = Timeline().classes("w-full")
        line.on("pick", lambda event: viewer.show(str(event.args)))
        legend = ui.row().classes("gap-2")
    shown: dict[str, object] = {}

    def shift(steps: int | None) -> None:
        until = view["until"] or time.time()
        moved = None if steps is None else until + steps * (view["span"] or 0) / 2
        view["until"] = None if moved is None or moved >= time.time() else moved
        look()

    def last() -> None:
        entry = next(iter(site.log.store.find(limit=1)), None)
        if entry is not None:
            view["until"] = entry.began + (view["span"] or 0) / 2
            look()

    def look() -> None:
        until = view["until"] or time.time() + (view["span"] or 0) / 40
        since = until - (view["span"] or 0)
        events = site.log.during(since, until, SHOWN)
        timezone = site.rules.rules.timezone
        bars: dict[str, list[dict]] = {name: [] for name in sorted({*site.stats(), *(e.camera for e in events)})}
        for event in events:
            title = f"{event.rule}: {event.reason}\n{at(event.began, timezone)}, {lasting(event)}"
            bars[event.camera].append(
                {"id": event.id, "rule": event.rule, "began": event.began, "ended": event.ended, "title": title}
            )
        rules = sorted({event.rule for event in events})
        rows = [{"camera": name, "bars": row} for name, row in bars.items()]
        if rows != shown.get("rows") or rules != shown.get("rules"):
            shown.update(rows=rows, rules=rules)
            legend.clear()
            with legend:
                for rule in rules:
                    chip(rule, colour(rule))
        full = f" (the newest {SHOWN})" if len(events) >= SHOWN else ""
        between.set_text(f"{at(since, timezone)} to {at(until, timezone)} ({timezone}), {len(events)} events{full}")
        line.props.update(
            since=since, until=until, rows=rows, timezone=timezone, colours={rule: colour(rule) for rule in rules}
        )
        line.update()

    look()
    ui.timer(2.0, look)
