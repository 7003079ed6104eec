"""The event store, on SQLite and PostgreSQL: revisions, questions, timelines, retention, full disks."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from stille.video.errors import SinkError
from stille.video.events import purge
from stille.video.evidence import Evidence
from stille.video.rules import parse_rules
from stille.video.sinks import Lane
from stille.video.store import Filter, Store, _fitting
from stille.video.types import Event

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 3, 4, 12, 30, tzinfo=BERLIN).timestamp()
HOUR, DAY = 3600, 86400


def event(id: str, began: float, revision: int = 0, **more) -> Event:
    fields = dict(state="closed", camera="dock3", rule="near", kind="near_miss", zone="dock3-lane", ended=began + 5)
    fields |= dict(confidence=0.9, reason="a forklift and a person 1.2 m apart", changed=began)
    return Event.model_validate(dict(id=id, revision=revision, began=began, **(fields | more)))


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    tools = {name: shutil.which(name) for name in ("initdb", "pg_ctl", "postgres")}
    if not all(tools.values()):
        pytest.skip("no PostgreSQL on this machine")
    folder = Path("/tmp") / f"stille-pg-{os.getpid()}"  # a socket's path must be short
    folder.mkdir()
    user = "nobody" if os.getuid() == 0 else None  # PostgreSQL does not run as root
    if user:
        shutil.chown(folder, user)

    def run(name, *arguments):
        command = [tools[name], *map(str, arguments)]
        subprocess.run(command, check=True, user=user, cwd="/", timeout=60, stdout=subprocess.DEVNULL)

    run("initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
    yield f"postgresql://postgres@/postgres?host={folder}"
    run("pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    where = tmp_path / "deep" / "events.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    one = Store(where)
    yield one
    with one.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE stille_video_events"))
    one.close()


def test_keeps_finds_counts_and_answers(store):
    yesterday = NOW - DAY
    near = [event(f"n{i}", yesterday + i * HOUR) for i in range(-2, 3)]
    others = [
        event("other", yesterday, camera="dock31", zone=None),
        event("helmet", yesterday + 60, rule="helmet", kind="no_helmet", reason="100%_sure: no helmet"),
        event("held", yesterday + 90, withheld=True),
        event("today", NOW - 60, state="open", ended=None),
    ]
    store.add([*near, *others])
    store.add(reversed([event("n0", yesterday, r, reason=f"revision {r}") for r in range(4)]))
    found = store.get("n0")
    assert (found.revision, found.reason) == (3, "revision 3")
    assert store.get("none") is None

    assert [one.id for one in store.find(Filter(since=yesterday, until=NOW, cameras=["dock3"]), limit=2)] == [
        "today",
        "n2",
    ]
    assert [one.id for one in store.find(Filter(text="100%_SURE helmet"))] == ["helmet"]
    assert store.find(Filter(text="100xxsure")) == []
    assert [one.id for one in store.find(Filter(withheld=True))] == ["held"]
    assert [one.id for one in store.find(Filter(state="open"))] == ["today"]
    assert store.count(Filter(zones=["dock3-lane"]), by=("rule",)) == {("helmet",): 1, ("near",): 6}

    steps = store.timeline(yesterday, yesterday + 2 * HOUR + 1)
    assert [step["total"] for step in steps] == [3, 1, 1]
    assert steps[0]["rules"] == {"helmet": 1, "near": 2}
    assert steps[2]["time"] == yesterday + 2 * HOUR

    answer = store.query("near misses", "dock 3", "yesterday", timezone="Europe/Berlin", now=NOW, limit=2)
    assert (answer["count"], len(answer["events"])) == (5, 2)
    assert answer["since"] == "2026-03-03T00:00:00+01:00"
    assert answer["by"]["zone"] == {"dock3-lane": 5}
    assert store.query("near misses", "dock 3", "last 2 hours", now=NOW)["count"] == 1
    assert store.query(text="helmet", now=NOW)["count"] == 1
    nothing = store.query("fires", "dock 3", now=NOW)
    assert (nothing["count"], nothing["known"]["rule"]) == (0, ["helmet", "near"])
    with pytest.raises(SinkError, match="expected today"):
        store.query(when="when the moon was full")


def test_retention_by_rule_zone_and_default_with_evidence(store, tmp_path):
    rules = parse_rules(
        """
cameras: [{name: dock3}]
zones: [{name: dock3-lane, camera: dock3, points: [[0, 0], [1, 0], [1, 1]], keep_days: 7}]
rules:
  - {id: near, type: intrusion, zones: [dock3-lane]}
  - {id: long, type: intrusion, zones: [dock3-lane], keep_days: 90}
"""
    )
    evidence = Evidence(tmp_path / "evidence")
    picture = tmp_path / "evidence" / "dock3" / "day" / "a.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"x")
    (tmp_path / "keep").write_bytes(b"x")
    store.add(
        [
            event("a", NOW - 8 * DAY, snapshot="dock3/day/a.jpg", clip="../keep"),
            event("b", NOW - 6 * DAY),
            event("c", NOW - 80 * DAY, rule="long"),
            event("d", NOW - 31 * DAY, rule="gone", zone=None, withheld=True),
            event("e", NOW - 99 * DAY, state="open", ended=None),
        ]
    )
    assert purge(store, rules, evidence, NOW) == 1
    assert not picture.parent.exists()
    assert (tmp_path / "keep").exists()
    assert purge(store, rules, evidence, NOW, keep_days=30) == 1
    assert [one.id for one in store.find(Filter(withheld=None))] == ["b", "c", "e"]
    evidence.close()


def test_a_full_disk_is_waited_out_and_nothing_is_lost(tmp_path):
    store = Store(tmp_path / "events.db")

    def limit(pages):
        with store.engine.connect() as connection:  # SQLite has one connection of its pool in use at a time
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    limit(8)
    lane = Lane(store, size=5, spool=tmp_path / "spool", first_s=0.01, longest_s=0.02)
    for number in range(60):
        lane.put(event(f"e{number}", NOW + number, reason="x" * 500))
    assert not lane.drain(0.3)
    assert "full" in str(lane.problem)
    assert lane.secure(0)
    lane.close(0.1)
    again = Store(tmp_path / "events.db")
    lane = Lane(again, spool=tmp_path / "spool", first_s=0.01)
    assert lane.drain(10)
    assert again.count() == {(): 60}
    lane.close(1)


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("mysql://user:geheim@host/db", "expected a path or"),
        ("/proc/none/events.db", "cannot be used"),
        ("postgresql://nobody:geheim@127.0.0.1:1/x", "cannot be used"),
    ],
)
def test_a_store_that_cannot_be_used(where, told):
    with pytest.raises(SinkError, match=told) as caught:
        Store(where)
    assert "geheim" not in str(caught.value)


def test_names_as_people_write_them():
    names = ["near_miss", "Dock-3", "dock3-lane", "dock31", "exit", "no_helmet"]
    assert _fitting("Near misses", names) == ["near_miss"]
    assert _fitting("at dock 3", names) == ["Dock-3", "dock3-lane"]
    assert _fitting("helmets", names) == ["no_helmet"]
    assert _fitting("the exits", names) == ["exit"]
    assert _fitting("?", names) == []
