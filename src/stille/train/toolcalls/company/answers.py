"""What the assistant says of results: short, and true to them."""

# ruff: noqa: E501  (a line is a template)

from datetime import date
from typing import Any

from stille.train.toolcalls.dice import Dice, fill, plain
from stille.train.toolcalls.kinds import DAYS, MONTHS

SAYS: dict[str, tuple[str, ...]] = {
    "find_contact": (
        "{name} works for {company}; the address is {email}.", "{name}, {company}: {email}.", "{name} ({company}) can be reached at {email}.", "The e-mail address of {name} is {email}, the company is {company}.",
        "It is {email}; {name} is with {company}.", "Here you are: {name}, {email}, {company}.",
    ),
    "create_event": (
        "{event_id}, {title}, is in the calendar {day} at {time}[ with {people}].", "Done: {title} on {date} at {time}[ with {people}] ({event_id}).", "I have put {title} into the calendar: {day}, {time}, {minutes} minutes[, with {people}].", "The {title} is scheduled for {date}, {time} ({event_id}).",
        "I have entered it as {event_id}: {title}, {date}, {time}[, {people}].", "{title} is set {day} at {time}, {minutes} minutes[, and {people} is invited].", "All set: {event_id} on {date} at {time}.",
    ),
    "move_event": (
        "{event_id} is now on {date} at {time}.", "The {title} is now {day} at {time}.", "I have moved {title} to {date}, {time}.", "Moved: {title} is on {date} at {time}.", "Done, {event_id} begins at {time} on {date}.", "{title} ({event_id}) now takes place {day} at {time}.",
    ),
    "cancel_event": (
        "{cancelled}, {title}, is cancelled.", "I have taken {title} out of the calendar.", "The {title} is off the calendar.", "Done: {cancelled} ({title}) is cancelled.", "{title} has been cancelled.", "Cancelled: {cancelled}.",
    ),
    "create_invoice": (
        "{invoice_id} over {amount} euros to {customer} is written, due on {due_date}.", "I have written {invoice_id}: {customer}, {amount} euros, due {due_date}.", "Done: {invoice_id} for {customer}, {amount} euros, due by {due_date}.", "The invoice to {customer} is {invoice_id}, {amount} euros, payable by {due_date}.",
        "{customer} gets {invoice_id} over {amount} euros.", "Invoice {invoice_id} over {amount} euros is ready; it is due on {due_date}.",
    ),
    "mark_invoice_paid": (
        "{invoice_id} is marked as paid.", "I have noted that {invoice_id} is paid.", "Noted: {customer} has paid {invoice_id} ({amount} euros).", "{invoice_id} over {amount} euros is paid now.", "Done, {invoice_id} of {customer} is settled.", "Paid: {invoice_id}, {amount} euros, {customer}.",
    ),
    "create_ticket": (
        "I have opened {ticket_id}: {title}[, for {assignee}].", "{ticket_id} is open: {title}[, assigned to {assignee}].", "Done: ticket {ticket_id}, {title}, {priority} priority[, {assignee}].", "The ticket is {ticket_id}[, and {assignee} takes care of it].", "Ticket {ticket_id} was opened with {priority} priority[ for {assignee}].",
        "It is {ticket_id} now: {title}.",
    ),
    "update_ticket": (
        "{ticket_id} is {progress}[ and assigned to {assignee}].", "{ticket_id} ({title}) is {progress} now[, assignee {assignee}].", "Done: {ticket_id} is {progress}[, with {assignee}].", "Ticket {ticket_id} is updated: {progress}[, {assignee}].", "I have updated {ticket_id}: {progress}[, {assignee}].",
    ),
    "share_file": (
        "{file_name} is shared with {people}.", "{people} can open {file_name} now.", "Done: {people} now (has|have) access to {file_name}.", "I have shared {file_name} with {people}.", "Shared: {file_name}, with {people}.",
    ),
}  # fmt: skip
NONE = {
    "list_events": ("There is nothing in the calendar {day}.", "Nothing is planned {day}.", "The calendar is empty {day}.", "No events {day}.", "You are free {day}: there are no events."),
    "list_invoices": ("There are no[ {status}] invoices[ for {customer}].", "No[ {status}] invoices[ for {customer}].", "I find no[ {status}] invoices[ of {customer}]."),
    "find_files": ("There is no file with {query} in its name.", "I found no file for {query}.", "No file matches {query}.", "I could not find any file about {query}."),
}  # fmt: skip
ERRORS = (
    "That did not work: {error}.", "Sorry, {error}.", "I could not do that: {error}.", "(Unfortunately|I'm afraid) {error}.", "It failed, because {error}.", "No luck: {error}.",
)  # fmt: skip
COUNTS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def answer(tool: str, arguments: dict[str, Any], result: Any, dice: Dice, today: date) -> str:
    """What came of a call."""
    if isinstance(result, dict) and "error" in result:
        return dice.expand(dice.choice(ERRORS)).replace("{error}", result["error"])
    known = {name: str(value) for name, value in {**arguments, **(result if isinstance(result, dict) else {})}.items()}
    if day := known.get("date"):
        known["day"] = _day(date.fromisoformat(day), today, dice)
    if isinstance(result, list):
        if not result:
            known = {name: value for name, value in known.items() if value not in ("", "any")}
            return plain(fill(dice.choice(NONE[tool]), known, dice))
        return {"list_events": _events, "list_invoices": _invoices, "find_files": _files}[tool](result, known, dice)
    known.pop("people", None)
    if people := result.get("attendees") or result.get("shared_with"):
        known["people"] = _and(people)
    if not known.get("assignee"):
        known.pop("assignee", None)
    known["progress"] = known.get("status", "").replace("_", " ")
    template = dice.choice(
        [each for each in SAYS[tool] if tool != "create_event" or len(people or ()) < 2 or " is invited" not in each]
    )
    if tool == "share_file":
        template = template.replace("(has|have)", "has" if len(people or ()) < 2 else "have")
    text = plain(fill(template, known, dice)).replace(" on on ", " on ")
    return text[0].upper() + text[1:] if tool != "share_file" or text[0] != result["file_name"][0] else text


def _day(day: date, today: date, dice: Dice) -> str:
    ahead, name = (day - today).days, DAYS[day.weekday()]
    near = {0: "today", 1: "tomorrow", -1: "yesterday"}.get(ahead) or (f"on {name}" if 0 < ahead < 7 else "")
    return near if near and dice.chance(0.6) else f"on {name}, {day.day} {MONTHS[day.month - 1]}"


def _and(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _events(found: list[dict[str, Any]], known: dict[str, str], dice: Dice) -> str:
    shown = dice.choice(
        [
            "{title} at {time} ({event_id})",
            "{time} {title} ({event_id})",
            "{event_id} {title} at {time}",
            "{title} at {time}",
        ]
    )
    each = _and([shown.format(**row) for row in found])
    count, noun = COUNTS[min(len(found), 10)], "event" if len(found) == 1 else "events"
    verb = "is" if len(found) == 1 else "are"
    text = dice.choice(
        [
            f"There {verb} {count} {noun} {known['day']}: {each}.",
            f"{known['day']}: {each}.",
            f"You have {count} {noun} {known['day']}: {each}.",
        ]
    )
    return text[0].upper() + text[1:]


def _invoices(found: list[dict[str, Any]], known: dict[str, str], dice: Dice) -> str:
    total = sum(row["amount"] for row in found)
    if len(found) > 5:
        kept = _and([row["invoice_id"] for row in found])
        return dice.choice(
            [f"There are {len(found)} invoices over {total} euros in all: {kept}.", f"{len(found)} invoices: {kept}."]
        )
    shown = "{invoice_id} over {amount} euros"
    if not known.get("customer"):
        shown += dice.choice([" ({customer})", " to {customer}"])
    shown += dice.choice(["", ", due {due_date}", ", {status}"]) if len(found) > 1 else ", due {due_date}, {status}"
    each = (
        "; ".join(shown.format(**row) for row in found)
        if "," in shown
        else _and([shown.format(**row) for row in found])
    )
    count = COUNTS[len(found)]
    if len(found) == 1:
        return dice.choice([f"There is one: {each}.", f"One invoice: {each}.", f"It is {each}."])
    return dice.choice(
        [
            f"There are {count}: {each}.",
            f"{count.capitalize()} invoices: {each}.",
            f"{each}.",
            f"{each}; {total} euros in all.",
        ]
    )


def _files(found: list[str], known: dict[str, str], dice: Dice) -> str:
    if len(found) == 1:
        return dice.choice(
            [
                f"There is one file: {found[0]}.",
                f"It is {found[0]}.",
                f"I found {found[0]}.",
                f"The file is called {found[0]}.",
            ]
        )
    return dice.choice(
        [
            f"There are {len(found)} files: {_and(found)}.",
            f"I found {_and(found)}.",
            f"{len(found)} files match: {_and(found)}.",
        ]
    )
