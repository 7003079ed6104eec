"""A small company whose calendar, invoices, tickets and files twelve tools work on, with exact state.

The twelve tools are known to training (stille.train.toolcalls.company), which has other people, companies and things:
the state below, and the sentences about it (benchmarks/agents_tools.py), are for evaluation only, and nothing that is
trained may see them. It is deterministic: the same calls give the same results, ids included.
"""

from __future__ import annotations

import copy
import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TODAY = datetime.date(2027, 3, 2)

SYSTEM = (
    "You are the assistant of the workshop Kestrel Cycles. Today is Tuesday, 2 March 2027. Use the functions for what "
    "people ask; if something that a function needs was not said, ask for it; if no function fits, just answer."
)

Status = Literal["open", "paid", "any"]
Priority = Literal["low", "normal", "high"]
Progress = Literal["unchanged", "open", "in_progress", "closed"]


@dataclass
class State:
    """Everything that calls change, beside what they only read."""

    contacts: dict[str, dict[str, str]]
    events: dict[str, dict[str, Any]]
    invoices: dict[str, dict[str, Any]]
    tickets: dict[str, dict[str, str]]
    files: dict[str, list[str]] = field(default_factory=dict)
    """Name of a file -> with whom it is shared."""


class Company:
    """The simulated company. Its public methods other than `tools`, `call`, `canonical`, `reset` and `snapshot` are the
    tools; they raise ValueError with a message for the caller.

    Args:
        state: of the first morning; None: that of the evaluation.
        house: name of the company itself, which is no customer.
    """

    def __init__(self, state: State | None = None, house: str = "") -> None:
        self._first, self.house = state or _evaluated(), house or HOUSE
        self.reset()

    def reset(self) -> None:
        """Back to the morning of the first day."""
        self.state = copy.deepcopy(self._first)
        kinds = {"EV": self.state.events, "INV": self.state.invoices, "T": self.state.tickets}
        self._last = {kind: max((int(id.split("-")[1]) for id in things), default=0) for kind, things in kinds.items()}

    def snapshot(self) -> dict[str, Any]:
        """The state, with texts in one form, for comparison."""
        return _plain(asdict(self.state))

    def tools(self) -> dict[str, Callable[..., Any]]:
        """By name."""
        return {name: getattr(self, name) for name in TOOLS}

    def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """The result of a call, as JSON; {"error": ...} if it cannot be made."""
        if name not in TOOLS:
            return {"error": f"there is no function {name}"}
        try:
            return getattr(self, name)(**arguments)
        except (ValueError, TypeError) as error:
            return {"error": str(error)}

    def canonical(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """A call with all defaults, people by their full names and texts in one form: two calls that mean the same
        are equal. What cannot be understood stays as it is."""
        given = {**_DEFAULTS.get(name, {}), **arguments}
        for key in ("name", "assignee", "person", "customer"):
            if given.get(key) and isinstance(given[key], str):
                given[key] = self._known(given[key], companies=key == "customer") or given[key]
        if isinstance(given.get("attendees"), list):
            given["attendees"] = sorted(self._known(str(each)) or str(each) for each in given["attendees"])
        return name, _plain(given)

    # The tools

    def find_contact(self, name: str) -> dict[str, str]:
        """Looks up a person's e-mail address and company.

        Args:
            name: of the person.
        """
        person = self._person(name)
        return {"name": person, **self.state.contacts[person]}

    def list_events(self, date: str) -> list[dict[str, Any]]:
        """Lists the events of a day in the calendar.

        Args:
            date: the day, as YYYY-MM-DD.
        """
        day = _date(date)
        found = [{"event_id": id, **event} for id, event in self.state.events.items() if event["date"] == day]
        return sorted(found, key=lambda event: event["time"])

    def create_event(
        self,
        title: str,
        date: str,
        time: str,
        minutes: int = 60,
        attendees: list[str] = [],  # noqa: B006
    ) -> dict[str, Any]:
        """Puts a new event into the calendar.

        Args:
            title: what it is about.
            date: as YYYY-MM-DD.
            time: when it begins, as HH:MM in 24 hours.
            minutes: how long it takes.
            attendees: names of people who are invited.
        """
        if not title.strip() or minutes <= 0:
            raise ValueError("an event needs a title and a length above 0")
        event = {
            "title": title,
            "date": _date(date),
            "time": _time(time),
            "minutes": minutes,
            "attendees": sorted(self._person(each) for each in attendees),
        }
        id = self._next("EV")
        self.state.events[id] = event
        return {"event_id": id, **event}

    def move_event(self, event_id: str, date: str, time: str) -> dict[str, Any]:
        """Moves an event to another day or time.

        Args:
            event_id: such as EV-3.
            date: the new day, as YYYY-MM-DD.
            time: when it begins now, as HH:MM in 24 hours.
        """
        event = _get(self.state.events, event_id, "event")
        event.update(date=_date(date), time=_time(time))
        return {"event_id": _id(event_id), **event}

    def cancel_event(self, event_id: str) -> dict[str, str]:
        """Takes an event out of the calendar.

        Args:
            event_id: such as EV-3.
        """
        event = _get(self.state.events, event_id, "event")
        del self.state.events[_id(event_id)]
        return {"cancelled": _id(event_id), "title": event["title"]}

    def list_invoices(self, customer: str = "", status: Status = "any") -> list[dict[str, Any]]:
        """Lists invoices.

        Args:
            customer: company that they are for; empty for all.
            status: open for those that are not paid yet, paid, or any.
        """
        name = self._customer(customer) if customer else None
        return [
            {"invoice_id": id, **invoice}
            for id, invoice in self.state.invoices.items()
            if name in (None, invoice["customer"]) and status in ("any", invoice["status"])
        ]

    def create_invoice(self, customer: str, amount: int, due_date: str) -> dict[str, Any]:
        """Writes a new invoice.

        Args:
            customer: company that has to pay.
            amount: whole euros.
            due_date: by when, as YYYY-MM-DD.
        """
        if amount <= 0:
            raise ValueError(f"the amount has to be above 0, got {amount}")
        id = self._next("INV")
        name = self._customer(customer)
        self.state.invoices[id] = {"customer": name, "amount": amount, "due_date": _date(due_date), "status": "open"}
        return {"invoice_id": id, **self.state.invoices[id]}

    def mark_invoice_paid(self, invoice_id: str) -> dict[str, Any]:
        """Notes that an invoice was paid.

        Args:
            invoice_id: such as INV-101.
        """
        invoice = _get(self.state.invoices, invoice_id, "invoice")
        if invoice["status"] == "paid":
            raise ValueError(f"{_id(invoice_id)} was paid already")
        invoice["status"] = "paid"
        return {"invoice_id": _id(invoice_id), **invoice}

    def create_ticket(self, title: str, priority: Priority = "normal", assignee: str = "") -> dict[str, str]:
        """Opens a ticket for something that has to be done.

        Args:
            title: what has to be done.
            priority: low, normal or high.
            assignee: person who does it; empty if nobody yet.
        """
        if not title.strip():
            raise ValueError("a ticket needs a title")
        person = self._person(assignee) if assignee else ""
        id = self._next("T")
        self.state.tickets[id] = {"title": title, "priority": priority, "assignee": person, "status": "open"}
        return {"ticket_id": id, **self.state.tickets[id]}

    def update_ticket(self, ticket_id: str, status: Progress = "unchanged", assignee: str = "") -> dict[str, str]:
        """Changes a ticket's status, or who works on it, or both.

        Args:
            ticket_id: such as T-21.
            status: open, in_progress, closed, or unchanged.
            assignee: person who does it from now on; empty to leave it as it is.
        """
        ticket = _get(self.state.tickets, ticket_id, "ticket")
        person = self._person(assignee) if assignee else ticket["assignee"]
        ticket.update(assignee=person, status=ticket["status"] if status == "unchanged" else status)
        return {"ticket_id": _id(ticket_id), **ticket}

    def find_files(self, query: str) -> list[str]:
        """Searches the names of files.

        Args:
            query: words that the name contains.
        """
        words = re.findall(r"\w+", query.casefold())
        return [name for name in self.state.files if words and all(word in name.casefold() for word in words)]

    def share_file(self, file_name: str, person: str) -> dict[str, Any]:
        """Gives a person access to a file.

        Args:
            file_name: such as price_list_2027.pdf.
            person: name of the person.
        """
        name = next((each for each in self.state.files if each.casefold() == file_name.strip().casefold()), None)
        if name is None:
            raise ValueError(f"there is no file {file_name}")
        with_whom = self.state.files[name]
        with_whom[:] = sorted({*with_whom, self._person(person)})
        return {"file_name": name, "shared_with": list(with_whom)}

    def _next(self, kind: str) -> str:
        """An id that was never given before."""
        self._last[kind] += 1
        return f"{kind}-{self._last[kind]}"

    def _person(self, name: str) -> str:
        if (found := self._known(name)) is None:
            raise ValueError(f"nobody is known as {name}")
        return found

    def _customer(self, name: str) -> str:
        found = self._known(name, companies=True)
        if found is None:
            raise ValueError(f"there is no customer {name}")
        return found

    def _known(self, name: str, companies: bool = False) -> str | None:
        """The full name for one that says whose it is: all of it, or its beginning or end in whole words."""
        wanted = " ".join(name.casefold().split())
        if companies:
            known = {each["company"] for each in self.state.contacts.values()} - {self.house}
        else:
            known = set(self.state.contacts)
        fitting = [each for each in known if wanted and f" {wanted} " in f" {each.casefold()} "]
        return fitting[0] if len(fitting) == 1 else None


TOOLS = (
    "find_contact",
    "list_events",
    "create_event",
    "move_event",
    "cancel_event",
    "list_invoices",
    "create_invoice",
    "mark_invoice_paid",
    "create_ticket",
    "update_ticket",
    "find_files",
    "share_file",
)


QUOTED = ("name", "assignee", "person", "attendees", "customer", "query", "title")
"""Parameters whose values are words that somebody said, or that a tool returned. Names of files are not always."""


def specs(*, quoted: bool = False) -> list[dict[str, Any]]:
    """The twelve tools as a request in OpenAI's form shows them, in the order of `TOOLS`.

    Args:
        quoted: mark the parameters in `QUOTED`, of which models are not told.
    """
    from stille.agents.tools import tool

    made = [tool(method) for method in Company().tools().values()]
    shown = [
        {
            "type": "function",
            "function": {"name": each.name, "description": each.description, "parameters": dict(each.parameters)},
        }
        for each in made
    ]
    if quoted:
        for each in shown:
            for name, schema in each["function"]["parameters"]["properties"].items():
                if name in QUOTED:
                    schema.get("items", schema)["x-quoted"] = True
    return shown


_DEFAULTS: dict[str, dict[str, Any]] = {
    "create_event": {"minutes": 60, "attendees": []},
    "list_invoices": {"customer": "", "status": "any"},
    "create_ticket": {"priority": "normal", "assignee": ""},
    "update_ticket": {"status": "unchanged", "assignee": ""},
}

HOUSE = "Kestrel Cycles"

_PEOPLE = [
    ("Marta Oyelaran", "marta@kestrel.example", HOUSE),
    ("Jonas Pfeiffer", "jonas@kestrel.example", HOUSE),
    ("Priya Raman", "priya@kestrel.example", HOUSE),
    ("Callum Drew", "callum@kestrel.example", HOUSE),
    ("Ingrid Lindqvist", "ingrid@lindqvist.example", "Lindqvist Design"),
    ("Tomasz Wilk", "tomasz@harbourbakery.example", "Harbour Bakery"),
    ("Dana Whitfield", "dana.whitfield@oakfield.example", "Oakfield School"),
    ("Ravi Menon", "ravi@menongarage.example", "Menon Garage"),
    ("Helen Achebe", "h.achebe@northlight.example", "Northlight Dental"),
    ("Luis Ferrer", "luis@blueheron.example", "Blue Heron Travel"),
]
_EVENTS = [
    ("Team breakfast", "2027-03-03", "08:30", 45, ["Callum Drew", "Jonas Pfeiffer", "Marta Oyelaran", "Priya Raman"]),
    ("Fleet check", "2027-03-03", "14:00", 90, ["Dana Whitfield"]),
    ("Supplier call", "2027-03-04", "10:00", 30, ["Jonas Pfeiffer"]),
    ("Logo review", "2027-03-05", "11:00", 60, ["Ingrid Lindqvist", "Marta Oyelaran"]),
    ("Cargo bike demo", "2027-03-08", "15:30", 60, ["Tomasz Wilk"]),
    ("Stocktaking", "2027-03-09", "07:00", 240, ["Callum Drew", "Priya Raman"]),
    ("Tax appointment", "2027-03-11", "09:15", 60, ["Marta Oyelaran"]),
    ("Rental meeting", "2027-03-12", "13:00", 45, ["Luis Ferrer"]),
]
_INVOICES = [
    ("Harbour Bakery", 480, "2027-02-15", "open"),
    ("Oakfield School", 1250, "2027-03-20", "open"),
    ("Lindqvist Design", 320, "2027-02-28", "paid"),
    ("Menon Garage", 95, "2027-03-05", "open"),
    ("Northlight Dental", 210, "2027-01-31", "paid"),
    ("Blue Heron Travel", 2300, "2027-04-01", "open"),
    ("Harbour Bakery", 150, "2027-03-31", "open"),
    ("Menon Garage", 610, "2027-02-10", "paid"),
]
_TICKETS = [
    ("True the wheels of the school bikes", "high", "Callum Drew", "in_progress"),
    ("Order brake pads", "normal", "Priya Raman", "open"),
    ("Fix the leaking roof", "high", "", "open"),
    ("Photograph the new frames", "low", "Jonas Pfeiffer", "open"),
    ("Replace the till's receipt printer", "normal", "", "open"),
    ("Update opening hours on the website", "low", "Jonas Pfeiffer", "closed"),
]
_FILES = [
    "price_list_2027.pdf",
    "price_list_2026.pdf",
    "rental_contract_blue_heron.docx",
    "school_fleet_plan.xlsx",
    "logo_draft_v3.png",
    "insurance_policy.pdf",
    "stock_february.xlsx",
    "workshop_rota_march.xlsx",
]


def _evaluated() -> State:
    return State(
        contacts={name: {"email": email, "company": company} for name, email, company in _PEOPLE},
        events={
            f"EV-{number}": {"title": title, "date": date, "time": time, "minutes": minutes, "attendees": attendees}
            for number, (title, date, time, minutes, attendees) in enumerate(copy.deepcopy(_EVENTS), 1)
        },
        invoices={
            f"INV-{number}": {"customer": customer, "amount": amount, "due_date": due, "status": status}
            for number, (customer, amount, due, status) in enumerate(_INVOICES, 101)
        },
        tickets={
            f"T-{number}": {"title": title, "priority": priority, "assignee": assignee, "status": status}
            for number, (title, priority, assignee, status) in enumerate(_TICKETS, 21)
        },
        files={name: [] for name in _FILES},
    )


def _date(text: str) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        raise ValueError(f"a date is written as YYYY-MM-DD, got {text}")
    return datetime.date.fromisoformat(text).isoformat()


def _time(text: str) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
        raise ValueError(f"a time is written as HH:MM, got {text}")
    return text


def _id(text: str) -> str:
    return text.strip().upper()


def _get(things: dict[str, Any], id: str, kind: str) -> Any:
    if _id(id) not in things:
        raise ValueError(f"there is no {kind} {id}")
    return things[_id(id)]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.casefold().split()).rstrip(".!?")
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
