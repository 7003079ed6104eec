"""Questions over the log. What was looked up stands beside the answer."""

from __future__ import annotations

import json

from nicegui import ui

from stille.errors import StilleError
from stille.web.ask import Answer
from stille.web.pages.frame import chip, heading
from stille.web.site import Site

EXAMPLES = ("How many events were there today?", "Which camera had the most events this week?",
            "Show the latest events", "Events per hour yesterday")  # fmt: skip


def build(site: Site) -> None:
    if site.ask is None:
        ui.label("Nobody answers questions here: start `stille watch` with --ask.").classes("st-dim")
        return
    ask = site.ask
    with ui.column().classes("w-full gap-4").style("max-width: 980px; margin: 0 auto"):
        with ui.column().classes("st-panel w-full"):
            heading("Ask the log")
            with ui.row().classes("w-full items-center no-wrap"):
                question = ui.input(placeholder="How many near misses at dock 3 yesterday?").classes("grow")
                question.props("outlined maxlength=500 autofocus").on("keydown.enter", lambda: go())
                button = ui.button("Ask", on_click=lambda: go()).props("unelevated no-caps text-color=dark size=lg")
            with ui.row().classes("gap-2"):
                for example in EXAMPLES:
                    ui.button(example, on_click=lambda _, text=example: go(text)).props("flat dense no-caps size=sm")
            ui.label(
                f"{ask.name} chooses what to look up. Times and names are resolved by code, and every figure comes "
                "from the log."
            ).classes("st-dim")
        answers = ui.column().classes("w-full gap-4")

    async def go(text: str | None = None) -> None:
        asked = text or question.value or ""
        if not asked.strip() or not button.enabled:
            return
        question.set_value(asked)
        button.disable()
        with answers:
            card = ui.column().classes("st-panel w-full")
            card.move(target_index=0)
        with card, ui.row().classes("items-center"):
            ui.spinner(size="sm")
            ui.label(f"{ask.name} is looking it up").classes("st-dim")
        try:
            answer = await ask.answer(asked, site.log, site.rules.rules)
        except (StilleError, ImportError) as error:
            card.clear()
            with card:
                ui.label(asked).style("font-weight: 600")
                ui.label(_advice(error)).style("color: #ffb3b3")
            return
        finally:
            button.enable()
        card.clear()
        with card:
            _show(answer)


def _show(answer: Answer) -> None:
    ui.label(answer.question).classes("st-dim")
    for found in answer.found:
        ui.label(found.sentence).classes("st-answer")
        given = ", ".join(f"{name}={json.dumps(value)}" for name, value in found.call.arguments.items())
        with ui.row().classes("items-center gap-2"):
            chip("looked up", "#8b9dff")
            ui.label(f"{found.call.name}({given})").classes("st-mono st-call")
        if found.rows:
            columns = [{"name": str(i), "label": name, "field": str(i), "align": "left"}
                       for i, name in enumerate(found.columns)]  # fmt: skip
            rows = [{"id": i, **{str(j): value for j, value in enumerate(row)}} for i, row in enumerate(found.rows)]
            ui.table(columns=columns, rows=rows, row_key="id", pagination=20).classes("w-full").props("dense flat")
    if answer.words:
        ui.label(answer.words).style("font-style: italic")
    elif answer.dropped:
        ui.label("The model's own words are left out: they had a figure that the log has not.").classes("st-dim")
    ui.label(f"{answer.seconds:.1f} s").classes("st-dim")


def _advice(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"Questions need more packages: pip install 'stille[serve,agents]' ({error})"
    return str(error)
