"""The loan desk's processes are really killed, and each approved applicant gets one loan and one payment.

`benchmarks/agents_kill.py` does the same hundreds of times, at every place.
"""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agents" / "kill"))

from harness import Cases, Postgres  # pyright: ignore[reportMissingImports]
from loan import Loan  # pyright: ignore[reportMissingImports]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """One application that the policy approves, and one that a person does."""
    folder = tmp_path_factory.mktemp("kill")
    cases = Cases(str(folder / "runs.db"), Loan(folder, (9, 3)))
    yield cases
    cases.close()


def test_fifty_kills_move_the_money_once(cases):
    approved, _ = cases.flow.kinds
    written = {place.split()[1] for place in cases.places[approved]}
    assert written == {"insert", "update", "step", "budget", "effect"}  # no kind of write is overlooked
    around = ["amid effect started open_loan", "before effect done reserve_funds", "before effect done pay_out"]
    cases.case(approved, places=around)  # where it is not known what happened
    assert cases.check().again >= 2
    while cases.tally.kills < 50:
        cases.case(kills=10, outside=0.2)
    tally = cases.check()
    assert tally.problems == []
    assert len(tally.places) >= 30
    assert tally.approvals


def test_a_payment_that_the_bank_cannot_be_asked_about_is_parked(cases):
    """The process dies before it knows of the payment, and then the bank does. A person looks into its books."""
    parked = cases.tally.parked
    cases.case(places=["before effect done pay_out"], meanwhile=cases.flow.close)
    cases.flow.start()
    tally = cases.check()
    assert tally.parked > parked
    assert tally.problems == []


@pytest.mark.skipif(Postgres.missing() is not None, reason=str(Postgres.missing()))
def test_killed_on_postgresql(cases):
    with tempfile.TemporaryDirectory(prefix="stille-kill-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user, which pytest's own folders keep out
        with Postgres(folder / "server") as server:
            before, cases.db = cases.db, server.url
            kills = cases.tally.kills
            cases.case()  # makes the tables
            for tool in ("open_loan", "pay_out"):
                cases.case(kills=3, places=[f"before effect done {tool}"])
            cases.db = before
    tally = cases.check()
    assert tally.problems == []
    assert tally.kills >= kills + 6
