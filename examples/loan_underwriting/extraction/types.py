"""What reading and finding hand each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from examples.loan_underwriting.normalise import Kind, Value, key

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in points."""


@dataclass(frozen=True)
class Span:
    """A piece of a line, as far as the next wide gap. `confidence` is 1 for text that the PDF holds itself."""

    text: str
    box: Box
    confidence: float = 1.0

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    @property
    def middle(self) -> float:
        return (self.box[1] + self.box[3]) / 2

    def cut(self, start: int) -> Span:
        """The rest from a character on; its box is by proportion."""
        left, top, right, bottom = self.box
        rest = self.text[start:]
        start += len(rest) - len(rest.lstrip())
        return Span(rest.strip(), (left + (right - left) * start / len(self.text), top, right, bottom), self.confidence)


@dataclass(frozen=True)
class Page:
    """Spans of an upright page; if it was turned for that, `degrees` says how far the paper is (anticlockwise)."""

    number: int
    width: float
    height: float
    spans: tuple[Span, ...]
    scanned: bool = False
    degrees: float = 0.0

    def on_paper(self, box: Box) -> Box:
        """Where a box of the upright page lies on the page as it is in the document."""
        turn = math.radians(self.degrees)
        cx, cy = self.width / 2, self.height / 2
        corners = [(x - cx, y - cy) for x in (box[0], box[2]) for y in (box[1], box[3])]
        xs = [cx + x * math.cos(turn) + y * math.sin(turn) for x, y in corners]
        ys = [cy - x * math.sin(turn) + y * math.cos(turn) for x, y in corners]
        return round(min(xs), 1), round(min(ys), 1), round(max(xs), 1), round(max(ys), 1)


@dataclass(frozen=True)
class Found:
    """A field's value and where it comes from.

    Attributes:
        box: on the page as it is in the document.
        confidence: 0 to 1; of the text read and of the label that named it.
        note: why the value is not simply what was read; empty if it is.
    """

    name: str
    value: Value
    text: str
    document: str
    page: int
    box: Box
    confidence: float
    note: str = ""


@dataclass(frozen=True)
class Spec:
    """A field of a document type.

    Attributes:
        labels: wordings.
        choices: what it may be, by how it may be printed.
        then: name of a second value in the same row.
        letterhead: it has no label but stands at the top left.
        optional: documents without it are whole.
    """

    kind: Kind
    labels: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    then: str | None = None
    letterhead: bool = False
    optional: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key(label) for label in self.labels)
