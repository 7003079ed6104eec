"""Kinds of conversations: single turns, and tasks whose turns lean on what came before."""

# ruff: noqa: E501  (a line holds many phrases)

from collections.abc import Callable

from stille.evals.toolworld import TOOLS
from stille.train.toolcalls.company import idle
from stille.train.toolcalls.company.asks import phrase
from stille.train.toolcalls.company.lacking import lacking
from stille.train.toolcalls.company.lookups import look_up
from stille.train.toolcalls.company.moves import again, alike, correct, narrow, shift, unclear, whole_list
from stille.train.toolcalls.company.office import THINGS, Ask, Office
from stille.train.toolcalls.company.refer import NOUNS, NP

READS = ("find_contact", "list_events", "list_invoices", "find_files")
_MANY = {"find_contact": ("name",), "list_events": ("date",), "cancel_event": ("event_id",), "mark_invoice_paid": ("invoice_id",), "update_ticket": ("ticket_id",), "share_file": ("person", "file_name"), "find_files": ("query",), "list_invoices": ("customer",), "create_invoice": ("customer",)}  # fmt: skip

GLAD = ("Thanks.", "Great.", "Perfect.", "OK, good.", "Good.", "Got it.", "Fine.", "Thank you!", "Wonderful.", "Right.", "Lovely.", "Very good.", "Brilliant, thanks.", "Excellent!", "Ok, next one.", "That's fine.", "Good to know.", "All right.")  # fmt: skip


def single(office: Office) -> bool:
    return office.turn(office.draw(office.dice.choice(TOOLS)))


def several(office: Office) -> bool:
    """Two or three calls at once: of one tool with several things, or different requests in one sentence."""
    dice, count = office.dice, office.dice.choice([2, 2, 2, 3])
    if dice.chance(0.62):
        tools = dice.sample(TOOLS, count) if dice.chance(0.8) else [dice.choice(TOOLS)] * count
        asks = [office.draw(tool) for tool in tools]
        different = {str((each.tool, *each.arguments.values())).casefold() for each in asks}
        return len(different) == count and office.turn(*asks)
    tool = dice.choice([*_MANY])
    many = dice.choice(_MANY[tool])
    return together(office, tool, many, count)


def together(office: Office, tool: str, many: str, count: int) -> bool:
    """One request for several things: "close T-21 and T-23"."""
    dice = office.dice
    given = (many,) if many == "customer" else ()
    first = office.draw(tool, given=given)
    same = {name: value for name, value in first.arguments.items() if name != many}
    asks = [first]
    for _ in range(10):
        other = office.draw(tool, given=given)
        if len(asks) < count and other.arguments[many] not in [each.arguments[many] for each in asks]:
            asks.append(
                Ask(tool, {name: same.get(name, other.arguments.get(name)) for name in (*same, many)}, other.words)
            )
    if many in THINGS:
        ids = [str(each.arguments[many]) for each in asks]
        noun = dice.choice(NOUNS[THINGS[many]])
        said = {THINGS[many]: dice.choice(["", "", f"{noun}s ", f"the {noun}s "]) + joined(ids, office)}
    else:
        slots = {"name": ("whom", "whose"), "person": ("whom",), "date": ("on", "date")}.get(many, (many,))
        said = {slot: joined([each.words[slot] for each in asks], office, slot) for slot in slots}
    for slot in (
        "who",
        "name",
        "id",
        "payer",
        "was",
        "former",
        "firm",
        "contact",
        "someone",
        "what",
    ):  # said of one only
        if slot != "who" or many == "person" or tool == "find_contact":
            first.words.pop(slot, None)
    text = phrase(tool, first.arguments, {**first.words, **said}, dice, several=many in THINGS)
    return bool(text) and office.turn(*asks, text=office.around([str(text)]))


def joined(parts: list[str], office: Office, slot: str = "") -> str:
    dice, last = (
        office.dice,
        parts[-1].removeprefix("on ") if slot == "on" and parts[0].startswith("on ") else parts[-1],
    )
    if len(parts) == 2 and dice.chance(0.25) and not slot:
        return f"both {parts[0]} and {last}"
    return (
        ", ".join(parts[:-1])
        + dice.choice(
            [" and ", " and ", " and ", ", ", " & ", " as well as ", ", and also "]
            if len(parts) == 2
            else [" and ", ", "]
        )
        + last
    )


def missing(office: Office) -> bool:
    return lacking(office)


def none(office: Office) -> bool:
    asked, said = idle.exchange(office)
    office.user(asked)
    office.says(said)
    return True


def thanks(office: Office) -> bool:
    dice = office.dice
    text = dice.one(idle.THANKS)
    office.user((text[0].upper() + text[1:] if dice.chance(0.5) else text) + dice.choice(["", ".", "!"]))
    office.says(dice.choice(idle.WELCOME))
    return True


def task(office: Office) -> bool:
    """Three to six turns."""
    dice, turns = office.dice, office.dice.choice([3, 4, 4, 5, 5, 5, 5, 6])
    ends = dice.chance(0.4)
    opened = False
    while not opened:
        opened = dice.choices([fresh, look_up, several], [8, 1.5, 0.7])[0](office)
    for _ in range(turns - 1 - ends):
        for _ in range(12):
            move, before = dice.choices([*MOVES], [*MOVES.values()])[0], len(office.messages)
            if move(office):
                if move is not correct and dice.chance(0.1):
                    acknowledge(office, before)
                break
        else:
            fresh(office)
    return thanks(office) if ends else True


def acknowledge(office: Office, at: int) -> None:
    """Before a request the user is glad of what was done last."""
    done, called = office.messages[at - 2], office.messages[at + 1].get("tool_calls")
    if done["role"] == "tool" and '"error"' not in done["content"] and called:
        office.messages[at]["content"] = f"{office.dice.one(GLAD)} {office.messages[at]['content']}"


def fresh(office: Office) -> bool:
    """A request that leans on nothing; more often one that gives something to lean on."""
    tool = office.dice.choices(TOOLS, [2, 4, 2.4, 0.6, 0.4, 4, 2.6, 0.7, 4.5, 1.2, 3.2, 0.9])[0]
    if tool == "list_events" and office.dice.chance(0.8):
        return office.turn(
            office.draw(tool, date=office.dice.choice([*office.things("event").values()] or [{"date": None}])["date"])
        )
    return office.turn(office.draw(tool))


def lean(office: Office) -> bool:
    """A request in which something is said by what came before."""
    dice, ways, found = office.dice, [], {}
    for tool, key in (("move_event", "event_id"), ("cancel_event", "event_id"), ("mark_invoice_paid", "invoice_id"), ("update_ticket", "ticket_id"), ("share_file", "file_name")):  # fmt: skip
        if ids := _known(office, tool, THINGS[key]):
            ways += [(tool, key)] * 2
            found[tool] = ids
    if person := office.recent("person", 1):
        ways += [
            ("share_file", "person"),
            ("create_ticket", "assignee"),
            ("create_event", "attendees"),
            ("update_ticket", "assignee"),
        ]
        if person not in [arguments.get("name") for _, arguments in office.calls]:
            ways.append(("find_contact", "name"))
    if office.recent("customer"):
        ways += [("create_invoice", "customer"), ("list_invoices", "customer")]
    if office.recent("date"):
        ways += [("create_event", "date"), ("create_event", "date"), ("list_events", "date")]
    if not ways:
        return False
    tool, key = dice.choice(ways)
    leant, fixed = {key}, {}
    if key in THINGS:
        fixed[key] = dice.choice(found[tool])
        if NP(office, THINGS[key], fixed[key]).reference() is None:
            return False
        if person and dice.chance(0.5):
            leant |= {"person", "assignee"} if tool in ("share_file", "update_ticket") else set()
            fixed.update(
                {"person": person} if tool == "share_file" else {"assignee": person} if tool == "update_ticket" else {}
            )
        if tool == "update_ticket" and "assignee" in fixed and dice.chance(0.7):
            return office.turn(office.draw(tool, lean=leant, without=("status",), **fixed))
    elif key == "attendees":
        fixed[key] = [person]
    elif key == "date" or key == "customer":
        fixed[key] = office.focus[key]
        if tool == "list_events" and ("list_events", {"date": fixed[key]}) in office.calls[-2:]:
            return False
    elif key != "customer":
        fixed[key] = person
        # What else is named is known, or said by its id.
        if tool in found and dice.chance(0.6):
            other = "file_name" if tool == "share_file" else "ticket_id"
            fixed[other] = dice.choice(found[tool])
            leant.add(other)
    file = office.company.state.files.get(fixed.get("file_name", ""), [])
    if tool == "share_file" and fixed.get("person") in file:
        return False  # has it already
    without = ("status",) if tool == "update_ticket" and key == "assignee" and dice.chance(0.7) else ()
    return office.turn(office.draw(tool, lean=leant, without=without, **fixed))


def _known(office: Office, tool: str, kind: str) -> list[str]:
    """Things that were spoken of and that a tool has something to do with."""
    things = office.things(kind)
    found = [id for id in office.known.get(kind, []) if id in things]
    if tool == "mark_invoice_paid":
        found = [id for id in found if things[id]["status"] == "open"] or (found if office.dice.chance(0.1) else [])
    return found


def lean_twice(office: Office) -> bool:
    """Two things that lean on what came before, or one and something new, at once."""
    dice, made = office.dice, []
    for tool, key in dice.sample([("move_event", "event_id"), ("mark_invoice_paid", "invoice_id"), ("update_ticket", "ticket_id"), ("share_file", "file_name")], 4):  # fmt: skip
        ids = _known(office, tool, THINGS[key])
        if ids and len(made) < 2:
            id = dice.choice(ids)
            if NP(office, THINGS[key], id).reference() is None:
                continue
            made.append(office.draw(tool, lean={key}, **{key: id}))
    if not made:
        return False
    if len(made) == 1:
        made.append(
            office.draw(
                dice.choice(
                    ["create_ticket", "create_event", "list_events", "find_contact", "find_files", "list_invoices"]
                )
            )
        )
    return office.turn(*made)


def lacking_now(office: Office) -> bool:
    """Something lacks that cannot be found in the conversation either."""
    fits = {"title", "time", "amount", "due_date", "query"}
    fits |= set() if office.focus.get("date") else {"date"}
    fits |= set() if office.focus.get("person") or office.names else {"name", "person"}
    fits |= set() if office.focus.get("customer") else {"customer"}
    fits |= {key for key, kind in THINGS.items() if not office.known.get(kind)}
    return lacking(office, frozenset(fits), answered=0.96)


MOVES: dict[Callable[[Office], bool], float] = {
    lean: 13, shift: 3, correct: 1.6, again: 2.6, alike: 1.6, unclear: 2.6, whole_list: 2.4, narrow: 1.2, look_up: 1.6, lean_twice: 2.0, lacking_now: 1.2, fresh: 0.9, none: 1.7,
}  # fmt: skip
"""Turns of a task after the first, with how often they are tried."""
SCENARIOS: dict[str, tuple[Callable[[Office], bool], float]] = {
    "single": (single, 0.20),
    "several": (several, 0.08),
    "missing": (missing, 0.08),
    "none": (none, 0.09),
    "task": (task, 0.55),
}
"""By name, with their share of the conversations."""
