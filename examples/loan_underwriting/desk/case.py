"""What a case consists of: the fields that agents share, and the file that remains of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from examples.loan_underwriting.compliance.decide import Decision, Reason
from examples.loan_underwriting.compliance.papers import Paper, paper_of
from examples.loan_underwriting.extraction import Extraction
from stille.agents.types import Json


class Fields(BaseModel):
    """What is shared of the documents. Several documents may state the same field, and disagree."""

    name: str
    ssn: str
    born: str
    employer: str
    card: str
    income: int
    amount: int
    months: int
    debt: int
    housing_cost: int
    account: str


SHARED: Mapping[str, Mapping[str, str]] = {
    "application": {field: field for field in Fields.model_fields if field not in ("card", "account")},
    "payslip": {"name": "name", "ssn": "ssn", "employer": "employer"},
    "statement": {"name": "name", "account": "account"},
    "w2": {"name": "name", "ssn": "ssn"},
    "identity": {"number": "card", "born": "born"},
}
"""By document type: which of its fields is which shared one."""


class CaseFile(BaseModel):
    """What remains of a case.

    Attributes:
        decided_by: "policy", or who decided.
        status: "done", or why nothing was paid out.
        claims: history of the shared fields: who said what, from which document, page and box.
        disputed: fields on which documents disagree.
        calls: that agents made, in order.
        completed: steps that the agents left out, and the workflow did itself.
        note: the compliance agent's words; they decide nothing.
        letter: to the applicant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    application: str
    outcome: Literal["approve", "decline", "refer"]
    decided_by: str
    status: str
    points: int | None
    reasons: tuple[Reason, ...]
    policy_version: str
    measures: dict[str, int | bool | None]
    claims: list[Any]
    disputed: list[str]
    calls: list[str]
    completed: list[str]
    loan: str | None = None
    payment: str | None = None
    note: str = ""
    letter: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


def as_json(extraction: Extraction) -> Json:
    """What was read from a document, as a journal keeps it."""
    fields: Any = {name: asdict(found) for name, found in extraction.all_fields().items()}
    return {
        "document": extraction.document,
        "type": extraction.type,
        "unsure": list(extraction.unsure),
        "text": extraction.text,
        "fields": fields,
    }


def as_paper(read: Mapping[str, Any]) -> Paper:
    """The same as the policy's measures take it."""
    values = {name: found["value"] for name, found in read["fields"].items()}
    return paper_of(read["document"], read["type"], values, read["unsure"], read["text"])


def letter(application: str, decision: Decision, name: str | None, decided_by: str, paid: bool) -> str:
    """What the applicant is told. Reasons are those that decided, word for word (12 CFR 1002.9)."""
    lines = [f"Application {application}", "", f"Dear {(name or 'applicant').title()},", ""]
    if decision.outcome == "approve":
        lines.append("your loan is approved." + (" The amount is on its way to your account." if paid else ""))
    elif decision.outcome == "decline":
        lines += ["we cannot grant the loan that you asked for. These are the principal reasons:", ""]
        lines += [f"- {reason.text}" for reason in decision.reasons]
        lines += ["", "You may ask for a copy of the report that the credit bureau gave us, free of charge."]
    else:
        lines.append("a member of our staff is looking at your application.")
    lines += ["", f"Decided by {decided_by}, policy of {decision.policy_version}."]
    return "\n".join(lines)


def told(reads: Sequence[Mapping[str, Any]]) -> str:
    """A line for each document, for a prompt: no value of it, nothing that its author wrote."""
    lines = [f"{r['document']}: {r['type']}, {len(r['fields'])} fields, {len(r['unsure'])} unsure" for r in reads]
    return "\n".join(lines)
