"""Agents: a model that calls tools, turn by turn, until it answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from stille.agents.events import AgentEvent, Run
from stille.agents.guard import Guard, Open
from stille.agents.journal import Direct, Journal
from stille.agents.models.base import ChatModel
from stille.agents.tools import Tool
from stille.agents.types import TRUSTED, Json, Labels, Message, ToolSpec
from stille.errors import ConfigError

T = TypeVar("T")

HANDOFF = "transfer_to_"
"""Begins the names of the calls that hand a conversation on."""

_TASK: Mapping[str, Any] = {
    "type": "object",
    "properties": {"task": {"type": "string", "description": "What to do, with all that has to be known for it."}},
    "required": ["task"],
}


class Agent(Generic[T]):
    """A model with instructions and tools. It keeps nothing between runs and may run many times at once.

    Agents that a conversation can be handed to, and those that share it as tools, have one prompt: it begins with the
    instructions of the agent that was run and tells of the tools of all, while each may only call its own. So whoever
    goes on finds the conversation in the prefix cache.

    Args:
        name: of letters, digits, "_" and "-".
        instructions: the system message.
        model: answers.
        tools: that it may call: `Tool`s, and agents (`as_tool`).
        output: type of the answer: text, or anything that pydantic can validate, which is then written as JSON under
            its schema.
        handoffs: agents that may go on with the conversation in its place; the answer is then theirs.
        max_turns: model calls of a run, those after a handoff included.
        parallel: several calls in one answer. Those that only read are made at the same time.
        require_call: its first answer has to be a call.
        temperature: of sampling.
        max_tokens: of each answer.

    Raises:
        ConfigError: two different tools have the same name, or a value is out of range.
    """

    def __init__(
        self,
        *,
        name: str,
        model: ChatModel,
        instructions: str = "",
        tools: Sequence[Tool | AgentTool] = (),
        output: type[T] = str,
        handoffs: Sequence[Agent[Any]] = (),
        max_turns: int = 16,
        parallel: bool = True,
        require_call: bool = False,
        temperature: float = 0.0,
        max_tokens: int = 1024,
    ):
        self.name, self.instructions, self.model = name, instructions, model
        self.tools, self.handoffs, self.output = tuple(tools), tuple(handoffs), output
        self.max_turns, self.parallel, self.require_call = max_turns, parallel, require_call
        self.temperature, self.max_tokens = temperature, max_tokens
        if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii() or len(name) > 48:
            raise ConfigError(f"agent name {name!r}: expected at most 48 letters, digits, '_' and '-'")
        if max_turns < 1 or max_tokens < 1:
            raise ConfigError(f"agent {name}: max_turns and max_tokens have to be at least 1")
        self._answer = None if output is str else TypeAdapter(output)
        self.output_schema = None if self._answer is None else self._answer.json_schema()
        self.own: dict[str, Tool | AgentTool] = {tool.name: tool for tool in self.tools}
        self.others: dict[str, Agent[Any]] = {HANDOFF + agent.name: agent for agent in self.handoffs}
        if len(self.own) < len(self.tools) or len(self.others) < len(self.handoffs) or self.own.keys() & self.others:
            raise ConfigError(f"agent {name}: two of its tools or handoffs have the same name")

    def decode(self, text: str) -> T:
        """An answer's text as a value. Raises pydantic.ValidationError if it does not fit the type."""
        return text if self._answer is None else self._answer.validate_json(text)  # type: ignore[return-value]

    def encode(self, output: T) -> Json:
        """A value as JSON."""
        return output if self._answer is None else self._answer.dump_python(output, mode="json")  # type: ignore

    @cached_property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the prompt tells of: the tools of this agent and of all that its conversation may come to.

        Raises:
            ConfigError: two different tools have the same name.
        """
        crew, specs = [self], dict[str, ToolSpec]()
        for agent in crew:  # grows
            for spec in [*(tool.spec() for tool in agent.tools), *map(_handoff, agent.handoffs)]:
                if specs.setdefault(spec.name, spec) != spec:
                    raise ConfigError(f"agent {self.name}: two different tools are called {spec.name!r} among its crew")
            sharing = [tool.agent for tool in agent.tools if isinstance(tool, AgentTool) and tool.shared]
            crew += [other for other in [*agent.handoffs, *sharing] if other not in crew]
        return tuple(specs.values())

    async def run(
        self,
        task: str,
        *,
        journal: Journal | None = None,
        guard: Guard | None = None,
        labels: Labels = TRUSTED,
        history: Sequence[Message] = (),
        scope: str | None = None,
        tenant: str | None = None,
        timeout_s: float | None = None,
        deadline: float | None = None,
        observe: Callable[[AgentEvent], None] | None = None,
    ) -> Run[T]:
        """Works on a task until there is an answer.

        Args:
            task: the user's message.
            journal: where steps are recorded; None: nowhere.
            guard: budgets and policy; None: everything is allowed.
            labels: of the task.
            history: of the conversation that the task goes on from.
            scope: of its effects, such as a case's id: within it, the same effect happens once. None: this run.
            tenant: for whom it works; told to its tools, and to the agents that it calls.
            timeout_s: seconds that it may take from when it begins, restarts and waiting for people included.
            deadline: `time.time()` by which it has to end; of the two the earlier counts. A tool that runs an agent
                passes on its context's. Calls of models and tools end by then, or earlier, when the guard's budget has
                no time left.
            observe: told what happens, as it happens.

        Raises:
            DeadlineError: no answer in time.
            TurnLimitError: no answer within `max_turns`, or it goes round in circles.
            BudgetExceededError: the next call would cost too much.
            ModelError: the model cannot be used.
            UnknownOutcomeError: an effect may have happened; see `Journal.effect`.
        """
        from stille.agents.loop import Loop, Setting, ends_by

        if timeout_s is not None and timeout_s <= 0:
            raise ConfigError(f"agent {self.name}: timeout_s is {timeout_s:g}; expected more than 0 seconds")
        journal = journal or Direct()
        setting = Setting(
            journal=journal,
            guard=guard or Open(),
            counts=guard is not None,
            scope=journal.run_id if scope is None else scope,
            emit=observe or _ignore,
            numbers=itertools.count(1 + sum(len(message.calls) for message in history)),
            tenant=tenant,
            deadline=await ends_by(journal, self.name, timeout_s, deadline),
        )
        return await Loop(self, setting, task, labels, history, self.specs).run()

    async def stream(self, task: str, **options: Any) -> AsyncIterator[AgentEvent]:
        """What happens in a run, as it happens; the last event is `Finished`, with the run. Ending the iteration early
        cancels it.

        Args:
            task: the user's message.
            **options: as of `run`.
        """
        events: asyncio.Queue[AgentEvent | None] = asyncio.Queue()
        work = asyncio.create_task(self.run(task, observe=events.put_nowait, **options))
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            await work
        finally:
            if not work.done():
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([work])

    def as_tool(
        self, name: str, description: str, *, shared: bool = False, timeout_s: float | None = None
    ) -> AgentTool:
        """This agent as a tool of another one, which gives it a task and gets its answer.

        Args:
            shared: it is shown the conversation so far, and finds it in the prefix cache. Otherwise only its task.
            timeout_s: for each call; None: as long as its caller has. When it is over, the caller is told.
        """
        return AgentTool(self, name, description, shared, timeout_s)


class AgentTool:
    """An agent that others may call. Its steps are recorded in the journal of the run that calls it."""

    def __init__(self, agent: Agent[Any], name: str, description: str, shared: bool, timeout_s: float | None):
        self.agent, self.name, self.description, self.shared = agent, name, description, shared
        self.timeout_s = timeout_s

    def spec(self) -> ToolSpec:
        return ToolSpec(name=self.name, description=self.description, parameters=_TASK)


def _handoff(agent: Agent[Any]) -> ToolSpec:
    return ToolSpec(name=HANDOFF + agent.name, description=f"Hands the conversation on to {agent.name}.")


def _ignore(event: AgentEvent) -> None:
    pass
