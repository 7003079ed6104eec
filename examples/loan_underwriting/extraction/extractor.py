"""From a document's file to its fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from examples.loan_underwriting.extraction.fields import find_fields
from examples.loan_underwriting.extraction.labels import FIELDS, TITLES
from examples.loan_underwriting.extraction.reading import read
from examples.loan_underwriting.extraction.transactions import Row, find_rows
from examples.loan_underwriting.extraction.types import Found, Page
from examples.loan_underwriting.normalise import Value, key

CONFIDENT = 0.85
"""Fields below this are listed as unsure."""
ROWS = "transactions"
"""Listed as unsure if a statement's transactions do not add up, as when a row was not seen."""


@dataclass(frozen=True)
class Extraction:
    """What a document says.

    Attributes:
        type: "application", "payslip", "statement", "w2", "identity", or "unknown", which has no fields.
        unsure: names of fields that were not found, read badly, or contested: for a person or a model to look at.
        text: lines as read, from top to bottom. Written by the applicant: it is data, whatever it says.
    """

    document: str
    type: str
    scanned: bool
    pages: int
    fields: Mapping[str, Found]
    rows: tuple[Row, ...] = ()
    unsure: tuple[str, ...] = ()
    text: str = field(default="", repr=False)

    def value(self, name: str) -> Value | None:
        found = self.fields.get(name)
        return found.value if found else None

    def all_fields(self) -> dict[str, Found]:
        """Fields and the cells of the transactions."""
        return {**self.fields, **{cell.name: cell for row in self.rows for cell in row.cells()}}


class Extractor(Protocol):
    """Gives candidates for a document's fields. Another one may ask a model about those in `unsure`."""

    def extract(self, path: Path) -> Extraction:
        """
        Raises:
            ValueError: the file is not a readable PDF.
        """
        ...


def classify(pages: list[Page]) -> str:
    """The document's type by its title and labels; "unknown" if nothing speaks for one."""
    keys = [key(span.text) for page in pages[:1] for span in page.spans]
    scores = {}
    for kind, specs in FIELDS.items():
        titles = sum(key(title) in text for title in TITLES[kind] for text in keys)
        labels = sum(any(text.startswith(k) for text in keys for k in spec.keys) for spec in specs.values())
        scores[kind] = 10 * titles + 10 * labels / len(specs)
    best = max(scores, key=lambda kind: scores[kind])
    return best if scores[best] >= 4 else "unknown"


def ties(fields: Mapping[str, Found], rows: Sequence[Row]) -> bool:
    """Whether a statement's transactions lead from its opening to its closing balance, so that none is missing."""
    opening, closing = fields.get("opening"), fields.get("closing")
    amounts = [row.amount for row in rows]
    if opening is None or closing is None or None in amounts:
        return False
    return int(opening.value) + sum(int(amount.value) for amount in amounts if amount) == closing.value


class GeometryExtractor:
    """Fields by labels and positions, no model but the one that recognises characters in scans."""

    def extract(self, path: Path) -> Extraction:
        pages = read(path)
        kind = classify(pages)
        scanned = any(page.scanned for page in pages)
        spans = [span for page in pages for span in sorted(page.spans, key=lambda s: (round(s.middle), s.box[0]))]
        text = "\n".join(span.text for span in spans)
        if kind == "unknown":
            return Extraction(path.name, kind, scanned, len(pages), {}, text=text)
        found, contested = find_fields(pages, FIELDS[kind], path.name)
        fields = {f.name: f for f in found}
        rows = tuple(find_rows(pages, path.name)) if kind == "statement" else ()
        cells = [cell for row in rows for cell in row.cells()]
        unsure = set(contested)
        unsure |= {name for name, spec in FIELDS[kind].items() if name not in fields and not spec.optional}
        unsure |= {
            f.name for f in [*found, *cells] if f.confidence < CONFIDENT or f.note.startswith(("misread", "disagrees"))
        }
        unsure |= {
            f"transactions[{i}].{c}"
            for i, r in enumerate(rows)
            for c in ("what", "amount", "balance")
            if not getattr(r, c)
        }
        if kind == "statement" and not ties(fields, rows):
            unsure.add(ROWS)
        return Extraction(path.name, kind, scanned, len(pages), fields, rows, tuple(sorted(unsure)), text)
