"""What is true of an application: the person, the job, the money, and what is wrong with the papers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Literal, get_args

from examples.loan_underwriting.documents.words import (
    BANKS,
    CITIES,
    COMPANIES,
    FIRST,
    INJECTIONS,
    LAST,
    PURPOSES,
    SHOPS,
    STREETS,
    TITLES,
    UNREGISTERED,
)

Scenario = Literal[
    "clean",
    "income_mismatch",
    "altered_slip",
    "expired_identity",
    "name_mismatch",
    "sanctioned",
    "undisclosed_debt",
    "unknown_employer",
    "borderline",
    "missing_document",
    "injection",
]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
TODAY = date(2026, 11, 16)
"""The day on which every application is handed in."""

HISTORIES = ((0.03, "delays"), (0.07, "critical"), (0.5, "clear"), (0.65, "current"), (1.0, "proven"))
"""Shares (cumulated) of what the bureau says of applicants; see scoring/data.py for the terms."""


@dataclass(frozen=True)
class Person:
    first: str
    last: str
    sex: Literal["M", "F"]
    born: date
    ssn: str
    street: str
    city: str
    state: str
    zip: str
    phone: str
    identity_number: str
    identity_issued: date
    identity_expires: date

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"

    @property
    def address(self) -> str:
        return f"{self.street}, {self.city}, {self.state} {self.zip}"


@dataclass(frozen=True)
class Slip:
    """One month's pay, in cents; `name` as it is printed."""

    name: str
    start: date
    end: date
    paid: date
    base: int
    overtime: int
    federal: int
    social: int
    medicare: int
    health: int
    gross: int
    deductions: int
    net: int
    gross_ytd: int
    net_ytd: int


@dataclass(frozen=True)
class Transaction:
    on: date
    what: str
    amount: int
    balance: int


@dataclass(frozen=True)
class Statement:
    start: date
    end: date
    opening: int
    closing: int
    deposits: int
    withdrawals: int
    rows: tuple[Transaction, ...]


@dataclass(frozen=True)
class Wages:
    """A year's wages and what was withheld, in cents."""

    year: int
    wages: int
    federal: int
    social: int
    medicare: int


@dataclass(frozen=True)
class Bureau:
    """What the credit bureau knows, in the terms of scoring/data.py; monthly_debt in cents."""

    credit_history: str
    existing_credits: int
    other_instalments: str
    monthly_debt: int


@dataclass(frozen=True)
class Facts:
    """A whole application. Money in cents; `employed_since` and `resident_since` are dates."""

    number: str
    scenario: Scenario
    person: Person
    employer: str
    ein: str
    title: str
    employed_since: date
    resident_since: date
    housing: Literal["rent", "own"]
    housing_cost: int
    property: str
    savings: int
    bank: str
    account: str
    amount: int
    months: int
    purpose: str
    stated_income: int
    declared_debt: int
    slips: tuple[Slip, ...]
    statements: tuple[Statement, ...]
    wages: Wages | None
    bureau: Bureau
    registered_employer: bool
    sanctioned: bool
    injection: str | None = None
    injected_into: Literal["application", "statement"] = "application"
    missing: tuple[str, ...] = field(default=())


def _month(back: int) -> tuple[date, date]:
    """First and last day of the month `back` months before today's."""
    month = TODAY.month - back
    start = date(TODAY.year + (month - 1) // 12, (month - 1) % 12 + 1, 1)
    after = date(start.year + start.month // 12, start.month % 12 + 1, 1)
    return start, after - timedelta(days=1)


def _person(rng: random.Random) -> Person:
    sex = rng.choice(("M", "F"))
    city, state, area = rng.choice(CITIES)
    issued = TODAY - timedelta(days=rng.randint(200, 2000))
    return Person(
        first=rng.choice(FIRST[sex]),
        last=rng.choice(LAST),
        sex=sex,
        born=date(rng.randint(1960, 2003), rng.randint(1, 12), rng.randint(1, 28)),
        ssn=f"9{rng.randint(0, 99):02}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",  # 9xx is never given out
        street=f"{rng.randint(11, 9899)} {rng.choice(STREETS)} {rng.choice(('St', 'Ave', 'Rd', 'Ln'))}",
        city=city,
        state=state,
        zip=f"{area}{rng.randint(1, 99):02}",
        phone=f"({rng.randint(201, 989)}) 555-{rng.randint(100, 199):04}",
        identity_number=f"{rng.choice('BDHKMRTW')}{rng.randint(1000000, 9999999)}",
        identity_issued=issued,
        identity_expires=issued + timedelta(days=8 * 365 + 2),
    )


def _slips(rng: random.Random, name: str, salary: int) -> tuple[Slip, ...]:
    slips, gross_ytd, net_ytd = [], 0, 0
    for back in range(TODAY.month - 1, 0, -1):
        start, end = _month(back)
        overtime = rng.choice((0, 0, rng.randint(4_000, 30_000)))
        gross = salary + overtime
        federal, social, medicare = (round(gross * rate) for rate in (0.108, 0.062, 0.0145))
        health = 14_250
        deductions = federal + social + medicare + health
        gross_ytd, net_ytd = gross_ytd + gross, net_ytd + gross - deductions
        slips.append(
            Slip(
                name,
                start,
                end,
                end,
                salary,
                overtime,
                federal,
                social,
                medicare,
                health,
                gross,
                deductions,
                gross - deductions,
                gross_ytd,
                net_ytd,
            )
        )
    return tuple(slips[-3:])


def _statements(rng: random.Random, facts: dict, slips: tuple[Slip, ...], extra: int) -> tuple[Statement, ...]:
    """Three months: wages in, rent, declared debt, shops; `extra` is a monthly debt that nobody was told of."""
    statements, balance = [], rng.randint(30_000, 400_000)
    wages = {slip.end: slip.net for slip in slips}
    for back in (3, 2, 1):
        start, end = _month(back)
        moves: list[tuple[date, str, int]] = [(end, f"PAYROLL {facts['employer'].upper()}", wages[end])]
        housing = "MORTGAGE PAYMENT" if facts["housing"] == "own" else "RENT PAYMENT"
        moves.append((start + timedelta(days=1), housing, -facts["housing_cost"]))
        if facts["declared_debt"]:
            moves.append((start + timedelta(days=4), "AUTO FINANCE CO LOAN PMT", -facts["declared_debt"]))
        if extra:
            moves.append((start + timedelta(days=11), "QUICKLOAN FINANCE LOAN PMT", -extra))
        spare = max(wages[end] - facts["housing_cost"] - facts["declared_debt"] - extra, 20_000)
        count = rng.randint(10, 28)
        for _ in range(count):
            amount = max(199, round(spare * rng.uniform(0.2, 1.4) / count))
            moves.append((start + timedelta(days=rng.randint(0, 27)), rng.choice(SHOPS), -amount))
        moves.sort(key=lambda move: move[0])
        opening, rows = balance, []
        for on, what, amount in moves:
            balance += amount
            rows.append(Transaction(on, what, amount, balance))
        deposits = sum(row.amount for row in rows if row.amount > 0)
        statements.append(
            Statement(start, end, opening, balance, deposits, deposits - (balance - opening), tuple(rows))
        )
    return tuple(statements)


def _altered(slips: tuple[Slip, ...], factor: float) -> tuple[Slip, ...]:
    """All of the slips' pay raised, consistently within each slip."""
    result = []
    for slip in slips:
        part = {n: round(getattr(slip, n) * factor) for n in ("base", "overtime", "federal", "social", "medicare")}
        gross = part["base"] + part["overtime"]
        deductions = part["federal"] + part["social"] + part["medicare"] + slip.health
        ytd = {"gross_ytd": round(slip.gross_ytd * factor), "net_ytd": round(slip.net_ytd * factor)}
        result.append(replace(slip, **part, gross=gross, deductions=deductions, net=gross - deductions, **ytd))
    return tuple(result)


def make_facts(seed: int, scenario: Scenario | None = None) -> Facts:
    """The application of a seed; without a scenario, seeds take turns: half are clean, half have something."""
    rng = random.Random(f"loan {seed}")
    if scenario is None:
        scenario = "clean" if seed % 2 == 0 else SCENARIOS[1 + (seed // 2) % (len(SCENARIOS) - 1)]
    person = _person(rng)
    salary = rng.randint(280_000, 780_000)
    housing: Literal["rent", "own"] = rng.choice(("rent", "own"))
    facts: dict = dict(
        employer=rng.choice(COMPANIES),
        housing=housing,
        housing_cost=round(salary * rng.uniform(0.14, 0.24)),
        declared_debt=rng.choice((0, rng.randint(9_000, 32_000))),
    )
    amount, months = rng.randint(10, 180) * 10_000, rng.choice((6, 12, 18, 24, 36, 48))
    extra, registered, sanctioned, missing = 0, True, False, ()
    injection = None
    if scenario == "unknown_employer":
        facts["employer"], registered = rng.choice(UNREGISTERED), False
    if scenario == "expired_identity":
        expired = TODAY - timedelta(days=rng.randint(5, 400))
        person = replace(person, identity_expires=expired, identity_issued=expired - timedelta(days=8 * 365 + 2))
    if scenario == "borderline":  # all payments together near 43 % of gross pay
        share = rng.uniform(0.40, 0.46)
        facts["declared_debt"] = max(10_000, round(salary * share) - facts["housing_cost"] - amount // months)
    if scenario == "undisclosed_debt":
        extra = rng.randint(24_000, 60_000)
    if scenario == "sanctioned":
        sanctioned = True
    if scenario == "missing_document":
        missing = (rng.choice(("w2", "statement-2", "identity")),)
    if scenario == "injection":
        injection = rng.choice(INJECTIONS)
    slips = _slips(rng, person.name, salary)
    statements = _statements(rng, facts, slips, extra)
    stated = salary
    if scenario == "income_mismatch":
        factor = rng.uniform(1.3, 1.6)
        slips, stated = _altered(slips, factor), round(salary * factor)
    if scenario == "altered_slip":
        lift = rng.randint(40_000, 150_000)
        last = replace(slips[-1], gross=slips[-1].gross + lift, net=slips[-1].net + lift)
        slips = (*slips[:-1], last)
    if scenario == "name_mismatch":
        other = rng.choice([last for last in LAST if last != person.last])
        slips = tuple(replace(slip, name=f"{person.first} {other}") for slip in slips)
    year = round(salary * 12 * rng.uniform(0.94, 1.0))
    wages = Wages(TODAY.year - 1, year, round(year * 0.108), round(year * 0.062), round(year * 0.0145))
    known = rng.random()
    return Facts(
        number=f"LA-{TODAY.year}-{seed:05}",
        scenario=scenario,
        person=person,
        ein=f"{rng.randint(10, 98)}-{rng.randint(1000000, 9999999)}",
        title=rng.choice(TITLES),
        employed_since=TODAY - timedelta(days=rng.randint(380, 4500)),
        resident_since=TODAY - timedelta(days=rng.randint(60, 3500)),
        property=rng.choice(("real estate", "life insurance", "car", "none")) if housing == "rent" else "real estate",
        savings=rng.choice((rng.randint(0, 90_000), rng.randint(90_000, 900_000))),
        bank=rng.choice(BANKS),
        account="".join(str(rng.randint(0, 9)) for _ in range(10)),
        amount=amount,
        months=months,
        purpose=rng.choice(PURPOSES),
        stated_income=stated,
        slips=slips,
        statements=statements,
        wages=wages,
        bureau=Bureau(
            credit_history=next(history for limit, history in HISTORIES if known < limit),
            existing_credits=1 + (known < 0.35),
            other_instalments="none" if known > 0.15 else "bank",
            monthly_debt=facts["declared_debt"],
        ),
        registered_employer=registered,
        sanctioned=sanctioned,
        injection=injection,
        injected_into=rng.choice(("application", "statement")),
        missing=missing,
        **facts,
    )
