"""Durable workflows: what is recorded is not done again, whatever comes in between."""

import asyncio
import shutil
import subprocess
import sys
from typing import Literal

import pytest
from pydantic import BaseModel

from stille.agents.approvals import Approvals
from stille.agents.audit import AuditLog
from stille.agents.database import Database
from stille.agents.durable import DurableJournal, Workflows, workflow
from stille.agents.durable.workflow import version_of
from stille.agents.errors import AgentError, ReplayError, ToolError
from stille.agents.journal import ApprovalRequest, Decision, Direct, EffectCall
from stille.agents.replay import replay
from stille.agents.runs import RunStore
from stille.agents.types import Message, Reply, Usage
from stille.errors import ConfigError, InvalidRequestError

DONE: list[str] = []  # what the workflows really did, in this process


class Order(BaseModel):
    name: str
    micros: int
    speed: Literal["slow", "fast"] = "slow"


def effect(key: str, kind="once") -> EffectCall:
    return EffectCall(key=key, tool="shop", arguments={"key": key}, effect=kind)


async def do(key: str):
    DONE.append(key)
    return {"did": key}


def ask(id: str = "a1") -> ApprovalRequest:
    return ApprovalRequest(id=id, tool="shop", arguments={"n": 1}, reason="it costs money")


@workflow
async def buy(journal: DurableJournal, order: Order) -> Order:
    price = await journal.step("price", lambda: do("price"))
    assert price == {"did": "price"}
    decision = await journal.approval(ask())
    if decision.verdict == "reject":
        raise ToolError(f"rejected by {decision.by}: {decision.note}")
    await journal.effect(effect(f"pay:{journal.run_id}"), do)
    return order.model_copy(update={"micros": order.micros + 1})


@workflow
async def catches(journal: DurableJournal) -> list[str]:
    said = []
    for name, error in (("tool", ToolError("no")), ("value", ValueError("bad")), ("odd", LookupError("odd"))):

        async def fail(name=name, error=error):
            DONE.append(name)
            raise error

        try:
            await journal.step(name, fail)
        except Exception as caught:
            said.append(f"{type(caught).__name__}: {caught}")
    await journal.approval(ask())
    return said


@workflow
async def unknown(journal: DurableJournal) -> dict:
    async def breaks(key):
        DONE.append(key)
        if DONE.count(key) == 1:
            raise ConnectionError("reset")
        return {"did": key}

    return {"got": await journal.effect(effect(f"wire:{journal.run_id}"), breaks)}


@workflow
async def naps(journal: DurableJournal, seconds: float) -> str:
    await journal.sleep(seconds)
    return "awake"


@workflow
async def listens(journal: DurableJournal) -> list:
    first = await journal.receive("order", Order)
    second = await journal.receive("order", Order, timeout_s=30)
    nothing = await journal.receive("other", int, timeout_s=0.05)
    return [first and first.name, second and second.name, nothing]


@workflow
async def child(journal: DurableJournal, number: int) -> int:
    if number == 13:
        raise ToolError("unlucky")
    await journal.step("square", lambda: do(f"child{number}"))
    return number**2


@workflow
async def parent(journal: DurableJournal, numbers: list[int]) -> list[int]:
    started = [await journal.start(child, number) for number in numbers]
    return list(await asyncio.gather(*(journal.result(run) for run in started)))


@workflow
async def branches(journal: DurableJournal) -> list:
    async def branch(name: str):
        decision = await journal.approval(ask(name))
        await journal.effect(effect(f"{name}:{journal.run_id}"), do)
        return decision.note

    notes = await asyncio.gather(branch("left"), branch("right"))
    await journal.approval(ask("end"))
    return notes


@workflow
async def holds(journal: DurableJournal, gate: str) -> int:
    await journal.step("begin", lambda: do(f"begin:{gate}"))
    await journal.receive(gate, int)
    await journal.effect(effect(f"end:{journal.run_id}"), do)
    return 1


ALL = [buy, catches, unknown, naps, listens, child, parent, branches, holds]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A database with its tables and queues: the first look for a new queue takes a second."""
    path = tmp_path_factory.mktemp("template") / "runs.db"

    async def make():
        async with Workflows(ALL, path, version="1", interval_s=0.02) as flows:
            await flows.run(child, 2, run_id="first")

    asyncio.run(make())
    return path


@pytest.fixture
def path(template, tmp_path):
    DONE.clear()
    return shutil.copy(template, tmp_path / "runs.db")


def opened(path, flows=ALL, **settings):
    return Workflows(flows, path, **{"version": "1", "interval_s": 0.02, **settings})


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


def waits(flows, run, id="a1"):
    return lambda: any(asked.id == id for asked in flows.approvals.list(run, waiting=True))


async def test_a_run_goes_on_where_the_last_process_left_it(path):
    async with opened(path) as flows:
        run = await flows.start(buy, Order(name="tea", micros=5), run_id="r1")
        await until(waits(flows, run))
    elsewhere = Database(path)
    Approvals(elsewhere).decide("r1", "approve", by="ann", note="fine")  # while nobody works on it
    elsewhere.close()
    async with opened(path) as flows:
        assert await flows.result("r1") == {"name": "tea", "micros": 6, "speed": "slow"}
        assert await flows.start(buy, Order(name="tea", micros=5), run_id="r1") == "r1"  # is not started again
    assert DONE == ["price", "pay:r1"]
    log = AuditLog(Database(path))
    assert log.verify().ok
    actions = [entry.action for entry in log.entries("r1")]
    assert actions == ["approval.asked", "approval.decided", "effect.started", "effect.done"]


async def test_a_rejection_reaches_the_workflow_and_its_error_whoever_waits(path):
    async with opened(path) as flows:
        run = await flows.start(buy, Order(name="tea", micros=5))
        await until(waits(flows, run))
        flows.reject(run, by="bob", note="too dear")
        for _ in range(2):
            with pytest.raises(ToolError, match="rejected by bob: too dear"):
                await flows.result(run)
        with pytest.raises(AgentError, match="waits for no approval"):
            flows.approve(run, by="ann")
        with pytest.raises(AgentError, match="decided by bob"):
            flows.approve(run, by="ann", id="a1")
        assert flows.runs.get(run).state == "failed"


async def test_errors_of_steps_are_the_same_when_they_are_replayed(path):
    async with opened(path) as flows:
        await flows.start(catches, run_id="r1")
        await until(waits(flows, "r1"))
    async with opened(path) as flows:
        flows.approve("r1", by="ann")
        assert await flows.result("r1") == ["ToolError: no", "ValueError: bad", "LookupError: odd"]
    assert DONE == ["tool", "value", "odd"]


@pytest.mark.parametrize("happened", [True, False])
async def test_a_run_with_an_unknown_outcome_is_parked_over_restarts(path, happened):
    for _ in range(2):
        async with opened(path) as flows:
            await flows.start(unknown, run_id="r1")
            await until(lambda flows=flows: flows.runs.get("r1").state == "parked")
            assert "wire:r1" in flows.runs.get("r1").waits_for[0]
            assert [run.id for run in flows.runs.list("parked")] == ["r1"]
    assert DONE == ["wire:r1"]
    async with opened(path) as flows:
        flows.resolve("wire:r1", happened, {"did": "by hand"} if happened else None)
        got = {"did": "by hand" if happened else "wire:r1"}
        assert await flows.result("r1") == {"got": got}
    assert DONE.count("wire:r1") == len(DONE) == (1 if happened else 2)


async def test_the_same_effect_of_two_runs_happens_once(path):
    async with opened(path) as flows:

        async def both(journal):
            return await journal.effect(effect("shared"), do)

        flows_of = [workflow(name=name)(both) for name in ("one", "two")]
    async with opened(path, flows_of) as flows:
        runs = [await flows.start(flow) for flow in flows_of]
        assert [await flows.result(run) for run in runs] == [{"did": "shared"}] * 2
    assert DONE == ["shared"]


async def test_cancelling_stops_a_run_and_resuming_goes_on(path):
    async with opened(path) as flows:
        await flows.start(holds, "gate", run_id="r1")
        await until(lambda: "begin:gate" in DONE)
        await flows.cancel("r1")
        with pytest.raises(AgentError, match="cancelled"):
            await flows.result("r1")
        assert flows.runs.get("r1").state == "cancelled"
        await flows.send("r1", "gate", 1)
        await asyncio.sleep(1.2)  # DBOS looks for cancelled steps once a second
        assert "end:r1" not in DONE
        await flows.resume("r1")
        assert await flows.result("r1") == 1
    assert DONE == ["begin:gate", "end:r1"]


async def test_a_timer_counts_from_when_it_was_set(path):
    clock = asyncio.get_running_loop().time
    async with opened(path) as flows:
        started, _ = clock(), await flows.start(naps, 2.0, run_id="r1")
        await until(lambda: flows.runs.step_numbers("r1"))
    await asyncio.sleep(0.8)
    async with opened(path) as flows:
        assert await flows.result("r1") == "awake"
        assert 1.8 < clock() - started < 6


async def test_signals_are_typed_ordered_and_sent_once(path):
    async with opened(path) as flows:
        await flows.start(listens, run_id="r1")
        await flows.send("r1", "order", Order(name="tea", micros=1), key="k1")
        await flows.send("r1", "order", Order(name="tea", micros=1), key="k1")
    async with opened(path) as flows:
        await flows.send("r1", "order", {"name": "mug", "micros": 2})
        assert await flows.result("r1") == ["tea", "mug", None]
        with pytest.raises(AgentError, match="no run 'nobody'"):
            await flows.send("nobody", "order", 1)


async def test_children_run_beside_their_parent(path):
    async with opened(path) as flows:
        assert await flows.run(parent, [1, 2, 3], run_id="r1") == [1, 4, 9]
        with pytest.raises(ToolError, match="unlucky"):
            await flows.run(parent, [13])
    assert sorted(DONE) == ["child1", "child2", "child3"]


async def test_many_runs_wait_at_once_and_none_is_forgotten(path):
    async with opened(path) as flows:
        runs = [await flows.start(buy, Order(name=f"n{n}", micros=n), run_id=f"m{n}") for n in range(30)]
        await until(lambda: len(flows.approvals.list(waiting=True)) == 30)
        for run in runs:
            flows.approve(run, by="ann")
        results = await asyncio.gather(*(flows.result(run) for run in runs))
    assert [result["micros"] for result in results] == [n + 1 for n in range(30)]
    assert sorted(DONE)[:30] == sorted(f"pay:m{n}" for n in range(30))


async def test_closing_leaves_the_loop_usable_and_nobody_waiting(path):
    async with opened(path) as flows:
        await flows.start(holds, "gate", run_id="r1")
        result = asyncio.create_task(flows.result("r1"))
        await until(lambda: "begin:gate" in DONE)
    with pytest.raises(AgentError, match="closed"):
        await result
    assert await asyncio.to_thread(len, "abc") == 3


async def test_branches_may_finish_in_another_order_after_a_restart(path):
    async with opened(path) as flows:
        await flows.start(branches, run_id="r1")
        await until(waits(flows, "r1", "left"))
        await until(waits(flows, "r1", "right"))
        flows.approve("r1", by="ann", note="R", id="right")
        await until(lambda: "right:r1" in DONE)
        flows.approve("r1", by="ann", note="L", id="left")
        await until(waits(flows, "r1", "end"))
    async with opened(path) as flows:
        flows.approve("r1", by="ann")
        assert await flows.result("r1") == ["L", "R"]
    assert DONE == ["right:r1", "left:r1"]


async def test_other_code_does_not_take_up_a_run(path):
    async with opened(path) as flows:
        await flows.start(buy, Order(name="tea", micros=5), run_id="r1")
        await until(waits(flows, "r1"))
    async with opened(path, version="2") as flows:
        assert await flows.stranded() == ["r1"]
        flows.approve("r1", by="ann")
        await asyncio.sleep(0.3)
        assert flows.runs.get("r1").state == "running"
    assert "pay:r1" not in DONE
    async with opened(path) as flows:
        assert await flows.stranded() == []
        assert (await flows.result("r1"))["micros"] == 6


def test_the_version_is_the_code():
    async def one(journal):
        return 1

    async def other(journal):
        return 2

    versions = [version_of([workflow(name="same")(function)]) for function in (one, one, other)]
    assert versions[0] == versions[1] != versions[2]


async def test_a_schedule_starts_runs_with_the_time_in_their_id(path):
    async with opened(path, recover_s=0.2) as flows:
        await flows.schedule("squares", "* * * * * *", child, 7)
        await until(lambda: any(run.id.startswith("squares@20") for run in flows.runs.list("done")))
        await flows.unschedule("squares")
        with pytest.raises(InvalidRequestError, match="whenever"):
            await flows.schedule("bad", "whenever", child, 7)
        (first, *_) = [run for run in flows.runs.list() if run.id.startswith("squares@")]
        assert await flows.result(first.id) == 49


async def test_a_replay_asks_nobody(path):
    async with opened(path) as flows:
        run = await flows.start(buy, Order(name="tea", micros=5))
        await until(waits(flows, run))
        flows.approve(run, by="ann")
        await flows.result(run)
        record = flows.runs.get(run)
    done = list(DONE)
    assert await replay(buy, record) == {"name": "tea", "micros": 6, "speed": "slow"}
    assert done == DONE
    assert [step.name for step in record.steps] == ["step:price", "approval:a1", f"effect:pay:{run}"]
    assert (record.effects[0].state, record.approvals[0].by) == ("done", "ann")


@pytest.mark.parametrize("kind", ["more", "less", "other end"])
async def test_a_replay_of_other_code_is_refused(path, kind):
    async with opened(path) as flows:
        run = await flows.start(child, 3)
        await flows.result(run)
        record = flows.runs.get(run)

    async def changed(journal, number: int) -> int:
        if kind != "less":
            await journal.step("square", lambda: do("x"))
        if kind == "more":
            await journal.effect(effect("k"), do)
        return number**2 if kind != "other end" else 1

    DONE.clear()
    with pytest.raises(ReplayError):
        await replay(workflow(changed), record)
    assert DONE == []


async def test_tokens_are_added_up(path):
    async def talks(journal) -> None:
        reply = Reply(message=Message(role="assistant"), usage=Usage(prompt_tokens=9, completion_tokens=2))

        async def model():
            return reply.model_dump(mode="json")

        for turn in range(3):
            await journal.step(f"model.{turn}", model)

    flow = workflow(talks)
    async with opened(path, [flow]) as flows:
        await flows.run(flow, run_id="r1")
        assert flows.runs.get("r1").usage == Usage(prompt_tokens=27, completion_tokens=6)


async def test_wrong_use_is_refused(path):
    async with opened(path, [child, buy]) as flows:
        with pytest.raises(ConfigError, match="open in this process"):
            await opened(path).__aenter__()
        with pytest.raises(ConfigError, match="parent is not among"):
            await flows.start(parent, [1])
        with pytest.raises(InvalidRequestError, match="child"):
            await flows.start(child, 1, 2)
        with pytest.raises(InvalidRequestError, match="child"):
            await flows.start(child, "many")
        with pytest.raises(AgentError, match="no run 'nobody'"):
            await flows.result("nobody")
        assert await flows.run(child, 3) == 9  # it is still in order
    with pytest.raises(ConfigError, match="same name"):
        Workflows([child, child], path)
    with pytest.raises(ConfigError, match="async"):
        workflow(lambda journal: 1)  # type: ignore[arg-type]


async def test_a_workflow_can_be_called_with_any_journal():
    async def yes(_):
        return Decision(verdict="approve", by="test")

    DONE.clear()
    assert (await buy(Direct("run", approve=yes), Order(name="tea", micros=1))).micros == 2
    assert DONE == ["price", "pay:run"]


async def test_runs_of_an_empty_database(tmp_path):
    runs = RunStore(Database(tmp_path / "runs.db"))
    assert runs.list() == []
    with pytest.raises(AgentError, match="no run"):
        runs.get("r1")


def test_the_import_is_light():
    code = "import sys, stille.agents.durable, stille.agents.replay\n"
    code += "print([name for name in ('torch', 'transformers', 'numpy', 'fastapi') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
