"""The table of a bank statement: columns by its header, rows by their dates, checked by the running balance."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from examples.loan_underwriting.extraction.fields import value_of
from examples.loan_underwriting.extraction.types import Found, Page, Span, Spec
from examples.loan_underwriting.normalise import day, key

HEADERS = {
    "date": {"date", "posted"},
    "what": {"description", "transaction", "details"},
    "amount": {"amount"},
    "out": {"withdrawals"},
    "in": {"deposits"},
    "balance": {"balance", "newbalance"},
}
MONEY, TEXT = Spec("money"), Spec("text")
_DATE = re.compile(r"^(\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}|[A-Za-z]{3,9}\.? ?\d{1,2}, ?\d{4})")


@dataclass(frozen=True)
class Row:
    """A transaction as read; None where it could not be."""

    date: Found
    what: Found | None
    amount: Found | None
    balance: Found | None

    def cells(self) -> list[Found]:
        return [cell for cell in (self.date, self.what, self.amount, self.balance) if cell]


def _lines(spans: list[Span]) -> list[list[Span]]:
    """Spans by line, each from left to right."""
    lines: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.middle):
        if lines and span.middle - lines[-1][-1].middle < 0.5 * span.height:
            lines[-1].append(span)
        else:
            lines.append([span])
    return [sorted(line, key=lambda span: span.box[0]) for line in lines]


def find_rows(pages: list[Page], document: str) -> list[Row]:
    """A statement's transactions in the order of printing."""
    rows: list[Row] = []
    for page in pages:
        columns: dict[str, Span] = {}
        for line in _lines(list(page.spans)):
            headers = {c: s for s in line for c, names in HEADERS.items() if key(s.text) in names}
            if {"date", "balance"} <= headers.keys():
                columns = headers
                continue
            if columns and (row := _row(page, line, columns, len(rows), document)):
                rows.append(row)
    return _checked(rows)


def _row(page: Page, line: list[Span], columns: dict[str, Span], number: int, document: str) -> Row | None:
    first = _DATE.match(line[0].text)
    if not first or abs(line[0].box[0] - columns["date"].box[0]) > 25:
        return None
    on = day(first[0])
    if on is None:
        return None
    rest = line[1:]
    if len(first[0]) < len(line[0].text):
        rest = [line[0].cut(len(first[0])), *rest]

    def cell(column: str, span: Span, value: str | int, note: str = "") -> Found:
        name = f"transactions[{number}].{column}"
        box = page.on_paper(span.box)
        return Found(name, value, span.text, document, page.number, box, round(span.confidence, 3), note)

    amount = balance = None
    words: list[Span] = []
    for span in rest:
        read = value_of(MONEY, span.text, page.scanned)
        if not read or not isinstance(read[0], int):
            words.append(span)
            continue
        cents, note = int(read[0]), read[1]
        sides = [c for c in ("amount", "out", "in", "balance") if c in columns]
        side = min(sides, key=lambda c: abs(columns[c].box[2] - span.box[2]))
        if side == "balance":
            balance = cell("balance", span, cents, note)
        else:
            amount = cell("amount", span, -cents if side == "out" else cents, note)
    what = None
    if words:
        left, right = words[0], words[-1]
        box = (left.box[0], left.box[1], right.box[2], right.box[3])
        joined = Span(" ".join(w.text for w in words), box, min(w.confidence for w in words))
        if read := value_of(TEXT, joined.text, page.scanned):
            what = cell("what", joined, *read)
    return Row(cell("date", replace(line[0], text=first[0]), on), what, amount, balance)


def _checked(rows: list[Row]) -> list[Row]:
    """Amounts against the running balance: a lost minus is put back, other disagreements are noted, never corrected."""
    result: list[Row] = []
    before: int | None = None
    for row in rows:
        amount, balance = row.amount, row.balance
        if amount and balance and before is not None:
            change = int(balance.value) - before
            if change == -int(amount.value) and change < 0:
                row = replace(row, amount=replace(amount, value=change, note="sign from the running balance"))
            elif change != amount.value:
                row = replace(row, amount=replace(amount, note="disagrees with the running balance"))
        before = int(balance.value) if balance else None
        result.append(row)
    return result
