"""A run's tenant and its time: known to its tools and to the agents below it, the same after a restart."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.agents import Agent, Budget, PolicyGuard, ToolContext, tool
from stille.agents.durable import DurableJournal, Workflows, workflow
from stille.agents.errors import BudgetExceededError, DeadlineError
from stille.agents.journal import Direct
from stille.agents.replay import replay
from stille.agents.types import Message, Reply, ToolCall, Usage
from stille.errors import ConfigError

SEEN: list[ToolContext] = []
CLOSE = pytest.approx


class Says:
    """A model that makes calls (of names and arguments), one after another, and ends with a text."""

    name = "says"

    def __init__(self, *calls, takes_s=0.0):
        self.calls, self.takes_s = calls, takes_s

    async def count_tokens(self, request):
        return 1

    async def stream(self, request):
        await asyncio.sleep(self.takes_s)
        done = sum(message.role == "assistant" for message in request.messages)
        calls = self.calls[done : done + 1]
        made = tuple(ToolCall(id="x", name=name, arguments=arguments) for name, arguments in calls)
        yield Reply(message=Message(role="assistant", content="" if made else "done", calls=made), usage=Usage())


@tool
async def look(context: ToolContext) -> str:
    SEEN.append(context)
    return "seen"


@tool(effect="once", requires_approval=True)
async def pay(context: ToolContext) -> str:
    SEEN.append(context)
    return "paid"


@tool(effect="idempotent", timeout_s=60)
async def hangs(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "never"


seconds = st.none() | st.floats(10, 1000)


@settings(deadline=None, max_examples=40)
@given(timeout_s=seconds, deadline_s=seconds, budget_s=seconds, parent_s=seconds, helper_s=seconds)
def test_the_earliest_end_counts(timeout_s, deadline_s, budget_s, parent_s, helper_s):
    SEEN.clear()
    helper = Agent(name="helper", model=Says(("look", {})), tools=[look])
    tools = [look, helper.as_tool("help", "Helps.", timeout_s=helper_s)]
    agent = Agent(name="clerk", model=Says(("look", {}), ("help", {"task": "look"})), tools=tools)
    budget = Budget("task", seconds=budget_s, parent=Budget("day", seconds=parent_s))
    begun = time.time()
    deadline = None if deadline_s is None else begun + deadline_s
    guard = PolicyGuard(budget=budget)
    asyncio.run(agent.run("Go", guard=guard, tenant="acme", timeout_s=timeout_s, deadline=deadline))
    ends = [each for each in (timeout_s, deadline_s, budget_s, parent_s) if each is not None]
    for context, all_ends in zip(SEEN, (ends, ends if helper_s is None else [*ends, helper_s]), strict=True):
        assert context.tenant == "acme"
        left = None if context.deadline is None else context.deadline - begun
        assert left == (CLOSE(min(all_ends), abs=5.0) if all_ends else None)


@pytest.mark.parametrize("where", ["tool", "sub-agent", "model"])
async def test_nothing_goes_on_when_the_time_is_over(where):
    calls = {"tool": [("hangs", {"seconds": 60})], "sub-agent": [("help", {"task": "x"})], "model": []}[where]
    helper = Agent(name="helper", model=Says(("hangs", {"seconds": 60})), tools=[hangs])
    tools = [hangs, helper.as_tool("help", "Helps.")]
    agent = Agent(name="clerk", model=Says(*calls, takes_s=60 * (where == "model")), tools=tools)
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match=r"agent clerk.*time (is|was) over"):
        await agent.run("Go", timeout_s=0.2)
    assert 0.2 <= time.monotonic() - begun < 5


async def test_a_sub_agents_own_time_is_told_to_its_caller():
    helper = Agent(name="helper", model=Says(takes_s=60))
    agent = Agent(
        name="clerk", model=Says(("help", {"task": "x"})), tools=[helper.as_tool("help", "Helps.", timeout_s=0.1)]
    )
    run = await agent.run("Go", timeout_s=30)
    assert run.output == "done"
    assert (run.calls[0].outcome, "helper" in run.calls[0].message.content) == ("failed", True)


async def test_a_tool_that_runs_an_agent_hands_its_deadline_on():
    inner = Agent(name="inner", model=Says(("look", {})), tools=[look])

    @tool
    async def delegate(context: ToolContext) -> str:
        run = await inner.run("Go", tenant=context.tenant, timeout_s=1000, deadline=context.deadline)
        return run.output

    SEEN.clear()
    await Agent(name="outer", model=Says(("delegate", {})), tools=[delegate]).run("Go", tenant="acme", timeout_s=50)
    assert (SEEN[0].tenant, SEEN[0].deadline) == ("acme", CLOSE(time.time() + 50, abs=5))


async def test_a_budget_without_time_cuts_a_call_short_and_then_gives_no_more():
    budget = Budget("task", seconds=0.2)
    agent = Agent(name="clerk", model=Says(("hangs", {"seconds": 60}), takes_s=0.05), tools=[hangs])
    with pytest.raises((BudgetExceededError, DeadlineError)):  # a millisecond may be left, which is no time either
        await agent.run("Go", guard=PolicyGuard(budget=budget))
    assert 0.19 <= budget.account().spent.seconds < 5


async def test_a_lookup_that_hangs_does_not_hold_the_run():
    async def lookup(key):
        await asyncio.sleep(60)

    asked = []

    class Asks(Direct):
        async def effect(self, call, run, lookup=None):
            assert lookup is not None
            with pytest.raises(TimeoutError):
                await lookup(call.key)
            asked.append(call.key)
            return "unknown"

    @tool(effect="once", timeout_s=0.1, lookup=lookup)
    async def wire() -> None: ...

    await Agent(name="clerk", model=Says(("wire", {})), tools=[wire]).run("Go", journal=Asks())
    assert len(asked) == 1


async def test_time_that_is_no_time_is_refused():
    with pytest.raises(ConfigError, match="timeout_s is 0"):
        await Agent(name="clerk", model=Says()).run("Go", timeout_s=0)


@workflow
async def case(journal: DurableJournal, timeout_s: float) -> str:
    helper = Agent(name="helper", model=Says(("look", {}), ("pay", {})), tools=[look, pay])
    clerk = Agent(
        name="clerk", model=Says(("help", {"task": "x"})), tools=[helper.as_tool("help", "Helps.", timeout_s=9000)]
    )
    run = await clerk.run("Go", journal=journal, tenant="acme", timeout_s=timeout_s)
    return run.output


async def test_a_run_that_is_resumed_keeps_its_deadline(tmp_path):
    SEEN.clear()

    def opened():
        return Workflows([case], tmp_path / "runs.db", version="1", interval_s=0.02)

    async def waits(flows):
        async with asyncio.timeout(20):
            while not flows.approvals.list(waiting=True):
                await asyncio.sleep(0.02)

    async with opened() as flows:
        await flows.start(case, timeout_s=1000, run_id="r")
        await waits(flows)
    async with opened() as flows:
        flows.approve("r", by="ann")
        assert await flows.result("r") == "done"
        recorded = flows.runs.get("r")
    assert [context.tenant for context in SEEN] == ["acme", "acme"]
    assert SEEN[0].deadline == SEEN[1].deadline == CLOSE(time.time() + 1000, abs=100)
    assert len([step for step in recorded.steps if "deadline" in step.name]) == 2
    assert await replay(case, recorded) == "done"


async def test_a_run_whose_time_was_over_ends_as_it_did_when_it_is_replayed(tmp_path):
    @workflow
    async def late(journal: DurableJournal) -> str:
        agent = Agent(name="clerk", model=Says(("hangs", {"seconds": 60})), tools=[hangs])
        try:
            return (await agent.run("Go", journal=journal, timeout_s=0.2)).output
        except DeadlineError as error:
            return str(error)

    async with Workflows([late], tmp_path / "runs.db", version="1", interval_s=0.02) as flows:
        said = await flows.run(late, run_id="r")
        recorded = flows.runs.get("r")
    assert "time is over" in str(said)
    assert [effect.state for effect in recorded.effects] == ["open"]
    assert await replay(late, recorded) == said
