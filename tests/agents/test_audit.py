"""The audit log: appended by several processes, and what was changed afterwards is found and named."""

import hashlib
import json
import subprocess
import sys

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.agents.audit import AuditHead, AuditLog
from stille.agents.database import Database

APPENDER = """
import sys
from stille.agents.audit import AuditLog
from stille.agents.database import Database
log = AuditLog(Database(sys.argv[1]))
for number in range(40):
    log.append("counted", {"number": number}, actor=sys.argv[2])
"""


@pytest.fixture
def log(tmp_path):
    database = Database(tmp_path / "runs.db")
    log = AuditLog(database)
    for number in range(6):
        log.append("step", {"number": number, "text": "größer"}, actor="ann", run=f"r{number % 2}")
    yield log
    database.close()


def forge(log, *statements):
    """What somebody does who can write to the database."""
    with log.database.engine.begin() as connection:
        for operation in ("update", "delete"):
            connection.exec_driver_sql(f"DROP TRIGGER stille_audit_no_{operation}")
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_an_untouched_log_is_good(log):
    verdict = log.verify()
    assert (verdict.ok, verdict.entries, verdict.problem) == (True, 6, None)
    assert [entry.sequence for entry in log.entries()] == [1, 2, 3, 4, 5, 6]
    assert [entry.data["number"] for entry in log.entries(run="r1")] == [1, 3, 5]
    assert log.head().hash == list(log.entries())[-1].hash


def test_an_empty_log_is_good(tmp_path):
    database = Database(tmp_path / "runs.db")
    assert AuditLog(database).verify().ok
    assert AuditLog(database).head().sequence == 0
    database.close()


@pytest.mark.parametrize("statement", ["UPDATE stille_audit SET actor = 'eve'", "DELETE FROM stille_audit"])
def test_the_database_refuses_to_change_it(log, statement):
    with pytest.raises(sa.exc.IntegrityError, match="append-only"), log.database.transaction() as connection:
        connection.execute(sa.text(statement))
    assert log.verify().ok


@pytest.mark.parametrize("column", ["time", "run", "actor", "action", "data", "previous", "hash"])
def test_a_changed_field_is_named(log, column):
    value = "'{\"number\":9}'" if column == "data" else "'forged'"
    forge(log, f"UPDATE stille_audit SET {column} = {value} WHERE sequence = 3")
    verdict = log.verify()
    assert (verdict.ok, verdict.sequence, verdict.entries) == (False, 3, 2)
    assert verdict.problem is not None


def test_data_that_is_no_json_is_named(log):
    forge(log, "UPDATE stille_audit SET data = '{' WHERE sequence = 4")
    verdict = log.verify()
    assert (verdict.ok, verdict.sequence) == (False, 4)
    assert "read" in (verdict.problem or "")


@pytest.mark.parametrize(("gone", "named"), [(1, 2), (3, 4), (6, 6)])
def test_a_removed_entry_is_named(log, gone, named):
    forge(log, f"DELETE FROM stille_audit WHERE sequence = {gone}")
    verdict = log.verify()
    assert (verdict.ok, verdict.sequence) == (False, named)
    assert "removed" in (verdict.problem or "")


def test_an_entry_that_nobody_appended_is_named(log):
    entry = list(log.entries())[-1]
    forged = entry.model_copy(update={"sequence": 7, "previous": entry.hash})
    forged = forged.model_copy(update={"hash": forged.expected_hash()})
    values = {**forged.model_dump(), "data": json.dumps(forged.data)}
    columns = ", ".join(values)
    with log.database.engine.begin() as connection:
        places = ", ".join(f":{name}" for name in values)
        connection.execute(sa.text(f"INSERT INTO stille_audit ({columns}) VALUES ({places})"), values)
    verdict = log.verify()
    assert (verdict.ok, verdict.sequence) == (False, 7)
    assert "inserted" in (verdict.problem or "")


def test_a_chain_that_was_forged_as_a_whole_is_found_by_a_head_that_was_noted(log):
    noted = log.head()
    forge(log, "DELETE FROM stille_audit", "DELETE FROM stille_audit_head")
    for number in range(8):
        log.append("step", {"number": -number}, actor="eve")
    assert log.verify().ok
    verdict = log.verify(noted)
    assert (verdict.ok, verdict.sequence) == (False, 6)
    assert log.verify(AuditHead(sequence=99, hash="x")).ok is False


def test_it_goes_on_from_a_head_that_was_noted(log):
    noted = log.head()
    log.append("more", None, actor="ann")
    assert log.verify(noted).ok


def test_two_processes_append_at_once(tmp_path):
    path = tmp_path / "runs.db"
    appenders = [subprocess.Popen([sys.executable, "-c", APPENDER, str(path), name]) for name in ("ann", "bob")]
    assert [appender.wait(timeout=60) for appender in appenders] == [0, 0]
    database = Database(path)
    assert AuditLog(database).verify().entries == 80
    for name in ("ann", "bob"):
        numbers = [entry.data["number"] for entry in AuditLog(database).entries() if entry.actor == name]
        assert numbers == list(range(40))
    database.close()


def test_an_export_can_be_checked_without_us(log, tmp_path):
    assert log.export(tmp_path / "log.jsonl") == 6
    previous = "0" * 64
    for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        claimed = entry.pop("hash")
        text = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert hashlib.sha256(text.encode()).hexdigest() == claimed
        assert entry["previous"] == previous
        previous = claimed
    assert log.export(tmp_path / "some.jsonl", run="r1") == 3


def test_what_is_no_json_is_refused(log):
    with pytest.raises(ValueError):
        log.append("step", {"number": float("nan")}, actor="ann")
    assert log.verify().entries == 6


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text("ab\u00e9'\"\\"), inner), max_leaves=8
)


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    """A log that all examples append to."""
    database = Database(tmp_path_factory.mktemp("audit") / "runs.db")
    yield AuditLog(database)
    database.close()


@settings(max_examples=40, deadline=None)
@given(data=st.lists(values, min_size=1, max_size=4))
def test_any_json_comes_back_and_verifies(growing, data):
    start = growing.head().sequence
    for value in data:
        growing.append("any", value, actor="ann")
    assert [entry.data for entry in growing.entries()][start:] == data
    assert growing.verify().ok
