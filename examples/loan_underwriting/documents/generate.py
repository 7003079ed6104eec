"""Writes applications: a folder for each with its PDFs and truth.json, and world.json, which the services know.

python -m examples.loan_underwriting.documents.generate --cases 60 --out loans
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from examples.loan_underwriting.documents import forms, tables
from examples.loan_underwriting.documents.facts import Facts, Scenario, make_facts
from examples.loan_underwriting.documents.scan import scan
from examples.loan_underwriting.documents.sheet import Sheet, Style
from examples.loan_underwriting.documents.words import COMPANIES


def _documents(facts: Facts, rng: random.Random) -> Iterable[tuple[str, str, Callable[[Sheet], None]]]:
    """(name, type, how to draw it); two of the three pay slips are enough for some."""
    yield "application", "application", lambda sheet: forms.application(sheet, facts)
    slips = facts.slips if facts.missing or rng.random() < 0.6 else facts.slips[-2:]
    for slip in slips:
        number = facts.slips.index(slip) + 1
        yield f"payslip-{number}", "payslip", lambda sheet, slip=slip: tables.payslip(sheet, facts, slip)
    for i, months in enumerate(facts.statements, 1):
        yield f"statement-{i}", "statement", lambda sheet, m=months: tables.statement(sheet, facts, m)
    yield "w2", "w2", lambda sheet: forms.tax_form(sheet, facts)
    yield "identity", "identity", lambda sheet: forms.identity(sheet, facts)


def write_case(folder: Path, facts: Facts, scanned: float = 0.5) -> dict[str, Any]:
    """Writes one application into a folder. Returns what truth.json says.

    Args:
        scanned: share of the documents that are scans.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"papers {facts.number} {facts.scenario}")
    styles: dict[str, Style] = {}  # one employer's slips look alike, and so do one bank's statements
    documents = []
    for name, kind, draw in _documents(facts, rng):
        style = styles.setdefault(kind, Style.draw(rng))
        is_scan = rng.random() < scanned
        if name in facts.missing:
            continue
        path = folder / f"{name}.pdf"
        sheet = Sheet(path, style)
        draw(sheet)
        fields = sheet.save()
        if is_scan:
            fields = scan(path, fields, f"scan {facts.number} {name}")
        documents.append(
            {
                "file": path.name,
                "type": kind,
                "layout": style.layout,
                "scanned": is_scan,
                "pages": sheet.page + 1,
                "fields": [asdict(field) for field in fields],
            }
        )
    truth = {
        "application": facts.number,
        "scenario": facts.scenario,
        "missing": list(facts.missing),
        "injection": facts.injection,
        "facts": asdict(facts),
        "documents": documents,
    }
    (folder / "truth.json").write_text(json.dumps(truth, indent=1, default=str) + "\n")
    return truth


def world(cases: Iterable[Facts]) -> dict[str, Any]:
    """What the credit bureau, the registry and the bank know about these applicants."""
    cases = list(cases)
    return {
        "employers": [*COMPANIES, *sorted({f.employer for f in cases if f.registered_employer} - set(COMPANIES))],
        "identities": [
            {
                "ssn": f.person.ssn,
                "name": f.person.name,
                "born": f.person.born.isoformat(),
                "card": f.person.identity_number,
                "expires": f.person.identity_expires.isoformat(),
            }
            for f in cases
        ],
        "sanctions": [
            {"name": f"{f.person.last}, {f.person.first}", "born": f.person.born.isoformat(), "programme": "SDN"}
            for f in cases
            if f.sanctioned
        ]
        + [{"name": "Volkov, Dmitri", "born": "1961-04-02", "programme": "SDN"}],
        "bureau": {f.person.ssn: asdict(f.bureau) for f in cases},
        "accounts": {f.account: f.person.name for f in cases},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case; the others follow")
    parser.add_argument("--scanned", type=float, default=0.5, help="share of documents that are scans")
    parser.add_argument("--scenario", default=None, help="give every case this one instead of taking turns")
    args = parser.parse_args()
    scenario: Scenario | None = args.scenario
    cases = [make_facts(args.seed + i, scenario) for i in range(args.cases)]
    for facts in cases:
        write_case(args.out / facts.number, facts, args.scanned)
    (args.out / "world.json").write_text(json.dumps(world(cases), indent=1) + "\n")
    print(f"{len(cases)} applications in {args.out}")


if __name__ == "__main__":
    main()
