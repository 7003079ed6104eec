"""Holds an agent's calls to a policy, pays for them, and keeps secrets out of its conversation.

Nothing is assumed of the model: once untrusted text is in a conversation, every call counts as if the text's author had
made it. A tool with effect is then called only with values that stand in trusted data (the user's own words, results of
trusted tools), or that a rule of the policy accepts.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Literal

from stille.agents.budget import Budget, Prices, Reservation
from stille.agents.errors import ApprovalNeededError, PolicyError
from stille.agents.guard import Spend
from stille.agents.policy import Policy, ValueRule
from stille.agents.secrets import HANDLE, Secrets
from stille.agents.tools import Tool, ToolContext
from stille.agents.types import TRUSTED, Effect, Json, Label, Labels, Message, ToolCall, ToolSpec, Usage
from stille.errors import ConfigError

_NUMBER = re.compile(r"(?<![\w.,+-])[-+]?\d[\d,]*(?:\.\d+)?(?![\w]|[.,]\d)")
_READS_MAY_TAKE: Labels = frozenset({"untrusted", "personal"})


class PolicyGuard:
    """Holds the calls of one conversation to a policy; a `Guard` for agents.

    What it knows of trusted data it learns from the messages that `redact` is given, so each message of the
    conversation has to pass there, in order; a run that is resumed passes them again.

    Args:
        policy: None: the default one, `Policy()`.
        tools: that will be called, for their effects and labels. One that is not among them counts as having effect.
        budget: None: nothing is limited.
        prices: of models; None: they cost nothing.
        secrets: that messages may contain and tools may be given. Agents see to it that a tool gets those that its
            rule names, at the moment that it is called.

    Raises:
        ConfigError: the policy names a tool, parameter or secret that is not there, or a tool's description shows a
            secret.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        tools: Iterable[Tool] = (),
        *,
        budget: Budget | None = None,
        prices: Prices | None = None,
        secrets: Secrets | None = None,
    ):
        self.policy = policy or Policy()
        self.budget = budget
        self.prices = prices
        self.secrets = secrets or Secrets()
        self._tools = {tool.name: tool for tool in tools}
        self._armed: dict[Tool, Tool] = {}
        self._texts: dict[tuple[str, Labels, str | None], _Text] = {}  # what values may be taken from
        self._asked: dict[str, None] = {}  # what the user said
        self._calls: dict[str, tuple[str, Labels, tuple[Json, ...]]] = {}  # tool, labels of arguments, untrusted ones
        if self._tools:
            self.policy.check_names(self._tools.values())
        self._check_secrets()

    # Policy

    def permitted(self, tools: Sequence[ToolSpec], labels: Labels) -> frozenset[str]:
        """Names of the tools that can be called now, if the arguments are right."""
        labels |= self.carried
        return frozenset(tool.name for tool in tools if self._why_not(tool.name, labels) is None)

    def check_call(self, tool: ToolSpec, arguments: Mapping[str, Json], labels: Labels) -> None:
        """Whether a call is allowed.

        Args:
            labels: of the conversation; those of the messages that were seen are added.

        Raises:
            ApprovalNeededError: a person has to allow it.
            PolicyError: it is forbidden. The message tells a model why, and quotes no argument.
        """
        labels |= self.carried
        if why := self._why_not(tool.name, labels):
            raise PolicyError(why)
        rule = self.policy.rule(tool.name)
        for handle in HANDLE.findall(json.dumps(arguments, ensure_ascii=False)):
            if handle not in rule.secrets or handle not in self.secrets:
                raise PolicyError(f"{tool.name}: it is not given the secret {handle!r}")
        default = rule.accepts
        if default is None:
            default = _READS_MAY_TAKE if self._effect(tool.name) == "none" else ValueRule().accepts
        ask = None
        if "untrusted" in labels and rule.when_untrusted == "approve":
            ask = f"{tool.name}: the conversation carries untrusted data"
        for name, value in arguments.items():
            rules = rule.parameters.get(name, (ValueRule(accepts=default),))
            for part in _parts(value):
                problem = self._problem(part, rules, labels)
                if problem is None:
                    continue
                message = f"{tool.name}: {name} {problem}"
                if rule.violation == "deny" or not self._only_flow(part, rules, labels):
                    raise PolicyError(message)
                ask = ask or message
        if ask is not None:
            raise ApprovalNeededError(ask)

    @property
    def carried(self) -> Labels:
        """Labels of all that was seen."""
        return frozenset[Label]().union(*(text.labels for text in self._texts.values()))

    def redact(self, message: Message) -> Message:
        """The message as a model may see it: secrets as handles, and labelled as the policy says."""
        clean = message.model_copy(
            update={
                "content": self.secrets.redact(message.content),
                "calls": tuple(
                    call.model_copy(update={"arguments": self.secrets.redact(call.arguments)}) for call in message.calls
                ),
            }
        )
        if clean.role == "assistant":
            for call in clean.calls:
                if call.id not in self._calls:
                    around = clean.labels | self.carried
                    parts = list(_parts([*call.arguments.values(), *self._invented(call)]))
                    labels = [self._labels_of_part(part, around) for part in parts]
                    untrusted = tuple(part for part, its in zip(parts, labels, strict=True) if "untrusted" in its)
                    self._calls[call.id] = call.name, frozenset[Label]().union(*labels), untrusted
            return clean
        trusted: list[str] = []
        tool: str | None = None
        echoes: tuple[Json, ...] = ()
        if clean.role == "tool" and clean.call_id in self._calls:
            tool, argument_labels, echoes = self._calls[clean.call_id]
            rule = self.policy.rule(tool)
            known = self._tools[tool].returns if tool in self._tools else TRUSTED
            added = known | argument_labels if rule.returns is None else rule.returns
            clean = clean.model_copy(update={"labels": clean.labels | added})
            trusted = _pick(clean.content, rule.trusted_fields)
        if clean.role == "user" and "untrusted" not in clean.labels:
            self._asked[clean.content] = None
        self._see(clean.content, clean.labels, tool, echoes)
        for text in trusted:
            self._see(text, clean.labels - {"untrusted"}, tool, echoes)
        return clean

    # Secrets

    def armed(self, tool: Tool) -> Tool:
        """See `Guard`; which secrets it may have is said by the policy."""
        if not self.secrets:
            return tool
        if tool not in self._armed:
            names = self.policy.rule(tool.name).secrets

            async def run(arguments: Any, context: ToolContext) -> Any:
                return await tool.run(self.secrets.fill(arguments, names), context)

            seal = partial(self.secrets.sealed, tool.name)
            lookup = None if tool.lookup is None else seal(tool.lookup)
            self._armed[tool] = dataclasses.replace(tool, run=seal(run), lookup=lookup)
        return self._armed[tool]

    # Budgets

    def seconds_left(self) -> float | None:
        return None if self.budget is None else self.budget.seconds_left()

    async def reserve(self, kind: Literal["model", "tool"], amounts: Spend) -> Reservation | None:
        """Set aside what a call costs at most; None without a budget.

        Raises:
            BudgetExceededError: the budget cannot cover it.
        """
        if self.budget is None:
            return None
        return self.budget.reserve(id=f"{self.budget.path}:{kind}:{amounts.id}", **self._costs(amounts, most=True))

    async def settle(self, ticket: Reservation | None, actual: Spend) -> None:
        if ticket is not None:
            ticket.settle(**self._costs(actual, most=False))

    def _costs(self, spend: Spend, most: bool) -> dict[str, Any]:
        usage, micros = spend.usage, spend.micros
        if self.prices is not None and usage != Usage():
            if most:
                micros += self.prices.most(spend.name, usage.prompt_tokens, usage.completion_tokens)
            else:
                micros += self.prices.cost(spend.name, usage)
        tokens = usage.prompt_tokens + usage.completion_tokens
        return {"tokens": tokens, "micros": micros, "calls": spend.calls, "seconds": spend.seconds}

    def _check_secrets(self) -> None:
        for name, rule in self.policy.tools.items():
            if missing := sorted(each for each in rule.secrets if each not in self.secrets):
                raise ConfigError(f"policy: tools.{name}.secrets: {missing[0]!r} is not registered; give secrets=")
        for tool in self._tools.values():
            shown = tool.spec().model_dump(mode="json")
            if self.secrets.redact(shown) != shown:
                raise ConfigError(f"tool {tool.name}: a secret stands in its description or schema, which models see")

    def _why_not(self, tool: str, labels: Labels) -> str | None:
        rule = self.policy.rule(tool)
        if not rule.enabled:
            return f"{tool}: the policy does not allow it"
        if "untrusted" not in labels:
            return None
        if rule.when_untrusted == "deny":
            return f"{tool}: the policy does not allow it once untrusted data was read"
        if rule.requested and not self._was_asked(rule.requested):
            return f"{tool}: untrusted data was read, and the user did not ask for this"
        return None

    def _was_asked(self, patterns: Sequence[str]) -> bool:
        return any(re.search(pattern, said, re.IGNORECASE) for pattern in patterns for said in self._asked)

    def _effect(self, tool: str) -> Effect:
        return self._tools[tool].effect if tool in self._tools else "once"

    def _invented(self, call: ToolCall) -> list[str]:
        """Names that no tool declares: the model chose them, and an error may repeat them."""
        if call.name not in self._tools:
            return [call.name, *call.arguments]
        return [name for name in call.arguments if name not in self._tools[call.name].parameters.get("properties", {})]

    def _problem(self, part: Json, rules: Sequence[ValueRule], labels: Labels) -> str | None:
        problems = [self._breaks(part, rule, labels) for rule in rules]
        return None if None in problems else " and ".join(dict.fromkeys(problem for problem in problems if problem))

    def _only_flow(self, part: Json, rules: Sequence[ValueRule], labels: Labels) -> bool:
        """Whether it would be allowed if all labels were accepted."""
        loose = [rule.model_copy(update={"accepts": labels, "in_trusted": False}) for rule in rules]
        return self._problem(part, loose, labels) is None

    def _breaks(self, part: Json, rule: ValueRule, labels: Labels) -> str | None:
        if rule.values is not None and not any(type(part) is type(v) and part == v for v in rule.values):
            return "is not one of the values that the policy lists"
        if rule.pattern is not None and not (isinstance(part, str) and re.fullmatch(rule.pattern, part)):
            return "does not match the policy's pattern"
        if rule.minimum is not None or rule.maximum is not None:
            if isinstance(part, bool) or not isinstance(part, int | float):
                return "is not a number"
            low = -float("inf") if rule.minimum is None else rule.minimum
            high = float("inf") if rule.maximum is None else rule.maximum
            if not low <= part <= high:
                return f"is not from {low:g} to {high:g}"
        if rule.in_trusted:
            if not self._is_trusted(part, rule.pieces):
                return "does not stand in trusted data"
            labels = labels - {"untrusted"}
        if rule.asked and not self._is_trusted(part, 1, said=True):
            return "is not what the user named"
        if rule.requested and not self._was_asked(rule.requested):
            return "is nothing that the user asked for"
        if rule.found_in and not any(t.tool in rule.found_in and t.contains(part) for t in self._texts.values()):
            return f"does not stand in a result of {', '.join(rule.found_in)}"
        if wrong := self._labels_of_part(part, labels) - rule.accepts:
            how = " (it does not stand in trusted data)" if "untrusted" in wrong else ""
            return f"must not carry {', '.join(sorted(wrong))} data{how}"
        return None

    def _is_trusted(self, part: Json, pieces: int, said: bool = False) -> bool:
        """Whether it stands in trusted data, or texts in so many pieces do; with `said`, in what the user said."""
        if part is None or part == "":
            return True
        texts = [_Text(each, TRUSTED, None, ()) for each in self._asked] if said else self._texts.values()
        known = [text for text in texts if "untrusted" not in text.labels]
        if pieces == 1 or not isinstance(part, str):
            return any(text.contains(part) for text in known)
        words = re.findall(r"\S+\s*", part)
        for _ in range(pieces):  # the longest first: what it leaves needs no more pieces than what a shorter one does
            ends = (n for n in range(len(words), 0, -1) if any(t.contains("".join(words[:n]).strip()) for t in known))
            words = words[next(ends, 0) :]
        return not words

    def _labels_of_part(self, part: Json, labels: Labels) -> Labels:
        if part is None or part == "" or not labels:
            return TRUSTED
        for text in self._texts.values():
            if not labels:
                break
            if not labels <= text.labels and text.contains(part):
                labels = labels & text.labels
        return labels

    def _see(self, content: str, labels: Labels, tool: str | None, echoes: tuple[Json, ...]) -> None:
        if (content, labels, tool) not in self._texts:
            said = [str(part) for part in echoes if part is not None]
            self._texts[content, labels, tool] = _Text(content, labels, tool, said)


class _Text:
    """Something that was said, to find values in.

    Args:
        tool: whose result it is.
        echoes: untrusted arguments of the call that gave it. A result or an error may repeat them: it does not vouch
            for what they contain, or what contains them.
    """

    def __init__(self, content: str, labels: Labels, tool: str | None, echoes: Sequence[str]):
        self.labels = labels
        self.tool = tool
        self._echoes = echoes
        try:
            data = json.loads(content)
        except ValueError:
            data = None
        # Strings within JSON are compared as they are, not as they are escaped.
        self._texts = [str(part) for part in _parts(data)] if isinstance(data, dict | list) else [content]
        self._numbers = {_decimal(match) for text in self._texts for match in _NUMBER.findall(text)}

    def contains(self, value: Json) -> bool:
        """As a whole word or several, or as a number of the same size. A truth value stands nowhere."""
        text = str(value)
        if isinstance(value, bool) or any(text in echo or (echo and echo in text) for echo in self._echoes):
            return False
        if isinstance(value, int | float):
            return _decimal(text) in self._numbers
        if not any(text in said for said in self._texts):
            return False
        before = r"(?<!\w)" if re.match(r"\w", text) else ""
        after = r"(?!\w)" if re.search(r"\w\Z", text) else ""
        pattern = re.compile(before + re.escape(text) + after)
        return any(pattern.search(said) for said in self._texts)


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


def _parts(value: Json) -> Iterable[bool | int | float | str | None]:
    """Everything within a value that is no list or object, names of an object among them."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from _parts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner)
    else:
        yield value


def _pick(content: str, paths: Iterable[str]) -> list[str]:
    """What stands at some paths of a JSON text, each piece as JSON."""
    try:
        data = json.loads(content)
    except ValueError:
        return []
    found = []
    for path in paths:
        here = [data]
        for step in path.split("."):
            here = [inner for value in here for inner in _step(value, step)]
        found += [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in here]
    return found


def _step(value: Json, step: str) -> list[Json]:
    if isinstance(value, Mapping):
        return list(value.values()) if step == "*" else [value[step]] if step in value else []
    if isinstance(value, list):
        if step == "*":
            return value
        return [value[int(step)]] if step.isdigit() and int(step) < len(value) else []
    return []
