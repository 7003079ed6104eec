"""Questions about made-up people, towns, firms and books, in paragraphs of facts; some need two paragraphs."""

from collections.abc import Callable
from dataclasses import dataclass

from probe.draft import Ask, Draft, Kit

JOBS = [
    "painter",
    "surgeon",
    "carpenter",
    "pilot",
    "chemist",
    "judge",
    "baker",
    "sailor",
    "weaver",
    "architect",
    "farmer",
    "geologist",
    "violinist",
    "printer",
    "astronomer",
    "botanist",
    "watchmaker",
    "diver",
    "translator",
    "glassblower",
]
GOODS = [
    "lanterns",
    "cheese",
    "clocks",
    "carpets",
    "canoes",
    "pottery",
    "umbrellas",
    "honey",
    "bicycles",
    "paper",
    "mirrors",
    "ropes",
    "cider",
    "candles",
    "saddles",
    "tiles",
    "violins",
    "soap",
    "kites",
    "boots",
]
SUBJECTS = [
    "winter birds",
    "tidal mills",
    "old bridges",
    "desert plants",
    "river trade",
    "island songs",
    "mountain huts",
    "lost alphabets",
    "glass making",
    "night trains",
    "sea maps",
    "stone walls",
    "wild bees",
    "court jesters",
    "salt roads",
]
COLOURS = ["crimson", "amber", "violet", "turquoise", "ivory", "olive", "scarlet", "indigo", "silver", "coral"]

# relation: (statements, questions with the words that lead into the answer); {s} the subject, {o} the object
RELATIONS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "birthplace": (
        "{s} was born in {o}.|{s} came into the world in the town of {o}.|{o} is the birthplace of {s}.|"
        "{s} grew up in {o}, where {s} was also born.|A native of {o}, {s} never lost the accent.",
        [("Where was {s} born?", "{s} was born in"), ("What is the birthplace of {s}?", "The birthplace of {s} is"),
         ("In which town was {s} born?", "The town is")],
    ),
    "job": (
        "{s} worked as a {o}.|{s} earned a living as a {o}.|By trade, {s} was a {o}.|"
        "The profession of {s} was that of a {o}.",
        [("What was the profession of {s}?", "{s} was a"), ("What did {s} work as?", "{s} worked as a"),
         ("How did {s} earn a living?", "By working as a")],
    ),
    "employer": (
        "{s} was employed by {o}.|{s} spent twenty years at {o}.|The firm {o} hired {s} early on.|"
        "{s} joined the company {o}.",
        [("Which company employed {s}?", "{s} was employed by"), ("Who did {s} work for?", "{s} worked for"),
         ("At which firm did {s} spend the years?", "The firm was")],
    ),
    "year": (
        "{s} was born in the year {o}.|The birth of {s} is dated to {o}.|{s} saw the light of day in {o}.",
        [("In what year was {s} born?", "The year was"), ("When was {s} born?", "{s} was born in the year")],
    ),
    "teacher": (
        "{s} studied under {o}.|{o} taught {s} for several years.|As a student, {s} followed the lessons of {o}.|"
        "The teacher of {s} was {o}.",
        [("Who taught {s}?", "{s} was taught by"), ("Under whom did {s} study?", "{s} studied under"),
         ("Who was the teacher of {s}?", "The teacher of {s} was")],
    ),
    "mayor": (
        "The mayor of {s} is {o}.|{s} is governed by its mayor, {o}.|{o} has been mayor of {s} since the last vote.",
        [("Who is the mayor of {s}?", "The mayor of {s} is"), ("Who governs {s}?", "{s} is governed by")],
    ),
    "region": (
        "{s} lies in the region of {o}.|{s} is a town of the {o} region.|Travellers find {s} in {o}, a quiet region.",
        [("In which region is {s}?", "{s} is in the region of"), ("Where does {s} lie?", "{s} lies in")],
    ),
    "goods": (
        "{s} is known for its {o}.|The pride of {s} is its {o}.|"
        "People come to {s} for the {o} made there.|{s} became famous through {o}.",
        [("What is {s} known for?", "{s} is known for its"), ("What made {s} famous?", "{s} became famous for its")],
    ),
    "founded": (
        "{s} was founded in {o}.|The founding of {s} took place in {o}.|"
        "Records of {s} begin with its foundation in {o}.",
        [("When was {s} founded?", "{s} was founded in"),
         ("In which year was {s} established?", "{s} was established in")],
    ),
    "seat": (
        "{s} has its headquarters in {o}.|The main office of {s} stands in {o}.|{s} is based in {o}.",
        [("Where is {s} based?", "{s} is based in"),
         ("In which town are the headquarters of {s}?", "The headquarters are in")],
    ),
    "founder": (
        "{s} was started by {o}.|{o} founded {s} with borrowed money.|The founder of {s} was {o}.",
        [("Who founded {s}?", "{s} was founded by"), ("Who was the founder of {s}?", "The founder of {s} was")],
    ),
    "product": (
        "{s} makes {o}.|The workshops of {s} turn out {o}.|{s} sells {o} all over the country.",
        [("What does {s} make?", "{s} makes"), ("What is the product of {s}?", "The product of {s} is")],
    ),
    "author": (
        "{s} was written by {o}.|{o} is the author of {s}.|The pen behind {s} belonged to {o}.",
        [("Who wrote {s}?", "{s} was written by"), ("Who is the author of {s}?", "The author of {s} is")],
    ),
    "subject": (
        "{s} is a book about {o}.|The pages of {s} deal with {o}.|{s} treats of {o}.",
        [("What is {s} about?", "{s} is about"), ("Which subject does {s} treat?", "The subject of {s} is")],
    ),
    "cover": (
        "The cover of {s} is {o}.|{s} was bound in {o} cloth.|Readers know {s} by its {o} cover.",
        [("What colour is the cover of {s}?", "The cover is"), ("In what colour was {s} bound?", "{s} was bound in")],
    ),
}  # fmt: skip
# How an entity found by a first relation is spoken of in a second question.
THROUGH = {
    "birthplace": ["the town where {s} was born", "the birthplace of {s}"],
    "employer": ["the company that employed {s}", "the firm {s} worked for"],
    "teacher": ["the teacher of {s}", "the person who taught {s}"],
    "mayor": ["the mayor of {s}"],
    "seat": ["the town where {s} is based", "the town of the headquarters of {s}"],
    "founder": ["the founder of {s}", "the person who founded {s}"],
    "author": ["the author of {s}", "the person who wrote {s}"],
}
KINDS = {
    "person": ["birthplace", "job", "employer", "year", "teacher"],
    "town": ["mayor", "region", "goods", "founded"],
    "firm": ["seat", "founder", "product"],
    "book": ["author", "subject", "cover"],
}
LEADS_TO = {
    "birthplace": "town", "employer": "firm", "teacher": "person", "mayor": "person", "seat": "town",
    "founder": "person", "author": "person",
}  # fmt: skip
HEADINGS = [
    "\n\nPassage {i}: {t}\n",
    "\n\n[{i}] {t}.",
    "\n\n### {t}\n",
    "\n\n{t}:",
    "\n\nText {i}\n{t}.",
    "\n\n({i})",
    "\n\nFile {i}:\n",
    "\n\nArticle {i}. {t}.",
]
OPENINGS = [
    "",
    "",
    "",
    "Answer from the passages below, with the answer alone.",
    "Read these articles; a question follows.",
    "Use only the texts given here.",
    "Here are notes on people, towns, firms and books.",
    "Reply briefly, from these files:",
]
ASKING = [
    "{q}",
    "{q}",
    "Question: {q}",
    "Q: {q}",
    "Query: {q}",
    "Based on the passages above: {q}",
    "{q} Answer in a few words.",
]
LEADING = ["", "Answer:", "A:", "Short answer:", "Reply:", "lead", "lead", "lead"]


@dataclass(slots=True)
class Entity:
    kind: str
    name: str
    facts: dict[str, str]


def make_entities(kit: Kit, count: int) -> list[Entity]:
    rng, world = kit.rng, kit.world
    names: dict[str, None] = {}
    while len(names) < count:
        names[world.name(rng)] = None
    entities = []
    for i, name in enumerate(names):
        kind = ["person", "person", "town", "firm", "book"][i % 5]
        if kind == "person":
            name = f"{name} {world.name(rng)}"
        elif kind == "firm":
            name = f"{name} {rng.choice(['Works', 'Brothers', 'Company', 'Mills', 'Traders'])}"
        elif kind == "book":
            name = f"The {rng.choice(['Last', 'Blue', 'Silent', 'Little', 'Hidden'])} {name}"
        entities.append(Entity(kind, name, {}))
    return entities


def relate(kit: Kit, entities: list[Entity]) -> None:
    """Give every entity its facts; objects that are entities come from among them."""
    rng, world = kit.rng, kit.world
    by_kind: dict[str, list[str]] = {}
    for entity in entities:
        by_kind.setdefault(entity.kind, []).append(entity.name)
    plain: dict[str, Callable[[], str]] = {
        "job": lambda: rng.choice(JOBS), "goods": lambda: rng.choice(GOODS), "product": lambda: rng.choice(GOODS),
        "subject": lambda: rng.choice(SUBJECTS), "cover": lambda: rng.choice(COLOURS),
        "year": lambda: str(rng.randint(1500, 1990)), "founded": lambda: str(rng.randint(1000, 1900)),
        "region": lambda: world.name(rng),
    }  # fmt: skip
    for entity in entities:
        for relation in KINDS[entity.kind]:
            if relation in plain:
                entity.facts[relation] = plain[relation]()
                continue
            others = [name for name in by_kind.get(LEADS_TO[relation], []) if name != entity.name]
            entity.facts[relation] = rng.choice(others) if others else world.name(rng)


def paragraph(kit: Kit, entity: Entity, index: int, heading: str) -> str:
    rng = kit.rng
    sentences = [rng.choice(RELATIONS[r][0].split("|")).format(s=entity.name, o=o) for r, o in entity.facts.items()]
    rng.shuffle(sentences)
    for _ in range(rng.choice([0, 0, 1, 3])):
        sentences.insert(rng.randint(0, len(sentences)), rng.choice(kit.world.sentences))
    head = heading.format(i=index, t=entity.name)
    return head + ("" if head.endswith("\n") else " ") + " ".join(sentences)


def documents(kit: Kit, hops: int) -> Draft:
    """Facts in paragraphs, one an entity, and questions of one or two hops."""
    rng, style = kit.rng, kit.style
    heading, asking, leading = style.choice(HEADINGS), style.choice(ASKING), style.choice(LEADING)
    entities = make_entities(kit, max(5, kit.budget // 60))
    relate(kit, entities)
    pieces, used = [], 0
    for index, entity in enumerate(entities, 1):  # as many as there is room for
        piece = paragraph(kit, entity, index, heading)
        used += kit.size([piece])[0]
        if used > kit.budget and pieces:
            break
        pieces.append(piece)
    shown = {entity.name: entity for entity in entities[: len(pieces)]}

    asks: list[Ask] = []
    for _ in range(kit.questions(max(1, len(shown) // 2))):
        entity = rng.choice(list(shown.values()))
        relation = rng.choice(list(entity.facts))
        subject = entity.name
        if hops == 2:
            bridges = [r for r, o in entity.facts.items() if r in THROUGH and o in shown]
            if not bridges:
                continue
            bridge = rng.choice(bridges)
            subject = rng.choice(THROUGH[bridge]).format(s=entity.name)
            entity = shown[entity.facts[bridge]]
            relation = rng.choice(list(entity.facts))
        question, lead = rng.choice(RELATIONS[relation][1])
        words = dict(s=subject)
        text = asking.format(q=question.format(**words))
        tail = lead.format(**words) if leading == "lead" else leading
        tail = tail[:1].upper() + tail[1:]
        asks.append(Ask(text + (" " + tail if tail else ""), entity.facts[relation]))
    if not asks:
        entity = next(iter(shown.values()))
        relation = rng.choice(list(entity.facts))
        question, lead = rng.choice(RELATIONS[relation][1])
        asks.append(Ask(asking.format(q=question.format(s=entity.name)), entity.facts[relation]))
    return Draft(style.choice(OPENINGS), pieces, None, asks)
