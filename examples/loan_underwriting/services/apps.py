"""The three services as FastAPI applications. Money is in cents, dates are ISO text."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import FastAPI, Header, HTTPException, Query, Response
from pydantic import Field

from examples.loan_underwriting.services.faults import Faults, install
from examples.loan_underwriting.services.ledger import KeyReusedError, Ledger
from examples.loan_underwriting.services.world import IdentityAnswer, Report, SanctionMatch, Strict, World

Cents = Annotated[int, Field(gt=0, le=100_000_000)]
Ssn = Annotated[str, Field(pattern=r"^\d{3}-\d{2}-\d{4}$")]
Key = Annotated[str, Header(alias="Idempotency-Key", min_length=8, max_length=200)]


class Subject(Strict):
    """Whom an inquiry is about."""

    ssn: Ssn
    name: str
    born: str


class IdentityQuery(Subject):
    card: str


class EmployerAnswer(Strict):
    known: bool
    name: str | None = None


class NewLoan(Strict):
    application: str = Field(min_length=1, max_length=64)
    ssn: Ssn
    amount: Cents
    months: int = Field(ge=1, le=120)


class NewReservation(Strict):
    loan: str
    amount: Cents


class NewPayment(Strict):
    """`reference` is free text; the endpoint does not compare it with earlier ones."""

    loan: str
    account: str
    amount: Cents
    reference: str = Field(min_length=1, max_length=200)


class Loan(Strict):
    loan: str
    application: str
    amount: int
    status: Literal["open"] = "open"


class Reservation(Strict):
    reservation: str
    loan: str
    amount: int


class Payment(Strict):
    payment: str
    loan: str
    account: str
    amount: int
    reference: str


def _app(title: str, service: str, faults: Faults) -> FastAPI:
    app = FastAPI(title=title, version="1")
    install(app, service, faults)

    @app.get("/health", operation_id=f"{service}_health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def create_bureau(world: World, ledger: Ledger, faults: Faults) -> FastAPI:
    """The credit bureau: each report is an inquiry, which is recorded."""
    app = _app("Credit bureau", "bureau", faults)

    @app.post("/reports", operation_id="credit_report", responses={404: {"description": "no file"}})
    def report(subject: Subject) -> Report:
        """A person's credit file: history, credits and what is paid each month (cents)."""
        ledger.record("bureau", "inquiry", subject.ssn, subject.model_dump())
        found = world.report(subject.ssn, subject.name)
        if not found:
            raise HTTPException(404, "no credit file for this number")
        return found

    return app


def create_registry(world: World, ledger: Ledger, faults: Faults) -> FastAPI:
    """The government registry: employers, identities, sanctions. It only answers."""
    app = _app("Government registry", "registry", faults)

    @app.get("/employers", operation_id="find_employer")
    def employer(called: Annotated[str, Query(alias="name", min_length=2)]) -> EmployerAnswer:
        """Whether an employer is registered under a name."""
        found = world.employer(called)
        return EmployerAnswer(known=found is not None, name=found)

    @app.post("/identities/verify", operation_id="verify_identity")
    def identity(query: IdentityQuery) -> IdentityAnswer:
        """Compares a person with the register of identities."""
        return world.identity(query.ssn, query.name, query.born, query.card)

    @app.get("/sanctions", operation_id="search_sanctions")
    def sanctions(called: Annotated[str, Query(alias="name", min_length=2)], born: str = "") -> list[SanctionMatch]:
        """Entries of the sanctions list with a similar name, the likest first."""
        return world.sanctioned(called, born)

    return app


def create_bank(world: World, ledger: Ledger, faults: Faults) -> FastAPI:
    """Core banking. Loans and reservations take idempotency keys; payments are older and have a lookup instead."""
    app = _app("Core banking", "bank", faults)

    def once(answer: Response, key: str, kind: str, body: Strict, respond, cents: int):
        try:
            result, again = ledger.record_once(key, "bank", kind, body.model_dump(), respond, cents)
        except KeyReusedError:
            raise HTTPException(422, "this Idempotency-Key came with another request; use a new key") from None
        if again:
            answer.headers["Idempotent-Replayed"] = "true"
        return result

    def loan_of(number: str) -> dict:
        digits = number.removeprefix("L-")
        found = ledger.effects("loan", id=int(digits)) if digits.isdecimal() and len(digits) < 19 else []
        if not found:
            raise HTTPException(404, f"there is no loan {number!r}")
        return found[0]["body"]

    @app.post("/loans", operation_id="open_loan", status_code=201)
    def open_loan(new: NewLoan, key: Key, answer: Response) -> Loan:
        """Opens a loan. The same Idempotency-Key opens it once."""
        made = lambda n: dict(loan=f"L-{n}", application=new.application, amount=new.amount)  # noqa: E731
        return Loan(**once(answer, key, "loan", new, made, new.amount))

    @app.get("/loans/{loan}", operation_id="get_loan")
    def get_loan(loan: str) -> Loan:
        body = loan_of(loan)
        return Loan(loan=loan, application=body["application"], amount=body["amount"])

    @app.post("/reservations", operation_id="reserve_funds", status_code=201)
    def reserve(new: NewReservation, key: Key, answer: Response) -> Reservation:
        """Sets funds aside for a loan. The same Idempotency-Key does so once."""
        if new.amount > loan_of(new.loan)["amount"]:
            raise HTTPException(409, "more than the loan's amount")
        made = lambda n: dict(reservation=f"R-{n}", loan=new.loan, amount=new.amount)  # noqa: E731
        return Reservation(**once(answer, key, "reservation", new, made, new.amount))

    @app.post("/payments", operation_id="pay_out", status_code=201)
    def pay(new: NewPayment) -> Payment:
        """Pays out. It knows no keys: each request pays again. Whether one was done: GET /payments?reference=."""
        loan_of(new.loan)
        if new.account not in world.accounts:
            raise HTTPException(404, f"there is no account {new.account!r}")
        number = ledger.record("bank", "payment", new.reference, new.model_dump(), new.amount)
        return Payment(payment=f"P-{number}", **new.model_dump())

    @app.get("/payments", operation_id="find_payments")
    def payments(reference: Annotated[str, Query(min_length=1)]) -> list[Payment]:
        """All payments with a reference."""
        return [Payment(payment=f"P-{e['id']}", **e["body"]) for e in ledger.effects("payment", reference)]

    return app


def create_services(world: World, ledger: Ledger, faults: Faults) -> FastAPI:
    """All three in one, under /bureau, /registry and /bank; each has its own openapi.json there."""
    app = FastAPI(title="Loan services", version="1")
    app.mount("/bureau", create_bureau(world, ledger, faults))
    app.mount("/registry", create_registry(world, ledger, faults))
    app.mount("/bank", create_bank(world, ledger, faults))
    return app
