"""Tools of a conversation: the prompt that tells a model of them, and the grammar that its calls follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stille.engine.grammar import Grammar, json_style
from stille.engine.tool_calls import CLOSE, HEAD, MIDDLE, OPEN
from stille.errors import InvalidRequestError

_PLAIN = {"type", "properties", "required", "title", "description", "$defs", "definitions", "$schema"}
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

_INSTRUCTION = """\
You can call functions. Each line between <tools> and </tools> describes one of them, its parameters as a JSON schema:

<tools>
{tools}
</tools>

To call a function, write its name and its arguments as JSON in exactly this form:

<tool_call>
{{"name": "the function's name", "arguments": {{"a parameter": "its value"}}}}
</tool_call>

What it returns comes in the next message. Then answer in words."""


@dataclass(frozen=True)
class Function:
    """What a model may call. `parameters` is a JSON schema of type object; None: it takes no arguments."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None


def call_grammar(
    callable_now: Sequence[Function],
    *,
    forced: bool,
    parallel: bool,
    answer: Mapping[str, Any] | None = None,
    param: str = "tools",
) -> Grammar:
    """Answers that call functions with arguments that are valid for their schemas.

    Args:
        callable_now: what they may call.
        forced: they are calls and nothing else. Otherwise there may be text before the calls, or in place of them.
        parallel: there may be several calls.
        answer: JSON schema of an answer that is no call, in place of text.
        param: the parameter that errors name.

    Raises:
        InvalidRequestError: the parameters of a function are no schema of an object, or too large.
    """
    lines = ["%llguidance {}"]
    if forced:
        lines.append(f'start: "{OPEN}" calls')
    elif answer is not None:
        lines += [f'start: answer | "{OPEN}" calls', f"answer: %json {_schema_text(answer, 'of the answer', param)}"]
    else:  # free text; the lazy lexeme ends with the first mark, after which only a call goes on
        lines += [
            "start: TEXT | text_and_mark calls",
            r"TEXT: /(.|\n)*/",
            rf"text_and_mark[lazy]: /(.|\n)*{OPEN}/",
        ]
    lines.append(rf'calls: call ("\n{OPEN}" call)*' if parallel else "calls: call")
    lines.append(
        f"call: {_quoted(HEAD)} ({' | '.join(f'call_{i}' for i in range(len(callable_now)))}) {_quoted(CLOSE)}"
    )
    for index, function in enumerate(callable_now):
        text = _schema_text(arguments_schema(function), f"of function '{function.name}'", param)
        lines.append(f"call_{index}: {_quoted(function.name + MIDDLE)} %json {text}")
    return Grammar.lark("\n".join(lines) + "\n", param)


def arguments_schema(function: Function) -> Mapping[str, Any]:
    """Of the arguments that a call may have: those that are declared, unless the schema says that there are more."""
    schema = function.parameters
    if not schema:
        return _NO_ARGUMENTS
    declared, required = schema.get("properties"), schema.get("required", [])
    if not (isinstance(declared, dict) and isinstance(required, list) and set(schema) <= _PLAIN):
        return schema
    if not all(isinstance(name, str) and name in declared for name in required):
        return schema
    return {**schema, "additionalProperties": False}


def described(function: Function) -> dict[str, Any]:
    """A function as chat templates show it."""
    shown: dict[str, Any] = {"name": function.name}
    if function.description:
        shown["description"] = function.description
    shown["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": shown}


def instruction(functions: Sequence[Function]) -> str:
    """Tells a model about functions where its chat template does not."""
    lines = "\n".join(json.dumps(described(function)["function"], ensure_ascii=False) for function in functions)
    return _INSTRUCTION.format(tools=lines)


def knows_tools(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template shows tools, and calls in the form that the grammar holds them to."""
    template = template_text(tokenizer, "tool_use")
    return "<tool_call>" in template and "<function=" not in template  # the latter writes calls in another way


def template_text(tokenizer: Any, kind: str = "default") -> str:
    """A tokenizer's chat template of a kind, else the default one; empty if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get(kind, template.get("default", ""))
    return template or ""


def as_text(messages: Sequence[Mapping[str, Any]], functions: Sequence[Function] = ()) -> list[dict[str, Any]]:
    """The conversation for a template that knows nothing of tools: calls, results and functions as text."""
    plain: list[dict[str, Any]] = []
    before = None
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if before == "tool":  # one turn for all results
                plain[-1]["content"] += f"\n{content}"
            else:
                plain.append({"role": "user", "content": content})
        else:
            calls = [call["function"] for call in message.get("tool_calls", ())]
            written = [content] if content or not calls else []
            written += [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
            kept = {key: value for key, value in message.items() if key != "tool_calls"}
            plain.append({**kept, "content": "\n".join(written)})
        before = role
    if functions:
        told = instruction(functions)
        if plain and plain[0]["role"] in ("system", "developer"):
            plain[0]["content"] += f"\n\n{told}"
        else:
            plain.insert(0, {"role": "system", "content": told})
    return plain


def _schema_text(schema: Mapping[str, Any], whose: str, param: str) -> str:
    try:
        return json.dumps({**schema, "x-guidance": json_style(schema)}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        what = "the schema" if whose == "of the answer" else "the parameters"
        raise InvalidRequestError(f"{what} {whose} cannot be read: {error}", param) from error


def _quoted(text: str) -> str:
    """As a string of Lark."""
    return json.dumps(text)
