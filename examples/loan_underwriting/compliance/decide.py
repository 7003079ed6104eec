"""The decision on an application, and reasons that are nothing but what decided it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from examples.loan_underwriting.compliance.assess import Measure
from examples.loan_underwriting.compliance.policy import Outcome, Policy, Rule, check
from examples.loan_underwriting.scoring.scorecard import Features, Scorecard

WORDING = {
    "months": "The loan runs for too long",
    "amount": "The amount is too high for a loan of this kind",
    "purpose": "The purpose of the loan",
    "employed": "Length of employment",
    "history": "Credit history with the bureau",
    "instalments": "Instalment plans with others",
    "account": "Balance of, or wages into, the current account",
    "savings": "Savings are too low or not shown",
}


class Reason(BaseModel):
    """Why it was not approved, or could not be decided.

    Attributes:
        source: "rule", `id` is the rule's; "score", `id` is the factor's.
        points_lost: against the factor's best bin.
        would_help: what the measure or factor would have to be for the reason to be gone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["rule", "score"]
    id: str
    text: str
    points_lost: int = 0
    would_help: str | float | bool


class Decision(BaseModel):
    """
    Attributes:
        straight_through: the policy lets it stand without a person.
        adverse: a decline whose reasons the applicant must be told (Regulation B, 12 CFR 1002.9).
        points: None if the application could not be scored.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: Outcome
    straight_through: bool
    adverse: bool
    points: int | None
    reasons: tuple[Reason, ...]
    policy_version: str


def decide(policy: Policy, card: Scorecard, measures: Mapping[str, Measure], features: Features | None) -> Decision:
    """Rules first: one that demands it declines, others refer; then the score.

    A rule whose measure is not known refers. A case is never declined by what could not be read: if any rule about
    documents, consistency, identity or sanctions fails, a person looks before anything is declined.

    Args:
        features: None if they could not be had, which refers.

    Raises:
        ValueError: a feature has a value that the scorecard does not know.
    """
    results = check(policy, measures)
    failed = [rule for rule in policy.rules if not results[rule.id]]
    score = card.score(features) if features is not None else None
    bands = policy.score
    outcome: Outcome
    by_rule = [
        Reason(source="rule", id=rule.id, text=_words(rule, results[rule.id]), would_help=rule.enough)
        for rule in sorted(failed, key=lambda rule: rule.otherwise)
    ]
    lost = sorted((p for p in score.factors if p.lost > 0), key=lambda p: -p.lost)[: bands.reasons] if score else []
    by_score = [
        Reason(source="score", id=p.name, text=WORDING[p.name], points_lost=p.lost, would_help=best)
        for p in lost
        for best in [next(f for f in card.factors if f.name == p.name).best_value()]
    ]
    if any(rule.otherwise == "refer" or results[rule.id] is None for rule in failed):
        outcome, reasons = "refer", by_rule
    elif failed:
        outcome, reasons = "decline", by_rule
    elif score is None:
        outcome, reasons = "refer", []
    elif score.points >= bands.approve_from:
        outcome, reasons = "approve", []
    else:
        outcome, reasons = ("decline" if score.points < bands.decline_below else "refer"), by_score
    amount = measures.get("amount")
    small = amount is not None and amount <= policy.straight_through.up_to
    return Decision(
        outcome=outcome,
        straight_through=outcome in policy.straight_through.outcomes and small,
        adverse=outcome == "decline",
        points=score.points if score else None,
        reasons=tuple(reasons),
        policy_version=policy.version.isoformat(),
    )


def _words(rule: Rule, holds: bool | None) -> str:
    """Why the rule does not hold. What is not known is no reason against anybody: such a case goes to a person."""
    return rule.reason if holds is False else f"Could not be checked: {rule.measure.replace('_', ' ')}"
