"""One side of benchmarks/agents_overhead.py, in a process and, for the others, an environment of its own.

Started as `python side.py NAME BASE_URL TURNS ROUNDS`; prints medians per step, as JSON, in microseconds of processor
and of wall time: of the framework, and of the bare client that sends the same requests in the same way. Rounds of the
two take turns.
"""

import asyncio
import importlib.metadata
import json
import statistics
import sys
import time

from openai import AsyncOpenAI

INSTRUCTIONS = "You add numbers, one pair at a time."
TASK = "Add them all."
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def stille(base, turns):
    from stille.agents.agent import Agent
    from stille.agents.models.endpoint import EndpointModel
    from stille.agents.tools import tool

    model = EndpointModel(base, "m", api_key="k")
    agent = Agent(name="adder", model=model, instructions=INSTRUCTIONS, tools=[tool(add)], max_turns=turns + 1)

    async def run():
        done = await agent.run(TASK)
        return done.output, len(done.calls)

    return run, "stille", True


def pydantic_ai(base, turns):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.usage import UsageLimits

    model = OpenAIChatModel("m", provider=OpenAIProvider(base_url=base, api_key="k"))
    agent = Agent(model, instructions=INSTRUCTIONS, tools=[add])

    async def run():
        done = await agent.run(TASK, usage_limits=UsageLimits(request_limit=None))
        results = [part for m in done.all_messages() for part in m.parts if part.part_kind == "tool-return"]
        return done.output, len(results)

    return run, "pydantic-ai-slim", False


def openai_agents(base, turns):
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled

    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel("m", AsyncOpenAI(base_url=base, api_key="k"))
    agent = Agent(name="adder", model=model, instructions=INSTRUCTIONS, tools=[function_tool(add)])

    async def run():
        done = await Runner.run(agent, TASK, max_turns=turns + 1)
        return done.final_output, sum(item.type == "tool_call_output_item" for item in done.new_items)

    return run, "openai-agents", False


def bare(base, streamed):
    """The same conversation with the client alone."""
    client = AsyncOpenAI(base_url=base, api_key="k")
    function = {"name": "add", "description": "Adds two numbers.", "parameters": PARAMETERS}
    tools = [{"type": "function", "function": function}]

    async def answer(messages):
        if not streamed:
            made = await client.chat.completions.create(model="m", messages=messages, tools=tools)
            message = made.choices[0].message
            return message.content, [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls or []]
        text, calls = "", []
        options = {"include_usage": True}
        chunks = await client.chat.completions.create(
            model="m", messages=messages, tools=tools, stream=True, stream_options=options
        )
        async for chunk in chunks:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                for part in choice.delta.tool_calls or []:
                    calls.append((part.id, part.function.name, part.function.arguments))
        return text, calls

    async def run():
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": TASK}]
        results = 0
        while True:
            text, calls = await answer(messages)
            if not calls:
                return text, results
            made = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]
            messages.append({"role": "assistant", "content": None, "tool_calls": made})
            for id_, _, arguments in calls:
                results += 1
                messages.append({"role": "tool", "tool_call_id": id_, "content": str(add(**json.loads(arguments)))})

    return run


async def main():
    name, base, turns, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    run, package, streamed = {"stille": stille, "pydantic_ai": pydantic_ai, "openai_agents": openai_agents}[name](
        base, turns
    )
    sides = {"framework": run, "client": bare(base, streamed)}
    taken = {side: [] for side in sides}
    for turn in range(rounds + 2):
        for side, conversation in sides.items():
            begun = time.process_time(), time.perf_counter()
            done = await conversation()
            ended = time.process_time(), time.perf_counter()
            if turn >= 2:
                taken[side].append([(b - a) / (turns + 1) * 1e6 for a, b in zip(begun, ended, strict=True)])
            if done != ("done", turns):
                raise SystemExit(f"WRONG: {name} {side} gave {done!r} after {turns} calls")
    medians = {side: [statistics.median(each) for each in zip(*times, strict=True)] for side, times in taken.items()}
    print(json.dumps({"version": importlib.metadata.version(package), **medians}))


asyncio.run(main())
