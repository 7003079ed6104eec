"""Labelled fields by geometry: which spans are labels, and which value belongs to which label."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

from examples.loan_underwriting.extraction.types import Found, Page, Span, Spec
from examples.loan_underwriting.normalise import Value, key, money, parse

ALIKE = 0.84
"""Labels of a scan may differ from a wording by so much (difflib's ratio)."""
DIGITS = str.maketrans("OoQlI|SBZ", "000111582")
"""What recognition mistakes for digits."""
BOXED = 150.0
"""Points by which a value may stand to the right of the caption above it."""
MARGIN = 2.0
"""A second value that is nearly as close to a label makes it unsure."""


@dataclass(frozen=True)
class Label:
    field: str
    span: Span
    inline: Span | None
    certainty: float


def value_of(spec: Spec, text: str, scanned: bool) -> tuple[Value, str] | None:
    """The value that text is of, with a note if characters had to be put right; None if it is none."""
    text = text.strip().strip(":").strip()
    if spec.choices:
        choice = spec.choices.get(key(text))
        return (choice, "") if choice else None
    if spec.kind == "text" and (money(text) is not None or len(text) < 3):
        return None
    value = parse(spec.kind, text)
    if value is not None:
        return value, ""
    if scanned and spec.kind in ("money", "number"):
        text = re.sub(r"^([-+$]*)[.,']+", r"\1", text.translate(DIGITS))
        value = parse(spec.kind, re.sub(r"(?<=\d)[:;'](?=\d)", ".", text))
        if value is not None:
            return value, "misread characters put right"
    return None


def _label(span: Span, specs: Mapping[str, Spec], scanned: bool) -> Label | None:
    """The longest wording that a span is, or begins with."""
    best: tuple[float, Label] | None = None
    text = re.sub(r"^[a-f1-6] +(?=[A-Z])", "", span.text)  # numbered boxes
    offset = len(span.text) - len(text)
    whole = key(text)
    plain = whole[1:] if scanned and re.match(r"^[a-f1-6][A-Z]", text) else whole
    head = key(text.split(":")[0]) if ":" in text else whole
    for field, spec in specs.items():
        for wording in spec.keys:
            label = None
            if wording in (whole, plain):
                label = Label(field, span, None, 1.0)
            elif whole.startswith(wording):
                start = next(i for i in range(len(text)) if len(key(text[: i + 1])) == len(wording))
                rest = span.cut(offset + start + 1)
                rest = rest.cut(len(rest.text) - len(rest.text.lstrip(" :.)")))
                apart = not text[start + 1 : start + 2].isalnum()
                if (apart or scanned) and value_of(spec, rest.text, scanned) and (spec.kind != "text" or ":" in text):
                    label = Label(field, span, rest, 1.0)
            elif scanned and len(wording) >= 5:
                alike = SequenceMatcher(None, wording.replace("rn", "m"), head.replace("rn", "m")).ratio()
                if alike >= ALIKE:
                    rest = span.cut(offset + text.index(":") + 1) if ":" in text else None
                    if rest is not None and not value_of(spec, rest.text, scanned):
                        rest = None
                    label = Label(field, span, rest, alike)
            weight = len(wording) * (label.certainty**4 if label else 0)
            if label and (best is None or weight > best[0]):
                best = weight, label
    return best[1] if best else None


def _cost(label: Span, value: Span) -> float | None:
    """How far a value is from a label, the smaller the likelier; None if it is neither beside nor under it."""
    height = min(label.height, value.height)
    overlap = min(label.box[3], value.box[3]) - max(label.box[1], value.box[1])
    if overlap >= 0.5 * height and value.box[0] >= label.box[2] - 3:
        return 4 + 0.05 * (value.box[0] - label.box[2])
    below = value.box[1] - label.box[3]
    under = min(label.box[2], value.box[2]) > max(label.box[0], value.box[0])
    boxed = value.box[0] >= label.box[0] and value.box[0] - label.box[2] < BOXED  # at the right end of a caption's box
    if (-0.45 * height <= below <= 1.9 * height and under) or (
        boxed and 0 < below <= 3.2 * max(label.height, value.height)
    ):
        return max(below, 0) + 0.05 * abs(value.box[0] - label.box[0])
    return None


def find_fields(pages: list[Page], specs: Mapping[str, Spec], document: str) -> tuple[list[Found], set[str]]:
    """The fields of a document, at most one of each name, and the names of those that are not to be relied on."""
    found: dict[str, Found] = {}
    unsure: set[str] = set()
    for page in pages:
        labels = [label for span in page.spans if (label := _label(span, specs, page.scanned))]
        taken = {id(label.span) for label in labels}

        def keep(field: str, span: Span, value: Value, note: str, certainty: float, page: Page = page) -> None:
            box = page.on_paper(span.box)
            confidence = round(span.confidence * certainty, 3)
            found[field] = Found(field, value, span.text, document, page.number, box, confidence, note)

        pairs: list[tuple[float, int, Span, Value, str]] = []
        for i, label in enumerate(labels):
            spec = specs[label.field]
            if label.inline is not None:
                read = value_of(spec, label.inline.text, page.scanned)
                if read and label.field not in found:
                    keep(label.field, label.inline, *read, label.certainty)
                continue
            for span in page.spans:
                if id(span) in taken or (cost := _cost(label.span, span)) is None:
                    continue
                if read := value_of(spec, span.text, page.scanned):
                    pairs.append((cost + 10 * (1 - label.certainty), i, span, *read))
        used: set[int] = set()
        best: dict[str, float] = {}
        for cost, i, span, value, note in sorted(pairs, key=lambda pair: pair[0]):
            field = labels[i].field
            if field in found:
                if (
                    field in best
                    and cost - best[field] < MARGIN
                    and found[field].value != value
                    and id(span) not in used
                ):
                    unsure.add(field)
                continue
            if id(span) in used:
                continue
            used.add(id(span))
            best[field] = cost
            keep(field, span, value, note, labels[i].certainty)
            beside = specs[field].then
            if beside and beside not in found:
                row = [
                    s for s in page.spans if abs(s.middle - span.middle) < span.height / 2 and s.box[0] > span.box[2]
                ]
                for other in sorted(row, key=lambda s: s.box[0])[:1]:
                    if id(other) not in taken and (read := value_of(specs[beside], other.text, page.scanned)):
                        used.add(id(other))
                        keep(beside, other, *read, 1.0)
        for field, spec in specs.items():
            if spec.letterhead and page.number == 0 and page.spans:
                top = min(page.spans, key=lambda span: span.box[1] + 0.2 * span.box[0])
                if read := value_of(spec, top.text, page.scanned):
                    keep(field, top, *read, 1.0)
    return list(found.values()), unsure & found.keys()
