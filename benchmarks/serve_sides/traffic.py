"""The traffic of serve_soak.py: what its clients send, how the answers are read, and what is wrong with them.

Tool calls and documents follow grammars, so that each one that is finished has to be valid for its schema; those that
`max_tokens` cuts are counted apart. Malformed requests have the status, and the word of the error, that they must get.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pydoc_data.topics import topics
from typing import Any

import jsonschema_rs

MODEL = "stille-135m"
CHAT, MESSAGES, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"
KNOWN = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 24,
}
SYSTEM = "You are a patient teacher. " + "Explain every term that a beginner may not know. " * 12
WORDS = " ".join(topics[name] for name in sorted(topics)).split()
HIDDEN = 576  # numbers of an embedding


def closed(**properties: Any) -> dict[str, Any]:
    """The schema of an object that has these properties, all of them, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WORD = {"type": "string", "maxLength": 12}
TOOLS = {
    "get_weather": closed(city=WORD, unit={"enum": ["celsius", "fahrenheit"]}),
    "set_timer": closed(minutes={"type": "integer", "minimum": 1, "maximum": 120}, loud={"type": "boolean"}),
    "search": closed(
        query={"type": "string", "maxLength": 24},
        filters=closed(language={"enum": ["en", "de", None]}, limit={"type": "integer", "minimum": 1, "maximum": 50}),
        tags={"type": "array", "items": {"enum": ["news", "code", "art"]}, "maxItems": 3},
    ),
}
DOCUMENTS = [
    closed(fruit=WORD, colour={"enum": ["red", "green", "yellow"]}, sweet={"type": "boolean"}),
    {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 1000}, "minItems": 2, "maxItems": 6},
    closed(name=WORD, size=closed(width={"type": "integer", "minimum": 1, "maximum": 99}, tall={"type": "boolean"})),
]
JUDGES = {name: jsonschema_rs.validator_for(schema) for name, schema in TOOLS.items()}
DOCUMENT_JUDGES = [jsonschema_rs.validator_for(schema) for schema in DOCUMENTS]


@dataclass
class Answer:
    """What came back, in the words of the chat API whichever API it was."""

    text: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)  # index: [name, arguments]
    reason: str | None = None
    tokens: int | None = None
    complete: bool = False
    error: Any = None
    id: str | None = None
    vectors: list[list[float]] = field(default_factory=list)


# What is wrong with an answer, or None; counts what is in it.
Judge = Callable[[Answer, Counter], str | None]


@dataclass
class Plan:
    """One request, and what has to come back.

    Attributes:
        limit: most tokens of the answer.
        refused: status that it must get, and a word of the body; None: it has to be answered.
        declared: its Content-Length, if that is a lie.
        leave_after: pieces of the answer after which the client leaves.
        leave_within_s: seconds after which it leaves.
    """

    kind: str
    path: str
    payload: bytes
    limit: int = 0
    stream: bool = False
    judge: Judge = lambda answer, counts: None
    refused: tuple[int, str] | None = None
    declared: int | None = None
    leave_after: int | None = None
    leave_within_s: float | None = None


def plan_request(generator: random.Random, reference: str, previous: str | None) -> Plan:
    """Draw the next request of a client, whose last stored response is `previous`."""
    draw = generator.random()
    if draw < 0.12:
        return generator.choice(MALFORMED)
    if draw < 0.24:
        body = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, **KNOWN}
        return Plan("known", CHAT, json.dumps(body).encode(), 24, True, known_judge(reference))
    if draw < 0.30:
        return plan_embeddings(generator)
    if draw < 0.50:
        plan = plan_tools(generator)
    elif draw < 0.59:
        plan = plan_document(generator)
    else:
        plan = plan_text(generator, previous)
    leaving = generator.random()
    if leaving < 0.05:
        plan.leave_within_s = generator.uniform(0.0, 0.5)
    elif leaving < 0.1 and not plan.stream:
        plan.leave_within_s = generator.uniform(0.0, 4.0)
    elif leaving < 0.2 and plan.stream:
        plan.leave_after = generator.randint(1, 24)
    return plan


def words(generator: random.Random, least: int, most: int) -> str:
    count = generator.randint(least, most)
    start = generator.randrange(len(WORDS) - count)
    return " ".join(WORDS[start : start + count])


def generate(
    kind: str, api: str, stream: bool, limit: int, messages: list[dict[str, str]], judge: Judge, **more: Any
) -> Plan:
    """A request for an answer, in the form of one of three APIs."""
    body: dict[str, Any] = {"model": MODEL, "stream": stream, "temperature": 0.8, "top_p": 0.95, **more}
    if api == RESPONSES:
        body |= {"input": messages, "max_output_tokens": limit}
    elif api == MESSAGES:
        system = [message["content"] for message in messages if message["role"] == "system"]
        body |= {"messages": [message for message in messages if message["role"] != "system"], "max_tokens": limit}
        body |= {"system": system[0]} if system else {}
    else:
        body |= {"messages": messages, "max_tokens": limit}
        body |= {"stream_options": {"include_usage": True}} if stream else {}
    return Plan(kind, api, json.dumps(body).encode(), limit, stream, judge)


def plan_text(generator: random.Random, previous: str | None) -> Plan:
    """A text to go on with: short, middling or long; three in ten begin as others do."""
    kind = generator.random()
    text = words(generator, *((8, 40) if kind < 0.6 else (80, 200) if kind < 0.88 else (600, 800)))
    messages = [{"role": "user", "content": "Continue: " + text}]
    if generator.random() < 0.3:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    api = generator.choices([CHAT, MESSAGES, RESPONSES], [6, 1, 1])[0]
    more: dict[str, Any] = {}
    if api == RESPONSES:
        more = {"truncation": "auto", "store": generator.random() < 0.7}
        if previous is not None and generator.random() < 0.5:
            more["previous_response_id"] = previous
    name = "long prompt" if kind >= 0.88 else {CHAT: "chat", MESSAGES: "messages", RESPONSES: "responses"}[api]
    return generate(name, api, True, generator.randint(8, 128), messages, text_judge, **more)


def plan_tools(generator: random.Random) -> Plan:
    """One to three tools, with every choice that there is."""
    names = generator.sample(sorted(TOOLS), generator.randint(1, 3))
    choice = generator.choice(["required", "named", "auto"])
    single = generator.random() < 0.6
    api = generator.choices([CHAT, MESSAGES, RESPONSES], [6, 1, 1])[0]
    messages = [{"role": "user", "content": "Call a tool for this: " + words(generator, 4, 30)}]
    if api == MESSAGES:
        how = {"required": {"type": "any"}, "named": {"type": "tool", "name": names[0]}, "auto": {"type": "auto"}}
        more: dict[str, Any] = {
            "tools": [{"name": name, "input_schema": TOOLS[name]} for name in names],
            "tool_choice": {**how[choice], "disable_parallel_tool_use": single},
        }
    else:
        functions = [{"name": name, "parameters": TOOLS[name]} for name in names]
        flat = api == RESPONSES
        named = {"name": names[0]} if flat else {"function": {"name": names[0]}}
        more = {
            "tools": [{"type": "function", **(f if flat else {"function": f})} for f in functions],
            "tool_choice": {"type": "function", **named} if choice == "named" else choice,
            "parallel_tool_calls": not single,
        }
    stream = api != CHAT or generator.random() < 0.5
    allowed = names[:1] if choice == "named" else names
    judge = calls_judge(allowed, choice != "auto", single)
    return generate(f"tools {choice}", api, stream, generator.randint(24, 160), messages, judge, **more)


def plan_document(generator: random.Random) -> Plan:
    """JSON for a schema."""
    number = generator.randrange(len(DOCUMENTS))
    form = {"type": "json_schema", "json_schema": {"name": "document", "schema": DOCUMENTS[number]}}
    messages = [{"role": "user", "content": "Write as JSON: " + words(generator, 4, 30)}]
    stream, limit = generator.random() < 0.5, generator.randint(16, 100)
    return generate("json", CHAT, stream, limit, messages, document_judge(number), response_format=form)


def plan_embeddings(generator: random.Random) -> Plan:
    texts = [words(generator, 5, 150) for _ in range(generator.randint(1, 4))]

    def judge(answer: Answer, counts: Counter) -> str | None:
        lengths = {len(vector) for vector in answer.vectors}
        norms = [math.sqrt(sum(number * number for number in vector)) for vector in answer.vectors]
        if len(answer.vectors) != len(texts) or lengths != {HIDDEN} or any(abs(norm - 1) > 1e-3 for norm in norms):
            return f"{len(answer.vectors)} vectors of {lengths} numbers, {norms} long, for {len(texts)} texts"
        counts["vectors"] += len(texts)
        return None

    return Plan("embeddings", EMBEDDINGS, json.dumps({"model": MODEL, "input": texts}).encode(), judge=judge)


def known_judge(reference: str) -> Judge:
    def judge(answer: Answer, counts: Counter) -> str | None:
        if answer.text != reference:
            return f"the known question was answered with {answer.text!r} instead of {reference!r}"
        return text_judge(answer, counts)

    return judge


def text_judge(answer: Answer, counts: Counter) -> str | None:
    if answer.reason not in ("stop", "length") or answer.calls:
        return f"an answer without tools ended with {answer.reason}, {len(answer.calls)} calls"
    return None


def calls_judge(allowed: list[str], needed: bool, single: bool) -> Judge:
    """Of answers that may call these tools, or have to; at most one call if `single`."""

    def judge(answer: Answer, counts: Counter) -> str | None:
        calls = [answer.calls[index] for index in sorted(answer.calls)]
        if (answer.reason == "tool_calls") != (bool(calls) and answer.reason != "length"):
            return f"an answer with {len(calls)} calls ended with {answer.reason}"
        if single and len(calls) > 1:
            return f"{len(calls)} calls, one was allowed"
        if needed and answer.reason != "length" and not calls:
            return f"no call, one was required: {answer.text!r}"
        if answer.reason == "length":
            counts["calls cut"] += bool(calls)
            calls = calls[:-1]
        for name, arguments in calls:
            if name not in allowed:
                return f"a call of {name!r}, there are {allowed}"
            if problem := invalid(JUDGES[name], arguments):
                return f"arguments of {name}: {problem}"
            counts["calls"] += 1
        return None

    return judge


def document_judge(number: int) -> Judge:
    def judge(answer: Answer, counts: Counter) -> str | None:
        if answer.reason == "length":
            counts["documents cut"] += 1
            return None
        counts["documents"] += 1
        problem = invalid(DOCUMENT_JUDGES[number], answer.text)
        return f"document {number}: {problem}" if problem else text_judge(answer, counts)

    return judge


def invalid(judge: Any, text: str) -> str | None:
    """What is wrong with JSON text, or None."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"{text!r} is not JSON: {error}"
    return None if judge.is_valid(value) else f"{text!r} is not valid for its schema"


def absorb(answer: Answer, path: str, event: dict[str, Any]) -> bool:
    """Take in an event of a stream; True if it brought a piece of text or of a call."""
    kind = event.get("type", "")
    if "error" in event and kind in ("", "error"):
        answer.error = event["error"]
        return False
    return {CHAT: absorb_chat, MESSAGES: absorb_messages, RESPONSES: absorb_responses}[path](answer, event, kind)


def absorb_chat(answer: Answer, event: dict[str, Any], kind: str) -> bool:
    """A chunk, or a whole answer, whose messages stand in the place of deltas."""
    if event.get("usage"):
        answer.tokens = event["usage"]["completion_tokens"]
    piece = False
    for choice in event["choices"]:
        answer.reason = choice["finish_reason"] or answer.reason
        delta = choice.get("delta") or choice.get("message") or {}
        answer.text += delta.get("content") or ""
        piece |= bool(delta.get("content"))
        for position, part in enumerate(delta.get("tool_calls") or ()):
            call = answer.calls.setdefault(part.get("index", position), ["", ""])
            call[0] += part["function"].get("name") or ""
            call[1] += part["function"].get("arguments") or ""
            piece = True
    return piece


def absorb_messages(answer: Answer, event: dict[str, Any], kind: str) -> bool:
    if kind == "content_block_start" and event["content_block"]["type"] == "tool_use":
        answer.calls[event["index"]] = [event["content_block"]["name"], ""]
    elif kind == "content_block_delta":
        delta = event["delta"]
        if delta["type"] == "input_json_delta":
            answer.calls[event["index"]][1] += delta["partial_json"]
            return bool(delta["partial_json"])
        answer.text += delta["text"]
        return bool(delta["text"])
    elif kind == "message_delta":
        reasons = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
        answer.reason = reasons.get(event["delta"]["stop_reason"], event["delta"]["stop_reason"])
        answer.tokens = event["usage"]["output_tokens"]
    answer.complete |= kind == "message_stop"
    return False


def absorb_responses(answer: Answer, event: dict[str, Any], kind: str) -> bool:
    if kind == "response.output_item.added" and event["item"]["type"] == "function_call":
        answer.calls[event["output_index"]] = [event["item"]["name"], ""]
    elif kind == "response.output_text.delta":
        answer.text += event["delta"]
        return bool(event["delta"])
    elif kind == "response.function_call_arguments.delta":
        answer.calls[event["output_index"]][1] += event["delta"]
        return bool(event["delta"])
    elif kind in ("response.completed", "response.incomplete"):
        response = event["response"]
        answer.reason = "length" if kind == "response.incomplete" else "tool_calls" if answer.calls else "stop"
        answer.tokens, answer.complete = response["usage"]["output_tokens"], True
        answer.id = response["id"] if response["store"] else None
    elif kind == "response.failed":
        answer.error = event["response"]["error"]
    return False


def absorb_whole(answer: Answer, path: str, body: dict[str, Any]) -> None:
    """Take in an answer that was not streamed."""
    answer.complete = True
    if path == EMBEDDINGS:
        answer.vectors = [item["embedding"] for item in body["data"]]
    else:
        absorb_chat(answer, body, "")


def malformed() -> list[Plan]:
    """Requests that nobody should send."""
    asked = KNOWN["messages"]
    long = [{"role": "user", "content": " ".join(WORDS[:9000])}]
    function = {"type": "function", "function": {"name": "f", "parameters": closed(a={"if": {"type": "string"}})}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}

    def by_schema(schema: Any) -> dict[str, Any]:
        return {"response_format": {**form, "json_schema": {"name": "a", "schema": schema}}}

    chats: list[tuple[dict[str, Any], str]] = [
        ({"frobnicate": 1}, "unknown_parameter"),
        ({"stream_options": {"frobnicate": 1}, "stream": True}, "unknown_parameter"),
        ({"temperature": "hot"}, "temperature"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": 0}, "'n'"),
        ({"messages": long}, "context_length_exceeded"),
        ({"messages": long, "stream": True}, "context_length_exceeded"),
        (by_schema({"not": {"type": "string"}}), "response_format"),
        (by_schema({"type": "integer", "minimum": 3, "maximum": 2}), "response_format"),
        (by_schema({"$ref": "#/$defs/none"}), "response_format"),
        ({"response_format": {"type": "regex", "regex": "(?=a)b"}, "stream": True}, "response_format"),
        ({"tools": [function]}, "tools"),
        ({"tools": [function], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ]
    whole = {"model": MODEL, "messages": asked, "max_tokens": 8}
    bodies: list[tuple[str, Any, int, str]] = [(CHAT, {**whole, **more}, 400, word) for more, word in chats]
    bodies += [
        (CHAT, {**whole, "model": "gpt-9"}, 404, "model_not_found"),
        (CHAT, [1], 400, "invalid_json"),
        (MESSAGES, {**whole, "max_tokens": -4}, 400, "max_tokens"),
        (MESSAGES, {"model": MODEL, "messages": asked}, 400, "max_tokens"),
        (RESPONSES, whole, 400, "input"),
        (RESPONSES, {"model": MODEL, "input": "x", "previous_response_id": "resp_none"}, 400, "previous_response"),
        (RESPONSES, {"model": MODEL, "input": "x", "stream": True, "max_output_tokens": 0}, 400, "max_output_tokens"),
        (EMBEDDINGS, {"model": MODEL, "input": []}, 400, "input"),
        (EMBEDDINGS, {"model": MODEL, "input": " ".join(WORDS[:3000])}, 400, "input"),
        ("/v1/nothing", whole, 404, "unknown_url"),
    ]
    plans = [Plan("malformed", path, json.dumps(body).encode(), refused=(s, word)) for path, body, s, word in bodies]
    good = json.dumps(whole).encode()
    plans += [Plan("malformed", path, good[:-9], refused=(400, "invalid_json")) for path in (CHAT, RESPONSES)]
    plans.append(Plan("malformed", CHAT, b'{"model": "\xff"}', refused=(400, "invalid_json")))
    plans.append(Plan("malformed", CHAT, b"", refused=(413, "body_too_large"), declared=10**9))
    # Bodies that end before they should: the client closes, or waits for an answer that need not come (status 0).
    cut = {"payload": good[:40], "declared": len(good)}
    plans += [Plan("malformed", CHAT, refused=(0, ""), **cut), Plan("malformed", CHAT, leave_within_s=0.05, **cut)]
    return plans


MALFORMED = malformed()
