"""The log that is marked, and asked."""

from __future__ import annotations

import pytest

from stille.agents.types import Message, Reply, ToolCall, Usage
from stille.video.errors import SinkError, VideoError
from stille.video.rules import parse_rules
from stille.video.store import Filter, Store
from stille.video.types import Event
from stille.web.ask import Ask, Lookup, borne_out, named, times
from stille.web.log import Log

NOW = 1_764_600_000.0  # 2025-12-01 15:40 in Berlin
HOUR = 3600.0
RULES = parse_rules(
    """
timezone: Europe/Berlin
cameras: [{name: dock3}, {name: dock31}, {name: yard}]
zones: [{name: dock3-lane, camera: dock3, points: [[0, 0], [1, 0], [1, 1]]}]
rules:
  - {id: near, type: lying}
  - {id: helmet, type: no_helmet, zones: [dock3-lane]}
"""
)


def event(n: int, began: float, rule="near", kind="near_miss", camera="dock3", **more) -> Event:
    ended = more.pop("ended", began + 5)
    return Event(
        id=f"e{n}", state="open" if ended is None else "closed", revision=0, camera=camera, rule=rule, kind=kind,
        began=began, changed=began, ended=ended, confidence=0.9, reason=f"reason {n}", **more,
    )  # fmt: skip


@pytest.fixture
def log(tmp_path):
    store = Store(tmp_path / "events.db")
    store.add(
        [
            event(1, NOW - 30 * HOUR), event(2, NOW - 29 * HOUR), event(3, NOW - 28 * HOUR, camera="yard"),
            event(4, NOW - 2 * HOUR), event(5, NOW - HOUR, "helmet", "no_helmet", zone="dock3-lane", ended=None),
            event(6, NOW - HOUR, withheld=True),
        ]
    )  # fmt: skip
    yield Log(store)
    store.close()


def test_marks_are_kept_changed_taken_back_and_go_with_their_event(log):
    log.mark("e1", "false alarm", "a shadow", "10.0.0.7")
    log.mark("e2", "acknowledged")
    log.mark("e1", "acknowledged", "no, it was real")
    again = Log(log.store)
    assert (again.get("e1").mark.verdict, again.get("e1").mark.note) == ("acknowledged", "no, it was real")
    found, count = again.find(Filter(), "acknowledged")
    assert ([one.event.id for one in found], count) == (["e2", "e1"], 2)
    assert again.find(Filter(), "none", limit=2)[1] == 3
    assert [one.event.id for one in again.find(Filter(), limit=2, offset=1)[0]] == ["e4", "e3"]
    again.unmark("e2")
    log.store.delete(["e1"])
    assert again.tidy() == 1
    assert again.find(Filter(), "acknowledged") == ([], 0)
    for id, verdict in (("e9", "acknowledged"), ("e2", "maybe")):
        with pytest.raises(SinkError):
            log.mark(id, verdict)


def test_a_span_has_what_went_on_in_it(log):
    assert [one.id for one in log.during(NOW - 2 * HOUR + 4, NOW - HOUR)] == ["e4"]
    assert [one.id for one in log.during(NOW, NOW + 1)] == ["e5"]  # open
    assert [one.id for one in log.during(0, NOW, limit=2)] == ["e4", "e5"]


@pytest.mark.parametrize(
    ("question", "permitted", "what", "where", "when"),
    [
        ("how many near misses at dock 3 yesterday?", "count", ["near_miss"], ["dock3"], ["yesterday"]),
        ("how often without helmet in the lane of dock 3", "count", ["no_helmet"], ["dock3-lane"], ["all time"]),
        ("which camera had the most events this week", "group", ["any"], ["any"], ["this week"]),
        ("show the last events since 2025-11-30", "list", ["any"], ["any"], ["since 2025-11-30"]),
    ],
)
def test_words_that_name_something_leave_nothing_to_the_model(log, question, permitted, what, where, when):
    log.store.add([event(7, NOW, kind="no_helmet", rule="no_helmet")])
    lookup = Lookup(log, RULES, question, NOW, free=False)
    assert lookup.permitted == {f"{permitted}_events"}
    choices = lookup.tools[f"{permitted}_events"].parameters["properties"]
    assert what[0] in choices["what"]["enum"]
    assert (choices["where"]["enum"], choices["when"]["enum"]) == (where, when)


def test_names_and_times():
    assert named("near dock 31", ["dock3", "dock31", "near", "near_miss"]) == ["dock31"]
    assert named("speed of forklifts; intruders", ["speeding", "intrusion", "pallet_missing"]) == [
        "intrusion",
        "speeding",
    ]
    assert named("and the weather?", ["near", "dock3"]) == []
    assert times("from 2025-11-01 to 2025-11-03, please", NOW, "UTC") == ["from 2025-11-01 to 2025-11-03"]
    assert times("dock 3 in 99999 days", NOW, "UTC") == []


class Scripted:
    """A model that makes the calls it is given, then says its words."""

    name = "scripted"

    def __init__(self, calls, words=""):
        self.calls, self.words, self.requests = calls, words, []

    async def stream(self, request):
        self.requests.append(request)
        calls = () if request.choice == "none" else tuple(
            ToolCall(id=str(i), name=name, arguments=arguments) for i, (name, arguments) in enumerate(self.calls)
        )  # fmt: skip
        yield Reply(message=Message(role="assistant", content="" if calls else self.words, calls=calls), usage=Usage())


async def asked(log, question, calls, words="", free=True):
    async def make():
        return Scripted(calls, words)

    return await Ask(make, "scripted", free, clock=lambda: NOW).answer(question, log, RULES)


async def test_figures_are_the_logs(log):
    where = {"what": "near_miss", "where": "dock3", "when": "yesterday"}
    answer = await asked(log, "near misses at dock 3 yesterday", [("count_events", where)], "There were 2 near misses.")
    (found,) = answer.found
    assert found.sentence == "2 events of near_miss at dock3, 2025-11-30 00:00 to 2025-12-01 00:00."
    assert found.rows == [("near", "dock3", 2)]
    assert answer.words == "There were 2 near misses."
    answer = await asked(log, "near misses at dock 3 yesterday", [("count_events", where)], "There were 17.")
    assert (answer.words, answer.dropped) == (None, True)
    two = [("group_events", {"by": "camera", "what": "any", "where": "any", "when": "all time"}),
           ("list_events", {"what": "near", "where": "yard", "when": "all time"})]  # fmt: skip
    group, listed = (await asked(log, "compare the cameras", two)).found
    assert group.rows == [("dock3", 4), ("yard", 1)]
    assert group.sentence == "5 events of any rule in all time; most: dock3, with 4."
    assert [row[4] for row in listed.rows] == ["reason 3"]
    hours = {"by": "hour", "what": "any", "where": "any", "when": "today"}
    (today,) = (await asked(log, "events per hour today", [("group_events", hours)])).found
    assert today.rows == [("13:00", 1), ("14:00", 1)]
    for words, sound in (
        ("At dock 3 there were 1 at 13:00 and 1 at 14:00.", True),
        ("There were 3 at dock 3.", False),
        ("On 2025-12-01 there were 12.", False),
        ("1,000", False),
        ("A few.", True),
    ):
        assert borne_out(words, "at dock 3 on 2025-12-01", [today]) == sound


async def test_what_cannot_be_asked_is_said(log):
    from stille.agents.errors import ToolError

    for question in ("", "x" * 501):
        with pytest.raises(VideoError, match="1 to 500"):
            await asked(log, question, [])
    wrong = {"what": "near'; DROP TABLE", "where": "any", "when": "all time"}
    with pytest.raises(ToolError):
        await asked(log, "how many", [("count_events", wrong)])


@pytest.mark.slow
async def test_the_default_model_asks_what_the_words_name(log):
    answer = await Ask.default().answer("how many near misses at dock 3 yesterday", log, RULES)
    (found,) = answer.found
    assert found.call.name == "count_events"
    assert "at dock3" in found.sentence
