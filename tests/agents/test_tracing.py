"""Spans as an SDK's exporter gets them."""

import asyncio
import inspect
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from stille.agents import tracing
from stille.agents.errors import ModelError, ToolError, UnknownOutcomeError
from stille.agents.journal import ApprovalRequest, Decision, Direct, EffectCall
from stille.agents.resilience import Retry, TransientError
from stille.agents.tools import ToolContext, digest, tool
from stille.agents.types import Message, ModelEvent, ModelRequest, Reply, TextDelta, ToolCall, ToolSpec, Usage

SECRET = "the code is 4711"


class Spans:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self):
        return self.exporter.get_finished_spans()

    def one(self, name: str):
        (span,) = [span for span in self.all() if span.name == name]
        return span

    def everything(self) -> str:
        return "".join(span.to_json() for span in self.all())


@pytest.fixture
def spans() -> Spans:
    return Spans()


class Scripted:
    """A model that says what it is told to, at most until an error."""

    name = "scripted-1"

    def __init__(self, *events: ModelEvent, error: Exception | None = None):
        self.events, self.error, self.closed = events, error, False

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        try:
            for event in self.events:
                yield event
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True

    async def count_tokens(self, request: ModelRequest) -> int:
        return 7


CALL = ToolCall(id="c1", name="lookup", arguments={"code": SECRET})
REPLY = Reply(
    message=Message(role="assistant", content="I look", calls=(CALL,)),
    usage=Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=3),
    finish_reason="tool_calls",
)
REQUEST = ModelRequest(
    messages=[Message(role="system", content="Be brief."), Message(role="user", content="Where is it?")],
    tools=[ToolSpec(name="lookup", description="Finds things.")],
    max_tokens=50,
    seed=3,
)


async def test_an_answer_is_a_span_with_the_conventions_attributes(spans):
    inner = Scripted(TextDelta(text="I "), TextDelta(text="look"), REPLY)
    model = tracing.traced_model(inner, provider="openai", tracer_provider=spans.provider)
    assert [event async for event in model.stream(REQUEST)] == list(inner.events)
    assert (model.name, await model.count_tokens(REQUEST)) == ("scripted-1", 7)
    span = spans.one("chat scripted-1")
    found = dict(span.attributes)
    assert 0 < found.pop("gen_ai.response.time_to_first_chunk") < 5
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "scripted-1",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.seed": 3,
        "gen_ai.output.type": "text",
        "gen_ai.response.finish_reasons": ("tool_call",),
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 3,
    }
    assert (span.kind, span.status.status_code) == (SpanKind.CLIENT, StatusCode.UNSET)
    assert span.instrumentation_scope.schema_url.endswith(f"/{tracing.CONVENTIONS}")


async def test_content_is_recorded_only_on_request_and_secrets_never(spans):
    request = REQUEST.model_copy(
        update={
            "messages": [
                *REQUEST.messages,
                Message(role="assistant", calls=(CALL,), labels=frozenset({"secret"})),
                Message(role="tool", call_id="c1", content=SECRET, labels=frozenset({"secret", "personal"})),
            ]
        }
    )
    for content in (False, True):
        model = tracing.traced_model(Scripted(REPLY), content=content, tracer_provider=spans.provider)
        assert [event async for event in model.stream(request)] == [REPLY]
    quiet, loud = spans.all()
    assert "Where is it?" not in quiet.to_json()
    asked = json.loads(loud.attributes["gen_ai.input.messages"])
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "tool"]
    assert asked[1]["parts"] == [{"type": "text", "content": "Where is it?"}]
    assert asked[3]["parts"] == [{"type": "tool_call_response", "id": "c1", "response": tracing.HIDDEN}]
    (said,) = json.loads(loud.attributes["gen_ai.output.messages"])
    assert said["finish_reason"] == "tool_call"
    assert json.loads(loud.attributes["gen_ai.tool.definitions"])[0]["name"] == "lookup"
    assert SECRET not in spans.everything()  # neither what was labelled, nor what was made of it

    model = tracing.traced_model(Scripted(REPLY), content=True, tracer_provider=spans.provider)
    assert [event async for event in model.stream(REQUEST)] == [REPLY]
    assert SECRET in spans.everything()  # nothing here was labelled: the check above can fail


async def test_an_error_is_the_spans_status_and_its_text_is_not_recorded(spans):
    inner = Scripted(TextDelta(text="I "), error=ModelError(f"refused: {SECRET}"))
    model = tracing.traced_model(inner, tracer_provider=spans.provider)
    with pytest.raises(ModelError, match="refused"):
        _ = [event async for event in model.stream(REQUEST)]
    span = spans.one("chat scripted-1")
    assert span.status.status_code == StatusCode.ERROR
    assert span.attributes["error.type"] == "stille.agents.errors.ModelError"
    assert SECRET not in spans.everything()


async def test_ending_a_stream_early_stops_the_model_and_is_no_error(spans):
    inner = Scripted(TextDelta(text="a"), TextDelta(text="b"), REPLY)
    stream = tracing.traced_model(inner, tracer_provider=spans.provider).stream(REQUEST)
    async for _ in stream:
        break
    await stream.aclose()
    assert inner.closed
    span = spans.one("chat scripted-1")
    assert span.status.status_code == StatusCode.UNSET
    assert span.attributes["stille.cancelled"] is True


async def test_a_span_ends_with_the_reply_whatever_its_reader_does_then(spans):
    stream = tracing.traced_model(Scripted(REPLY), tracer_provider=spans.provider).stream(REQUEST)
    async for event in stream:
        assert event == REPLY
        span = spans.one("chat scripted-1")
        break
    await stream.aclose()
    assert "stille.cancelled" not in span.attributes
    assert len(spans.all()) == 1


async def test_steps_effects_and_approvals_are_spans_below_the_agents(spans):
    async def approve(request: ApprovalRequest) -> Decision:
        return Decision(verdict="approve", by="someone@example.com")

    journal = tracing.traced_journal(Direct("run-7", approve), agent="clerk", tracer_provider=spans.provider)
    model = tracing.traced_model(Scripted(REPLY), local=True, tracer_provider=spans.provider)

    async def think():
        _ = [event async for event in model.stream(REQUEST)]
        return "done"

    @tool
    async def refund(invoice: str) -> str:
        """Refunds."""
        return f"refunded {invoice}"

    traced = tracing.traced_tool(refund, tracer_provider=spans.provider)

    async def cause(key: str):
        return await traced.call({"invoice": SECRET}, ToolContext())

    call = EffectCall(key="k1", tool="refund", arguments={"invoice": SECRET}, effect="once")
    with tracing.agent_span("clerk", run_id="run-7", conversation="talk-1", tracer_provider=spans.provider):
        assert journal.run_id == "run-7"
        assert await journal.step("clerk.turn.m00000001", think) == "done"
        asked = ApprovalRequest(id="a1", tool="refund", arguments={"invoice": SECRET}, reason="money")
        assert (await journal.approval(asked)).verdict == "approve"
        assert await journal.effect(call, cause) == await journal.effect(call, cause)
    agent, step, chat = spans.one("invoke_agent clerk"), spans.one("step clerk.turn"), spans.one("chat scripted-1")
    assert agent.attributes["gen_ai.agent.name"] == "clerk"
    assert agent.attributes["gen_ai.conversation.id"] == "talk-1"
    assert (step.parent.span_id, chat.parent.span_id) == (agent.context.span_id, step.context.span_id)
    assert chat.kind == SpanKind.INTERNAL
    assert step.attributes == {
        "gen_ai.agent.name": "clerk",
        "stille.run.id": "run-7",
        "stille.step": "clerk.turn.m00000001",
        "stille.replayed": False,
    }
    assert spans.one("approval refund").attributes["stille.approval.verdict"] == "approve"
    first, second = [span for span in spans.all() if span.name == "effect refund"]
    assert [span.attributes["stille.replayed"] for span in (first, second)] == [False, True]
    assert first.attributes["stille.effect.key"] == "k1"
    attempt = spans.one("execute_tool refund")
    assert attempt.parent.span_id == first.context.span_id
    assert SECRET not in spans.everything()
    assert "someone@example.com" not in spans.everything()


async def test_an_unknown_outcome_can_be_found(spans):
    class Parks(Direct):
        async def effect(self, call, run, lookup=None):
            raise UnknownOutcomeError("it may have happened", call.key)

    journal = tracing.traced_journal(Parks(), tracer_provider=spans.provider)
    call = EffectCall(key="k", tool="pay", arguments={}, effect="once")
    with pytest.raises(UnknownOutcomeError):
        await journal.effect(call, lambda key: asyncio.sleep(0))
    span = spans.one("effect pay")
    assert (span.attributes["stille.effect.outcome"], span.status.status_code) == ("unknown", StatusCode.ERROR)


async def test_a_cancelled_step_is_no_error(spans):
    journal = tracing.traced_journal(Direct(), tracer_provider=spans.provider)
    begun = asyncio.Event()

    async def wait():
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(journal.step("wait", wait))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span = spans.one("step wait")
    assert (span.status.status_code, span.attributes["stille.cancelled"]) == (StatusCode.UNSET, True)


async def test_every_attempt_of_a_tool_is_a_span_and_the_tool_stays_what_it_is(spans):
    tries = []

    @tool(effect="idempotent", retry=Retry(attempts=2, base_s=0), returns={"untrusted"})
    def double(number: int, times: int = 2) -> int:
        """Doubles.

        Args:
            number: what to double.
        """
        tries.append(number)
        if number < 0:
            raise ToolError(f"{number} is below zero: {SECRET}")
        if len(tries) == 1:
            raise TransientError("busy")
        return number * times

    traced = tracing.traced_tool(double, tracer_provider=spans.provider)
    assert digest([traced]) == digest([double])
    assert (traced.spec(), traced.returns) == (double.spec(), double.returns)
    assert await traced.call({"number": 4}, ToolContext(call_id="c7")) == 8
    with pytest.raises(ToolError, match="below zero"):
        await traced.call({"number": -1}, ToolContext())
    busy, good, bad = spans.all()
    assert busy.name == good.name == bad.name == "execute_tool double"
    assert good.attributes["gen_ai.tool.call.id"] == "c7"
    assert good.attributes["stille.effect.kind"] == "idempotent"
    assert [span.status.status_code for span in spans.all()] == [StatusCode.ERROR, StatusCode.UNSET, StatusCode.ERROR]
    assert busy.attributes["error.type"] == "stille.agents.resilience.TransientError"
    assert bad.attributes["error.type"] == "stille.agents.errors.ToolError"
    assert SECRET not in spans.everything()


def test_names_are_those_of_the_conventions(spans):
    """Against the registry's own constants, beside those that are ours."""
    from opentelemetry.semconv._incubating.attributes import error_attributes, gen_ai_attributes

    known = {v for m in (gen_ai_attributes, error_attributes) for k, v in vars(m).items() if isinstance(v, str)}
    source = inspect.getsource(tracing)
    used = set(re.findall(r'"((?:gen_ai|error)\.[a-z_.]+)"', source))
    assert len(used) > 15
    assert used <= known


def test_with_the_api_alone_nothing_happens_and_stille_agents_does_not_import_it():
    code = """
import sys, asyncio
sys.modules["opentelemetry.sdk"] = None
import stille.agents
assert "opentelemetry" not in sys.modules, "imported too early"
from stille.agents import tracing
from stille.agents.journal import Direct
async def seven(): return 7
with tracing.agent_span("a"):
    print(asyncio.run(tracing.traced_journal(Direct()).step("s", seven)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("7\n", 0), done.stderr
