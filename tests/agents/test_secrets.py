"""Secrets reach the tools that may have them, and nothing else: no prompt, journal, trace, log or error."""

import asyncio
import base64
import contextlib
import dataclasses
import itertools
import json
import logging
import traceback
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel

from stille.agents import Agent, Policy, PolicyGuard, Retry, Secrets, Tool, ToolContext, TransientError, tool
from stille.agents.audit import AuditLog
from stille.agents.database import Database
from stille.agents.effects import Effects
from stille.agents.errors import AgentError, ToolError, ToolFailedError, UnknownOutcomeError
from stille.agents.journal import Direct, Journal
from stille.agents.tracing import traced_journal, traced_model, traced_tool
from stille.agents.types import Message, Reply, ToolCall, Usage
from stille.errors import ConfigError


class Calls:
    """A model that makes one call, and then repeats what it was given."""

    name = "calls"

    def __init__(self, name: str, arguments: dict):
        self.call, self.requests = (name, arguments), []

    async def count_tokens(self, request):
        return 1

    async def stream(self, request):
        self.requests.append(request)
        name, arguments = self.call
        first = len(self.requests) == 1
        calls = (ToolCall(id="x", name=name, arguments=arguments),) if first else ()
        message = Message(role="assistant", calls=calls, content="" if first else request.messages[-1].content)
        yield Reply(message=message, usage=Usage())


class Kept(Direct):
    """Effects and their log are in a database, steps in a list."""

    def __init__(self, database: Database, run_id: str):
        super().__init__(run_id)
        self.kept, self.effects = [], Effects(database, 0.01)

    async def step(self, name, run):
        self.kept.append([name, await run()])
        return self.kept[-1][1]

    async def effect(self, call, run, lookup=None):
        return await self.effects.perform(self.run_id, call, run, lookup)


class Body(BaseModel):
    token: str


@dataclasses.dataclass
class Row:
    token: str


class Odd(Exception):
    def __init__(self, token):
        self.token = token

    def __str__(self):
        return f"odd {self.token}"


class Told(AgentError):
    """An error of an own type, whose attributes a journal keeps."""

    def __init__(self, message, token):
        super().__init__(message)
        self.token = token


def chained(token):
    try:
        raise KeyError(token)
    except KeyError as error:
        raised = ConnectionError("reset")
        raised.__cause__ = error
        raised.add_note(f"with {token}")
        return raised


GIVES = [
    lambda token: token,
    lambda token: {"list": [1, {token: token}], "set": {token}, "bytes": token.encode("utf-8", "replace")},
    lambda token: Body(token=token),
    lambda token: Row(token),
    lambda token: f"{ {'token': token}!r} {token!a}",
    lambda token: {"body": json.dumps({"token": token}), "url": f"https://x/?t={quote(token, safe='')}"},
    lambda token: "Basic " + base64.b64encode(f"user:{token}".encode()).decode(),
    lambda token: base64.urlsafe_b64encode(f"a{token}b".encode()),
]
RAISES = [
    lambda token: ToolError(f"{token} is wrong"),
    lambda token: ValueError(token, 3),
    lambda token: KeyError(token),
    lambda token: TransientError(f"busy: {token}"),
    lambda token: FileNotFoundError(2, "gone", token),
    lambda token: ExceptionGroup("several", [ValueError(token), TypeError("x")]),
    lambda token: Told("no", token),
    lambda token: UnknownOutcomeError(f"perhaps {token}", "k"),
    Odd,
    chained,
]
NUMBERS = itertools.count()
# It begins with what stands nowhere else: "000000" is part of many times and hashes.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=12).map(lambda text: f"Qx{text}")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    database = Database(tmp_path_factory.mktemp("secrets") / "runs.db")
    yield database
    database.close()


def whole(*values) -> str:
    """All that they say, as JSON and as Python writes it."""
    return "".join(json.dumps(value, ensure_ascii=False, default=repr) + repr(value) for value in values)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    token=texts,
    act=st.sampled_from([(give, None) for give in GIVES] + [(None, error) for error in RAISES]),
    effect=st.sampled_from(["none", "idempotent", "once"]),
    looks=st.booleans(),
)
def test_a_tool_that_repeats_its_arguments_shows_no_secret(database, caplog, token, act, effect, looks):
    try:
        secrets = Secrets({"bank": token})
    except ConfigError:
        assume(False)
    gives, fails = act
    got, raised = [], None

    async def lookup(key):
        raise ConnectionError(f"no answer for {token}")

    async def echo(note: str, context: ToolContext):
        got.append(note)
        if fails is not None:
            raise fails(note)
        return gives(note)

    retry = Retry(attempts=2 if effect != "once" else 1, base_s=0)
    repeats = tool(name="echo", effect=effect, retry=retry)(echo)
    repeats = dataclasses.replace(repeats, lookup=lookup if looks else None)
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    model, journal, told = Calls("echo", {"note": "{{secret:bank}}"}), Kept(database, f"run{next(NUMBERS)}"), []
    policy = Policy.parse({"tools": {"echo": {"secrets": ["bank"]}}})
    traced: Journal = traced_journal(journal, tracer_provider=provider)
    tools = [traced_tool(repeats, tracer_provider=provider)]
    agent = Agent(
        name="clerk",
        model=traced_model(model, content=True, tracer_provider=provider),
        tools=tools,
        instructions=f"The token is {token}.",
    )

    async def run():
        guard = PolicyGuard(policy, tools, secrets=secrets)
        await agent.run("Go", journal=traced, guard=guard, scope=journal.run_id, observe=told.append)

    caplog.clear()
    caplog.set_level(logging.DEBUG, "stille")
    with contextlib.suppress(AgentError):
        try:
            asyncio.run(run())
        except BaseException as error:
            raised = error
            raise
    assert set(got) == {token}
    seen = whole([request.model_dump(mode="json") for request in model.requests], journal.kept)
    seen += whole([each.model_dump(mode="json") for each in journal.effects.list(journal.run_id)])
    seen += whole([each.model_dump(mode="json") for each in AuditLog(database).entries(journal.run_id)])
    calls = [event.model_dump(mode="json") for event in told if hasattr(event, "call")]
    seen += whole(calls) + "".join(span.to_json() for span in exporter.get_finished_spans()) + caplog.text
    if raised is not None:
        seen += "".join(traceback.format_exception(raised)) + whole(vars(raised)) + repr(raised.__context__)
    padded = base64.b64encode(f"user:{token}".encode()).decode()
    for form in (token, json.dumps(token)[1:-1], repr(token)[1:-1], quote(token, safe=""), padded):
        assert form not in seen


async def test_a_secret_reaches_the_tool_that_may_have_it_and_no_other():
    got = []

    def listens(name: str) -> Tool:
        @tool(name=name, effect="once")
        async def listen(texts: list[str], more: dict[str, str] | None = None) -> str:
            got.append((name, texts, more))
            return "ok"

        return listen

    secrets, policy = Secrets({"bank": "4711-4711"}), Policy.parse({"tools": {"may": {"secrets": ["bank"]}}})
    tools, arguments = [listens("may"), listens("not")], {"texts": ["key {{secret:bank}}"], "more": {"k": "x"}}
    for name, told in (("may", "ok"), ("not", "This is forbidden: not: it is not given the secret 'bank'")):
        agent = Agent(name="clerk", model=Calls(name, arguments), tools=tools)
        run = await agent.run("Go", guard=PolicyGuard(policy, tools, secrets=secrets))
        assert run.calls[0].message.content == told
    assert got == [("may", ["key 4711-4711"], {"k": "x"})]


async def test_a_tool_that_may_have_none_shows_none_either():
    @tool
    def configuration() -> dict:
        return {"port": 5432, "password": "hunter22", "pin": 471147}

    journal = Direct()
    kept = []

    async def step(name, run):
        kept.append(await run())
        return kept[-1]

    journal.step = step
    guard = PolicyGuard(Policy(), [configuration], secrets=Secrets({"db": "hunter22", "pin": "471147"}))
    await Agent(name="clerk", model=Calls("configuration", {}), tools=[configuration]).run(
        "Go", journal=journal, guard=guard
    )
    assert {"value": {"port": 5432, "password": "{{secret:db}}", "pin": "{{secret:pin}}"}} in kept


async def test_an_error_without_secrets_stays_as_it_is():
    error = TransientError("busy", retry_after_s=3.0)

    async def run(arguments, context):
        raise error from ValueError("why")

    guard = PolicyGuard(secrets=Secrets({"bank": "4711-4711"}))
    with pytest.raises(ToolFailedError) as caught:
        await guard.armed(Tool(name="pay", run=run, retry=Retry(attempts=1))).call({})
    assert caught.value.__cause__ is error
    assert isinstance(error.__cause__, ValueError)


def test_what_cannot_be_kept_secret_is_refused():
    async def nothing(arguments, context):
        return None

    policy = Policy.parse({"tools": {"pay": {"secrets": ["bank"]}}})
    with pytest.raises(ConfigError, match=r"tools.pay.secrets: 'bank' is not registered"):
        PolicyGuard(policy)
    pay = Tool(name="pay", description="Uses 4711-4711.", run=nothing)
    with pytest.raises(ConfigError, match="tool pay: a secret stands in its description"):
        PolicyGuard(policy, [pay], secrets=Secrets({"bank": "4711-4711"}))
    for name, value in (("a", "secret"), ("production", "production"), ("a", "x{{secret:b}}")):
        with pytest.raises(ConfigError, match="stand in a handle"):
            Secrets({name: value})


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), texts, min_size=1, max_size=3), st.data())
@settings(deadline=None)
def test_what_is_redacted_stays_and_can_be_filled_in(values, data):
    try:
        secrets = Secrets(values)
    except ConfigError:
        assume(False)
    assume(len(set(values.values())) == len(values))
    pieces = st.sampled_from([*values.values(), *(f"{{{{secret:{name}}}}}" for name in values), " - ", "{{", "}}"])
    text = " ".join(data.draw(st.lists(pieces, max_size=5)))
    redacted = secrets.redact(text)
    assert not any(value in redacted for value in values.values())
    assert secrets.redact(redacted) == redacted
    assert secrets.redact(secrets.fill(redacted, values)) == redacted
