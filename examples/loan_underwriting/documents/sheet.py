"""A page to draw on that remembers where every field was printed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reportlab.lib.pagesizes import letter
from reportlab.pdfbase.pdfmetrics import getAscentDescent, stringWidth
from reportlab.pdfgen import canvas

from examples.loan_underwriting.normalise import Value

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in points, from the page's upper left corner."""
Align = Literal["left", "right", "centre"]
FONTS = {"sans": ("Helvetica", "Helvetica-Bold"), "serif": ("Times-Roman", "Times-Bold"), "mono": ("Courier",) * 2}
DATES: tuple[Callable, ...] = (
    lambda d: d.strftime("%m/%d/%Y"),
    lambda d: f"{d.strftime('%b')} {d.day}, {d.year}",
    lambda d: d.isoformat(),
)


@dataclass(frozen=True)
class Field:
    """A field as it is printed: `value` is what it means, `page` counts from 0."""

    name: str
    value: Value
    text: str
    page: int
    box: Box


@dataclass(frozen=True)
class Style:
    """How a document looks. `layout` chooses arrangement and wording, the rest varies within it."""

    layout: int
    font: str
    size: float
    dx: float
    dy: float
    date: int

    @staticmethod
    def draw(rng: random.Random, layouts: int = 3) -> Style:
        fonts = ("sans", "sans", "serif", "mono")
        return Style(
            rng.randrange(layouts), rng.choice(fonts), rng.choice((8.5, 9.0, 9.5)),
            rng.uniform(-8, 8), rng.uniform(-6, 10), rng.randrange(len(DATES)),
        )  # fmt: skip


class Sheet:
    """Draws a PDF; the same calls give the same bytes."""

    def __init__(self, path: Path, style: Style, size: tuple[float, float] = letter):
        self.canvas = canvas.Canvas(str(path), pagesize=size, invariant=1)
        self.width, self.height = size
        self.style, self.page = style, 0
        self.fields: list[Field] = []

    def date(self, day) -> str:
        return DATES[self.style.date](day)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        field: tuple[str, Value] | None = None,
        size: float | None = None,
        bold: bool = False,
        align: Align = "left",
        grey: float = 0.0,
    ) -> float:
        """Prints with the baseline at y, from the top. Returns where the text ends."""
        size = size or self.style.size
        font = FONTS[self.style.font][bold]
        width = stringWidth(text, font, size)
        x += self.style.dx - {"left": 0, "right": width, "centre": width / 2}[align]
        y += self.style.dy
        self.canvas.setFont(font, size)
        self.canvas.setFillGray(grey)
        self.canvas.drawString(x, self.height - y, text)
        if field:
            ascent, descent = getAscentDescent(font, size)
            box = (x, y - ascent, x + width, y - descent)
            self.fields.append(Field(field[0], field[1], text, self.page, tuple(round(c, 2) for c in box)))  # type: ignore[arg-type]
        return x + width - self.style.dx

    def rule(self, x0: float, x1: float, y: float, grey: float = 0.6) -> None:
        self.canvas.setStrokeGray(grey)
        self.canvas.setLineWidth(0.6)
        y = self.height - y - self.style.dy
        self.canvas.line(x0 + self.style.dx, y, x1 + self.style.dx, y)

    def frame(self, x0: float, y0: float, x1: float, y1: float, fill: float | None = None) -> None:
        self.canvas.setStrokeGray(0.45)
        self.canvas.setLineWidth(0.7)
        if fill is not None:
            self.canvas.setFillGray(fill)
        left, bottom = x0 + self.style.dx, self.height - y1 - self.style.dy
        self.canvas.rect(left, bottom, x1 - x0, y1 - y0, fill=int(fill is not None))

    def pairs(
        self,
        x: float,
        y: float,
        entries: Sequence[tuple[str, str, tuple[str, Value]]],
        how: str,
        step: float,
        gap: float,
    ) -> float:
        """Labels with values: "right" in a second column, "inline" after a colon, "below" under small labels.

        Returns the y after the last.
        """
        for label, text, field in entries:
            if how == "right":
                self.text(x, y, label, grey=0.25)
                self.text(x + gap, y, text, field=field)
            elif how == "inline":
                end = self.text(x, y, label + ":", bold=True)
                self.text(end + 5, y, text, field=field)
            else:
                self.text(x, y, label, size=self.style.size - 1.5, grey=0.35)
                self.text(x, y + self.style.size + 3, text, field=field)
            y += step
        return y

    def next_page(self) -> None:
        self.canvas.showPage()
        self.page += 1

    def save(self) -> list[Field]:
        self.canvas.save()
        return self.fields
