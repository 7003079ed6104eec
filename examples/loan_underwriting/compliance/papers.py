"""An application's documents as values, whether they were extracted or are the generator's truth."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.loan_underwriting.extraction.extractor import Extraction
from examples.loan_underwriting.normalise import Value

_CELL = re.compile(r"transactions\[(\d+)\]\.(\w+)")


@dataclass(frozen=True)
class Paper:
    """One document. `rows` are a statement's transactions: date, what, amount, balance (cents)."""

    file: str
    type: str
    values: Mapping[str, Value]
    rows: tuple[Mapping[str, Value], ...] = ()
    unsure: tuple[str, ...] = ()
    text: str = field(default="", repr=False)

    def cents(self, name: str) -> int | None:
        value = self.values.get(name)
        return value if isinstance(value, int) else None

    def string(self, name: str) -> str | None:
        value = self.values.get(name)
        return value if isinstance(value, str) else None


Papers = Sequence[Paper]


def paper_of(file: str, kind: str, values: Mapping[str, Value], unsure: Iterable[str] = (), text: str = "") -> Paper:
    """A document of named values; those like transactions[3].amount become rows."""
    rows: dict[int, dict[str, Value]] = {}
    plain = {}
    for name, value in values.items():
        if cell := _CELL.fullmatch(name):
            rows.setdefault(int(cell[1]), {})[cell[2]] = value
        else:
            plain[name] = value
    return Paper(file, kind, plain, tuple(rows[i] for i in sorted(rows)), tuple(unsure), text)


def from_extraction(extraction: Extraction) -> Paper:
    values = {name: found.value for name, found in extraction.all_fields().items()}
    return paper_of(extraction.document, extraction.type, values, extraction.unsure, extraction.text)


def from_truth(truth: Mapping[str, Any]) -> list[Paper]:
    """From a case's truth.json: what is really printed, with the injected text if there is some."""
    papers = []
    for document in truth["documents"]:
        values = {f["name"]: f["value"] for f in document["fields"]}
        injected = truth["injection"] if document["type"] == truth["facts"]["injected_into"] else None
        papers.append(paper_of(document["file"], document["type"], values, text=injected or ""))
    return papers


def load_truth(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "truth.json").read_text())
