"""A thing is named by what it is, so it is looked up first, and then something is done with it, in the same turn."""

# ruff: noqa: E501  (a line is a template)

from datetime import date

from stille.train.toolcalls.company import words
from stille.train.toolcalls.company.moves import PICKED, WHICH
from stille.train.toolcalls.company.office import Ask, Office, listed
from stille.train.toolcalls.company.refer import NP
from stille.train.toolcalls.company.say import say_day, say_euros

MOVE_FOUND = (
    "move {found} to {new}", "reschedule {found} to {new}", "shift {found} to {new}", "postpone {found} to {new}", "?can we have {found} {when} instead", "?{found} has to be {when}", "change {found} to {new}", "?{found} should be {when} instead",
    "?we need {found} to be {when}", "?{found} has been moved to {new}, please update it", "push {found} to {new}", "?something came up, so {found} goes to {new}", "?I'd rather have {found} {when}", "rebook {found} for {new}", "?would {new} be possible for {found}", "put {found} {when} instead",
)  # fmt: skip
MOVE_FOUND_DAY = (
    "move {found} to {time}",
    "?{found} should start {at} instead",
    "?{found} begins {at} now",
    "shift {found} to {time}",
    "make {found} start {at}",
    "?can {found} be {at} instead",
    "push {found} to {time}",
    "?could {found} begin {at}",
    "?I need {found} to start {at}",
    "change the time of {found} to {time}",
    "?{found} is {at} now, same day",
    "let {found} begin {at}",
    "?we would like to start {found} {at}",
    "set {found} to {time}",
)
CANCEL_FOUND = (
    "cancel {found}",
    "call off {found}",
    "?{found} is off",
    "?{found} won't happen",
    "take {found} out of the calendar",
    "?we don't need {found} any more",
    "delete {found}",
    "?{found} is cancelled, take it out",
    "remove {found} from the calendar",
    "scrap {found}",
    "?{found} can go",
    "?{found} isn't going ahead, please take it out",
    "?I have to cancel {found}",
    "strike {found} from the calendar",
    "?they called off {found}",
    "?let's skip {found}",
    "?nobody can come to {found}, so cancel it",
)
SHARE_FOUND = (
    "find the {query} and share it with {whom}", "look for the {query} and give {whom} access", "search for the {query} and share it with {whom}", "share the {query} with {whom}", "send {whom} the {query}", "give {whom} access to the {query}", "?{who} needs the {query}", "?{who} is asking for the {query}", "let {whom} see the {query}", "?can {who} get the {query}",
    "?{who} wants to see the {query}", "?{who} hasn't got the {query} yet", "dig out the {query} and send it to {whom}", "get the {query} to {whom}", "?could you let {whom} have the {query}", "?wherever the {query} is, {who} needs it", "?we must have the {query} somewhere: share it with {whom}", "forward the {query} to {whom}", "pass the {query} on to {whom}", "?I promised {whom} the {query}",
)  # fmt: skip
PAY_FOUND = (
    "look up the open invoices of {customer} and mark the one over {amount} as paid",
    "?{customer} has paid the invoice over {amount}, find it and mark it as paid",
    "find the unpaid invoice of {customer} over {amount} and note it as paid",
    "check the open invoices of {customer}: the one over {amount} is paid",
    "?{customer} paid {amount}. Look for that invoice and mark it as paid",
    "?the {amount} from {customer} came in, find the invoice and mark it as paid",
    "?{customer} settled the one over {amount}. Look it up among their open invoices and mark it",
    "look through what {customer} owes us and tick off the invoice over {amount}",
    "?I don't have the number, but {customer} paid {amount}: mark that invoice as paid",
    "?{customer} transferred {amount}; see which open invoice that is and mark it as paid",
)
FOR_COMPANY = {
    "create_invoice": ("look up {whom} and write {his} company an invoice over {amount}, due {by}", "find out where {whom} works and invoice that company for {amount}, due {by}", "?{whom} ordered something: find {his} company and bill it {amount}, due {by}", "write an invoice over {amount}, due {by}, for the company of {whom}", "invoice the company that {whom} works for: {amount}, due {date}", "?{who} ordered for {amount}: invoice {his} company, due {date}", "bill the company of {whom} {amount}, due {by}", "?send the bill for {amount} to the firm where {who} works, due {date}", "?I forgot which company {who} is with, but they get an invoice over {amount}, due {by}"),
    "list_invoices": ("look up {whom} and list the open invoices of {his} company", "find out where {whom} works and what that company still owes us", "?what does the company of {whom} still owe us", "show me the unpaid invoices of the company that {whom} works for", "?which invoices are open for {whom} and {his} company", "?has the company of {whom} got anything unpaid", "?I forgot which firm {who} works for, but what do they still owe us", "check what the firm that {who} works for hasn't paid yet", "?{who} called about the open invoices of {his} company, show them to me"),
}  # fmt: skip


def look_up(office: Office) -> bool:
    """One of the ways below."""
    ways = [_look_up_event, _look_up_event, _look_up_file, _look_up_invoice, _look_up_person, _look_up_first]
    return office.dice.choice(ways)(office)


def _look_up_event(office: Office) -> bool:
    dice, events = office.dice, office.things("event")
    ids = [id for id in events if id not in office.known.get("event", [])]
    if not ids:
        return False
    id = dice.choice(ids)
    event = events[id]
    if any(
        each["date"] == event["date"] and each["title"] == event["title"] and other != id
        for other, each in events.items()
    ):
        return False
    bare, on = say_day(dice, date.fromisoformat(event["date"]), office.today)
    title = event["title"]
    ways = [f"the {title} {'on ' if on else ''}{bare}"] * 2
    if (bare[-1] == "y" or bare in ("tomorrow", "today")) and not bare.startswith("a week"):
        ways.append(f"{bare}'s {title}")
    found = dice.choice(ways)
    way = dice.random()
    if way < 0.35:
        then, templates = office.draw("cancel_event", event_id=id), CANCEL_FOUND
    elif way < 0.65:
        then, templates = office.draw("move_event", event_id=id, date=event["date"]), MOVE_FOUND_DAY
    else:
        then, templates = office.draw("move_event", event_id=id), MOVE_FOUND
    office.asks(dice.one(templates), {**then.words, "found": found})
    office.call([Ask("list_events", {"date": event["date"]})])
    office.call([then])
    office.told()
    return True


def _look_up_file(office: Office) -> bool:
    dice = office.dice
    name = dice.choice([*office.company.state.files])
    if name in office.known.get("file", []):
        return False
    query, focus = words.topic(name), office.focus.get("person")
    leant = bool(focus) and dice.chance(0.4)
    share = office.draw("share_file", lean={"person"} if leant else (), file_name=name)
    office.asks(dice.one(SHARE_FOUND), {**share.words, "query": query})
    found = office.call([Ask("find_files", {"query": query})])[0]
    if len(found) > 1:
        office.says(dice.one(WHICH).replace("{x}", listed(found, dice).replace(" and ", " or ").replace(" & ", " or ")))
        reference = NP(office, "file", name).reference() or name
        office.user(office.written(dice.one(PICKED).replace("{}", reference)))
    office.call([share])
    office.told()
    return True


def _look_up_person(office: Office) -> bool:
    """A company is named by somebody who works there."""
    dice, contacts = office.dice, office.company.state.contacts
    name = dice.choice([each for each, entry in contacts.items() if entry["company"] != office.company.house])
    if name in office.names:
        return False
    said, his = office.called(name), office.pronoun(name)[2]
    tool = dice.choice(["create_invoice", "list_invoices"])
    then = office.draw(
        tool, customer=contacts[name]["company"], **({"status": "open"} if tool == "list_invoices" else {})
    )
    then.arguments["customer"] = contacts[name]["company"]
    office.asks(dice.one(FOR_COMPANY[tool]), {**then.words, "whom": said, "who": said, "his": his})
    office.call([Ask("find_contact", {"name": said})])
    office.call([then])
    office.told()
    return True


def _look_up_first(office: Office) -> bool:
    """The first or the last event of a day."""
    dice, events = office.dice, office.things("event")
    if not events:
        return False
    day = dice.choice([*events.values()])["date"]
    found = sorted((each["time"], id) for id, each in events.items() if each["date"] == day)
    if len(found) < 2 or any(id in office.known.get("event", []) for _, id in found):
        return False
    nth, (_, id) = dice.choice([("first", found[0]), ("last", found[-1])])
    bare, on = say_day(dice, date.fromisoformat(day), office.today)
    noun = dice.choice(["meeting", "event", "appointment"])
    if dice.chance(0.5):
        then, templates = office.draw("cancel_event", event_id=id), CANCEL_FOUND
    else:
        then, templates = office.draw("move_event", event_id=id, date=day), MOVE_FOUND_DAY
    office.asks(dice.one(templates), {**then.words, "found": f"the {nth} {noun} {'on ' if on else ''}{bare}"})
    office.call([Ask("list_events", {"date": day})])
    office.call([then])
    office.told()
    return True


def _look_up_invoice(office: Office) -> bool:
    dice, invoices = office.dice, office.things("invoice")
    ids = [
        id for id, each in invoices.items() if each["status"] == "open" and id not in office.known.get("invoice", [])
    ]
    if not ids:
        return False
    id = dice.choice(ids)
    customer, amount = invoices[id]["customer"], invoices[id]["amount"]
    if any(
        each["customer"] == customer and each["amount"] == amount and other != id for other, each in invoices.items()
    ):
        return False
    office.asks(dice.one(PAY_FOUND), {"customer": customer, "amount": say_euros(dice, amount)})
    office.call([Ask("list_invoices", {"customer": customer, "status": "open"})])
    office.call([Ask("mark_invoice_paid", {"invoice_id": id})])
    office.told()
    return True
