"""How a thing is named: by its id, with something beside it or not, or by what was said of it before."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING, Any

from stille.train.toolcalls.company.say import say_clock, say_day, say_euros, say_minutes
from stille.train.toolcalls.kinds import ordinal

if TYPE_CHECKING:
    from stille.train.toolcalls.company.office import Office

NOUNS = {
    "event": ("meeting", "event", "appointment"),
    "invoice": ("invoice", "bill"),
    "ticket": ("ticket", "task"),
    "file": ("file", "document"),
}
NTH = ("first", "second", "third", "fourth", "fifth", "sixth")
FORMATS = {"xlsx": "spreadsheet", "png": "picture", "pptx": "presentation", "docx": "word document"}


class NP:
    """A noun phrase for a thing.

    Args:
        office: the conversation.
        kind: event, invoice, ticket or file.
        id: of the thing; of a file its name.
    """

    def __init__(self, office: Office, kind: str, id: str):
        self.office, self.dice, self.kind, self.id = office, office.dice, kind, id
        self.all = office.things(kind)
        self.thing: Any = self.all.get(id, {})

    def explicit(self) -> str:
        """With the id."""
        dice, id, noun = self.dice, self.id, self.dice.choice(NOUNS[self.kind])
        if self.kind == "file":
            return dice.choice([id, id, id, f"the {noun} {id}", f'"{id}"'])
        if dice.chance(0.25):
            id = dice.choice([id.casefold(), id.casefold(), id.capitalize()])
        plain = [id, id, f"{noun} {id}", f"the {noun} {id}"]
        if not self.thing or dice.chance(0.6):
            return dice.choice(plain)
        beside = self._beside()
        ways = [f"{id} ({beside})", f"{id}, {beside},", f"{beside} ({id})", f"{beside}, {id},"]
        return dice.choice([*ways, f"{noun} {id} ({beside})"])

    def _beside(self) -> str:
        """Something that is no argument of the call."""
        dice, thing = self.dice, self.thing
        if self.kind == "event":
            who = [self.office.first_name(each) for each in thing["attendees"]]
            more = [f"the {thing['title']} with {who[0]}"] if who and who[0] else []
            return dice.choice([f"the {thing['title']}", f"the {thing['title']}", *more])
        if self.kind == "invoice":
            customer, amount = thing["customer"], say_euros(dice, thing["amount"])
            ways = [customer, f"the one of {customer}", f"the one over {amount}", f"{customer}, {amount}"]
            return dice.choice([*ways, f"the bill for {customer}"])
        title = thing["title"].removeprefix("the ")
        return dice.choice([f'"{title}"', f'the one with the title "{title}"'])

    def beside(self, id: str, lean: bool) -> dict[str, str]:
        """Words for what is no argument of a call."""
        dice, thing = self.dice, self.thing
        words: dict[str, str] = {} if lean else {"id": id}
        if self.kind == "invoice" and thing:
            words["payer"] = thing["customer"]
            words["what"] = say_euros(dice, thing["amount"])
        elif self.kind == "event" and thing:
            bare, _ = say_day(dice, date.fromisoformat(thing["date"]), self.office.today)
            words["what"] = thing["title"]
            if thing["attendees"]:
                words["someone"] = self.office.called(dice.choice(thing["attendees"]))
            words["was"] = dice.choice([bare, say_clock(dice, thing["time"])])
        elif self.kind == "ticket" and thing:
            words["what"] = f'"{thing["title"]}"'
            if thing["assignee"]:
                words["former"] = words["someone"] = thing["assignee"]
        return words

    def reference(self) -> str | None:
        """By what came before; None if that does not say which."""
        dice, office = self.dice, self.office
        stale = office.steps - office.when.get(self.kind, 0) > 2
        listed = [id for id in office.listed.get(self.kind, []) if id in self.all and not stale]
        known = [id for id in office.known.get(self.kind, []) if id in self.all]
        ways: list[str] = []
        if office.focus.get(self.kind) == self.id:
            noun = dice.choice(NOUNS[self.kind])
            ways += [f"the {noun}", f"that {noun}", f"this {noun}"]
            if office.recent(self.kind):
                ways += ["it", "it", "it", "it", "that", "this one"]
        if self.kind == "event" and known and len({self.all[id]["title"] for id in known}) == len(known):
            ways += [f"the {self.thing['title']}"] * (3 if len(known) > 1 else 1)
        if self.id in listed and len(listed) > 1:
            ways += self._among(listed)
        elif self.id in known and len(known) == 2 and not listed and not stale:
            ways += self._among(known)
        return dice.choice(ways) if ways else None

    def _among(self, ids: list[str]) -> list[str]:
        """What sets it apart from the others of a list."""
        things = [self.all[id] for id in ids]
        place, others = ids.index(self.id), [self.all[id] for id in ids if id != self.id]
        ways = [f"the {NTH[place]} one", f"the {NTH[place]}"] if place < len(NTH) else []
        if place == len(ids) - 1:
            ways += ["the last one", "the last of them"]
        if len(ids) == 2:
            ways.append("the former" if place == 0 else "the latter")
        elif place < 3:
            ways.append(f"the {NTH[place]} on the list")
        if self.kind == "file":
            return ways + self._file(ids)
        if self.kind == "event":
            ways += self._event(others)
        elif self.kind == "invoice":
            ways += self._invoice(others, things)
        else:
            noun = self.thing["title"]
            ways += [f'the one with the title "{noun}"', f'"{noun}"', f'the one called "{noun}"']
            who = self.thing["assignee"]
            if who and all(each["assignee"] != who for each in others):
                ways += [f"the one assigned to {who}", f"the one that {who} has"]
            if not who and all(each["assignee"] for each in others):
                ways += ["the one that nobody has", "the unassigned one"]
        return ways

    def _event(self, others: list[dict[str, Any]]) -> list[str]:
        thing, dice, ways = self.thing, self.dice, []
        day = thing["date"]
        same_day = all(each["date"] == day for each in others)
        if same_day and all(each["time"] != thing["time"] for each in others):
            clock = say_clock(dice, thing["time"])
            ways += [f"the one at {clock}", f"the one at {clock}", f"the one starting at {clock}", f"the {clock} one"]
            times = sorted(each["time"] for each in others)
            if len(others) > 1 and not times[0] < thing["time"] < times[-1]:
                ways.append("the earliest one" if thing["time"] < times[0] else "the latest one")
            if len(others) == 1:
                ways.append("the later of the two" if thing["time"] > times[0] else "the earlier of the two")
                ways += ["the later one" if thing["time"] > others[0]["time"] else "the earlier one"] * 2
        for name in thing["attendees"]:
            if all(name not in each["attendees"] for each in others):
                name = self.office.first_name(name) or name
                ways += [f"the one with {name}", f"the one with {name}", f"the one that {name} comes to"]
        if not same_day and all(each["date"] != day for each in others):
            bare, on = say_day(dice, date.fromisoformat(day), self.office.today)
            ways += [f"the one {'on ' if on else ''}{bare}"] * 2
        if all(each["minutes"] != thing["minutes"] for each in others):
            ways += [f"the {thing['minutes']} minute one", f"the one that takes {say_minutes(dice, thing['minutes'])}"]
        if all(each["minutes"] < thing["minutes"] for each in others):
            ways.append("the longest one" if len(others) > 1 else "the longer one")
        if all(each["minutes"] > thing["minutes"] for each in others):
            ways.append("the shortest one" if len(others) > 1 else "the shorter one")
        return ways

    def _invoice(self, others: list[dict[str, Any]], things: list[dict[str, Any]]) -> list[str]:
        thing, dice, ways = self.thing, self.dice, []
        today = self.office.today.isoformat()
        if all(each["amount"] != thing["amount"] for each in others):
            ways += [f"the one (over|for|of) {say_euros(dice, thing['amount'])}", f"the {thing['amount']} euro one"] * 2
        if all(each["amount"] < thing["amount"] for each in others):
            ways += _most("biggest", "highest", "largest") if len(others) > 1 else _more("bigger", "higher", "larger")
        if all(each["amount"] > thing["amount"] for each in others):
            ways += _most("smallest", "lowest") if len(others) > 1 else _more("smaller", "lower")
        if all(each["customer"] != thing["customer"] for each in others):
            ways += [f"the one (of|for|to) {thing['customer']}", _whose(thing["customer"])] * 2
        if all(each["due_date"] != thing["due_date"] for each in others):
            bare, on = say_day(dice, date.fromisoformat(thing["due_date"]), self.office.today)
            ways.append(f"the one due {'on ' if on else ''}{bare}")
            day = ordinal(int(thing["due_date"][8:]))
            if all(each["due_date"][8:] != thing["due_date"][8:] for each in others):
                ways.append(f"the one due on the {day}")
        overdue = [each for each in things if each["due_date"] < today and each["status"] == "open"]
        if overdue == [thing]:
            ways += ["the overdue one"] * 2 + ["the one that is overdue", "the one past its due date", "the late one"]
        dues = [each["due_date"] for each in others]
        if thing["due_date"] < min(dues):
            ways.append("the one due first" if len(dues) > 1 else "the one that is due earlier")
        if thing["due_date"] > max(dues):
            ways.append("the one due last" if len(dues) > 1 else "the one that is due later")
        if thing["status"] == "open" and all(each["status"] == "paid" for each in others):
            ways += ["the open one", "the unpaid one", "the one that is still open", "the one not paid yet"]
        if thing["status"] == "paid" and all(each["status"] == "open" for each in others):
            ways += ["the paid one", "the one that is paid already"]
        return [dice.expand(each) for each in ways]

    def _file(self, ids: list[str]) -> list[str]:
        ways: list[str] = [self.id]
        end = self.id.rpartition(".")[2]
        if all(not id.endswith(end) for id in ids if id != self.id):
            ways += [f"the {end}", f"the {end} one", f"the {FORMATS.get(end, end + ' file')}", f"the {end} version"]
            ways.append(f"the one ending in .{end}")
        years = {id: found[0] for id in ids if (found := re.search(r"20\d\d", id))}
        year = years.get(self.id)
        if year and [*years.values()].count(year) == 1:
            ways += [f"the one (from|of) {year}", f"the {year} one"]
            if len(years) == len(ids):
                newest, oldest = year == max(years.values()), year == min(years.values())
                ways += ["the newest one", "the most recent one"] * newest + ["the oldest one"] * oldest
        return [self.dice.expand(each) for each in ways]


def _whose(name: str) -> str:
    return f"{name}'" if name[-1] == "s" else f"{name}'s"


def _most(*most: str) -> list[str]:
    return [f"the {each} one" for each in most]


def _more(*more: str) -> list[str]:
    return [f"the {each} one" for each in more] + [f"the {more[0]} of the two"]
