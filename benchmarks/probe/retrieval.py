"""Tasks of retrieval: values of keys in prose, in noise and among look-alike lines."""

import random

from probe.corpus import NOISE
from probe.draft import Ask, Draft, Kit, join, noise_filler, prose_filler

NOUNS = [
    "access code",
    "locker number",
    "badge id",
    "ticket number",
    "passphrase",
    "tracking number",
    "radio channel",
    "signal word",
    "checksum",
    "vault combination",
    "invoice number",
    "room key",
    "call sign",
    "serial",
    "licence tag",
    "quota",
    "dial setting",
    "seat reference",
]
STATEMENTS = [
    "The {noun} for {key} is {value}.",
    "{key} has been given the {noun} {value}.",
    "Note that the {noun} of {key} is {value}.",
    "For {key}, the {noun} was set to {value}.",
    "If anyone asks, the {noun} for {key} reads {value}.",
    "The register shows {value} as the {noun} for {key}.",
    "{key}: {noun} {value}.",
    "A {noun} on file for {key}: {value}.",
    "Among the {noun}s of {key} is {value}.",
    "Please remember that {key} uses the {noun} {value}.",
    "{value} is the {noun} assigned to {key}.",
    "One {noun} belonging to {key} would be {value}.",
    "Keep in mind this {noun} of {key}: {value}.",
    "(The {noun} recorded for {key} = {value}.)",
]
LINES = [
    "{key}: {value}",
    "{key} = {value}",
    "{key} -> {value}",
    "{key}\t{value}",
    '"{key}": "{value}",',
    "{key} ~ {value}",
    "entry {key} holds {value}.",
    "The {noun} for {key} is {value}.",
    "{noun} of {key}: {value}",
    "{key} ... {value}",
    "Record {key} carries the {noun} {value}.",
    "[{key}] {value}",
    "One of the {noun}s of {key} reads {value}.",
    "set {key} {value}",
    "A {noun} for {key} would be: {value}.",
]
ONE = [  # question, the words that lead into the answer
    ("What is the {noun} for {key}?", "The {noun} for {key} is"),
    ("Which {noun} does {key} have?", "{key} has the {noun}"),
    ("Give the {noun} of {key}.", "The {noun} of {key}:"),
    ("Look up {key} above. What {noun} is listed?", "Listed for {key}:"),
    ("Q: {noun} of {key}?", "A:"),
    ("State the {noun} that the text gives for {key}.", "The text gives {key} the {noun}"),
    ("Do you recall the {noun} mentioned for {key}?", "Yes, the {noun} mentioned for {key} is"),
    ("Find {key} and report its {noun}.", "Its {noun} is"),
    ("What did the document say about the {noun} of {key}?", "The {noun} of {key} in the document is"),
    ("Tell me the {noun} belonging to {key}.", "Answer:"),
]
ALL = [
    ("What are all the {noun}s for {key}?", "The {noun}s for {key} are"),
    ("List every {noun} that {key} has.", "{key} has the {noun}s"),
    ("Several {noun}s were given for {key}. Which ones?", "They are"),
    ("Collect each {noun} of {key} from the text.", "All {noun}s of {key} in the text:"),
    ("Which {noun}s belong to {key}, in order of appearance?", "In order:"),
    ("Q: all {noun}s of {key}?", "A:"),
    ("Report all {noun}s recorded for {key}.", "The recorded {noun}s for {key} are"),
    ("How do the {noun}s of {key} read?", "The {noun}s mentioned for {key} read"),
]
EACH = [
    ("What are the {noun}s for {keys}?", "The {noun}s for {keys} are"),
    ("Give the {noun} of each of these: {keys}.", "In the same order:"),
    ("For {keys}, which {noun}s are listed?", "Listed are"),
    ("Look up {keys} and report the {noun} of each.", "Their {noun}s are"),
    ("Q: {noun}s of {keys}?", "A:"),
    ("List, one by one, the {noun}s of {keys}.", "The {noun}s, one by one:"),
    ("State all the {noun}s that the text mentions for {keys}.", "The {noun}s mentioned in the text for {keys} are"),
    ("Which {noun}s do {keys} have?", "{keys} have"),
]
OPENINGS = [
    "",
    "",
    "",
    "Some {noun}s are hidden in the following text. Read it with care; questions follow.",
    "Below is a long document. Remember every {noun} that it mentions.",
    "Study this material and answer afterwards.",
    "Here are records. You will be asked about a {noun} later.",
    "Context:",
    "Read the text, then answer from it alone.",
    "The following passage contains {noun}s. I shall ask about them at the end.",
]


def hexes(rng: random.Random, groups: tuple[int, ...]) -> str:
    return "-".join("".join(rng.choice("0123456789abcdef") for _ in range(size)) for size in groups)


HEX_FORMS = [(8, 4, 4, 4, 12), (8, 4, 4, 4, 12), (8, 4, 4, 4, 12), (16,), (8,), (6, 6), (4, 4, 4, 4), (12,)]


def token(kit: Kit, kind: str, form: tuple[int, ...], digits: int) -> str:
    """A key or value of a kind."""
    rng, world = kit.rng, kit.world
    if kind == "number":
        return str(rng.randint(10 ** (digits - 1), 10**digits - 1))
    if kind == "hex":
        return hexes(rng, form)
    if kind == "name":
        return world.name(rng)
    if kind == "pair":
        return f"{world.word(rng)}-{world.word(rng)}"
    if kind == "phrase":
        return f"{world.word(rng)} {world.word(rng)}"
    return world.word(rng)


def distinct(kit: Kit, count: int, kind: str, form: tuple[int, ...], digits: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[token(kit, kind, form, digits)] = None
    return list(found)


def retrieval(kit: Kit, where: str, kind: str, mode: str) -> Draft:
    """Values of keys.

    Args:
        where: "prose", "noise" or "lines" (nothing but look-alike entries).
        kind: of the values: "number", "hex" or "word".
        mode: "one" value of one key, "all" values of one key, or the value of "each" of several keys.
    """
    rng, style = kit.rng, kit.style
    form, digits = style.choice(HEX_FORMS), style.choice([4, 5, 6, 7, 7, 7, 8, 9])
    key_kind = style.choice(
        ["hex", "hex", "name"] if kind == "hex" and where == "lines" else ["pair", "pair", "word", "name"]
    )
    if where == "lines" and kind != "hex":
        key_kind = style.choice(["pair", "pair", "word", "name", "number", "phrase"])
    value_kind = style.choice(["word", "pair", "name"]) if kind == "word" else kind
    noun = style.choice(NOUNS)
    statements = style.sample(STATEMENTS, style.choice([1, 1, 2, 4]))
    line = style.choice(LINES)
    prefixed, list_form = style.random() < 0.7, style.choice([0, 1, 3, 3, 2])
    asking = style.sample({"one": ONE, "all": ALL, "each": EACH}[mode], 3)

    room = max(2, kit.budget // 110)
    count = kit.questions(min(24, room))
    per_key = rng.randint(2, 5) if mode == "all" else 1
    group = rng.randint(2, 5) if mode == "each" else 1
    asked = max(1, count // (per_key * group))
    others = 0 if where == "lines" else rng.choice([0, 1, 3, 3, 6])
    names = distinct(kit, asked * group + others, key_kind, form, digits)
    rng.shuffle(names)
    pairs = [(name, token(kit, value_kind, form, digits)) for name in names for _ in range(per_key)]
    rng.shuffle(pairs)
    of: dict[str, list[str]] = {}
    for name, value in pairs:
        of.setdefault(name, []).append(value)

    def write(name: str, value: str) -> str:
        template = line if where == "lines" else rng.choice(statements)
        text = template.format(noun=noun, key=name, value=value)
        return ("\n" if where == "lines" else " ") + text[0].upper() * (template[0] != "{") + text[template[0] != "{" :]

    asks = []
    for i in range(asked):
        members = names[i * group : (i + 1) * group]
        question, lead = rng.choice(asking) if asked > 1 else asking[0]
        values = [value for name in members for value in of[name]]
        words = dict(noun=noun, key=members[0], keys=join(members, 3 if list_form == 2 else list_form))
        text = question.format(**words) + (" " + lead.format(**words) if prefixed or lead.endswith(":") else "")
        asks.append(Ask(text, join(values, list_form)))

    if where == "lines":
        taken = set(names)

        def lookalikes(count: int) -> list[str]:
            fresh = [name for name in distinct(kit, count, key_kind, form, digits) if name not in taken]
            taken.update(fresh)
            return [write(name, token(kit, value_kind, form, digits)) for name in fresh]

        filler = lookalikes
    else:
        filler = prose_filler(kit) if where == "prose" else noise_filler(kit, NOISE)
    opening = style.choice(OPENINGS).format(noun=noun)
    return Draft(opening, [write(*pair) for pair in pairs], filler, asks)
