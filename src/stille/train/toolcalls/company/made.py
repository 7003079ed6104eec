"""Numbered conversations in companies, with what the assistant is told of itself."""

# ruff: noqa: E501  (a line is a template)

import zlib
from datetime import date, timedelta
from functools import cache
from typing import Any

from stille.engine.calendar_text import calendar_text
from stille.evals.toolworld import Company, specs
from stille.train.toolcalls.company.judged import JUDGED, checksum
from stille.train.toolcalls.company.office import Office
from stille.train.toolcalls.company.tasks import SCENARIOS
from stille.train.toolcalls.company.words import Cast, founded
from stille.train.toolcalls.dice import Dice
from stille.train.toolcalls.kinds import DAYS, MONTHS

ROLES = (
    "You are the assistant of {house}.", "You are the assistant of {house}, a (workshop|small company|shop|family business).", "You help the people at {house}.", "You work for {house} as (its|their) assistant.", "You assist the (office|team|staff) of {house}.", "You are the office assistant (at|of) {house}.",
    "(Assistant|Office assistant) of {house}.", "{house}: you are its (digital |)assistant.", "You look after calendar, invoices, tickets and files of {house}.", "As the assistant of {house} you take care of the office work.", "You are a helpful assistant for the staff of {house}.", "You keep the office of {house} running.",
)  # fmt: skip
DATES = (
    "Today is {day}, {long}.", "Today is {day}, {long}.", "Today is {day}, {american}.", "Today is {day}, {iso}.", "It is {day}, {long}.", "Today's date: {iso} ({day}).", "The date is {iso}, a {day}.", "Date: {day}, {long}.", "Today: {day}, {american}.", "Now it is {day}, {iso}.", "Today is {day} ({iso}).", "The current date is {day}, {american}.",
)  # fmt: skip
RULES = (
    "Use the functions where they (help|fit).", "Call functions for what they can do.", "Do what is asked with the functions that you have.", "When something that a function needs is missing, ask for it.", "Ask for what is missing instead of guessing it.", "Never make up (ids|arguments|values).", "If no function fits, (just answer|answer without one|say so).",
    "Answer (briefly|shortly|in one or two sentences).", "Be brief.", "Be friendly and (short|brief|exact).", "Several calls at once are fine.", "If you cannot do something, say so.", "Look things up rather than guess.", "Give dates as YYYY-MM-DD and times as HH:MM to functions.", "Names, ids and titles have to be those that were (said|given).", "Call nothing when nothing has to be done.",
    "Call the functions only with what the user said or what you have looked up.", "If you need more information, ask a short question.", "Otherwise answer in your own words.", "Reply in English.", "Tell the user what was done.",
)  # fmt: skip


def conversation(seed: int, number: int, split: str) -> dict[str, Any]:
    """A conversation in a company.

    Args:
        seed, number: it follows from both.
        split: train, or another one for values and phrasings that training never sees.

    Returns:
        "messages" and "tools" in OpenAI's form; "meta": the scenario, the seed of the company (see `company_of`), the
        day of today, and all calls, so that they can be executed again.
    """
    dice = Cast(zlib.crc32(f"company/{seed}/{number}/{split}".encode()), split != "train")
    dice.today = date(2024, 1, 1) + timedelta(days=dice.randrange(2190))
    if dice.today.weekday() > 4 and dice.chance(0.8):
        dice.today -= timedelta(days=2)
    name = dice.choices([*SCENARIOS], [share for _, share in SCENARIOS.values()])[0]
    meta = {
        "scenario": name,
        "about": "company",
        "split": split,
        "seed": dice.getrandbits(30),
        "today": dice.today.isoformat(),
    }
    company = company_of(meta)
    office = Office(dice, company, dice.today)
    while not SCENARIOS[name][0](office) or any(checksum(said) in JUDGED for said in office.heard()):
        company.reset()
        office = Office(dice, company, dice.today)
    tools = [*_specs()]
    if dice.chance(0.5):
        dice.shuffle(tools)
    meta["calls"] = [(f"company.{tool}", arguments) for tool, arguments in office.calls]
    messages = [{"role": "system", "content": _told(dice, company.house)}, *office.messages]
    return {"messages": messages, "tools": tools, "meta": meta}


@cache
def _specs() -> tuple[dict[str, Any], ...]:
    return tuple(specs())


def company_of(meta: dict[str, Any]) -> Company:
    """The company of a conversation, as it was in the beginning."""
    return Company(*founded(meta["seed"], meta["split"] != "train", date.fromisoformat(meta["today"])))


def _told(dice: Dice, house: str) -> str:
    """The system's message; it always says what day it is, and often shows the weeks around it."""
    day = dice.today
    dates = {
        "day": DAYS[day.weekday()],
        "iso": day.isoformat(),
        "long": f"{day.day} {MONTHS[day.month - 1]} {day.year}",
        "american": f"{MONTHS[day.month - 1]} {day.day}, {day.year}",
    }
    parts = [dice.expand(dice.one(ROLES)).format(house=house), dice.one(DATES).format(**dates)]
    if dice.chance(0.15):
        parts.reverse()
    rules = dice.sample(RULES, dice.choice([0, 1, 2, 2, 3, 3, 4]))
    told = " ".join([*parts, *map(dice.expand, rules)])
    return f"{told}\n\n{calendar_text(day, after=dice.choice([2, 3, 3, 4]))}" if dice.chance(0.6) else told
