"""Effects happen once: with several who ask, with processes that die, with outcomes that nobody knows."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.agents.audit import AuditLog
from stille.agents.database import Database
from stille.agents.effects import Effects, decode_error, encode_error
from stille.agents.errors import AgentError, BudgetExceededError, ToolError, ToolFailedError, UnknownOutcomeError
from stille.agents.journal import EffectCall
from stille.errors import ConfigError, InvalidRequestError

RACER = [sys.executable, str(Path(__file__).parent / "kill" / "racer.py")]


class World:
    """The other side. `fails` is raised after (True) or before (False) it happened."""

    def __init__(self):
        self.happened: list[str] = []
        self.fails: tuple[bool, BaseException] | None = None
        self.blind: Exception | None = None

    async def cause(self, key):
        if self.fails is not None and not self.fails[0]:
            raise self.fails[1]
        self.happened.append(key)
        if self.fails is not None:
            raise self.fails[1]
        return {"number": len(self.happened)}

    async def lookup(self, key):
        if self.blind is not None:
            raise self.blind
        return {"found": key} if key in self.happened else None


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "runs.db")
    yield database
    database.close()


def call(effect="once", key="k", tool="pay", **arguments):
    return EffectCall(key=key, tool=tool, arguments=arguments, effect=effect)


async def test_it_happens_once_and_everybody_gets_the_result(database):
    effects, world = Effects(database), World()
    asked = [effects.perform(f"run{n}", call(amount=5), world.cause) for n in range(5)]
    assert await asyncio.gather(*asked) == [{"number": 1}] * 5
    assert await effects.perform("later", call(amount=5), world.cause) == {"number": 1}
    (record,) = effects.list()
    assert (record.run, record.state, record.attempts) == ("run0", "done", 1)
    assert record.arguments == {"amount": 5}
    assert [entry.action for entry in AuditLog(database).entries()] == ["effect.started", "effect.done"]


async def test_what_the_tool_refused_stays_refused(database):
    effects, world = Effects(database), World()
    world.fails = False, ToolError("no such account")
    for _ in range(2):
        with pytest.raises(ToolError, match="no such account"):
            await effects.perform("run", call(), world.cause)
        world.fails = None
    assert world.happened == []


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_what_a_budget_forbids_may_be_tried_again(database, effect):
    effects, world = Effects(database), World()
    world.fails = False, BudgetExceededError("too much", "day", "calls")
    with pytest.raises(BudgetExceededError):
        await effects.perform("run", call(effect), world.cause)
    world.fails = None
    assert await effects.perform("run", call(effect), world.cause) == {"number": 1}


async def test_an_idempotent_effect_that_failed_is_repeated_with_its_key(database):
    effects, world = Effects(database), World()
    world.fails = True, ToolFailedError("no answer")
    with pytest.raises(ToolFailedError):
        await effects.perform("run", call("idempotent"), world.cause)
    world.fails = None
    assert await effects.perform("run", call("idempotent"), world.cause) == {"number": 2}
    assert world.happened == ["k", "k"]


async def test_an_effect_that_failed_after_it_happened_is_looked_up(database):
    effects, world = Effects(database), World()
    world.fails = True, ConnectionError("reset")
    assert await effects.perform("run", call(), world.cause, world.lookup) == {"found": "k"}
    assert world.happened == ["k"]


async def test_an_effect_that_failed_before_it_happened_may_be_tried_again(database):
    effects, world = Effects(database), World()
    world.fails = False, ConnectionError("refused")
    with pytest.raises(ConnectionError):
        await effects.perform("run", call(), world.cause, world.lookup)
    world.fails = None
    assert await effects.perform("run", call(), world.cause, world.lookup) == {"number": 1}


async def test_what_was_surely_not_done_parks_nothing(database):
    effects, world = Effects(database), World()
    world.fails = False, ToolFailedError("its breaker is open", started=False)
    with pytest.raises(ToolFailedError):
        await effects.perform("run", call(), world.cause)
    world.fails = None
    assert await effects.perform("run", call(), world.cause) == {"number": 1}


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("happened", [True, False])
async def test_an_unknown_outcome_is_parked_until_it_is_resolved(database, looks, happened):
    effects, world = Effects(database, 0.01), World()
    world.fails, world.blind = (happened, TimeoutError("30 s")), ConnectionError("down")
    lookup = world.lookup if looks else None
    for _ in range(2):
        with pytest.raises(UnknownOutcomeError, match="30 s") as raised:
            await effects.perform("run", call(), world.cause, lookup)
        assert raised.value.key == "k"
        world.fails = None
    waiting = asyncio.create_task(effects.wait_resolved("k"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    Effects(Database(database.path)).resolve("k", happened, {"by": "hand"} if happened else None, by="ann")
    await asyncio.wait_for(waiting, 5)
    result = await effects.perform("run", call(), world.cause, lookup)
    assert result == ({"by": "hand"} if happened else {"number": 1})
    assert world.happened == ["k"]
    resolved = next(entry for entry in AuditLog(database).entries() if entry.action == "effect.resolved")
    assert (resolved.actor, resolved.run) == ("ann", "run")


async def test_a_result_that_is_no_json_is_parked_because_it_happened(database):
    async def cause(key):
        return {1, 2}

    with pytest.raises(UnknownOutcomeError, match="JSON"):
        await Effects(database).perform("run", call(), cause)


async def test_only_what_is_parked_can_be_resolved(database):
    effects, world = Effects(database), World()
    with pytest.raises(AgentError, match="no effect 'k'"):
        effects.resolve("k", True)
    await effects.perform("run", call(), world.cause)
    with pytest.raises(AgentError, match="is done"):
        effects.resolve("k", False)


async def test_a_key_belongs_to_one_tool(database):
    effects, world = Effects(database), World()
    await effects.perform("run", call(), world.cause)
    with pytest.raises(AgentError, match="another key"):
        await effects.perform("run", call(tool="mail"), world.cause)


async def test_cancelling_who_asked_does_not_interrupt_it(database):
    effects, gate = Effects(database), asyncio.Event()

    async def cause(key):
        await gate.wait()
        return "done"

    asked = asyncio.create_task(effects.perform("run", call(), cause))
    while not effects.list():
        await asyncio.sleep(0.01)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    gate.set()
    await effects.settle()
    assert effects.list()[0].outcome == "done"


def race(path, *rest):
    return subprocess.Popen([*RACER, str(path), *rest], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("effect", ["idempotent", "once"])
def test_two_processes_at_once(tmp_path, effect):
    shown = tmp_path / "world"
    Database(tmp_path / "runs.db").close()
    racers = [race(tmp_path / "runs.db", "k", effect, "blind", str(shown), "0.3") for _ in range(2)]
    said = {racer.communicate(timeout=30)[0] for racer in racers}
    assert len(said) == 1
    assert "caused" in said.pop()
    assert shown.read_text() == "k\n"


@pytest.mark.parametrize(
    ("effect", "looks", "says", "times"),
    [("idempotent", "blind", "caused", 2), ("once", "lookup", "found", 1), ("once", "blind", "may have happened", 1)],
)
def test_a_process_that_was_killed_in_the_middle(tmp_path, effect, looks, says, times):
    shown, path = tmp_path / "world", tmp_path / "runs.db"
    killed = race(path, "k", effect, looks, str(shown), "60")
    deadline = time.monotonic() + 30
    while not shown.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    waits = race(path, "k", effect, looks, str(shown), "0")  # while the first one lives it must not touch the effect
    with pytest.raises(subprocess.TimeoutExpired):
        waits.communicate(timeout=1.5)
    assert shown.read_text() == "k\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert says in "".join(waits.communicate(timeout=30))
    assert shown.read_text() == "k\n" * times


class Died(BaseException):
    """Leaves an effect as a process that dies leaves it: begun, without an outcome."""


@settings(max_examples=15, deadline=None)
@given(
    effect=st.sampled_from(["idempotent", "once"]),
    attempts=st.lists(st.tuples(st.sampled_from(["dies", "fails", "works"]), st.booleans()), max_size=5),
)
def test_whatever_happens_on_the_way_it_is_done_once(tmp_path_factory, effect, attempts):
    """With a lookup that tells the truth, `once` happens exactly once, and idempotent at least once."""
    path, world, results = tmp_path_factory.mktemp("effects") / "runs.db", World(), []
    for kind, happened in [*attempts, ("works", True)]:
        database = Database(path)  # another process each time
        error = {"dies": Died(), "fails": ConnectionError(), "works": None}[kind]
        world.fails = None if error is None else (happened, error)
        with contextlib.suppress(Died, ConnectionError):
            results.append(asyncio.run(Effects(database).perform("run", call(effect), world.cause, world.lookup)))
        database.close()
    assert results
    assert all(result == results[0] for result in results)
    assert len(world.happened) >= 1
    assert effect == "idempotent" or len(world.happened) == 1


@pytest.mark.parametrize(
    "error",
    [ToolError("no"), BudgetExceededError("much", "day", "calls"), UnknownOutcomeError("?", "k"), KeyError("x"),
     InvalidRequestError("bad", param="n"), TimeoutError("30 s")],
)  # fmt: skip
def test_errors_come_back_as_they_were(error):
    back = decode_error(encode_error(error))
    assert (type(back), vars(back)) == (type(error), vars(error))


def test_an_error_of_a_type_that_is_not_ours_says_which():
    class StrangeError(Exception):
        pass

    back = decode_error(encode_error(StrangeError("odd")))
    assert (type(back), str(back)) == (AgentError, "StrangeError: odd")


@pytest.mark.parametrize("where", ["mysql://host/db", "/proc/none/runs.db", "postgresql://nobody@127.0.0.1:1/x"])
def test_a_database_that_cannot_be_used(where):
    with pytest.raises((ConfigError, OSError)):
        Database(where)
