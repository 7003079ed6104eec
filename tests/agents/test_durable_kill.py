"""Processes that are really killed: every effect of every run once, and every run ends or is parked.

`benchmarks/agents_kill.py` does the same hundreds of times, at every boundary.
"""

import importlib.util
import random
import sys
import tempfile
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "kill" / "harness.py"
spec = importlib.util.spec_from_file_location("agents_kill_harness", HARNESS)
assert spec is not None
assert spec.loader is not None
harness = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = harness
spec.loader.exec_module(harness)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    cases = harness.Cases(str(folder / "runs.db"), folder)
    yield cases
    cases.close()


def test_killed_before_and_after_commits(cases):
    assert cases.writes >= 15
    boundaries = [f"{side}:{number}" for number in range(1, cases.writes + 1) for side in ("before", "after")]
    for number, where in enumerate(random.Random(0).sample(boundaries, 12)):
        cases.at_boundary(f"b{number}", where)
    tally = cases.check()
    assert tally.clean, tally
    assert tally.kills >= 10  # the count of commits differs a little from process to process


def test_killed_again_and_again_at_any_moment(cases):
    already = cases.tally.kills
    for number in range(20):
        cases.several(f"s{number}", kills=3)
        if cases.tally.kills >= already + 10:
            break
    tally = cases.check()
    assert tally.clean, tally
    assert tally.kills >= already + 10


def test_an_effect_that_nobody_can_look_up_is_parked(cases):
    """Killed right after the service did it, and before that is recorded."""
    already = cases.tally.parked
    for number in range(cases.writes, 0, -1):
        cases.at_boundary(f"p{number}", f"before:{number}")
        if cases.tally.parked > already:
            break
    tally = cases.check()
    assert tally.parked > already
    assert tally.clean, tally


@pytest.mark.skipif(harness.Postgres.missing() is not None, reason=str(harness.Postgres.missing()))
def test_killed_on_postgresql():
    with tempfile.TemporaryDirectory(prefix="stille-kill-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user, which pytest's own folders keep out
        with harness.Postgres(folder / "server") as server:
            cases = harness.Cases(server.url, folder)
            try:
                for number, where in enumerate(["before:6", "after:9", "before:12", "after:13"]):
                    cases.at_boundary(f"b{number}", where)
                cases.several("s0", kills=2)
                tally = cases.check()
            finally:
                cases.close()
    assert tally.clean, tally
    assert tally.kills >= 4
