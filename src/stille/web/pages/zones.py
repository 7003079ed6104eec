"""The editor of zones and lines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nicegui import ui
from pydantic import ValidationError

from stille.video.rules import Rules
from stille.web.pages.frame import Editor, chip, colour, heading, told
from stille.web.rules_file import Shape
from stille.web.site import Site


def build(site: Site) -> None:
    names = sorted({*site.stats(), *(camera.name for camera in site.rules.rules.cameras)})
    if not names:
        ui.label("No camera yet: add one under Cameras.").classes("st-dim")
        return
    dialogs = ui.element()  # what is opened from a list outlives the list
    here: dict[str, Any] = {"camera": names[0], "chosen": None, "text": None}
    with ui.element("div").classes("st-split"):
        with ui.column().classes("w-full gap-3"):
            with ui.row().classes("w-full items-center gap-3"):
                ui.select(names, label="Camera", value=names[0], on_change=lambda e: turn(e.value)).props(
                    "dense outlined"
                ).style("width: 220px")
                tool = ui.toggle(
                    {"pick": "Select", "zone": "Draw zone", "line": "Draw line"}, value="pick",
                    on_change=lambda: look(),
                ).props("no-caps unelevated toggle-color=primary toggle-text-color=dark")  # fmt: skip
                ui.space()
                back = ui.button("Undo", icon="undo", on_click=lambda: undo()).props("flat no-caps dense")
            editor = Editor().classes("w-full")
        with ui.column().classes("w-full gap-4"):
            with ui.column().classes("st-panel w-full"):
                heading("Zones and lines")
                listed = ui.column().classes("w-full gap-1")
            with ui.expansion(site.rules.path.name, icon="description").classes("st-panel w-full"):
                text = (
                    ui.code(language="yaml")
                    .classes("w-full")
                    .style("max-height: 46vh; overflow: auto; font-size: 12px")
                )

    def turn(camera: str) -> None:
        here.update(camera=camera, chosen=None)
        look()

    def look() -> None:
        """Show what the file says now."""
        shapes = site.rules.shapes(here["camera"])
        drawn = [{"kind": s.kind, "name": s.name, "points": [list(p) for p in s.points]} for s in shapes]
        back.set_visibility(site.rules.can_undo)
        state = {"camera": here["camera"], "shapes": drawn, "chosen": here["chosen"], "tool": tool.value}
        written = site.rules.path.read_text("utf-8", "replace")
        if state == here.get("state") and written == here["text"] and site.rules.rules is here.get("rules"):
            return
        here.update(state=state, text=written, rules=site.rules.rules)
        editor.props.update(state)
        editor.update()
        text.set_content(written)
        listed.clear()
        with listed:
            for shape in shapes:
                _entry(site, shape, here["chosen"] == f"{shape.kind}:{shape.name}", pick, change, drop)
            if not shapes:
                ui.label("None yet. Choose 'Draw zone' and click on the picture.").classes("st-dim")

    def pick(chosen: str | None) -> None:
        here["chosen"] = chosen
        if chosen is not None and tool.value != "pick":
            tool.set_value("pick")
        look()

    def write(work: Callable[[], Rules], said: str) -> bool:
        done = False
        with told():
            work()
            site.rules_changed()
            done = True
            ui.notify(f"{said}; {site.rules.path.name} is written and in use", type="positive")
        here["state"] = None  # the picture shows the file again, whatever was drawn
        if not done:
            editor.run_method("revert")
        look()
        return done

    def drawn(args: dict[str, Any]) -> None:
        points = tuple((float(x), float(y)) for x, y in args["points"])
        kind = "line" if args["kind"] == "line" else "zone"
        with dialogs:
            _dialog(site, Shape(kind, "", here["camera"], points), None, write, lambda name: pick(f"{kind}:{name}"))

    def moved(args: dict[str, Any]) -> None:
        kind = "line" if args["kind"] == "line" else "zone"
        points = tuple((float(x), float(y)) for x, y in args["points"])
        shape = Shape(kind, str(args["name"]), here["camera"], points)
        write(lambda: site.rules.put(shape, shape.name), f"{shape.name} is changed")

    def change(shape: Shape) -> None:
        with dialogs:
            _dialog(site, shape, shape.name, write, lambda name: pick(f"{shape.kind}:{name}"))

    def drop(shape: Shape) -> None:
        lost = site.rules.only_there(shape.kind, shape.name)
        with dialogs, ui.dialog(value=True) as dialog, ui.card().classes("st-panel"):
            ui.label(f"Remove {shape.kind} {shape.name}?").style("font-weight: 600")
            if lost:
                ui.label(f"These rules look nowhere else and go with it: {', '.join(lost)}.").style("color: #f5b642")

            def yes() -> None:
                dialog.close()
                here["chosen"] = None
                write(lambda: site.rules.remove(shape.kind, shape.name), f"{shape.name} is removed")

            with ui.row():
                ui.button("Remove", on_click=yes).props("unelevated no-caps color=negative")
                ui.button("Keep", on_click=dialog.close).props("flat no-caps color=grey")

    def dropped(id: str) -> None:
        found = next((s for s in site.rules.shapes(here["camera"]) if f"{s.kind}:{s.name}" == id), None)
        if found is not None:
            drop(found)

    def undo() -> None:
        write(site.rules.undo, "The last change is taken back")

    editor.on("drawn", lambda event: drawn(event.args))
    editor.on("moved", lambda event: moved(event.args))
    editor.on("pick", lambda event: pick(event.args))
    editor.on("drop", lambda event: dropped(str(event.args)))
    look()
    ui.timer(1.0, look)


def _entry(site: Site, shape: Shape, chosen: bool, pick: Any, change: Any, drop: Any) -> None:
    id = f"{shape.kind}:{shape.name}"
    row = (
        ui.row()
        .classes("w-full items-center gap-2 no-wrap q-pa-xs")
        .style(f"border-radius: 9px; cursor: pointer; background: {'#1a222b' if chosen else 'transparent'}")
    )
    with row.on("click", lambda: pick(id)):
        ui.icon("polyline" if shape.kind == "zone" else "trending_flat", size="18px").classes("st-dim")
        with ui.column().classes("gap-1 grow"):
            ui.label(shape.name).style("font-weight: 600; font-size: 14px")
            with ui.row().classes("gap-1"):
                for rule in site.rules.rules.rules:
                    if shape.name in getattr(rule, f"{shape.kind}s", ()):
                        chip(rule.id, colour(rule.id))
        for icon, says, act in (("edit", "Change", change), ("delete_outline", "Remove", drop)):
            button = ui.button(icon=icon).on("click.stop", lambda _, act=act: act(shape))
            button.props(f'flat round dense size=sm color=grey aria-label="{says} {shape.name}"')


def _dialog(site: Site, shape: Shape, was: str | None, write: Any, done: Callable[[str], None]) -> None:
    """Name, and the rules that look there."""
    key = f"{shape.kind}s"
    looking = {rule.id: f"{rule.id} ({rule.type})" for rule in site.rules.rules.rules if getattr(rule, key, ())}
    with ui.dialog(value=True) as dialog, ui.card().classes("st-panel").style("width: 430px"):
        heading(f"New {shape.kind}" if was is None else f"{shape.kind} {was}")
        name = (
            ui.input("Name", value=shape.name or _fresh(site, shape))
            .props("outlined dense autofocus")
            .classes("w-full")
        )
        before = [rule.id for rule in site.rules.rules.rules if was is not None and was in getattr(rule, key, ())]
        rules = ui.select(looking, label="Rules that look here", value=before, multiple=True).props(
            "outlined dense use-chips"
        ).classes("w-full")  # fmt: skip
        types = {"": "none", **{one: one.replace("_", " ") for one in new_types(shape.kind)}}
        kind = ui.select(types, label="New rule for it", value="").props("outlined dense").classes("w-full st-new-rule")
        with ui.row().classes("w-full no-wrap").bind_visibility_from(kind, "value", bool):
            id = ui.input("Id of the rule").props("outlined dense").classes("grow")
            dwell = ui.number("Lasting (s)", value=None, min=0, step=0.5).props("outlined dense").style("width: 120px")

        def save() -> None:
            called = (name.value or "").strip()
            new = None
            if kind.value:
                new = {"id": (id.value or "").strip() or f"{called}-{kind.value}", "type": kind.value}
                if dwell.value is not None:
                    new["dwell"] = dwell.value
            put = Shape(shape.kind, called, shape.camera, shape.points)
            if write(
                lambda: site.rules.put(put, was, rules.value, new),
                f"{called} is {'added' if was is None else 'changed'}",
            ):
                dialog.close()
                done(called)

        with ui.row():
            ui.button("Save", on_click=save).props("unelevated no-caps text-color=dark")
            ui.button("Cancel", on_click=dialog.close).props("flat no-caps color=grey")


def _fresh(site: Site, shape: Shape) -> str:
    taken = {one.name for one in (*site.rules.rules.zones, *site.rules.rules.lines)}
    return next(name for i in range(1, 10_000) if (name := f"{shape.camera}-{shape.kind}{i}") not in taken)


def new_types(kind: str) -> list[str]:
    """Rule types that need nothing but a zone (a line), registered ones included; of some the camera needs a floor."""
    corners = [[0, 0], [1, 0], [1, 1], [0, 1]]
    place = {"points": corners} if kind == "zone" else {"from": [0, 0], "to": [1, 1]}
    found = []
    for family in Rules.json_schema()["$defs"].values():
        said = family.get("properties", {})
        one = said.get("type", {}) if "open_after" in said and "slots" not in said else {}
        for name in one.get("enum") or ([one["const"]] if "const" in one else []):
            trial = {
                "cameras": [{"name": "x", "floor": {"picture": corners, "metres": corners}}],
                f"{kind}s": [{"name": "x", "camera": "x", **place}],
                "rules": [{"id": "x", "type": name, f"{kind}s": ["x"]}],
            }
            with suppress(ValidationError):
                Rules.model_validate(trial)
                found.append(name)
    return sorted(name for name in found if name != "camera_trouble")
