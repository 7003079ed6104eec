"""Processes that are really killed around an effect that nobody can look up: it is parked, and happens once.

tests/examples/test_loan_kill.py kills the loan desk's flow; `benchmarks/agents_kill.py` does so hundreds of times.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "kill"))

from harness import Cases  # pyright: ignore[reportMissingImports]
from order import Order  # pyright: ignore[reportMissingImports]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    cases = Cases(str(folder / "runs.db"), Order(folder))
    yield cases
    cases.close()


@pytest.mark.parametrize(
    ("place", "parked"),
    [
        ("before effect started seal", 0),
        ("after effect started seal", 1),
        ("before effect done seal", 1),
        ("after effect done seal", 0),
        ("after step effect seal", 0),
    ],
)
def test_an_effect_that_nobody_can_look_up_is_parked(cases, place, parked):
    """In the second case nothing was done, in the third it was: a person who reads the file tells them apart."""
    kills, asked = cases.tally.kills, cases.tally.parked
    cases.case(places=[place])
    tally = cases.check()
    assert tally.problems == []
    assert (tally.kills - kills, tally.parked - asked) == (1, parked)
