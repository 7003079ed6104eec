"""The wall of cameras, and what goes on."""

from __future__ import annotations

from nicegui import ui

from stille.video.store import Filter
from stille.web.pages.events import Viewer, opens, short
from stille.web.pages.frame import Tile, heading
from stille.web.site import Site

FPS = 4.0
RECENT = 12


def build(site: Site) -> None:
    viewer = Viewer(site)
    layers = {"boxes": True, "labels": True, "zones": True}
    with ui.element("div").classes("st-split"):
        with ui.column().classes("w-full gap-3"):
            with ui.row().classes("w-full items-center gap-4"):
                for name in layers:
                    ui.switch(
                        name, value=True, on_change=lambda e, name=name: layers.update({name: bool(e.value)})
                    ).props("dense size=sm").classes("st-dim")
            wall = ui.element("div").classes("st-wall")
            empty = ui.label("No camera yet: add one under Cameras.").classes("st-dim")
        with ui.column().classes("st-panel w-full"):
            heading("Latest events")
            recent = ui.column().classes("w-full gap-1")
            opens(recent, viewer)
    tiles: dict[str, Tile] = {}
    shown: list[list[tuple[str, int]] | None] = [None]

    def look() -> None:
        cameras = {one.name: one for one in site.health()}
        for name in set(tiles) - set(cameras):
            tiles.pop(name).delete()
        for name in cameras:
            if name not in tiles:
                with wall:
                    tiles[name] = Tile(name, FPS, viewer.show)
        for name, tile in tiles.items():
            one = cameras[name]
            state = one.stats.state
            note = f"{one.fps:.1f} fps" if state == "running" and one.fps is not None else state
            shapes = [
                {"kind": s.kind, "name": s.name, "points": [list(p) for p in s.points]} for s in site.rules.shapes(name)
            ]
            tile.show(
                note=note,
                away=state in ("offline", "failed"),
                shapes=shapes,
                layers=dict(layers),
                timezone=site.rules.rules.timezone,
            )
        empty.set_visibility(not cameras)
        entries, _ = site.log.find(Filter(), limit=RECENT)
        now = [(one.event.id, one.event.revision) for one in entries]
        if now != shown[0]:
            shown[0] = now
            recent.clear()
            with recent:
                for entry in entries:
                    short(site, entry)
                if not entries:
                    ui.label("Nothing has happened yet.").classes("st-dim")

    look()
    ui.timer(1.0, look)
