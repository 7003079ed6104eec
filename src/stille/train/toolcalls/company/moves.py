"""Turns of a task that lean on what came before in a way of their own: shifts, corrections, the same again, look-ups."""

# ruff: noqa: E501  (a line is a template)

from datetime import date, timedelta
from typing import Any

from stille.train.toolcalls.company import words
from stille.train.toolcalls.company.office import Ask, Office
from stille.train.toolcalls.company.refer import NP
from stille.train.toolcalls.company.say import later, say_clock, say_day, say_minutes
from stille.train.toolcalls.dice import fill

LATER = (
    "make {event} {n} later", "move {event} {n} later", "push {event} back by {n}", "move {event} back by {n}", "?{event} should (begin|start) {n} later", "?can {event} (be|start|begin) {n} later", "delay {event} by {n}", "start {event} {n} later", "?{event} has to (start|be) {n} later", "?we need {n} more before {event}, so move it back by that",
    "postpone {event} by {n}", "?{n} later would be better for {event}", "shift {event} by {n}, to a later time",
    "give us {n} more, {event} can start later by that", "?{event} starts {n} later", "?I'm running late, make {event} {n} later", "?we won't be ready for {event} in time, so push it back {n}", "set {event} back by {n}", "start {event} {n} after the planned time", "?{event} is delayed by {n}", "?{n} later for {event}, please", "let {event} begin {n} later",
)  # fmt: skip
EARLIER = (
    "make {event} {n} earlier", "move {event} {n} earlier", "bring {event} forward by {n}", "?{event} should (begin|start) {n} earlier", "?can {event} (be|start|begin) {n} earlier", "start {event} {n} earlier", "?{event} has to (start|be) {n} earlier", "pull {event} forward by {n}", "?{n} earlier would be better for {event}", "shift {event} to {n} before that",
    "?{event} starts {n} earlier", "?we are done sooner than expected, so have {event} {n} earlier", "have {event} start {n} sooner", "?{n} earlier for {event}, please", "let {event} begin {n} earlier", "?could {event} be brought forward by {n}", "move {event} up by {n}, so that we start earlier", "start {event} {n} before the planned time",
)  # fmt: skip
SAME_TIME = (
    "move {event} to {date}, same time", "?the same time {on} for {event}", "?{event} {on} instead, at the same time", "keep the time of {event} but move it to {date}", "move {event} to {date} and keep the time", "?{event} has to be {on}, the time stays", "?can {event} be {on} instead, same time", "shift {event} to {date}, same hour", "put {event} {on}, the time stays as it is", "?let's have {event} {on} at the same time",
    "reschedule {event} to {date}, the time can stay",
    "?{someone} can't make {event} that day, so we need {date} instead, same time", "?{someone} is away that day, so move {event} to {date}, same time", "put {event} {on}, usual time", "?another day for {event}: {date}. The time stays the same", "?only the day changes for {event}: {date}", "change the day to {date} for {event}, but not the time", "?that day doesn't suit us for {event}, take {date} at the same time", "?we need {date} for {event} instead, at the same hour", "?I got the day wrong for {event}, it's {date}, the time is right", "swap {event} to {date} and leave the time alone",
)  # fmt: skip
SAME_DAY = (
    "make {event} {time} instead", "move {event} to {time}", "move {event} to {time} the same day", "?{event} {at} instead", "?{event} begins {at}, same day", "?can {event} be {at} instead", "?{event} should start {at}", "shift {event} to {time}", "push {event} to {time}, the day stays", "?let's start {event} {at}", "?{time} is better for {event}, same day", "set {event} to {time}, on the same day",
    "?{someone} can't be there at that time, so make {event} {time}, same day", "?make that {time} for {event}", "?could we make {event} {time}", "?only the time changes for {event}: {time}", "change the start to {time} for {event}", "?I got the time wrong for {event}, it's {time}", "?the day is fine for {event}, but please make it {time}", "?we need {time} for {event} instead, the same day", "let {event} begin at {time}, the date stays", "?same day, but {time} for {event}", "?{someone} asked if {event} can start {at}, please change that",
)  # fmt: skip
DAYS_ON = {
    1: ("the next day", "the day after", "one day later"),
    7: ("a week later", "the week after", "one week later"),
}
NO = (
    "no, {x}", "no, I meant {x}", "sorry, I meant {x}", "oh no, {x} I mean", "actually {x}", "actually, make that {x}", "wait, {x}", "I said it wrong: {x}", "no sorry, {x}", "not {old}, {x}", "{x}, not {old}", "I mean {x}, not {old}", "hm, rather {x}", "oops, {x}", "correction: {x}", "wrong, it should be {x}", "{x} is what I meant", "let's take {x} instead", "better {x}", "no no, {x}",
    "no, make it {x}", "make it {x}, my mistake", "sorry, not {old} but {x}", "scratch that, {x}", "on second thought, {x}", "my mistake, {x}", "I misspoke, {x}", "{x}, sorry", "{x} rather than {old}", "typo, {x}", "did I say {old}? I meant {x}", "I got that wrong, it's {x}", "that should have been {x}", "not {old}! {x}", "argh, {x}", "hang on, {x}", "nope, {x}", "pardon me, {x}", "let me correct that: {x}", "I mixed that up, {x}", "please change that: {x}", "hold on, it has to be {x}", "{x} instead of {old}, sorry", "I was wrong about {old}, it's {x}",
)  # fmt: skip
AGAIN = {
    "date": ("and {on}", "the same for {date}", "what about {date}", "the same {on}", "the same again {on}", "and for {date}", "now for {date}", "do the same for {date}", "one more like that {on}", "and what about {date}", "same thing {on}", "same again {on}", "repeat that for {date}", "{on} as well", "{date} too"),
    "name": ("and {whom}", "what about {whom}", "the same for {whom}", "{whose} too, please", "and {whose}", "now {whom}", "and for {whom}", "and what about {whom}", "do you have {whose} as well", "then {whom}", "I need {whose} too", "{whom} as well"),
    "customer": ("and for {customer}", "the same for {customer}", "what about {customer}", "now {customer}", "and {customer}", "do the same for {customer}", "{customer} too", "and what about {customer}", "same thing for {customer}", "repeat that for {customer}", "{customer} as well", "same again for {customer}"),
    "amount": ("another one over {amount}", "one more, over {amount}", "and a second one over {amount}", "the same again with {amount}", "and one for {amount} too", "the same once more, but {amount}", "same again, but over {amount}", "a further one over {amount}", "and then one over {amount}", "plus another for {amount}"),
    "person": ("and with {whom}", "{who} needs it too", "share it with {whom} too", "also with {whom}", "and {whom} as well", "the same for {whom}", "{whom} too", "give {whom} access as well", "{who} should get it as well", "{who} could use it too", "and also with {whom}", "same thing for {whom}", "don't forget {whom}", "{who} too"),
    "file_name": ("{file} too", "and {file}", "also {file}", "the same with {file}", "and {file} as well", "do the same with {file}", "same thing with {file}", "then {file} as well", "plus {file}"),
    "event_id": ("{event} too", "and {event}", "also {event}", "the same for {event}", "{event} as well", "and {event} as well, please", "and the same goes for {event}", "same thing with {event}", "then {event} as well", "plus {event}"),
    "invoice_id": ("{invoice} too", "and {invoice}", "also {invoice}", "the same for {invoice}", "{invoice} as well", "and so is {invoice}", "and the same goes for {invoice}", "same thing with {invoice}", "so is {invoice}", "plus {invoice}"),
    "ticket_id": ("{ticket} too", "and {ticket}", "also {ticket}", "the same for {ticket}", "{ticket} as well", "and do the same with {ticket}", "and the same goes for {ticket}", "same thing with {ticket}", "then {ticket} as well", "plus {ticket}"),
    "query": ("and the {query}", "what about the {query}", "and {query}", "the {query} too", "now the {query}", "the same for the {query}", "and what about the {query}", "and where is the {query}", "same for the {query}", "then the {query}"),
    "title": ("another ticket: {title}", "and one more: {title}", "one more ticket, {title}", "and the same for another one: {title}"),
}  # fmt: skip
REPEATED = {
    "list_events": ("date",), "create_event": ("date",), "find_contact": ("name",), "list_invoices": ("customer",), "create_invoice": ("customer", "amount"), "share_file": ("person", "file_name"), "cancel_event": ("event_id",), "mark_invoice_paid": ("invoice_id",), "update_ticket": ("ticket_id",), "find_files": ("query",),
}  # fmt: skip
ONLY_STATUS = (
    "only the {status} ones",
    "just the {status} ones",
    "which of them are {status}",
    "and the {status} ones only",
    "I only need the {status} ones",
    "show me only those that are {status}",
    "leave out all but the {status} ones",
    "and which ones are {status}",
    "I meant the {status} ones",
    "narrow it down to the {status} ones",
    "skip everything that isn't {status}",
    "the {status} ones would do",
)
ONLY_CUSTOMER = (
    "only those of {customer}",
    "just the ones for {customer}",
    "and only for {customer}",
    "I only need {customer}",
    "which of them are for {customer}",
    "only {customer}, please",
    "narrow it down to {customer}",
    "I meant just {customer}",
    "the ones for {customer} would do",
    "skip all but {customer}",
    "and just for {customer}",
)
ALL = {
    "event": ("cancel {all}", "call off {all}", "take {all} out of the calendar", "remove {all}", "delete {all} from the calendar", "?we don't need {all} any more, cancel {all}", "?{all} are off", "?{all} won't happen", "scrap {all}", "?{all} can go", "?nobody can come, so cancel {all}"),
    "invoice": ("mark {all} as paid", "?{all} are paid", "?{all} have been paid", "note {all} as paid", "set {all} to paid", "?they paid {all}", "?{all} are settled now", "?they have paid us for {all}", "?the money for {all} has come in", "tick off {all} as paid", "?{all} came through, mark them as paid", "record {all} as paid"),
    "file": ("share {all} with {whom}", "give {whom} access to {all}", "send {all} to {whom}", "?{who} needs {all}", "let {whom} see {all}", "make {all} available to {whom}", "?{who} should get {all}", "forward {all} to {whom}", "?{who} asked for {all}", "?could {who} have {all}", "get {all} over to {whom}"),
}  # fmt: skip
UNCLEAR = {
    "event": ("cancel the meeting", "cancel one of them", "?one of them is off", "cancel the appointment", "take one of them out of the calendar", "?we can do without one of them, cancel it", "?one of these won't happen", "drop one of them", "?one of them can go"),
    "invoice": ("mark the invoice as paid", "?one of them is paid", "?one of those was paid", "mark one of them as paid", "?the invoice is paid", "?the money for one of them has come in", "?they have paid us for one of them", "tick one of them off as paid", "?one of these has been settled"),
    "file": ("share one of them with {whom}", "share the file with {whom}", "give {whom} access to one of them", "?{who} needs one of them", "?{who} wants one of those", "?{who} asked for one of them", "forward one of them to {whom}", "send {whom} one of these"),
}  # fmt: skip
TOOL_OF = {"event": "cancel_event", "invoice": "mark_invoice_paid", "file": "share_file"}
KEY_OF = {"event": "event_id", "invoice": "invoice_id", "file": "file_name"}
WHICH = (
    "Which one: {x}?",
    "Which one do you mean, {x}?",
    "There are several: {x}. Which one?",
    "Do you mean {x}?",
    "Which of them: {x}?",
)
PICKED = (
    "{}",
    "{}, please",
    "I mean {}",
    "take {}",
    "{} of course",
    "that would be {}",
    "{}, I think",
    "sorry, {}",
    "I meant {}",
)
"""What the user answers."""

ALIKE = (
    "schedule {a_title}[ {on}][ at {same_time}][ with {same_people}][ for {minutes}]", "put {a_title} in the calendar[ {on}][ at {same_time}][ with {same_people}]", "set up {a_title}[ {on}][ at {same_time}][ with {same_people}]", "?we also need {a_title}[ {on}][ at {same_time}][ with {same_people}]", "add {a_title}[ {on}][, at {same_time}][, with {same_people}]",
    "plan {a_title}[ {on}][ at {same_time}][ with {same_people}][, {minutes}]", "?then there is {a_title}[ {on}][ at {same_time}][ with {same_people}], add it",
    "?let's also have {a_title}[ {on}][ at {same_time}][ with {same_people}][ for {minutes}]", "?next up is {a_title}[ {on}][ at {same_time}][ with {same_people}], please book it", "pencil in {a_title}[ {on}][ at {same_time}][ with {same_people}] too", "?there's another one to book: {title}[ {on}][ at {same_time}][ with {same_people}]", "arrange {a_title}[ {on}][, at {same_time}][, with {same_people}]",
)  # fmt: skip
SHARE_ALL = (
    "share {file} with everybody in the {title}",
    "share {file} with all who are invited to the {title}",
    "give everyone in the {title} access to {file}",
    "?everybody in the {title} needs {file}",
    "let all attendees of the {title} see {file}",
    "send {file} to the people in the {title}",
    "?whoever is in the {title} should get {file}",
    "?everyone coming to the {title} should have {file}",
    "make {file} available to everybody in the {title}",
    "get {file} to everyone who is in the {title}",
)


def alike(office: Office) -> bool:
    """A new event at the time of one that is known, with its people, or both; or a file for all its people."""
    dice, events = office.dice, office.things("event")
    id = office.recent("event", 1)
    if not id or not 1 <= len(people := events[id]["attendees"]) <= 3:
        return False
    event = events[id]
    if dice.chance(0.25):
        share = office.draw("share_file", person=people[0])
        office.asks(dice.one(SHARE_ALL), {"file": share.words["file"], "title": event["title"]})
        office.call([Ask("share_file", {"file_name": share.arguments["file_name"], "person": each}) for each in people])
        office.told()
        return True
    template, way = dice.one(ALIKE), dice.choice(["time", "people", "both"])
    given = ("minutes",) if "minutes" in template and dice.chance(0.5) else ()
    ask = office.draw("create_event", without={"attendees", "minutes"} - {*given}, given=given)
    said = {name: ask.words[name] for name in ("a_title", "title", "on", *given)}
    said["same_time"] = ask.words["time"]
    if way != "people":
        ask.arguments["time"], said["same_time"] = event["time"], "the same time"
    if way != "time":
        group = ["the same people", "the same group"] if len(people) > 1 else [office.pronoun(people[0])[0]]
        ask.arguments["attendees"], said["same_people"] = [*people], dice.choice(group)
    office.asks(template, said)
    office.call([ask])
    office.told()
    return True


def shift(office: Office) -> bool:
    """An event that is known is moved by some time, or only to another day or time."""
    dice, events = office.dice, office.things("event")
    known = [id for id in office.known.get("event", []) if id in events]
    if not known:
        return False
    id = office.focus.get("event") or dice.choice(known)
    event, name = events[id], NP(office, "event", id)
    said = {"event": name.reference() or id}
    someone = name.beside(id, lean=True).get("someone")
    said |= {"someone": someone} if someone else {}
    day, time, way = event["date"], event["time"], dice.random()
    if way < 0.4:
        minutes = dice.choice([60, 60, 60, 30, 30, 15, 120, 90, 45]) * (1 if dice.chance(0.65) else -1)
        time = later(time, minutes)
        if time is None or not "07:00" <= time <= "20:00":
            return False
        templates = LATER if minutes > 0 else EARLIER
        said["n"] = say_minutes(dice, abs(minutes))
    elif way < 0.7:
        if dice.chance(0.2):
            ahead = dice.choice([1, 1, 7])
            day = (date.fromisoformat(day) + timedelta(days=ahead)).isoformat()
            said["date"] = said["on"] = dice.choice(DAYS_ON[ahead])
            templates = tuple(each for each in SAME_TIME if "to {date}" in each)
        else:
            day, templates = office.day("move_event"), SAME_TIME
            bare, on = say_day(dice, date.fromisoformat(day), office.today)
            said.update(date=bare, on=f"on {bare}" if on else bare)
    else:
        time, templates = words.clock(dice), SAME_DAY
        said.update(time=(bare := say_clock(dice, time)), at=f"at {bare}")
    if (day, time) == (event["date"], event["time"]):
        return False
    template = dice.one([each for each in templates if someone or "{someone}" not in each])
    text = "?" * template.startswith("?") + fill(template.removeprefix("?"), said, dice)
    return office.turn(Ask("move_event", {"event_id": id, "date": day, "time": time}, text=text))


def _last(office: Office) -> tuple[str, dict[str, Any], Any] | None:
    """The call of the last turn, if it was a single one that worked, and nothing else was said since."""
    if len(office.last) != 1 or len(office.messages) < 2 or office.messages[-2]["role"] != "tool":
        return None
    tool, arguments, result = office.last[0]
    return None if isinstance(result, dict) and "error" in result else (tool, arguments, result)


def correct(office: Office) -> bool:
    """The user takes back what was said last: "no, Thursday"."""
    if (last := _last(office)) is None:
        return False
    dice, (tool, arguments, result) = office.dice, last
    if tool in ("create_event", "move_event"):
        key, ask = (
            dice.choice(["date", "time"]),
            Ask("move_event", {"event_id": result["event_id"], "date": result["date"], "time": result["time"]}),
        )
    elif tool in ("list_events", "find_contact", "find_files"):
        key, ask = (
            {"list_events": "date", "find_contact": "name", "find_files": "query"}[tool],
            Ask(tool, dict(arguments)),
        )
    elif tool == "share_file":
        key, ask = "person", Ask(tool, dict(arguments))
    elif tool in ("create_ticket", "update_ticket") and "assignee" in arguments:
        key, ask = "assignee", Ask("update_ticket", {"ticket_id": result["ticket_id"]})
    else:
        return False
    old = ask.arguments.get(key, arguments.get(key))
    new = Ask(ask.tool)
    office.put(new, key)
    if office.means_the_same(key, new.arguments[key], old):
        return False
    slot = {"date": ("date", "on"), "time": ("time", "at"), "query": ("query",)}.get(key, ("whom",))
    said = {"x": new.words[dice.choice(slot)], "old": _old(office, key, str(old))}
    ask.arguments[key] = new.arguments[key]
    text = fill(dice.one(NO), said, dice)
    return office.turn(ask, text=office.written(text))


def _old(office: Office, key: str, old: str) -> str:
    if key == "date":
        return say_day(office.dice, date.fromisoformat(old), office.today)[0]
    return say_clock(office.dice, old) if key == "time" else old


def again(office: Office) -> bool:
    """The same once more with one thing changed."""
    if (last := _last(office)) is None or last[0] not in REPEATED:
        return False
    dice, (tool, arguments, _) = office.dice, last
    key = dice.choice(REPEATED[tool])
    new = Ask(tool)
    office.put(new, key)
    if key not in arguments or office.means_the_same(key, new.arguments[key], arguments[key]):
        return False
    ask = Ask(tool, {**arguments, key: new.arguments[key]})
    template = dice.one(AGAIN[key])
    asks = tool in ("list_events", "find_contact", "list_invoices", "find_files")
    text = office.written(fill(template, new.words, dice)).rstrip(".") + (
        dice.choice(["?", "?", ""]) if asks else dice.choice(["", ".", ", please"])
    )
    return office.turn(ask, text=text)


def unclear(office: Office) -> bool:
    """Several could be meant: the assistant asks which, and the user picks."""
    dice = office.dice
    kind = dice.choice([*UNCLEAR])
    things, tool = office.things(kind), TOOL_OF[kind]
    ids = office.just(kind)
    if not 2 <= len(ids) <= 4 or (kind == "invoice" and any(things[id]["status"] == "paid" for id in ids)):
        return False
    id = dice.choice(ids)
    reference = NP(office, kind, id).reference()
    if reference is None:
        return False
    ask = office.draw(tool, **{KEY_OF[kind]: id})
    office.asks(dice.one(UNCLEAR[kind]), ask.words)
    shown = [
        f"{each} ({things[each]['title']})"
        if kind == "event"
        else f"{each} ({things[each]['amount']} euros)"
        if kind == "invoice"
        else each
        for each in ids
    ]
    office.says(dice.one(WHICH).replace("{x}", f"{', '.join(shown[:-1])} or {shown[-1]}"))
    reference = dice.choice([reference, reference, id if kind == "file" else id.casefold()])
    return office.turn(
        ask,
        text=office.written(dice.one(PICKED).replace("{}", reference)),
    )


def narrow(office: Office) -> bool:
    """Only some of the invoices that were just listed."""
    if (last := _last(office)) is None or last[0] != "list_invoices" or len(last[2]) < 2:
        return False
    dice, (tool, arguments, result) = office.dice, last
    open_ = [key for key in ("customer", "status") if key not in arguments]
    if not open_:
        return False
    new = Ask(tool)
    key = dice.choice(open_)
    office.put(new, key, value=dice.choice(result)[key])
    text = fill(dice.one(ONLY_STATUS if key == "status" else ONLY_CUSTOMER), new.words, dice)
    return office.turn(Ask(tool, {**arguments, **new.arguments}), text=office.written(text))


def whole_list(office: Office) -> bool:
    """All things of the last list at once: "both are paid"."""
    dice = office.dice
    kind = dice.choice([*ALL])
    things = office.things(kind)
    ids = office.just(kind)
    if not 2 <= len(ids) <= 3 or (kind == "invoice" and any(things[id]["status"] == "paid" for id in ids)):
        return False
    person = Ask("share_file")
    if kind == "file":
        focus = office.focus.get("person") if dice.chance(0.5) else None
        office.put(person, "person", lean=bool(focus), value=focus)
    group = dice.choice(
        ["both", "both of them", "both", "these two", "the two of them"]
        if len(ids) == 2
        else ["all of them", "all three", "all three of them", "all of these"]
    )
    template = dice.one(ALL[kind])
    text = "?" * template.startswith("?") + fill(template.removeprefix("?"), {**person.words, "all": group}, dice)
    asks = [Ask(TOOL_OF[kind], {KEY_OF[kind]: id, **person.arguments}) for id in ids]
    return office.turn(*asks, text=office.around([text]))
