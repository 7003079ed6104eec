"""Whether the cameras are well, and how cameras come and go."""

from __future__ import annotations

from nicegui import run, ui

from stille.web.pages.frame import at, chip, heading, told
from stille.web.site import CameraHealth, Site

TONES = {"running": "#3fd07a", "waiting": "#6cc7ff", "offline": "#ff5d5d", "failed": "#ff5d5d", "ended": "#8b98a7",
         "removed": "#8b98a7"}  # fmt: skip


def build(site: Site) -> None:
    dialogs = ui.element()  # what is opened from a card outlives the card
    with ui.column().classes("st-panel w-full"):
        heading("Add a camera")
        with ui.row().classes("w-full items-center no-wrap"):
            source = ui.input(placeholder="rtsp://viewer:secret@10.0.0.5/stream2#name=dock3,fps=5").classes("grow")
            source.props("outlined dense autocomplete=off").on("keydown.enter", lambda: add())
            ui.button("Add", icon="add", on_click=lambda: add()).props("unelevated no-caps text-color=dark")
        ui.label(
            "Its name (#name=) is that of the rules file. It stays until the command ends: to keep it, put it on the "
            "command line."
        ).classes("st-dim")
    cards = ui.element("div").style(
        "display: grid; gap: 14px; width: 100%; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr))"
    )
    with ui.row().classes("w-full gap-4"):
        sinks = ui.column().classes("st-panel").style("flex: 1 1 420px")
        counts = ui.column().classes("st-panel").style("flex: 1 1 420px")
    shown: dict[str, object] = {}

    async def add() -> None:
        given = (source.value or "").strip()
        if not given:
            return
        with told():
            name = await run.io_bound(site.add_camera, given)
            source.set_value("")
            ui.notify(f"{name} is being opened", type="positive")
            look()

    def remove(name: str) -> None:
        with dialogs, ui.dialog(value=True) as dialog, ui.card().classes("st-panel"):
            ui.label(f"Remove {name}? Its open events close.")

            def yes() -> None:
                dialog.close()
                with told():
                    site.remove_camera(name)
                    look()

            with ui.row():
                ui.button("Remove", on_click=yes).props("unelevated no-caps color=negative")
                ui.button("Keep", on_click=dialog.close).props("flat no-caps color=grey")

    def look() -> None:
        health = site.health()
        if health != shown.get("health"):
            shown["health"] = health
            cards.clear()
            with cards:
                for one in health:
                    _card(site, one, remove)
        desk = {"health": site.desk_health, "made": site.wall.made}
        if desk != shown.get("desk"):
            shown["desk"] = desk
            sinks.clear()
            counts.clear()
            with sinks:
                heading("Where events go")
                for name, sink in site.desk_health.get("sinks", {}).items():
                    with ui.row().classes("w-full items-center no-wrap"):
                        chip(
                            "ok" if sink["problem"] is None else "away",
                            "#3fd07a" if sink["problem"] is None else "#ff5d5d",
                        )
                        ui.label(name).classes("st-mono ellipsis")
                        ui.space()
                        said = ", ".join(f"{value} {key}" for key, value in sink.items() if key != "problem" and value)
                        ui.label(said).classes("st-dim")
                    if sink["problem"]:
                        ui.label(sink["problem"]).classes("st-mono").style("color: #ffb3b3")
            with counts:
                heading("Events, evidence, this page")
                made = site.wall.made
                figures = {
                    **{f"events {k}": v for k, v in site.desk_health.get("events", {}).items()},
                    **{f"frames skipped, {k}": v for k, v in site.desk_health.get("skipped", {}).items()},
                    **{f"evidence {k}": v for k, v in site.desk_health.get("evidence", {}).items()},
                    "pictures made for viewers": f"{made}, {1000 * site.wall.seconds / made:.1f} ms each"
                    if made
                    else 0,
                }
                _figures(figures)

    look()
    ui.timer(1.0, look)


def _card(site: Site, one: CameraHealth, remove) -> None:
    stats, source = one.stats, one.stats.source
    with ui.column().classes("st-panel").props(f'data-health="{one.name}"'):
        with ui.row().classes("w-full items-center no-wrap"):
            chip(stats.state, TONES[stats.state])
            ui.label(one.name).style("font-weight: 600; font-size: 16px")
            ui.space()
            ui.button(icon="delete_outline", on_click=lambda: remove(one.name)).props(
                f'flat round dense color=grey aria-label="Remove {one.name}"'
            )
        ui.label(one.shown).classes("st-mono st-dim ellipsis").style("max-width: 100%")
        _figures(
            {
                "frames a second": "-" if one.fps is None else f"{one.fps:.1f}",
                "seen / dropped / spared": f"{stats.seen} / {stats.dropped} / {stats.gated}",
                "until seen, p50 / p99": f"{1000 * stats.latency_p50_s:.0f} / {1000 * stats.latency_p99_s:.0f} ms",
                "corrupt, reconnects": f"{source.corrupt}, {source.reconnects}",
                "clock jumps, size changes": f"{source.clock_jumps}, {source.size_changes}",
                **({"errors": stats.errors} if stats.errors else {}),
            }
        )
        if stats.error:
            ui.label(stats.error).style("color: #ffb3b3; font-size: 13px")
        if one.trouble is not None:
            trouble, zone = one.trouble, site.rules.rules.timezone
            chip(f"{trouble.kind}{', over' if trouble.over else ''}", "#8b98a7" if trouble.over else "#ff5d5d")
            ui.label(f"since {at(trouble.since, zone)}. {trouble.detail}").classes("st-dim")


def _figures(figures: dict) -> None:
    with ui.element("div").style("display: grid; grid-template-columns: auto 1fr; gap: 3px 18px; width: 100%"):
        for name, value in figures.items():
            ui.label(name).classes("st-dim")
            ui.label(str(value)).classes("st-mono").style("text-align: right")
