"""Requests that lack something needed: the assistant asks, and makes no call before it is answered."""

# ruff: noqa: E501  (a line is a template)

from __future__ import annotations

from typing import TYPE_CHECKING

from stille.train.toolcalls.dice import fill, omissible, slots

if TYPE_CHECKING:
    from stille.train.toolcalls.company.office import Ask, Office

LACKING: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("find_contact", "name", ("look up (her|his) e-mail address", "?what is (his|her) e-mail", "find the contact", "look somebody up for me", "?I need an e-mail address", "?(which company|where) does (he|she) work( for|)", "look up the customer's address", "get me the contact details", "?how do I reach (him|her) by mail", "search the contacts", "find a contact for me", "?do we have (her|his) address", "?who is that again and how do I reach them", "?I have to write to somebody, what's the address", "dig out an address for me", "?I need the contact of one of our customers", "?what was (her|his) e-mail again", "?can you look up a person for me")),
    ("list_events", "date", ("list the events", "show me the calendar of that day", "?what's on that day", "?am I free on that day", "list the meetings for the day", "?which appointments do we have then", "?what is planned then", "check the calendar for that date", "show me the events of a certain day", "?I want to see the agenda of one day", "?are we busy that day", "?what do we have on", "?what am I doing that day", "?do I have time that day", "?is the calendar free then", "run me through the day", "?what's on the agenda then")),
    ("create_event", "title", ("book {minutes} {when}[ with {people}]", "put something in the calendar {when}[ with {people}]", "add an event {when}[, {minutes}]", "create an event {when}[ with {people}]", "block {new}", "?I need (a slot|an entry) in the calendar {when}", "?new event {when}[, {minutes}]", "enter an appointment {when}[ with {people}]", "make an entry for {new}[, {minutes}]", "keep {new} free[ for {people}]", "pencil in {minutes} {when}", "?{people} will be here {when}, make an entry", "hold {new} for something", "?save the date: {when}")),
    ("create_event", "date", ("schedule {a_title} {at}[ with {people}]", "put {a_title} in the calendar {at}[ for {minutes}]", "set up {a_title}[ with {people}] {at}", "add {a_title} {at}[, {minutes}]", "book {minutes} for {a_title} {at}", "?we have {a_title} {at}, put it in", "create an event called {title} {at}[ with {people}]", "plan {a_title}[ with {people}], it begins at {time}", "pencil in {a_title} {at}[ with {people}]", "?{people} can do {time} for {a_title}, set it up", "?{a_title} {at}[ for {minutes}], please", "hold {time} for {a_title}[ with {people}]", "?{title}, {time}[, {minutes}], into the calendar")),
    ("create_event", "time", ("schedule {a_title} {on}[ with {people}]", "put {a_title} in the calendar {on}[ with {people}]", "set up {a_title} {on}[ for {minutes}]", "add {a_title} {on}[, {minutes}]", "?there is {a_title} {on}[ with {people}], enter it", "plan {a_title} for {date}[ with {people}]", "create an event called {title} {on}", "invite {people} to {a_title} {on}", "book {a_title} for {date}[, {minutes}]", "?let's have {a_title} {on}[ with {people}]", "pencil in {a_title} {on}[ with {people}]", "?{people} will come {on} for {a_title}, make an entry", "?{a_title} {on}[ for {minutes}], please", "?{title}, {date}[, {people}], into the calendar", "arrange {a_title}[ with {people}] {on}", "?we agreed on {date} for {a_title}, put it down")),
    ("create_event", "date time", ("schedule {a_title}[ with {people}]", "put {a_title} in the calendar[ with {people}]", "?we need {a_title}[ with {people}]", "set up {a_title}[ for {minutes}][ with {people}]", "plan {a_title}[ with {people}]", "invite {people} to {a_title}", "create an event called {title}[ with {people}]", "?I'd like to have {a_title} in the calendar[, {minutes}]", "arrange {a_title}[ with {people}]", "?{people} and I should have {a_title}[ for {minutes}]", "?we have to find a slot for {a_title}[ with {people}]", "?{people} wants to do {a_title}[ for {minutes}], book it", "get {a_title} on the calendar[ with {people}]", "?let's do {a_title}[ with {people}]", "?new event: {title}[, {minutes}]")),
    ("create_event", "title date time", ("create an event", "put something in the calendar", "add an appointment", "book a meeting[ with {people}]", "set up a meeting[ with {people}]", "?I need a meeting[ with {people}]", "make a new event[ with {people}]", "?new appointment", "schedule something with {people}", "?I'd like to meet {people}, make an entry", "get me together with {people}", "?we need something in the calendar[ with {people}]", "block some time for me")),
    ("move_event", "event_id", ("move the (meeting|event|appointment) to {new}", "move it to {new}", "reschedule the (meeting|event) to {new}", "postpone (that|the) (meeting|appointment) to {new}", "?the meeting is {when} now", "shift my appointment to {new}", "put it {when} instead", "?can the (meeting|appointment) be {when} instead", "push the event to {new}", "?new time for the meeting: {when}", "?they want the meeting {when}", "move the {what} to {new}", "reschedule the {what} to {new}", "?the {what} is {when} now", "move the meeting with {someone} to {new}", "?{someone} asks for another time: put our meeting {when}", "postpone my appointment with {someone} to {new}", "?we need {new} instead", "?{new} would be better, change it please", "?that doesn't work for me. {new} does", "?we agreed on {new} instead", "rebook the (meeting|appointment) for {new}", "?{someone} can't make it, so we need {new} instead", "?{someone} would rather meet {when}")),
    ("move_event", "date", ("move {event} to {time}", "?{event} begins at {time} now", "reschedule {event} to {time} on another day", "put {event} on another day, {at}", "?{event} is on another day, same thing, {at}", "?{event}: new day, {time}", "shift {event} to another day {at}", "?{event} should start {at}, but on a different day", "?another day for {event}, {at} please", "?we need another day for {event}, the time would be {time}")),
    ("move_event", "time", ("move {event} to {date}", "reschedule {event} to {date}", "postpone {event} to {date}", "?{event} has to be {on}", "shift {event} to {date}", "?can we have {event} {on} instead", "push {event} to {date}, at another time", "?{event} is {on} now", "put {event} {on}, but at a different time", "?{event} can't be that day, we need {date}", "?{someone} can't make {event} then, so we need {date}, at some other time", "?a different day and time for {event}: {date}", "?let's have {event} {on}, but not at that time")),
    ("move_event", "date time", ("move {event}", "postpone {event}", "reschedule {event}", "?{event} has to be moved", "shift {event}", "?we can't make {event}, move it please", "find a new slot for {event}", "?{event} needs another date", "?can you move {event}", "put {event} on another day", "?they asked to postpone {event}", "?{someone} can't make {event}, so we need another time", "?we have to find another date for {event}", "?{event} doesn't suit us at all, please rearrange it", "rebook {event}", "?I'm double-booked, move {event}", "?not then! {event} has to be some other time")),
    ("cancel_event", "event_id", ("cancel the (meeting|event|appointment)", "cancel it", "?the (meeting|event|appointment) is off", "call off the (meeting|event)", "?can you cancel (my|our|the|that) (appointment|meeting)", "take the (meeting|event) out of the calendar", "delete the (appointment|event) from the calendar", "?we need to cancel a meeting", "?the customer can't come, cancel the appointment", "?one of the events does not take place", "remove that event", "?I have to cancel an appointment", "cancel one of the meetings", "?that meeting won't happen", "cancel the {what}", "?the {what} is off", "call off the {what}", "cancel the meeting with {someone}", "?my appointment with {someone} is off", "?{someone} is ill, cancel our meeting", "take the {what} out of the calendar", "drop the (meeting|appointment)", "?they won't be coming, so take it off the calendar", "?I won't make it to the meeting, cancel it", "scrap the (meeting|event)", "?we don't need that (meeting|appointment) any more", "?{someone} can't come, call it off", "?no {what} after all", "bin that (meeting|appointment)")),
    ("create_invoice", "customer", ("write an invoice over {amount}, due {by}", "create an invoice for {amount}, due {date}", "invoice (them|the customer|him) for {amount}, due {by}", "bill {amount}, payable by {date}", "?we need an invoice over {amount}, due {date}", "make out an invoice of {amount} with due date {date}", "send (the customer|them) a bill for {amount}, due {by}", "?new invoice: {amount}, due {date}", "?{amount}, due {date}, invoice please", "?they owe us {amount}, due {by}, write that up", "raise an invoice for {amount}, payable by {date}", "?the job is done, {amount}, due {date}", "get an invoice out, {amount}, due {by}")),
    ("create_invoice", "amount", ("write {customer} an invoice, due {by}", "invoice {customer}, payable by {date}", "create an invoice for {customer}, due {date}", "?{customer} gets an invoice, due {by}", "bill {customer}, due {by}", "?new invoice for {customer}, due {date}", "make out an invoice to {customer} due {on}", "?the job for {customer} is finished, invoice it, due {date}", "raise an invoice to {customer}, due {by}", "?we are done at {customer}, bill that, due {date}", "?{customer} wants the invoice, due {by}", "get an invoice out to {customer}, payable by {date}", "?invoice {customer} due {date}")),
    ("create_invoice", "due_date", ("invoice {customer} for {amount}", "write an invoice over {amount} to {customer}", "bill {customer} {amount}", "?{customer} owes us {amount}, write the invoice", "create an invoice for {customer}: {amount}", "?new invoice: {customer}, {amount}", "charge {customer} {amount}", "?{customer} has to pay {amount}, please invoice that", "make an invoice of {amount} for {customer}", "?an invoice to {customer} over {amount}, please", "?we agreed on {amount} with {customer}, write that up as an invoice", "raise an invoice for {amount} to {customer}", "?{customer} bought from us for {amount}, bill that", "?the job at {customer} came to {amount}, so invoice it", "?{customer}, {amount}, new invoice")),
    ("create_invoice", "amount due_date", ("invoice {customer}", "write an invoice for {customer}", "write {customer} an invoice", "bill {customer}", "?{customer} needs an invoice", "create an invoice to {customer}", "?new invoice for {customer}", "?we have to send {customer} an invoice", "prepare an invoice for {customer}", "raise an invoice for {customer}", "?{customer} wants the bill", "?time to bill {customer}", "get an invoice out to {customer}", "?{customer} is still waiting for an invoice, write it")),
    ("create_invoice", "customer due_date", ("write an invoice over {amount}", "create an invoice for {amount}", "?new invoice, {amount}", "?I need an invoice of {amount}", "make out a bill for {amount}", "raise an invoice for {amount}", "?somebody owes us {amount}, write the invoice", "?bill over {amount}, please", "get an invoice out, {amount}")),
    ("create_invoice", "customer amount due_date", ("write an invoice", "create a new invoice", "?I need an invoice", "?new invoice", "make out an invoice", "prepare an invoice for a customer", "?a customer needs an invoice", "bill the customer", "raise an invoice", "?time for an invoice", "?can we send somebody an invoice", "?I have to bill someone")),
    ("mark_invoice_paid", "invoice_id", ("mark the invoice as paid", "?the (invoice|bill) is paid", "mark it as paid", "?(a|the) customer has paid", "note that the invoice was paid", "?the money (is here|has arrived)", "?an invoice was paid", "record a payment", "set the invoice to paid", "?that invoice is settled", "?they paid", "?somebody paid an invoice", "?that bill has been settled", "?can you mark an invoice as paid", "tick off the invoice as paid", "?{payer} has paid", "?the money from {payer} is here", "mark the invoice of {payer} as paid", "?{payer} has paid (the|an) invoice", "?the bill for {payer} is settled", "?we got {what} from {payer}", "?a payment came in, note it", "?they have paid us", "?somebody settled up", "?the transfer went through", "?a bill can be ticked off", "?the bank says that a customer paid", "flag an invoice as paid")),
    ("create_ticket", "title", ("open a ticket[ for {whom}]", "create a ticket[ with {priority} priority][ for {whom}]", "?I need a ticket[ for {whom}]", "?new ticket[, {priority} priority]", "make {an_adjective} ticket[ for {whom}]", "open {an_adjective} ticket and give it to {whom}", "?can you open a ticket[ for {whom}]", "assign a new ticket to {whom}[ with {priority} priority]", "raise a ticket[, {priority} priority]", "log a new ticket[ for {whom}]", "?we need another ticket[ for {whom}]", "?something needs doing, open a ticket[ for {whom}]", "put a ticket in the system[ for {whom}]", "get a ticket going[ for {whom}]", "?{who} should have a new ticket", "?there's a problem, make {an_adjective} ticket", "submit a ticket[ with {priority} priority]")),
    ("update_ticket", "ticket_id", ("close the ticket", "assign the ticket to {whom}", "give it to {whom}", "?the ticket is done", "mark the ticket as done", "set the ticket to in progress", "reopen the ticket", "hand the ticket to {whom}", "?{who} takes the ticket", "close it", "?somebody is working on the ticket now", "?can you close a ticket for me", "update the ticket", "pass the ticket on to {whom}", "close one of the tickets", "?that ticket is solved", "?{someone}'s ticket is done", "close the ticket of {someone}", "close {what}", "assign {what} to {whom}", "?{what} is done", "set {what} to in progress", "?nobody is on it yet, give it to {whom}", "?{who} offered to take one of the tickets", "?that one is done, close the ticket", "?one of the tickets is solved", "?{who} will handle the ticket", "transfer the ticket to {whom}", "?it broke again, reopen the ticket")),
    ("update_ticket", "change", ("update {ticket}", "change {ticket}", "?{ticket} has to be changed", "?can you update {ticket}", "?something has changed with {ticket}", "edit {ticket}", "?please change {ticket} for me", "?I want to update {ticket}", "?{ticket} needs an update", "?there's news on {ticket}, update it", "?{ticket} isn't up to date", "make a change to {ticket}", "?I have to change something about {ticket}")),
    ("find_files", "query", ("find the (file|document)", "search for a (file|document)", "?where is the (file|document)", "look for a file", "?I can't find the document", "?I need a file", "search the files", "find me a document", "?can you find (a|that) file for me", "?I am looking for a file", "?do we have that document somewhere", "look it up in the files", "?there must be a file somewhere", "?any idea where that document is", "track down a document for me", "?I can't remember what the file is called", "?where did I save it", "turn up a file for me")),
    ("share_file", "file_name", ("share the (file|document) with {whom}", "give {whom} access to the (file|document)", "share it with {whom}", "?{who} needs (a|the|that) file", "send {whom} the (file|document)", "let {whom} see it", "?{who} needs access", "?can {who} get access to the document", "share a file with {whom}", "send it to {whom}", "share something with {whom}", "?{who} can't open the (file|document)", "?{who} hasn't got it yet, please share it", "?{who} is asking for a document", "forward something to {whom}", "get the file to {whom}", "?I promised {whom} a document", "?{who} keeps asking for the file")),
    ("share_file", "person", ("share {file}", "share {file} with (her|him|them|somebody|a colleague)", "give (her|him|my colleague) access to {file}", "send {file}", "?(she|he) needs {file}", "let (her|him) see {file}", "send (him|her) {file}", "?somebody needs access to {file}", "?{file} has to be shared", "?can you share {file}", "make {file} accessible", "pass {file} on", "?somebody asked for {file}", "forward {file}", "?one of my colleagues needs {file}", "?{file} has to go out to somebody", "release {file}", "?can they have {file}")),
    ("share_file", "file_name person", ("share (a|the) file", "share it with (her|him)", "?can you share (a|the) document", "?I want to share a file", "give (him|her|somebody) access to the document", "send (her|him) the file", "?someone is waiting for a file", "?I promised somebody a document", "forward one of the files", "?(he|she) can't open the document, share it")),
)  # fmt: skip
"""Tool, what lacks, and templates as in asks."""
QUESTIONS = {
    "name": ("Whom do you mean?", "Who is it?", "What is the person's name?", "Whose contact do you need?", "Which person shall I look up?", "Please tell me the name."),
    "date": ("On which day?", "Which day do you mean?", "For what date?", "What day shall it be?", "Which date, please?", "Please tell me the day."),
    "time": ("At what time?", "When does it begin?", "What time shall it start?", "And at what time?", "Please tell me the time.", "At which time of the day?"),
    "date time": ("When shall it be: which day, and what time?", "On which day and at what time?", "What day and time?", "When? I need a day and a time.", "Please give me the day and the time."),
    "title": ("What is it about?", "What shall I call it?", "What title shall it have?", "What is it for?", "Please tell me what it is about."),
    "title date time": ("What is it about, and when shall it be?", "What title, which day and what time?", "Please tell me the title, the day and the time.", "What for, on which day and at what time?"),
    "event_id": ("Which event do you mean?", "Which one? Please tell me the event.", "Which event is it?", "Can you tell me which event you mean?", "I'm not sure which event: what is its id?", "Which appointment, please?"),
    "customer": ("Who is the customer?", "Which customer is it for?", "For which company?", "To whom does the invoice go?", "Which company has to pay?"),
    "amount": ("What amount?", "How much is it?", "Over what amount?", "How many euros?", "What does the customer have to pay?"),
    "due_date": ("When is it due?", "By when does it have to be paid?", "What is the due date?", "Until when do they have time to pay?", "By which day is it due?"),
    "amount due_date": ("How much is it, and when is it due?", "Over what amount, and due when?", "I need the amount and the due date.", "What amount, and by when?"),
    "customer due_date": ("Which customer, and when is it due?", "For whom, and by when?", "I need the customer and the due date."),
    "customer amount due_date": ("For whom, how much, and due when?", "I need the customer, the amount and the due date.", "Which customer, what amount and which due date?", "Please tell me the customer, the amount and the due date."),
    "invoice_id": ("Which invoice do you mean?", "Which invoice is it?", "Which one? Please give me the number of the invoice.", "What is the number of the invoice?", "Which invoice was paid?"),
    "ticket_id": ("Which ticket do you mean?", "Which ticket is it?", "What is the number of the ticket?", "Which one, please?", "Please tell me which ticket."),
    "change": ("What shall I change: its status, or who works on it?", "What has changed, the status or the assignee?", "What shall be different?", "Do you want another status or another assignee?"),
    "query": ("What is the file about?", "Which file are you looking for?", "What shall I search for?", "What is in its name?", "Please tell me what the file is about."),
    "file_name": ("Which file?", "Which file do you mean?", "What is the file called?", "Which document shall I share?", "Please tell me the name of the file."),
    "person": ("With whom?", "Who shall get access?", "With whom shall I share it?", "Whom do you mean?", "Who is it for?"),
    "file_name person": ("Which file, and with whom?", "What shall I share, and with whom?", "Please tell me the file and the person."),
}  # fmt: skip
_REPLIES = (
    "{}",
    "{}",
    "{}.",
    "{}, please",
    "it's {}",
    "I mean {}",
    "{} of course",
    "oh, {}",
    "sorry, {}",
    "let's say {}",
    "that would be {}",
    "make it {}",
    "ah right: {}",
    "{} I think",
    "take {}",
    "please {}",
    "for {}",
    "{} would be good",
    "{}, thanks",
    "oh right, {}",
    "should be {}",
    "good point, {}",
    "yes, sorry, {}",
    "I forgot to say: {}",
    "did I not say? {}",
)
_SLOTS = {"name": "whom", "person": "whom", "title": "title", "event_id": "event", "invoice_id": "invoice", "ticket_id": "ticket", "query": "query", "file_name": "file", "customer": "customer", "amount": "amount", "due_date": "date", "date": "date", "time": "time", "date time": "when"}  # fmt: skip
_OPTIONAL = {
    "people": "attendees",
    "minutes": "minutes",
    "priority": "priority",
    "an_adjective": "priority",
    "whom": "assignee",
    "who": "assignee",
}
_IMPLIED = {"closed": ("close", "done", "solved"), "in_progress": ("progress", "working"), "open": ("reopen",)}
_CHANGES = (("closed", ("close it", "it is done", "set it to closed", "it's finished")), ("in_progress", ("it's in progress", "set it to in progress", "somebody is working on it now")), ("open", ("reopen it", "set it back to open")))  # fmt: skip


def lacking(office: Office, fits: frozenset[str] | None = None, answered: float = 0.7) -> bool:
    """A turn in which something lacks, and mostly the answer and what follows.

    Args:
        fits: what may lack; None: anything.
        answered: how often the user answers.
    """
    dice = office.dice
    tool = dice.choice([row[0] for row in LACKING])
    rows = [row for row in LACKING if (fits is None or {*row[1].split()} <= fits) and (row[0] == tool or fits)]
    if not rows:
        return False
    tool, lacks, templates = dice.choice(rows)
    template = dice.one(templates)
    ask = _drawn(office, tool, lacks, template)
    if not slots(template) - omissible(template) <= ask.words.keys():
        return False
    office.asks(template, ask.words)
    office.says(dice.one(QUESTIONS[lacks]))
    if not dice.chance(answered):
        return True
    if lacks == "date time" and dice.chance(0.2):  # only half of it
        _reply(office, ask.words["on"])
        office.says(dice.one(QUESTIONS["time"]))
        _reply(office, ask.words["time"])
    elif lacks == "change":
        _changed(office, ask)
    elif (slot := _SLOTS.get(lacks)) is not None:
        _reply(office, ask.words[slot])
    else:
        parts = [_SLOTS[each] for each in lacks.split()]
        office.user(dice.choice([", ", ", ", " and "]).join(ask.words[slot] for slot in parts))
    office.call([ask])
    office.told()
    return True


def _drawn(office: Office, tool: str, lacks: str, template: str) -> Ask:
    """The whole call that was meant, of which the template says a part."""
    says = slots(template)
    said = {_OPTIONAL[slot] for slot in says if slot in _OPTIONAL}
    must = {_OPTIONAL[slot] for slot in says - omissible(template) if slot in _OPTIONAL}
    fixed = {"priority": office.dice.choice(["high", "low"])} if "an_adjective" in says else {}
    if tool == "update_ticket":
        implied = [status for status, found in _IMPLIED.items() if any(word in template for word in found)]
        fixed |= {"status": implied[0]} if implied else {}
    without = {*_OPTIONAL.values(), "status"} - said - fixed.keys()
    return office.draw(tool, without=without, given=must, **fixed)


def _changed(office: Office, ask: Ask) -> None:
    dice = office.dice
    ask.arguments = {"ticket_id": ask.arguments["ticket_id"]}
    if dice.chance(0.5):
        office.put(ask, "assignee")
        ways = (
            "give it to {whom}",
            "assign it to {whom}",
            "{who} does it now",
            "{who} takes over",
            "the assignee: {whom}",
        )
        return office.user(fill(dice.one(ways), ask.words, dice))
    status, ways = dice.choice(_CHANGES)
    ask.arguments["status"] = status
    return office.user(dice.one(ways))


def _reply(office: Office, said: str) -> None:
    dice = office.dice
    way = dice.one(_REPLIES)
    if said.startswith(("on ", "by ", "at ", "from ")) or (" " in way.replace("{}", "") and dice.chance(0.5)):
        way = dice.choice(["{}", "{}", "{}.", "{}, please"])
    text = way.replace("{}", said)
    office.user(text[0].upper() + text[1:] if dice.chance(0.5) else text)
