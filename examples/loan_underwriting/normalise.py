"""Printed values and what they mean: money as integer cents, dates as ISO text, names and text in one spelling.

Every parser returns None for text that is not of its kind, so that a wrong neighbour of a label is never a value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import date
from typing import Literal

Kind = Literal["money", "date", "name", "text", "number", "code", "month"]
Value = str | int

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONEY = re.compile(
    r"^(?P<open>\()?(?P<sign>[-+])?\s*\$?\s*(?P<sign2>-)?(?P<whole>\d{1,3}(?:[,. ]?\d{3})*|\d+)"
    r"[.,](?P<cents>\d{2})\)?(?P<after>-|\s?CR|\s?DR)?$"
)
_NAMED = re.compile(r"^(?P<day>\d{1,2})?[ .-]*(?P<month>[A-Za-z]{3,9})[ .,-]*(?P<day2>\d{1,2})?[ .,-]*(?P<year>\d{4})$")


def squeeze(text: str) -> str:
    """One space between words, none around."""
    return " ".join(text.split())


def fold(text: str) -> str:
    """Upper case without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", squeeze(text)) if not unicodedata.combining(c)).upper()


def key(text: str) -> str:
    """Letters and digits only, in lower case: how labels are compared, since scans lose spaces and colons."""
    return "".join(c for c in fold(text).lower() if c.isalnum())


def money(text: str) -> int | None:
    """Cents of "$1,234.56", "-12.00", "(12.00)" or "12.00-"."""
    text = squeeze(text).replace(" ", "")
    found = _MONEY.match(text)
    if not found:
        return None
    cents = int(re.sub(r"\D", "", found["whole"])) * 100 + int(found["cents"])
    negative = found["open"] or found["sign"] == "-" or found["sign2"] or (found["after"] or "").strip() in ("-", "DR")
    return -cents if negative else cents


def day(text: str, order: Literal["mdy", "dmy"] = "mdy") -> str | None:
    """ISO date of "03/14/2026", "2026-03-14", "14 Mar 2026" or "March 14, 2026"; None if there is no such day."""
    text = squeeze(text).strip(" .:")
    numbers = re.match(r"^(\d{1,4})[/.-](\d{1,2})[/.-](\d{1,4})$", text)
    try:
        if numbers:
            a, b, c = (int(n) for n in numbers.groups())
            if len(numbers[1]) == 4:
                return date(a, b, c).isoformat()
            if len(numbers[3]) != 4:
                return None
            return (date(c, a, b) if order == "mdy" else date(c, b, a)).isoformat()
        named = _NAMED.match(text)
        if named and (named["day"] or named["day2"]) and named["month"][:3].lower() in MONTHS:
            month = MONTHS.index(named["month"][:3].lower()) + 1
            return date(int(named["year"]), month, int(named["day"] or named["day2"])).isoformat()
    except ValueError:
        return None
    return None


def name(text: str) -> str | None:
    """ "FIRST LAST" of "Last, First" or "First Last"; None if it is not made of letters."""
    text = fold(text)
    if "," in text:
        last, _, first = text.partition(",")
        text = squeeze(f"{first} {last}")
    if not re.fullmatch(r"[A-Z][A-Z' .-]+", text) or len(text) < 3:
        return None
    return text


def number(text: str) -> int | None:
    found = re.fullmatch(r"(\d{1,6})(?: ?(?:months?|years?|mo\.?|yrs?))?", squeeze(text).lower())
    return int(found[1]) if found else None


def code(text: str) -> str | None:
    """Numbers of accounts, people and forms: no spaces, upper case; at least one digit."""
    text = re.sub(r"\s", "", fold(text))
    return text if re.fullmatch(r"[A-Z0-9*/.-]{4,}", text) and re.search(r"\d", text) else None


def plain(text: str) -> str | None:
    return fold(text) or None


def month(text: str) -> str | None:
    """ "2026-03" of "March 2026" or "03/2026"."""
    found = re.fullmatch(r"([A-Za-z]{3,9})\.? ?(\d{4})", squeeze(text))
    if found and found[1][:3].lower() in MONTHS:
        return f"{found[2]}-{MONTHS.index(found[1][:3].lower()) + 1:02}"
    found = re.fullmatch(r"(\d{2})/(\d{4})", squeeze(text))
    return f"{found[2]}-{found[1]}" if found and 1 <= int(found[1]) <= 12 else None


PARSERS: dict[Kind, Callable[[str], Value | None]] = {
    "money": money,
    "date": day,
    "name": name,
    "text": plain,
    "number": number,
    "code": code,
    "month": month,
}


def parse(kind: Kind, text: str) -> Value | None:
    """The value of printed text, or None if it is not of this kind."""
    return PARSERS[kind](text)


def dollars(cents: int) -> str:
    """1,234.56"""
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100:,}.{abs(cents) % 100:02}"
