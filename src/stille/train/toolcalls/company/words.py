"""Companies that never were: names, events, invoices, tickets and files, put together from words."""

# ruff: noqa: E501  (a line holds many words)

import re
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from functools import cache, lru_cache
from typing import Any, TypeVar

from stille.evals.toolworld import Company, State
from stille.train.toolcalls.company import invented
from stille.train.toolcalls.dice import Dice, is_held_out
from stille.train.toolcalls.words import FIRST, LAST, listed

T = TypeVar("T")


SHE = frozenset(listed("""
    Anna, Carla, Elena, Greta, Ines, Keiko, Mina, Nadia, Paula, Rosa, Tilda, Vera, Xenia, Zoe, Amara, Dalia, Fiona, Hana, Jasmin, Leila,
    Olga, Rania, Uma, Wanda, Yara, Alice, Clara, Emma, Ivy, Maya, Nina, Priya, Sofia, Anouk, Celeste, Esther, Gloria, Isabel
"""))  # fmt: skip
PLACES = listed("""
    Alder, Amberley, Ashgrove, Bayside, Blackwater, Bluegate, Brookfield, Cinderford, Clearwell, Cliffside, Coppergate, Cranebrook, Dunmore,
    Eastgate, Elmwood, Fairhaven, Fernhill, Foxglove, Glenrock, Goldcrest, Greystone, Halden, Hawthorn, Hazelmere, Highfield, Hollybank,
    Ironbridge, Juniper, Kingsway, Lakeview, Larkspur, Linden, Longmead, Marlow, Millbrook, Moorland, Northgate, Oakridge, Orchard, Pinehurst,
    Quarry Lane, Ravenscourt, Redcliff, Riverton, Rosewood, Sandbank, Seaton, Silverdale, Southmoor, Stonebridge, Summerhill, Thornbury,
    Tidewater, Upton, Valebrook, Wavecrest, Westfield, Whitestone, Willowbank, Winterbourne, Yarrow
""")  # fmt: skip
TRADES = listed("""
    Bakery, Brewery, Carpets, Ceramics, Chocolates, Clinic, Couriers, Dairy, Dental, Electric, Engineering, Farms, Flooring, Flowers, Foods,
    Freight, Furniture, Garages, Gardens, Glass, Hotels, Insurance, Interiors, Joinery, Labs, Laundry, Lighting, Logistics, Marine, Media,
    Optics, Outdoors, Packaging, Paints, Pharmacy, Plumbing, Pottery, Press, Print, Records, Rentals, Roofing, School, Seeds, Solar, Steel,
    Stores, Studios, Textiles, Theatre, Timber, Toys, Travel, Vineyards, Windows, Wines
""")  # fmt: skip
ENDINGS = ("", "", "", "", " Ltd", " & Sons", " Group", " Partners")
HOUSES = listed("""
    Woodworks, Workshop, Sailmakers, Instruments, Upholstery, Bookbinders, Violins, Boatyard, Metalworks, Kitchens, Stoves, Tents, Saddlery,
    Clockworks, Lamps, Frames, Machines, Organs, Pianos, Guitars, Tools, Signs, Software, Consulting, Design, Repairs
""")  # fmt: skip
SUBJECTS = listed("""
    budget, sales, safety, design, website, hiring, supplier, warehouse, pricing, marketing, quality, stock, training, roof, fire, contract,
    project, product, service, delivery, catalogue, energy, insurance, tax, payroll, holiday, press, photo, customer, software, packaging,
    showroom, machine, logistics, newsletter, audit, trade fair, summer party, open house, apprentice
""")  # fmt: skip
MEETINGS = listed("""
    meeting, review, workshop, call, planning, kick-off, demo, check, inspection, briefing, training, presentation, interview, walkthrough,
    round table, rehearsal, update, handover, session, tasting, stand-up, retrospective, appointment, visit
""")  # fmt: skip
MOMENTS = listed("""
    team breakfast, lunch with the landlord, staff meeting, fire drill, visit of the auditor, first aid course, stocktaking, job interview,
    board meeting, farewell drinks, company outing, lathe training, bank appointment, photo shoot, works council, coffee with the mayor,
    year-end closing, test drive, van inspection, window cleaning, flu vaccination, press day, strategy day, choir practice
""")  # fmt: skip
THINGS = listed("""
    printer, heating, front door, compressor, server, coffee machine, alarm system, forklift, saw, projector, scanner, conveyor belt, kiln,
    drill press, delivery van, cash register, web shop, phone line, door lock, window, sink, lift, paint booth, label printer, router, laptop,
    freezer, ventilation, gate, scale, backup, contact form, welding unit, fire extinguisher, air filter, workbench, pallet truck, lamp
""")  # fmt: skip
ROOMS = listed("""
    in the hall, in the kitchen, in the office, in room 3, on the second floor, in the showroom, at the back entrance, in the basement,
    in the storeroom, at reception, in the yard, in the meeting room, in hall B, by the stairs
""")  # fmt: skip
FAULTS = listed("""
    is broken, is leaking, makes a strange noise, does not start, keeps crashing, is stuck, smells of gas, is out of order, is much too slow,
    does not close, flickers, is blocked, shows an error, has no power, overheats, rattles
""")  # fmt: skip
BROKEN = listed("broken, leaking, noisy, jammed, slow, faulty, damaged, rusty, blocked, loose, missing, worn-out")
WORKS = listed(
    "repair, replace, clean, check, inspect, move, oil, test, adjust, install, paint, update, restart, calibrate, insulate"
)
CHORES = listed("""
    order new gloves, refill the first aid kit, update the price tags, renew the parking permits, sort the returned parcels, back up the
    customer database, order toner, label the shelves, count the spare parts, write the safety notice, scan the old contracts, plan the summer
    rota, clear out the archive, call back the tax office, send out the samples, book the trade fair stand, translate the manual, water the plants,
    collect the keys, prepare the stocktaking, change the wifi password, answer the survey, weigh the parcels, test the smoke detectors
""")  # fmt: skip
ERRANDS = (
    "send {company} the samples", "call {company} about the delivery", "prepare the offer for {company}", "call {company} back", "send {company} the {paper}", "measure the hall of {company}", "pack the order of {company}", "collect the pallets from {company}", "order {count} boxes of {goods}",
    "order new {goods}", "order {goods} for the {thing}", "update the {paper}", "print the {paper}", "check the {paper}", "translate the {paper}", "throw away the old {goods}", "find a supplier for {goods}", "count the {goods}", "ask {company} for a new date", "fix the mistake in the {paper}", "get a quote for the {thing}",
    "read the meter of the {thing}", "look for the lost {goods}", "repaint the sign {room}", "move the shelves {room}", "put up posters {room}", "change the bulb {room}", "sweep the floor {room}",
)  # fmt: skip
GOODS = listed(
    "screws, gloves, labels, batteries, pens, envelopes, filters, bulbs, brushes, keys, bolts, hinges, cables, spare parts, cups, towels, sandpaper, tape, boxes, paint, oil, paper, uniforms, samples"
)
LONGER = (
    "{meeting} about the {paper}", "{meeting} on the {paper}", "{meeting} about the {thing}", "{meeting} for {company}", "visit at {company}", "call with {company}", "lunch with {company}", "{subject} {meeting} for {company}", "repair of the {thing}", "delivery from {company}", "handover to {company}", "first look at the {paper}", "review of the {paper}", "introduction to the new {thing}",
)  # fmt: skip
SHORT = listed(
    "breakfast, lunch, demo, interview, stand-up, retro, inventory, kick-off, dinner, training, workshop, inspection, review, yoga, town hall, quiz night, brainstorming, debriefing, barbecue, rehearsal, handover, audit, site visit, coffee break, fitting, open day, all-hands, one-on-one, networking lunch, product launch"
)
PAPERS = listed("""
    price list, floor plan, staff handbook, annual report, supplier contract, packing list, safety manual, site map, lease agreement, logo draft,
    holiday rota, stock list, cleaning schedule, test protocol, delivery terms, parts catalogue, insurance policy, energy report, travel policy,
    warranty terms, order form, survey results, press kit, wiring diagram, sales figures, shift plan, audit report, cost estimate, tax return,
    phone list, fire plan, budget draft, visitor list, menu, tender, brochure, newsletter, parking permit, job advert, quality report, care guide,
    rental contract, opening hours, colour chart, measurements, invoice template, business plan, training notes, loan agreement, meeting minutes
""")  # fmt: skip
ADDED = listed(
    "spring, summer, autumn, winter, draft, final, signed, old, new, v2, v3, march, june, october, q1, q3, hall, office, de, en"
)
_YEAR = re.compile(r" 20\d\d$")
ENDS = ("pdf", "pdf", "pdf", "xlsx", "docx", "csv", "pptx", "txt", "png", "odt")


INVENTED = 0.4
"""Share of names and things that are in no list."""


class Cast(Dice):
    """Dice that remember which values of a list are held out: the same lists are drawn from again and again."""

    def one(self, values: Sequence[T]) -> T:
        values = tuple(values)
        return self.choice(_side(values, self.held_out) or values)


@lru_cache(1024)
def _side(values: tuple[Any, ...], held_out: bool) -> tuple[Any, ...]:
    return tuple(value for value in values if is_held_out(str(value)) == held_out)


@cache
def judged() -> frozenset[str]:
    """Titles and files of the company that models are judged by: none of these is ever drawn."""
    state = Company().state
    titles = [each["title"].casefold() for each in (*state.events.values(), *state.tickets.values())]
    return frozenset([*titles, *(name.casefold() for name in state.files)])


def unjudged(draw: Callable[[], str]) -> str:
    while (text := draw()).casefold() in judged():
        pass
    return text


def company_name(dice: Dice) -> str:
    trade = invented.name(dice) if dice.chance(INVENTED / 3) else dice.one(TRADES)
    return f"{place(dice)} {trade}{dice.choice(ENDINGS)}"


def place(dice: Dice) -> str:
    return invented.name(dice) if dice.chance(INVENTED) else dice.one(PLACES)


def person_name(dice: Dice) -> str:
    first = invented.name(dice) if dice.chance(INVENTED) else dice.one(FIRST)
    return f"{first} {invented.name(dice) if dice.chance(INVENTED) else dice.one(LAST)}"


def is_woman(full: str) -> bool:
    first = full.split()[0]
    return first in SHE or (first not in FIRST and first.endswith("a"))


def paper(dice: Dice) -> str:
    return invented.paper(dice) if dice.chance(INVENTED) else dice.one(PAPERS)


def topic(file_name: str) -> str:
    """What a file is about."""
    stem = file_name.rpartition(".")[0].replace("-", " ").replace("_", " ")
    known = next((each for each in PAPERS if f"{stem} ".startswith(f"{each} ")), "")
    if known:
        return known
    about, _, last = _YEAR.sub("", stem).rpartition(" ")
    return about if last in ADDED else f"{about} {last}"


def _thing(dice: Dice) -> str:
    return f"{invented.noun(dice)} {dice.one(THINGS)}" if dice.chance(INVENTED / 2) else dice.one(THINGS)


def event_title(dice: Dice) -> str:
    return unjudged(lambda: _event_title(dice))


def _event_title(dice: Dice) -> str:
    way = dice.random()
    if way < 0.5:
        return f"{invented.noun(dice) if dice.chance(INVENTED) else dice.one(SUBJECTS)} {dice.one(MEETINGS)}"
    return dice.one(MOMENTS) if way < 0.65 else dice.one(SHORT) if way < 0.8 else _filled(dice.one(LONGER), dice)


def _filled(template: str, dice: Dice) -> str:
    return template.format(
        meeting=dice.one(MEETINGS),
        paper=paper(dice),
        thing=_thing(dice),
        company=company_name(dice),
        subject=dice.one(SUBJECTS),
        goods=f"{invented.noun(dice)} {dice.one(GOODS)}" if dice.chance(INVENTED / 2) else dice.one(GOODS),
        count=dice.choice(["two", "three", "five", "ten", "20", "50"]),
        room=dice.one(ROOMS),
    )


def ticket_title(dice: Dice, kind: str) -> str:
    """What has to be done, as a noun ("broken lamp in the hall"), as what somebody does ("repair the lamp"), or as a
    "fact" ("lamp in the hall flickers")."""
    return unjudged(lambda: _ticket_title(dice, kind))


def _ticket_title(dice: Dice, kind: str) -> str:
    thing, room = _thing(dice), f" {dice.one(ROOMS)}" if dice.chance(0.35) else ""
    if kind == "noun":
        return f"{dice.one(BROKEN)} {thing}{room}"
    if kind == "fact":
        return f"{thing}{room} {dice.one(FAULTS)}"
    way = dice.random()
    if way < 0.4:
        return _filled(dice.one(ERRANDS), dice)
    return dice.one(CHORES) if way < 0.6 else f"{dice.one(WORKS)} the {thing}{room}"


def file_name(dice: Dice, about: str = "") -> str:
    return unjudged(lambda: _file_name(dice, about or paper(dice)))


def _file_name(dice: Dice, about: str) -> str:
    parts = [*about.split()]
    if dice.chance(0.3):
        parts.append(dice.one(ADDED))
    if dice.chance(0.6):
        parts.append(str(dice.randint(2021, 2029)))
    return f"{dice.choice('___--').join(parts)}.{dice.choice(ENDS)}"


def clock(dice: Dice) -> str:
    """When people meet, HH:MM."""
    hour = dice.choice([8, 9, 9, 10, 10, 11, 11, 12, 13, 14, 14, 15, 15, 16, 17, 18])
    return f"{hour:02d}:{dice.choice([0, 0, 0, 30, 30, 15, 45]) if dice.chance(0.95) else dice.choice([5, 10, 20, 40, 50]):02d}"


def euros(dice: Dice) -> int:
    way = dice.random()
    if way < 0.35:
        return dice.randrange(50, 1000, 10)
    return dice.randrange(1000, 9000, 50) if way < 0.6 else dice.randint(40, 9999)


def minutes(dice: Dice) -> int:
    return dice.choice([15, 20, 30, 30, 30, 45, 45, 60, 60, 90, 90, 120, 120, 180, 240, 40, 75])


def founded(seed: int, held_out: bool, today: date) -> tuple[State, str]:
    """What there is in a company, and its name.

    Args:
        seed: of everything.
        held_out: see `Dice`.
        today: the day around which things happen.
    """
    dice = Cast(seed, held_out)
    house = f"{place(dice)} {dice.one(HOUSES)}"
    customers = _different(lambda: company_name(dice), dice.randint(4, 6), key=lambda name: name.split()[0])
    people = _people(dice, dice.randint(8, 10))
    inside = dice.randint(3, len(people) - 4)
    contacts = {}
    for number, name in enumerate(people):
        company = house if number < inside else customers[(number - inside) % len(customers)]
        contacts[name] = {"email": _email(dice, name, company), "company": company}
    first = {"EV": 1, "INV": 101, "T": 21}
    if dice.chance(0.5):
        first = {"EV": dice.randint(1, 80), "INV": dice.randint(101, 900), "T": dice.randint(10, 300)}
    used = [company for company in customers if any(each["company"] == company for each in contacts.values())]
    return (
        State(
            contacts,
            {f"EV-{first['EV'] + i}": each for i, each in enumerate(_events(dice, people, today))},
            {f"INV-{first['INV'] + i}": _invoice(dice, used, today) for i in range(dice.randint(6, 10))},
            {f"T-{first['T'] + i}": _ticket(dice, people[:inside]) for i in range(dice.randint(5, 8))},
            {name: [] for name in _files(dice, dice.randint(6, 12))},
        ),
        house,
    )


def _different(draw: Any, count: int, key: Any = lambda value: value) -> list[Any]:
    found: dict[Any, Any] = {}
    for _ in range(20 * count):
        value = draw()
        found.setdefault(key(value), value)
        if len(found) == count:
            break
    return [*found.values()]


def _people(dice: Dice, count: int) -> list[str]:
    """Of different last names; two of them have the same first name sometimes, so that it does not say who is meant."""
    people = _different(lambda: person_name(dice), count, key=lambda name: name.split()[1])
    if dice.chance(0.75):
        people = _different(lambda: person_name(dice), count, key=lambda name: name.split()[0])
        people = list({name.split()[1]: name for name in people}.values())
    while len(people) < count:
        people.append(f"{dice.choice(FIRST)} {dice.choice(LAST)}")
    return list(dict.fromkeys(people))


def _email(dice: Dice, name: str, company: str) -> str:
    first, last = name.casefold().split()
    at = company.split(" & ")[0].casefold().replace(" ", dice.choice(["", "-"]))
    return f"{dice.choice([f'{first}.{last}', f'{first[0]}.{last}', first, last])}@{at}.example"


def _events(dice: Dice, people: list[str], today: date) -> list[dict[str, Any]]:
    days = [today + timedelta(days=dice.choice([0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12])) for _ in range(5)]
    days = [day + timedelta(days=2 if day.weekday() > 4 and dice.chance(0.6) else 0) for day in days]
    titles = _different(lambda: event_title(dice), dice.randint(6, 12))
    events = [
        {
            "title": title,
            "date": dice.choice(days).isoformat(),
            "time": clock(dice),
            "minutes": minutes(dice),
            "attendees": sorted(dice.sample(people, dice.choice([0, 1, 1, 2, 2, 3]))),
        }
        for title in titles
    ]
    at = {(each["date"], each["time"]): each for each in events}
    return [*at.values()]


def _invoice(dice: Dice, customers: list[str], today: date) -> dict[str, Any]:
    due = today + timedelta(days=dice.randint(-25, 40))
    status = "paid" if dice.chance(0.35) else "open"
    return {"customer": dice.choice(customers), "amount": euros(dice), "due_date": due.isoformat(), "status": status}


def _ticket(dice: Dice, staff: list[str]) -> dict[str, str]:
    return {
        "title": ticket_title(dice, dice.choice(["noun", "work", "fact"])),
        "priority": dice.choice(["low", "normal", "normal", "high"]),
        "assignee": dice.choice(["", *staff]),
        "status": dice.choice(["open", "open", "in_progress", "closed"]),
    }


def _files(dice: Dice, count: int) -> list[str]:
    papers = _different(lambda: paper(dice), count - 2)
    names = [file_name(dice, each) for each in papers]
    names += [file_name(dice, dice.choice(papers)) for _ in range(2)]  # so that a search finds two
    return list(dict.fromkeys(names))
