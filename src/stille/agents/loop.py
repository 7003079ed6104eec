"""One run of an agent: what it asks of models, tools and people, in an order that a journal can replay."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from stille.agents.agent import Agent, AgentTool
from stille.agents.conversation import Conversation, Repeats, opening
from stille.agents.errors import (
    ApprovalNeededError,
    DeadlineError,
    ModelError,
    PolicyError,
    ToolError,
    ToolFailedError,
    TurnLimitError,
)
from stille.agents.events import (
    AgentEvent,
    ApprovalAsked,
    CallFinished,
    CallStarted,
    Finished,
    HandedOff,
    Run,
    TextWritten,
    TurnStarted,
)
from stille.agents.guard import Guard, Spend
from stille.agents.journal import ApprovalRequest, EffectCall, Journal
from stille.agents.tools import Tool, ToolContext
from stille.agents.types import (
    TRUSTED,
    Json,
    Labels,
    Message,
    ModelRequest,
    Reply,
    TextDelta,
    ToolCall,
    ToolSpec,
    Usage,
)

T = TypeVar("T")
Outcome = Literal["done", "failed", "refused"]

_AGAIN = (
    "You have made this call before with the same arguments, and its result is above. It was not made again: use the "
    "result, call something else, or answer."
)


@dataclass
class Setting:
    """What a run and the agents that it calls have in common.

    Attributes:
        counts: prompts are counted, for a guard who wants to know.
        scope: of effects.
        emit: told what happens.
        numbers: of calls, whose ids are the same each time the run is replayed.
        tenant: for whom the run works.
        deadline: `time.time()` by which it has to end; see `ends_by`.
    """

    journal: Journal
    guard: Guard
    counts: bool
    scope: str
    emit: Callable[[AgentEvent], None]
    numbers: Iterator[int]
    tenant: str | None
    deadline: float | None


async def ends_by(journal: Journal, name: str, timeout_s: float | None, deadline: float | None) -> float | None:
    """By when a run that begins now has to end: the earlier of the two; None: neither is given. It is a step, so that
    a run that is resumed keeps the deadline that it had."""
    if timeout_s is None and deadline is None:
        return None

    async def earlier() -> Json:
        ends = [] if timeout_s is None else [time.time() + timeout_s]
        return min(ends if deadline is None else [*ends, deadline])

    recorded: Any = await journal.step(f"{name}.deadline", earlier)
    return recorded


@dataclass
class _Bill:
    actual: Spend


@dataclass(frozen=True)
class _Plan:
    """What to do about a call: refuse it, or make it, after an approval if there is a reason for one. Without a tool
    it is a handoff."""

    call: ToolCall
    tool: Tool | AgentTool | None = None
    refusal: str | None = None
    approval: str | None = None

    @property
    def at_once(self) -> bool:
        """It only reads, so that others may be made at the same time."""
        return isinstance(self.tool, Tool) and self.tool.effect == "none" and self.approval is None


class Loop(Generic[T]):
    """A conversation of one agent, and of those that it is handed to."""

    def __init__(
        self,
        agent: Agent[T],
        setting: Setting,
        task: str,
        labels: Labels,
        history: Sequence[Message],
        specs: Sequence[ToolSpec],
    ):
        self._first: Agent[Any] = agent
        self._agent: Agent[Any] = agent
        self._setting, self._journal, self._guard = setting, setting.journal, setting.guard
        self._specs = specs
        self._talk = Conversation(setting.guard, opening(agent.instructions, task, labels, history))
        self._usage = Usage()
        self._calls: list[CallFinished] = []
        self._repeats = Repeats()

    async def run(self) -> Run[T]:
        for turn in range(1, self._first.max_turns + 1):
            agent = self._agent
            self._setting.emit(TurnStarted(agent=agent.name, turn=turn))
            permitted = self._permitted()
            reply = await self._ask(turn, permitted)
            calls = tuple(call.model_copy(update={"id": self._next_id()}) for call in reply.message.calls)
            self._talk.add_answer(reply.message.model_copy(update={"calls": calls}))
            if calls:
                await self._work(calls, permitted)
                continue
            cut = reply.finish_reason == "length"
            try:
                output = agent.decode(reply.message.content)
            except ValidationError as error:
                why = f"it was cut at {agent.max_tokens} tokens" if cut else _short(error)
                told = f"This answer cannot be used: {why}. Answer again, with JSON for the schema and nothing else."
                self._talk.add(Message(role="user", content=told))
                continue
            messages, calls_made = tuple(self._talk.messages), tuple(self._calls)
            run = Run(agent.name, output, messages, self._usage, calls_made, cut)
            self._setting.emit(Finished(agent=agent.name, run=run))
            return run
        raise TurnLimitError(
            f"agent {self._first.name} has no answer after {self._first.max_turns} turns; raise max_turns, or see in "
            "its calls what keeps it busy"
        )

    def _permitted(self) -> frozenset[str]:
        specs = [tool.spec() for tool in self._agent.tools]
        allowed = self._guard.permitted(specs, self._talk.labels) & self._agent.own.keys() if specs else frozenset()
        return frozenset(allowed | self._agent.others.keys())

    # The model

    async def _ask(self, turn: int, permitted: frozenset[str]) -> Reply:
        agent, setting = self._agent, self._setting
        request = ModelRequest(
            messages=self._talk.shown,
            tools=self._specs,
            permitted=permitted,
            choice="required" if agent.require_call and turn == 1 and permitted else "auto",
            parallel=agent.parallel,
            output_schema=agent.output_schema,
            max_tokens=agent.max_tokens,
            temperature=agent.temperature,
        )
        id, said = self._next_id("m"), False

        async def run() -> Json:
            nonlocal said
            if setting.deadline is not None and time.time() >= setting.deadline:
                raise DeadlineError(f"agent {agent.name} has no answer yet, but its time is over")
            prompt = await agent.model.count_tokens(request) if setting.counts else 0
            most = Usage(prompt_tokens=prompt, completion_tokens=agent.max_tokens)
            reply = None
            async with self._paid("model", Spend(id=id, name=agent.model.name, usage=most)) as bill:
                bill.actual = bill.actual.model_copy(update={"usage": Usage(), "calls": 0})
                stream = aclosing(agent.model.stream(request))  # type: ignore[type-var]
                async with _until(self._deadline(), agent.name), stream as events:
                    async for event in events:
                        bill.actual = Spend(id=id, name=agent.model.name, usage=most)  # unless it tells how much
                        if isinstance(event, TextDelta):
                            said = True
                            setting.emit(TextWritten(agent=agent.name, text=event.text))
                        elif isinstance(event, Reply):
                            reply = event
                            bill.actual = Spend(id=id, name=agent.model.name, usage=event.usage)
            if reply is None:
                raise ModelError(f"model {agent.model.name} ended its answer without a Reply")
            return reply.model_dump(mode="json")

        reply = Reply.model_validate(await self._journal.step(f"{agent.name}.model.{id}", run))
        if not said and reply.message.content:
            setting.emit(TextWritten(agent=agent.name, text=reply.message.content))
        self._usage += reply.usage
        return reply

    # Calls

    async def _work(self, calls: Sequence[ToolCall], permitted: frozenset[str]) -> None:
        """Makes a turn's calls. Those that only read, next to each other, are made at the same time; all others one
        after the other, so that a journal sees the same order each time."""
        again = self._repeats.check(calls)
        before = list(self._talk.messages[:-1])
        plans = [self._plan(call, same, permitted) for call, same in zip(calls, again, strict=True)]
        for at, plan in [(at, plan) for at, plan in enumerate(plans) if plan.call.name in self._agent.others][1:]:
            plans[at] = _Plan(plan.call, refusal="The conversation is handed on already.")
        finished: list[CallFinished] = []
        for at_once, group in itertools.groupby(plans, lambda plan: plan.at_once):
            if at_once:
                done = await asyncio.gather(*(self._carry_out(plan, before) for plan in group), return_exceptions=True)
            else:
                done = [await self._carry_out(plan, before) for plan in group]
            for one in done:
                if isinstance(one, BaseException):
                    raise one
                finished.append(one)
        for one in finished:
            self._talk.add(one.message)
        self._calls += finished
        target = next((agent for plan in plans if (agent := self._agent.others.get(plan.call.name))), None)
        if target is not None:
            self._setting.emit(HandedOff(agent=self._agent.name, to=target.name))
            self._agent = target
            if target.instructions:
                self._talk.add(Message(role="system", content=target.instructions))

    def _plan(self, call: ToolCall, same: bool, permitted: frozenset[str]) -> _Plan:
        """What to do about a call, as far as no one has to be asked."""
        tool = self._agent.own.get(call.name)
        if call.name in self._agent.others:
            return _Plan(call)
        if tool is None or call.name not in permitted:
            usable = ", ".join(sorted(permitted)) or "none"
            return _Plan(call, refusal=f"{call.name!r} cannot be called now; what can be: {usable}.")
        if same:
            return _Plan(call, refusal=_AGAIN)
        try:
            try:
                self._guard.check_call(tool.spec(), call.arguments, self._talk.labels)
            except ApprovalNeededError as error:
                return _Plan(call, tool, approval=str(error))
            approval = None
            if isinstance(tool, Tool) and tool.needs_approval(call.arguments):
                approval = f"{self._agent.name} wants to call {tool.name}, which needs approval each time"
            return _Plan(call, tool, approval=approval)
        except PolicyError as error:
            return _Plan(call, refusal=f"This is forbidden: {error}")
        except ToolError as error:
            return _Plan(call, refusal=f"Error: {error}")

    async def _carry_out(self, plan: _Plan, before: Sequence[Message]) -> CallFinished:
        call, tool = plan.call, plan.tool
        if plan.refusal is not None:
            return self._finish(call, "refused", plan.refusal)
        if tool is None:
            return self._finish(call, "done", "The conversation is handed on.")
        if plan.approval is not None and (refusal := await self._ask_person(call, plan.approval)):
            return self._finish(call, "refused", refusal)
        self._setting.emit(CallStarted(agent=self._agent.name, call=call))
        if isinstance(tool, AgentTool):
            return await self._delegate(tool, call, before)
        tool = self._guard.armed(tool)
        try:
            if tool.effect == "none":
                value, outcome = await self._read(tool, call)
            else:
                value, outcome = await self._effect(tool, call), "done"
        except (ToolError, ToolFailedError, PolicyError) as error:
            value, outcome = f"Error: {error}", "failed"
        return self._finish(call, outcome, value if isinstance(value, str) else _json(value), tool.returns)

    async def _read(self, tool: Tool, call: ToolCall) -> tuple[Json, Outcome]:
        async def run() -> Json:
            try:
                return {"value": await self._call(tool, call)}
            except (ToolError, ToolFailedError, PolicyError) as error:
                return {"error": str(error)}

        recorded: Any = await self._journal.step(f"{self._agent.name}.{tool.name}.{call.id}", run)
        if "error" in recorded:
            return f"Error: {recorded['error']}", "failed"
        return recorded["value"], "done"

    async def _effect(self, tool: Tool, call: ToolCall) -> Json:
        async def run(key: str) -> Json:
            return await self._call(tool, call, key)

        async def look_up(key: str) -> Json | None:
            assert tool.lookup is not None
            async with asyncio.timeout(tool.timeout_s):  # whether it happened is worth knowing after the deadline too
                return await tool.lookup(key)

        key = tool.effect_key(call.arguments, self._setting.scope)
        wanted = EffectCall(key=key, tool=tool.name, arguments=call.arguments, effect=tool.effect)
        return await self._journal.effect(wanted, run, None if tool.lookup is None else look_up)

    async def _call(self, tool: Tool, call: ToolCall, key: str | None = None) -> Json:
        context = ToolContext(
            run_id=self._journal.run_id,
            call_id=call.id,
            idempotency_key=key,
            labels=self._talk.labels,
            tenant=self._setting.tenant,
            deadline=self._deadline(),
        )
        async with self._paid("tool", Spend(id=call.id, name=tool.name, micros=tool.cost_micros)):
            return await tool.call(call.arguments, context)

    async def _ask_person(self, call: ToolCall, reason: str) -> str | None:
        """Why the call is not allowed; None if it is."""
        request = ApprovalRequest(
            id=f"{self._journal.run_id}/{call.id}", tool=call.name, arguments=call.arguments, reason=reason
        )
        self._setting.emit(ApprovalAsked(agent=self._agent.name, request=request))
        decision = await self._journal.approval(request)
        if decision.verdict == "approve":
            return None
        return f"{decision.by} did not allow this call" + (f": {decision.note}" if decision.note else ".")

    async def _delegate(self, tool: AgentTool, call: ToolCall, before: Sequence[Message]) -> CallFinished:
        """Has another agent answer; its steps are this run's."""
        task = str(call.arguments.get("task", ""))
        history, specs = (before, self._specs) if tool.shared else ((), tool.agent.specs)
        setting = self._setting
        if tool.timeout_s is not None:
            name = f"{tool.agent.name}.{call.id}"
            setting = replace(setting, deadline=await ends_by(self._journal, name, tool.timeout_s, setting.deadline))
        loop = Loop(tool.agent, setting, task, self._talk.labels, history, specs)
        try:
            run = await loop.run()
        except (TurnLimitError, DeadlineError) as error:
            return self._finish(call, "failed", f"Error: {error}", loop._talk.labels)
        finally:
            self._usage += loop._usage
            self._calls += loop._calls
        answer = tool.agent.encode(run.output)
        return self._finish(call, "done", answer if isinstance(answer, str) else _json(answer), run.labels)

    def _finish(self, call: ToolCall, outcome: Outcome, content: str, labels: Labels = TRUSTED) -> CallFinished:
        message = Message(role="tool", content=content, call_id=call.id, labels=labels)
        event = CallFinished(agent=self._agent.name, call=call, outcome=outcome, message=message)
        self._setting.emit(event)
        return event

    # Bookkeeping

    def _deadline(self) -> float | None:
        """Of a call that begins now: the run's, or when a budget's time is over."""
        left = self._guard.seconds_left()
        ends = [] if left is None else [time.time() + left]
        return min(ends if self._setting.deadline is None else [*ends, self._setting.deadline], default=None)

    @asynccontextmanager
    async def _paid(self, kind: Literal["model", "tool"], most: Spend) -> AsyncIterator[_Bill]:
        """Reserves what a call costs at most, and says afterwards what it did: all, unless the bill is changed."""
        most = most.model_copy(update={"id": f"{self._journal.run_id}/{most.id}"})
        ticket = await self._guard.reserve(kind, most)
        bill, begun = _Bill(most), time.monotonic()
        try:
            yield bill
        finally:
            taken = {"id": most.id, "seconds": time.monotonic() - begun}
            await self._guard.settle(ticket, bill.actual.model_copy(update=taken))

    def _next_id(self, kind: str = "c") -> str:
        return f"{kind}{next(self._setting.numbers):08d}"  # nine letters and digits, which every endpoint accepts


@asynccontextmanager
async def _until(deadline: float | None, agent: str) -> AsyncIterator[None]:
    """Raises DeadlineError when it is over."""
    try:
        async with asyncio.timeout(None if deadline is None else deadline - time.time()) as clock:
            yield
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise DeadlineError(f"agent {agent}: its model had not answered when its time was over") from error


def _json(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _short(error: ValidationError) -> str:
    problems = [f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}" for each in error.errors()[:5]]
    return "; ".join(problems)
