"""Tools of a conversation: the prompt that tells a model of them, and the grammar that its calls follow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stille.engine.grammar import Grammar, json_style
from stille.engine.quoted import quotable
from stille.engine.tool_calls import CLOSE, HEAD, MIDDLE, OPEN
from stille.errors import InvalidRequestError

_PLAIN = {"type", "properties", "required", "title", "description", "$defs", "definitions", "$schema"}
_MARK = "x-quoted"
_BESIDE = {"type", "title", "description", "default", "examples"}
_FOR_ALL = ("$schema", "$defs", "definitions")
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
    """What a model may call. `parameters` is a JSON schema of type object; None: it takes no arguments.

    In it a string with "x-quoted": true, as a parameter or as what an array holds, is a run of words from the
    conversation, or the default (see `call_grammar`). Models are not told of the mark.
    """

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
    said: Iterable[str] = (),
) -> Grammar:
    """Answers that call functions with arguments that are valid for their schemas.

    Args:
        callable_now: what they may call.
        forced: they are calls and nothing else. Otherwise there may be text before the calls, or in place of them.
        parallel: there may be several calls.
        answer: JSON schema of an answer that is no call, in place of text.
        param: the parameter that errors name.
        said: the texts that quoted arguments are taken from (`stille.engine.quoted.said_in`), looked at if there are
            any. Without a word in them any string will do.

    Raises:
        InvalidRequestError: the parameters of a function are no schema of an object, or too large; or something in
            them is marked to be quoted and cannot be.
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
    quoting, words = _Quoting(param), None
    for index, function in enumerate(callable_now):
        schema, whose = arguments_schema(function), f"of function '{function.name}'"
        text = _schema_text(schema, whose, param)
        rule = f"%json {text}"
        if _MARK in text and _marks(schema):
            quoted = quoting.arguments(f"arguments_{index}", schema, whose)
            if words is None:
                words = quotable(said, "SAID")
            rule = quoted if words else f"%json {_schema_text(_unmarked(schema), whose, param)}"
        lines.append(f"call_{index}: {_quoted(function.name + MIDDLE)} {rule}")
    if words:
        lines += [*quoting.lines, r'QUOTED: "\"" SAID "\""']
    return Grammar.lark("\n".join(lines) + "\n", param, more="\n".join(words or ()))


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
    parameters = function.parameters or {"type": "object", "properties": {}}
    shown["parameters"] = _unmarked(parameters) if _MARK in str(parameters) else parameters
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


class _Quoting:
    """Rules of Lark for arguments some of which are quoted. `%json` cannot use a terminal of the grammar around it, so
    the objects are spelt out, in its order and style; what is not quoted is left to it, equal schemas once.

    Args:
        param: the parameter that errors name.
    """

    def __init__(self, param: str):
        self.lines: list[str] = []
        self._param = param
        self._rules: dict[str, str] = {}

    def arguments(self, name: str, schema: Mapping[str, Any], whose: str) -> str:
        """The rule for an object; `name` begins the names of those that it needs."""
        text = _schema_text(schema, whose, self._param)
        properties, required = schema.get("properties"), schema.get("required", [])
        if (
            not set(schema) <= _PLAIN | {"additionalProperties"}
            or schema.get("type", "object") != "object"
            or schema.get("additionalProperties") is not False
            or not (isinstance(properties, dict) and isinstance(required, list))
            or not all(isinstance(each, dict) for each in properties.values())
            or not all(isinstance(each, str) and each in properties for each in required)
            or re.search(r'"\$ref": "(?!#/(\$defs|definitions)/)', text)
        ):
            raise self._error(whose)
        rest = first = '"}"'
        marks = 0
        for number, (key, value) in reversed(list(enumerate(properties.items()))):
            expression = self._value(value, schema, whose)
            marks += _marks(value) if expression else 0
            expression = expression or self._json(value, schema, whose)
            item, more, begin = (f"{name}_{kind}_{number}" for kind in ("item", "more", "from"))
            self.lines.append(f"{item}: {_quoted(json.dumps(key, ensure_ascii=False) + ': ')} {expression}")
            if key in required:
                self.lines += [f'{more}: ", " {item} {rest}', f"{begin}: {item} {rest}"]
            else:
                self.lines += [f'{more}: (", " {item})? {rest}', f"{begin}: {item} {rest} | {first}"]
            rest, first = more, begin
        if marks < _marks(schema):
            raise self._error(whose)
        return f'"{{" {first}'

    def _value(self, schema: Any, root: Mapping[str, Any], whose: str) -> str | None:
        """The expression for something that is quoted, or of which a part is; None if nothing is, or can be."""
        if not isinstance(schema, dict) or not _marks(schema):
            return None
        keys, expression = set(schema) - _BESIDE, None
        if schema.get("type") == "string" and keys == {_MARK}:
            expression = "QUOTED"
        elif schema.get("type") == "array" and {"items"} <= keys <= {"items", "minItems", "maxItems"}:
            item = self._value(schema["items"], root, whose)
            least, most = schema.get("minItems", 0), schema.get("maxItems")
            if item and isinstance(least, int) and (most is None or (isinstance(most, int) and most >= max(least, 1))):
                some = f'{item} (", " {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
                expression = f'"[" {some} "]"' if least > 0 else f'"[" ({some})? "]"'
        elif "type" not in schema and keys == {"anyOf"} and all(isinstance(each, dict) for each in schema["anyOf"]):
            parts = [
                self._value(each, root, whose) if _marks(each) else self._json(each, root, whose)
                for each in schema["anyOf"]
            ]
            expression = None if None in parts else " | ".join(map(str, parts))
        if expression is None:
            return None
        default = schema.get("default")
        ways = [expression] if default is None else [expression, _quoted(json.dumps(default, ensure_ascii=False))]
        return f"({' | '.join(ways)})"

    def _json(self, schema: Any, root: Mapping[str, Any], whose: str) -> str:
        around = {key: root[key] for key in _FOR_ALL if key in root}
        text = _schema_text({**around, **schema}, whose, self._param)
        if text not in self._rules:
            self._rules[text] = f"json_{len(self._rules)}"
            self.lines.append(f"{self._rules[text]}: %json {text}")
        return self._rules[text]

    def _error(self, whose: str) -> InvalidRequestError:
        return InvalidRequestError(
            f'"{_MARK}" {whose} cannot be held to: it is for parameters that are strings or arrays of strings, without '
            "further conditions, of a function that takes none but those that its schema declares",
            self._param,
        )


def _marks(schema: Any) -> int:
    """How many strings are marked to be quoted."""
    count, left = 0, [schema]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            count += part.get(_MARK) is True
            left += part.values()
        elif isinstance(part, list):
            left += part
    return count


def _unmarked(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {key: _unmarked(value) for key, value in schema.items() if key != _MARK or not isinstance(value, bool)}
    return [_unmarked(each) for each in schema] if isinstance(schema, list) else schema


def _schema_text(schema: Mapping[str, Any], whose: str, param: str) -> str:
    try:
        return json.dumps({**schema, "x-guidance": json_style(schema)}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        what = "the schema" if whose == "of the answer" else "the parameters"
        raise InvalidRequestError(f"{what} {whose} cannot be read: {error}", param) from error


def _quoted(text: str) -> str:
    """As a string of Lark."""
    return json.dumps(text)
