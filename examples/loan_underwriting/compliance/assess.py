"""From papers and reports to measures, which rules judge, and to features, which the scorecard scores.

A measure is None if what it needs is not there. Money in cents; shares in basis points (1/100 of a percent), so that
no rule hangs on how a float is rounded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from examples.loan_underwriting.compliance.papers import Paper, Papers
from examples.loan_underwriting.normalise import key
from examples.loan_underwriting.services.world import IdentityAnswer, Report, SanctionMatch, World, same_name

Measure = int | bool | None
REQUIRED = {"application": 1, "payslip": 2, "statement": 3, "w2": 1, "identity": 1}
YEARLY_INTEREST = 0.119
"""Of the loans on offer, for the instalment."""
DEBTS = re.compile(r"LOAN|FINANCE|LENDING|CREDIT ?PMT")
INSTRUCTIONS = re.compile(
    r"(ignore|disregard|forget)\s*(all\s*)?(the\s*)?(previous|prior|above)\s*(instructions|rules)"
    r"|<\|\w+\|>|do\s*not\s*run\s*checks|pre-?approved|you\s*must\s*(call|approve)|^\s*system\s*:",
    re.IGNORECASE | re.MULTILINE,
)
"""Text that speaks to whoever processes the documents. Nothing here obeys text; a person should see it."""
PURPOSES = {
    "USED CAR": "used car",
    "NEW CAR": "car",
    "FURNITURE": "household",
    "HOME REPAIRS": "household",
    "ELECTRONICS": "electronics",
    "BUSINESS": "business",
}


@dataclass(frozen=True)
class Reports:
    """What bureau and registry answered; `report` None: the bureau has no file."""

    report: Report | None
    identity: IdentityAnswer
    employer_known: bool
    sanctions: tuple[SanctionMatch, ...]


def one(papers: Papers, kind: str) -> Paper | None:
    """The document of a type of which there is one."""
    return next((paper for paper in papers if paper.type == kind), None)


def ask(world: World, papers: Papers) -> Reports:
    """The services' answers for these papers, straight from what they know (the same code answers over HTTP)."""
    form, card = one(papers, "application"), one(papers, "identity")
    get = lambda paper, name: (paper.string(name) if paper else None) or ""  # noqa: E731
    name, born, ssn = get(form, "name"), get(form, "born"), get(form, "ssn")
    return Reports(
        report=world.report(ssn, name),
        identity=world.identity(ssn, name, born, get(card, "number")),
        employer_known=world.employer(get(form, "employer")) is not None,
        sanctions=tuple(world.sanctioned(name, born)) if name else (),
    )


def instalment(amount: int, months: int, yearly: float = YEARLY_INTEREST) -> int:
    """Cents a month of a loan paid back in equal parts."""
    rate = yearly / 12
    return round(amount * rate / (1 - (1 + rate) ** -months))


def _sum(paper: Paper, *names: str) -> int | None:
    values = [paper.cents(name) for name in names]
    return None if None in values else sum(v for v in values if v is not None)


def _slip_error(slip: Paper) -> int | None:
    """The largest disagreement (cents) within a pay slip: gross, deductions and net."""
    gross, net, total = slip.cents("gross"), slip.cents("net"), slip.cents("deductions")
    parts = _sum(slip, "federal", "social", "medicare", "health")
    base = slip.cents("base")
    if gross is None or net is None or total is None or parts is None or base is None:
        return None
    return max(abs(gross - total - net), abs(parts - total), abs(base + (slip.cents("overtime") or 0) - gross))


def _statement_error(paper: Paper) -> int | None:
    """The largest disagreement (cents) within a statement: running balance, sums, opening and closing."""
    opening, closing = paper.cents("opening"), paper.cents("closing")
    deposits, withdrawals = paper.cents("deposits"), paper.cents("withdrawals")
    amounts = [row.get("amount") for row in paper.rows]
    balances = [row.get("balance") for row in paper.rows]
    if opening is None or closing is None or deposits is None or withdrawals is None or not amounts:
        return None
    if not all(isinstance(v, int) for v in [*amounts, *balances]):
        return None
    moves, running = [int(a or 0) for a in amounts], [opening, *(int(b or 0) for b in balances)]
    errors = [abs(after - before - move) for (before, after), move in zip(pairwise(running), moves, strict=True)]
    credits = sum(move for move in moves if move > 0)
    return max(
        *errors, abs(running[-1] - closing), abs(credits - deposits), abs(credits - sum(moves) - withdrawals)
    )  # fmt: skip


def _largest(values: list[int | None]) -> int | None:
    known = [v for v in values if v is not None]
    return max(known) if known and len(known) == len(values) else None


def payroll(statement: Paper, month: str) -> int:
    """Cents of wages that came in a month ("2026-10")."""
    rows = [r for r in statement.rows if "PAYROLL" in str(r.get("what")) and str(r.get("date")).startswith(month)]
    return sum(amount for row in rows if isinstance(amount := row.get("amount"), int) and amount > 0)


def recurring_debt(papers: Papers) -> int:
    """Cents a month of payments to lenders that are seen in at least two statements."""
    seen: dict[str, list[int]] = {}
    for paper in papers:
        if paper.type == "statement":
            for row in paper.rows:
                amount = row.get("amount")
                what = str(row.get("what"))
                if isinstance(amount, int) and amount < 0 and DEBTS.search(what):
                    seen.setdefault(key(what), []).append(-amount)  # scans lose spaces
    return sum(max(amounts) for amounts in seen.values() if len(amounts) > 1)


def _income_gap(papers: Papers) -> int | None:
    """Basis points of the pay that slips claim beyond what came into the account, at its worst month."""
    statements = {str(p.values.get("end"))[:7]: p for p in papers if p.type == "statement"}
    gaps = []
    for slip in papers:
        if slip.type == "payslip":
            net, month = slip.cents("net"), str(slip.values.get("paid"))[:7]
            if net is None:
                return None
            if month in statements:
                gaps.append(round(10_000 * (net - payroll(statements[month], month)) / max(net, 1)))
    return max(gaps) if gaps else None


def measures(papers: Papers, reports: Reports, today: date) -> dict[str, Measure]:
    """Everything that rules speak of."""
    form, card, w2 = one(papers, "application"), one(papers, "identity"), one(papers, "w2")
    slips = [p for p in papers if p.type == "payslip"]
    statements = [p for p in papers if p.type == "statement"]
    counts = Counter(paper.type for paper in papers)
    result: dict[str, Measure] = {
        "documents_missing": sum(max(0, need - counts[kind]) for kind, need in REQUIRED.items()),
        "documents_unknown": counts["unknown"],
        "unsure_fields": sum(len(paper.unsure) for paper in papers),
        "instructions_in_text": sum(len(INSTRUCTIONS.findall(paper.text)) for paper in papers),
        "slip_error": _largest([_slip_error(slip) for slip in slips]),
        "statement_error": _largest([_statement_error(paper) for paper in statements]),
        "income_gap": _income_gap(papers),
        "employer_known": reports.employer_known,
        "identity_known": reports.identity.known and reports.identity.born_matches and reports.identity.name_matches,
        "card_matches": reports.identity.card_matches if card else None,
        "sanction_similarity": max((round(10_000 * match.similarity) for match in reports.sanctions), default=0),
        "bureau_file": reports.report is not None,
    }
    expires = card.string("expires") if card else None
    result["identity_days_left"] = (date.fromisoformat(expires) - today).days if expires else None
    names = [p.string("name") for p in papers if p.type in ("application", "payslip", "statement", "w2")]
    if card:
        names.append(f"{card.string('given') or ''} {card.string('surname') or ''}")
    numbers = [p.string("ssn") for p in papers if p.type in ("application", "payslip", "w2")]
    result["names_agree"] = (
        all(same_name(names[0] or "", n) for n in names if n) if names and None not in names else None
    )
    result["numbers_agree"] = len(set(numbers)) == 1 if numbers and None not in numbers else None
    gross = [slip.cents("gross") for slip in slips]
    wages = w2.cents("wages") if w2 else None
    stated = form.cents("income") if form else None
    slip_income = round(sum(g for g in gross if g) / len(gross)) if gross and None not in gross else None
    result["wages_gap"] = round(10_000 * (slip_income * 12 - wages) / max(wages, 1)) if slip_income and wages else None
    declared = form.cents("debt") if form else None
    known = max(declared or 0, reports.report.monthly_debt if reports.report else 0)
    result["undisclosed_debt"] = max(0, recurring_debt(papers) - known) if statements else None
    income = min(stated, slip_income) if stated is not None and slip_income is not None else None
    housing, amount = (form.cents("housing_cost"), form.cents("amount")) if form else (None, None)
    months = form.cents("months") if form else None
    result["amount"], result["debt_to_income"], result["residual_income"] = amount, None, None
    if income and housing is not None and declared is not None and amount and months:
        owed = housing + max(known, recurring_debt(papers)) + instalment(amount, months)
        result["debt_to_income"] = round(10_000 * owed / income)
        received = [payroll(p, str(p.values.get("end"))[:7]) for p in statements]
        if received:
            result["residual_income"] = round(sum(received) / len(received)) - owed
    return result


def features(papers: Papers, reports: Reports, today: date) -> Mapping[str, str | float]:
    """What the scorecard scores. Statements come as they are: it is the rules that say whether to believe them.

    Raises:
        ValueError: the application, the statements or the bureau's file lack something that is scored.
    """
    form = one(papers, "application")
    balances = [p.cents("closing") for p in papers if p.type == "statement"]
    months, amount, savings = (form.cents(n) if form else None for n in ("months", "amount", "savings"))
    since, purpose = (form.string(n) if form else None for n in ("employed_since", "purpose"))
    if reports.report is None or None in (months, amount, savings, since, purpose) or None in balances:
        raise ValueError("the application, a statement or the bureau's file lacks a scored field: refer the case")
    assert months is not None and amount is not None and savings is not None and since and purpose  # noqa: PT018
    years = (today - date.fromisoformat(since)).days / 365.25
    spans = ((1, "under 1 year"), (4, "1 to 4 years"), (7, "4 to 7 years"), (1e9, "over 7 years"))
    steps = ((1, "unknown"), (100_00, "under 100"), (500_00, "100 to 500"), (1000_00, "500 to 1000"))
    low = min((b for b in balances if b is not None), default=None)
    paid = all(payroll(p, str(p.values.get("end"))[:7]) > 0 for p in papers if p.type == "statement")
    account = "no account" if low is None else "overdrawn" if low < 0 else "low"
    if low is not None and low >= 0 and (low >= 200_00 or (paid and years >= 1)):
        account = "salary or ample"
    return {
        "months": float(months),
        "amount": amount / 100,
        "purpose": PURPOSES.get(purpose, "other"),
        "employed": next(text for limit, text in spans if years < limit),
        "history": reports.report.credit_history,
        "instalments": reports.report.other_instalments,
        "account": account,
        "savings": next((text for limit, text in steps if savings < limit), "over 1000"),
    }
