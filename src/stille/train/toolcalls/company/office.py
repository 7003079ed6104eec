"""A conversation in a company that is being made: what was said, what is known from it, and what can be meant by it."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from typing import Any

from stille.evals.toolworld import Company, specs
from stille.train.toolcalls.company import words
from stille.train.toolcalls.company.answers import answer
from stille.train.toolcalls.company.asks import CHATTER, PERSONS, phrase
from stille.train.toolcalls.company.refer import NP
from stille.train.toolcalls.company.say import say_clock, say_day, say_euros, say_minutes
from stille.train.toolcalls.dice import Dice, fill, plain
from stille.train.toolcalls.talk import sentence

THINGS = {"event_id": "event", "invoice_id": "invoice", "ticket_id": "ticket", "file_name": "file"}
STATUS = {"open": "(open|unpaid|outstanding|unpaid|unsettled)", "paid": "(paid|settled)"}
PRIORITY = {"low": "low", "normal": "normal", "high": "(high|high|top)"}
URGENT = {"low": "(not urgent|not important|minor)", "high": "(urgent|really urgent|important|critical)"}
AN_URGENT = {"low": "a low-priority", "high": "an urgent", "normal": "a normal-priority"}
_TO_IN = re.compile(r"\b(?:by|until|for|to) (in (?:a|\w+) (?:weeks?|days))\b")
_OFF = re.compile(r"\b(call|tick|cross|takes?) (off|over) (it|that|this one)\b")
_FOR_ME = re.compile(
    r"\b(?:help me(?: to)?|we (?:should|need to|have to)|i have to|let's|let us|time to) \w+ me\b", re.IGNORECASE
)
"""What templates would say with some values: "by in two weeks", "call off it", "help me tell me"."""
_PRIORITY = re.compile(r"it's urgent|no hurry", re.IGNORECASE)  # said of a ticket, it would be an argument
_GIVEN = {"minutes": 0.45, "attendees": 0.55, "customer": 0.55, "priority": 0.4}


@cache
def schemas() -> dict[str, dict[str, Any]]:
    """Of the arguments of each tool, by name."""
    return {each["function"]["name"]: each["function"]["parameters"] for each in specs()}


@dataclass
class Ask:
    """A request: a call, and the words in which a user asks for it."""

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    text: str = ""


@dataclass
class Office:
    """A conversation.

    Attributes:
        dice: of all that is drawn.
        company: executes the calls.
        messages, calls: so far; calls as name and arguments.
        listed: kind of thing -> ids that the last list of them had.
        focus: kind of thing (and "person", "customer", "date") -> the one spoken of last.
        known: kind of thing -> ids that have come up.
        names: full name -> the longest form that has come up.
        last: the calls that were made last, with their results.
        when: kind of thing, "person", "customer" or "date" -> the step in which it came up.
        steps: times that calls were made.
    """

    dice: Dice
    company: Company
    today: date
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    listed: dict[str, list[str]] = field(default_factory=dict)
    focus: dict[str, str] = field(default_factory=dict)
    known: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    last: list[tuple[str, dict[str, Any], Any]] = field(default_factory=list)
    when: dict[str, int] = field(default_factory=dict)
    steps: int = 0

    # What is said

    def user(self, text: str) -> None:
        text = _OFF.sub(r"\1 \3 \2", _TO_IN.sub(r"\1", plain(text)))
        text = re.sub(r",\s*([,.?!:;])", r"\1", text).replace("..", ".")
        if self.dice.chance(0.1):
            text = text.casefold().rstrip(".!?").replace(",", "" if self.dice.chance(0.5) else ",").replace("'", "'")
        self.messages.append({"role": "user", "content": text})

    def heard(self) -> list[str]:
        """What the user said."""
        return [str(each["content"]) for each in self.messages if each["role"] == "user"]

    def says(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": plain(text)})

    def call(self, asks: Sequence[Ask]) -> list[Any]:
        """The assistant makes calls at once; they are executed, and their results are messages."""
        made, self.last = [], []
        heard = " ".join(self.heard())
        for each in asks:
            order = [name for name in schemas()[each.tool]["properties"] if name in each.arguments]
            arguments = {name: _as_said(name, each.arguments[name], heard) for name in order}
            text = json.dumps(arguments, ensure_ascii=False)
            function = {"name": each.tool, "arguments": text}
            made.append({"id": f"call_{len(self.calls)}", "type": "function", "function": function})
            self.calls.append((each.tool, arguments))
        self.messages.append({"role": "assistant", "content": None, "tool_calls": made})
        for each, (tool, arguments) in zip(made, self.calls[-len(made) :], strict=True):
            result = self.company.call(tool, arguments)
            self.last.append((tool, arguments, result))
            content = json.dumps(result, ensure_ascii=False)
            self.messages.append({"role": "tool", "tool_call_id": each["id"], "content": content})
        self.steps += 1
        for _, arguments, result in self.last:
            self._note(arguments, result, alone=len(self.last) == 1)
        return [result for _, _, result in self.last]

    def told(self) -> None:
        """The assistant says what came of the last calls."""
        parts = [answer(tool, arguments, result, self.dice, self.today) for tool, arguments, result in self.last]
        self.says(" ".join(dict.fromkeys(parts)))

    def turn(self, *asks: Ask, text: str = "") -> bool:
        """A turn: the user asks (in own words, if there are none here), and it is done and told. False: there are no
        words for it."""
        if not text:
            for each in asks:
                each.text = each.text or phrase(each.tool, each.arguments, each.words, self.dice) or ""
            if not all(each.text for each in asks):
                return False
            text = self.around([each.text for each in asks])
        self.user(text)
        self.call(asks)
        self.told()
        return True

    def asks(self, template: str, said: dict[str, str]) -> None:
        """The user says a template; see `asks.ASKS`."""
        whole = "?" * template.startswith("?")
        self.user(self.around([whole + fill(template.removeprefix("?"), said, self.dice)]))

    def written(self, text: str) -> str:
        """A few words with a capital and a full stop, or without."""
        text = text[:1].upper() + text[1:] if self.dice.chance(0.6) else text
        return text + self.dice.choice(["", ".", "."])

    def around(self, requests: Sequence[str]) -> str:
        """Requests as a user writes them, with chatter or without."""
        text = sentence(requests, self.dice)
        while _FOR_ME.search(text) or (_PRIORITY.search(text) and not _PRIORITY.search(" ".join(requests))):
            text = sentence(requests, self.dice)
        way = self.dice.random()
        if way < 0.04:
            return f"{self.dice.one(CHATTER)} {text[:1].upper()}{text[1:]}"
        return f"{text.rstrip('.')}. {self.dice.one(CHATTER)}" if way < 0.06 and text[-1] not in "?!:" else text

    def _note(self, arguments: dict[str, Any], result: Any, alone: bool) -> None:
        """What can be referred to from now on."""
        if isinstance(result, dict) and "error" in result:
            return
        rows = result if isinstance(result, list) else [result]
        rows = [{"file_name": row} if isinstance(row, str) else row for row in rows]
        for key, kind in THINGS.items():
            ids = [row[key] for row in rows if key in row]
            if isinstance(result, list) and ids:
                self.listed[kind] = ids
                self.focus.pop(kind, None)
            if len(ids) == 1:
                self.focus[kind] = ids[0]
                if not alone:
                    self.focus.pop(kind)
            self.known[kind] = list(dict.fromkeys([*self.known.get(kind, []), *ids]))
            if ids:
                self.when[kind] = self.steps
        if gone := isinstance(result, dict) and result.get("cancelled"):
            for group in (self.known, self.listed):
                group["event"] = [id for id in group.get("event", []) if id != gone]
            self.focus.pop("event", None)
        spoken = [arguments[key] for key in ("name", "assignee", "person") if arguments.get(key)]
        spoken += arguments.get("attendees", [])
        for name in spoken:
            if full := self.company._known(name):
                self.names[full] = max(self.names.get(full, ""), name, key=len)
        if isinstance(result, dict) and result.get("name"):
            self.names[result["name"]] = result["name"]
            if result["company"] != self.company.house:
                self.focus["customer"], self.when["customer"] = result["company"], self.steps
            else:
                self.focus.pop("customer", None)
        people = {self.company._known(name) for name in spoken}
        if len(people) == 1 and alone:
            self.focus["person"], self.when["person"] = str(people.pop()), self.steps
        elif spoken:
            self.focus.pop("person", None)
        for key in ("customer", "date"):
            if arguments.get(key):
                self.focus[key], self.when[key] = arguments[key], self.steps

    def just(self, kind: str) -> list[str]:
        """Things of a kind that the last calls gave, if they gave some."""
        found = self.listed.get(kind, []) if self.when.get(kind) == self.steps else []
        return [id for id in found if id in self.things(kind)]

    def recent(self, what: str, steps: int = 0) -> str | None:
        """What is in focus, if it came up in the last step, or some before."""
        return self.focus.get(what) if self.steps - self.when.get(what, -9) <= steps else None

    # What is drawn

    def things(self, kind: str) -> dict[str, Any]:
        state = self.company.state
        return {"event": state.events, "invoice": state.invoices, "ticket": state.tickets, "file": state.files}[kind]

    def first_name(self, full: str) -> str | None:
        """If it says who is meant."""
        first = full.split()[0]
        return first if self.company._known(first) == full else None

    def draw(
        self,
        tool: str,
        lean: Collection[str] = (),
        without: Collection[str] = (),
        given: Collection[str] = (),
        **fixed: Any,
    ) -> Ask:
        """A call of a tool with its words.

        Args:
            lean: arguments that are taken from what came before, and said by reference.
            without: optional arguments that are not given.
            given: optional arguments that are given.
            fixed: the values of arguments.
        """
        ask = Ask(tool)
        schema = schemas()[tool]
        for name in schema["properties"]:
            needed = name in schema.get("required", ()) or name in fixed or name in given or name in lean
            if name not in without and (needed or self.dice.chance(_GIVEN.get(name, 0.5))):
                self.put(ask, name, name in lean, fixed.get(name))
        changes = [each for each in ("status", "assignee") if each not in without]
        if tool == "update_ticket" and len(ask.arguments) == 1 and changes:
            self.put(ask, self.dice.choice(changes))
        if {"date", "time"} <= ask.arguments.keys():
            w = ask.words
            pair = [f"{w['on']} {w['at']}", f"{w['on']} {w['at']}", f"{w['at']} {w['on']}", f"{w['on']}, {w['time']}"]
            w["when"] = self.dice.choice(pair)
            w["new"] = f"{w['time']} {w['on']}"
            if not w["date"].startswith("in "):
                w["new"] = self.dice.choice([f"{w['date']} {w['at']}", f"{w['date']}, {w['time']}", w["new"]])
        return ask

    def put(self, ask: Ask, name: str, lean: bool = False, value: Any = None) -> None:
        """Gives an argument to a request, and the words for it; see `draw`."""
        dice, words_ = self.dice, ask.words
        if name in THINGS:
            kind = THINGS[name]
            value = value or (self.focus.get(kind) if lean else None) or dice.choice([*self.things(kind)])
            np = NP(self, kind, value)
            words_[kind] = (np.reference() if lean else None) or np.explicit()
            words_ |= np.beside(value, lean)
        elif name in ("date", "due_date"):
            value = value or self.day(ask.tool)
            if lean:
                bare, on = dice.choice([("the same day", True), ("that day", False), ("that day", True)])
            else:
                bare, on = say_day(dice, date.fromisoformat(value), self.today)
            words_["date"], words_["on"] = bare, f"on {bare}" if on else bare
            words_["by"] = dice.choice([f"by {bare}", words_["on"], f"until {bare}"])
        elif name == "time":
            value = value or words.clock(dice)
            words_["time"] = bare = say_clock(dice, value)
            from_too = ask.tool == "create_event" and dice.chance(0.3)
            words_["at"] = f"from {bare}" if from_too else f"at {bare}"
        elif name == "minutes":
            value = value or words.minutes(dice)
            words_["minutes"] = say_minutes(dice, value)
        elif name == "amount":
            value = value or words.euros(dice)
            words_["amount"] = say_euros(dice, value)
        elif name == "title":
            value = self._title(ask, value)
        elif name == "query":
            value = value or self.query()
            words_["query"] = value
        elif name == "status":
            invoices = ask.tool == "list_invoices"
            value = value or dice.choice(
                [*STATUS] if invoices else ["closed", "closed", "in_progress", "in_progress", "open"]
            )
            if invoices:
                words_["status"] = dice.expand(STATUS[value])
        elif name == "priority":
            value = value or dice.choice(["low", "high", "high", "normal"])
            words_["priority"] = dice.expand(PRIORITY[value])
            words_["an_adjective"] = AN_URGENT[value]
            if value in URGENT:
                words_["adjective"] = dice.expand(URGENT[value])
        elif name == "customer":
            value = value or self.customer()
            if lean:
                words_["customer"] = self._company(value)
            else:
                people = [name for name, each in self.company.state.contacts.items() if each["company"] == value]
                if people:
                    words_["contact"] = self.called(dice.choice(people))
                value = words_["customer"] = self._short(value)
        elif name == "attendees":
            full = value or dice.sample([*self.company.state.contacts], dice.choice([1, 1, 1, 2, 2, 3]))
            spoken = [self.called(each) for each in full]
            pronoun = lean and len(full) == 1 and self.names.get(full[0])
            value = [self.names[full[0]]] if pronoun else spoken
            words_["people"] = self.pronoun(full[0])[0] if pronoun else listed(spoken, dice)
        else:
            value = self._person(ask, name, lean, value)
        ask.arguments[name] = value

    def _person(self, ask: Ask, name: str, lean: bool, full: str | None) -> str:
        words_, dice = ask.words, self.dice
        stranger = not full and not lean and dice.chance(0.03)
        full = full or (self.focus.get("person") if lean else None) or dice.choice([*self.company.state.contacts])
        if stranger:
            full = words.person_name(dice)
        if words_.get("former") == full:
            del words_["former"]
        if lean and full in self.names:
            him, he, his = self.pronoun(full)
            words_.update(whom=him, who=he, whose=his, him=him)
            return self.names[full]
        spoken = full if stranger else self.called(full)
        words_.update(whom=spoken, who=spoken, whose=f"{spoken}'s" if spoken[-1] != "s" else f"{spoken}'", name=spoken)
        words_["him"] = self.pronoun(full)[0]
        if full in self.company.state.contacts:
            firm = self.company.state.contacts[full]["company"]
            words_.update({"firm": firm} if firm != self.company.house else {})
        assert name in PERSONS.values()
        return spoken

    def _company(self, customer: str) -> str:
        """A customer that was spoken of."""
        ways = ["them", "the same customer", customer]
        person = self.focus.get("person")
        known = self.company._known(customer, companies=True)
        if person and self.company.state.contacts[person]["company"] == known:
            his = self.pronoun(person)[2]
            ways = [f"{his} company", f"{his} firm", "them", f"{his} company"]
        return self.dice.choice(ways)

    def _short(self, customer: str) -> str:
        """A customer's name, or so much of it that it is clear who is meant."""
        bare = next((customer.removesuffix(end) for end in words.ENDINGS if end and customer.endswith(end)), customer)
        short = self.dice.choice([bare, bare, bare, bare.rsplit(" ", 1)[0]])
        clear = self.company._known(short, companies=True) == customer
        return short if clear and self.dice.chance(0.3) else customer

    def means_the_same(self, key: str, one: Any, other: Any) -> bool:
        """Whether two values of an argument are the same thing, however it is called."""
        if key in ("name", "person", "assignee", "customer") and isinstance(other, str):
            named = [self.company._known(each, companies=key == "customer") for each in (one, other)]
            return named[0] == named[1]
        return one == other

    def called(self, full: str) -> str:
        """How somebody is named: in full, or by the first name where that is enough."""
        first = self.first_name(full)
        return first if first and self.dice.chance(0.55) else full

    def pronoun(self, full: str) -> tuple[str, str, str]:
        return ("her", "she", "her") if words.is_woman(full) else ("him", "he", "his")

    def _title(self, ask: Ask, value: str | None) -> str:
        dice, words_ = self.dice, ask.words
        if ask.tool == "create_event":
            value = value or words.event_title(dice)
            article = "an" if value[0] in "aeiou" and not value.startswith("one-") else "a"
            words_["a_title"] = f"{article} {value}" if dice.chance(0.7) else f"the {value}"
            if value in words.SHORT and dice.chance(0.4):
                words_["a_title"] = value
            big = value[0].upper() + value[1:]
            words_["title"] = dice.choice([value, value, f'"{value}"', f"'{value}'", f'"{big}"'])
            return value
        kind = dice.choice(["noun", "work", "fact"])
        if value is None:
            value = words.ticket_title(dice, kind)
            words_[kind] = value
        quoted = dice.choice([f'"{value}"', f'"{value[0].upper()}{value[1:]}"', f"'{value}'", f"“{value}”"])
        words_["title"] = dice.choice([value, value, value, quoted])
        words_["quoted"] = quoted
        return value

    def day(self, tool: str) -> str:
        """A date for a call of a tool, most often within two weeks."""
        dice = self.dice
        if tool == "list_events" and dice.chance(0.4):
            return dice.choice([*self.things("event").values()])["date"]
        ahead = [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, dice.randrange(1, 60)]
        if tool == "create_invoice":
            ahead = [1, 7, 10, 14, 14, 21, 28, 30, *(dice.randrange(1, 60) for _ in range(8))]
        if tool == "list_events":
            ahead += [-1, -dice.randrange(2, 7)]
        day = self.today + timedelta(days=dice.choice(ahead))
        if day.weekday() > 4 and dice.chance(0.6):
            day += timedelta(days=2)
        return day.isoformat()

    def customer(self) -> str:
        companies = {each["company"]: 0 for each in self.company.state.contacts.values()}
        return self.dice.choice([each for each in companies if each != self.company.house])

    def query(self) -> str:
        """Words of a file's name: what it is about, with its year, or one word of it; sometimes of none."""
        dice = self.dice
        name = dice.choice([*self.company.state.files])
        about = words.paper(dice) if dice.chance(0.2) else words.topic(name)
        year = re.search(r"20\d\d", name)
        if year and dice.chance(0.15):
            return f"{about} {year[0]}"
        return dice.choice(about.split()) if dice.chance(0.1) else about


def listed(names: Sequence[str], dice: Dice) -> str:
    between = dice.choice([" and ", " and ", " & "])
    return between.join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _as_said(name: str, value: Any, heard: str) -> Any:
    """Free text in the letters in which it was said last."""
    if name in ("title", "query") and (at := heard.casefold().rfind(value.casefold())) >= 0:
        return heard[at : at + len(value)]
    return value
