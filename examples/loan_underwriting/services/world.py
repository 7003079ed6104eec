"""What the services know of the outside world."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from examples.loan_underwriting.documents.facts import TODAY, make_facts
from examples.loan_underwriting.documents.generate import world
from examples.loan_underwriting.normalise import fold, key, name

ALIKE = 0.85
"""Names on the sanctions list that are at least so similar (difflib's ratio of sorted words) are given."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreditFile(Strict):
    """A person's file at the bureau; monthly_debt in cents."""

    credit_history: str
    existing_credits: int
    other_instalments: str
    monthly_debt: int


class Identity(Strict):
    ssn: str
    name: str
    born: str
    card: str
    expires: str


class Sanction(Strict):
    name: str
    born: str
    programme: str


class Report(CreditFile):
    """A credit file, and whether it is of a person of the name asked for."""

    name_matches: bool


class IdentityAnswer(Strict):
    known: bool
    name_matches: bool = False
    born_matches: bool = False
    card_matches: bool = False
    expires: str | None = None
    expired: bool | None = None


class SanctionMatch(Strict):
    name: str
    programme: str
    similarity: float
    born_matches: bool


def same_name(a: str, b: str) -> bool:
    """Whether two names have the same words, in whatever order."""
    return sorted((name(a) or "").split()) == sorted((name(b) or "").split())


class World(Strict):
    """Files by number of the person (bureau) and of the account (accounts)."""

    employers: list[str]
    identities: list[Identity]
    sanctions: list[Sanction]
    bureau: dict[str, CreditFile]
    accounts: dict[str, str]

    def employer(self, called: str) -> str | None:
        """The registered name of an employer."""
        return next((employer for employer in self.employers if key(employer) == key(called)), None)

    def report(self, ssn: str, called: str) -> Report | None:
        """A person's credit file."""
        found = self.bureau.get(ssn)
        matches = any(one.ssn == ssn and same_name(one.name, called) for one in self.identities)
        return Report(name_matches=matches, **found.model_dump()) if found else None

    def identity(self, ssn: str, called: str, born: str, card: str) -> IdentityAnswer:
        """Compares a person with the register of identities."""
        for one in self.identities:
            if one.ssn == ssn:
                return IdentityAnswer(
                    known=True,
                    name_matches=same_name(one.name, called),
                    born_matches=one.born == born,
                    card_matches=fold(one.card) == fold(card),
                    expires=one.expires,
                    expired=one.expires < TODAY.isoformat(),
                )
        return IdentityAnswer(known=False)

    def sanctioned(self, called: str, born: str) -> list[SanctionMatch]:
        """Entries of the sanctions list with a similar name, the likest first."""
        wanted = " ".join(sorted((name(called) or fold(called)).split()))
        matches = []
        for entry in self.sanctions:
            alike = SequenceMatcher(None, wanted, " ".join(sorted((name(entry.name) or "").split()))).ratio()
            if alike >= ALIKE:
                found = SanctionMatch(
                    name=entry.name,
                    programme=entry.programme,
                    similarity=round(alike, 3),
                    born_matches=entry.born == born,
                )
                matches.append(found)
        return sorted(matches, key=lambda match: -match.similarity)


def load_world(path: Path | None) -> World:
    """From world.json of generated cases; without a path, the world of the first 60 cases."""
    if path is None:
        return World.model_validate(world(make_facts(seed) for seed in range(60)))
    return World.model_validate(json.loads(path.read_text()))
