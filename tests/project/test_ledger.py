"""The results ledger: records that cannot contradict themselves, files that merge, tables that follow from files."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stille import ledger
from stille.errors import ConfigError
from stille.ledger import Record, evaluate_goal, format_number, measure

ROOT = Path(__file__).resolve().parents[2]
numbers = st.floats(min_value=1e-6, max_value=1e9)


def make(id="cpu.decode.short", value=130.0, **changes) -> Record:
    facts = dict(unit="tok/s", command="python benchmarks/cpu_engine.py", notes="Decode. Median of 5.", machine="m",
                 commit="abc", date="2026-01-01T00:00Z")  # fmt: skip
    return measure(id, value, **(facts | changes))


@given(numbers, numbers, st.sampled_from(["higher", "lower"]), st.floats(min_value=0.01, max_value=100))
def test_ratio_says_how_many_times_better_and_met_follows_from_it(value, baseline_value, better, limit):
    goal = f"ratio >= {limit:.6f}"
    record = make(value=value, baseline="b", baseline_value=baseline_value, better=better, goal=goal)
    expected = value / baseline_value if better == "higher" else baseline_value / value
    assert record.ratio == expected
    assert record.met == (expected >= float(f"{limit:.6f}"))


@given(numbers, numbers)
def test_what_contradicts_itself_cannot_be_made_nor_read(tmp_path_factory, value, baseline_value):
    record = make(value=value, baseline="b", baseline_value=baseline_value, goal="ratio >= 1.0")
    with pytest.raises(ConfigError, match="met is"):
        dataclasses.replace(record, met=not record.met)
    with pytest.raises(ConfigError, match="ratio"):
        dataclasses.replace(record, ratio=record.ratio * 1.01 + 1, met=True)
    path = tmp_path_factory.mktemp("ledger") / "cpu.json"
    path.write_text(json.dumps([dataclasses.asdict(record) | {"met": not record.met}]))
    with pytest.raises(ConfigError, match=r"cpu\.json"):
        ledger.read(path)


@pytest.mark.parametrize(
    ("goal", "value", "ratio", "met"),
    [
        (None, 1.0, None, None),
        ("value <= 1.2", 1.2, None, True),
        ("value < 1.2", 1.2, None, False),
        ("value == 0", 0, None, True),
        ("value <= 60_000", 60_001, None, False),
        ("ratio >= 1.8 and value <= 30", 30, 1.8, True),
        ("ratio >= 1.8 and value <= 30", 31, 1.8, False),
        ("ratio >= 1.8 and value <= 30", 30, 1.7, False),
    ],
)
def test_goals(goal, value, ratio, met):
    assert evaluate_goal(goal, value, ratio) is met


@pytest.mark.parametrize("goal", ["", "fast", "ratio > ", "ratio >= 1 or value <= 2", "median >= 3", "value >= 1x"])
def test_a_goal_that_cannot_be_read_is_an_error(goal):
    with pytest.raises(ConfigError, match="goal"):
        evaluate_goal(goal, 1.0, 1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "CPU decode"},
        {"id": "cpu..x"},
        {"id": ""},
        {"value": math.nan},
        {"value": math.inf},
        {"value": True},
        {"value": "130"},
        {"baseline": "b"},
        {"baseline_value": 3.0},
        {"baseline": "b", "baseline_value": 0.0},
        {"goal": "ratio >= 1.0"},
    ],
)
def test_bad_records_are_refused(changes):
    with pytest.raises(ConfigError):
        make(**changes)


def test_write_merges_by_id_and_read_gives_back_what_was_written(tmp_path):
    path = tmp_path / "results" / "cpu.json"
    first, other = make(value=1.0), make(id="cpu.decode.2k", value=2.0, baseline="ünïcode | b", baseline_value=4.0)
    ledger.write(path, [first, other])
    newer = make(value=3.0)
    ledger.write(path, [newer])
    assert ledger.read(path) == [other, newer]
    assert ledger.read(path.parent) == [other, newer]
    assert [file.name for file in path.parent.iterdir()] == ["cpu.json"]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "cpu.json"
    ledger.write(path, [make()])
    before = path.read_bytes()

    def records():
        yield make(value=5.0)
        raise RuntimeError("cut short")

    with pytest.raises(RuntimeError, match="cut short"):
        ledger.write(path, records())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["cpu.json"]


@pytest.mark.parametrize("content", ["", "{", "{}x", '[{"id": "a"}]', '{"id": "a"}', "[1]", "\xff"])
def test_a_file_that_is_no_ledger_is_an_error_and_is_not_overwritten(tmp_path, content):
    path = tmp_path / "cpu.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"cpu\.json"):
        ledger.write(path, [make()])
    assert path.read_text() == content


def test_one_id_in_two_files_is_an_error(tmp_path):
    ledger.write(tmp_path / "a.json", [make()])
    ledger.write(tmp_path / "b.json", [make()])
    with pytest.raises(ConfigError, match="two files"):
        ledger.read(tmp_path)


def test_tables_show_misses_and_stay_inside_their_cells(tmp_path):
    records = [
        make(baseline="a | b", baseline_value=260.0, goal="ratio >= 1.0 and value >= 100"),
        make(id="setup.serve", value=41.25, unit="s", notes="Seconds to the first answer."),
    ]
    text = "before\n<!-- ledger:cpu -->\nold\n<!-- /ledger -->\nbetween\n<!-- ledger:gpu -->\n<!-- /ledger -->\nafter\n"
    rendered = ledger.render_blocks(text, records)
    assert rendered.startswith("before\n<!-- ledger:cpu -->\n|")
    assert "old" not in rendered
    assert "setup.serve" not in rendered
    assert "Nothing has been recorded yet." in rendered
    row = next(line for line in rendered.splitlines() if "cpu.decode.short" in line)
    assert len(re.split(r"(?<!\\)\|", row)) == 10
    assert "**no**" in row
    assert "0.500x" in row
    assert "130 tok/s" in row
    assert ledger.render_blocks(rendered, records) == rendered


def test_a_marker_without_an_end_is_an_error():
    with pytest.raises(ConfigError, match="marker"):
        ledger.render_blocks("<!-- ledger:cpu -->\n| a |\n", [])


@given(st.floats(min_value=-1e12, max_value=1e12).filter(lambda x: x == 0 or abs(x) > 1e-6))
def test_numbers_keep_three_digits(number):
    shown = float(format_number(number).replace(",", ""))
    assert math.isclose(shown, number, rel_tol=6e-3)


def test_the_commit_is_marked_dirty_only_when_sources_changed(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1\n")
    (tmp_path / "README.md").write_text("x\n")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    clean = ledger.describe_commit(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{10}", clean)
    (tmp_path / "README.md").write_text("y\n")
    assert ledger.describe_commit(tmp_path) == clean
    (tmp_path / "src" / "a.py").write_text("2\n")
    assert ledger.describe_commit(tmp_path) == clean + "-dirty"


def test_without_git_the_commit_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("STILLE_COMMIT", "feedc0ffee")
    assert ledger.describe_commit(tmp_path) == "feedc0ffee"


def test_the_machine_is_described_without_its_name():
    described = ledger.describe_machine()
    assert re.search(r"\d+ cores? of .*\d+ GiB.*Python \d", described.replace("1 cores", "1 core"))
    assert os.uname().nodename not in described.split()


def test_committed_tables_match_committed_results():
    """What `make docs-tables` would change has not been forgotten."""
    command = [sys.executable, "-m", "stille.ledger", "tables", "--check", "--root", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_committed_results_name_a_clean_commit():
    for record in ledger.read(ROOT / "benchmarks" / "results"):
        assert re.fullmatch(r"[0-9a-f]{7,40}", record.commit), f"{record.id} was measured at {record.commit}"
