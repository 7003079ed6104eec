"""Tasks of tracing and counting: chains of assignments, the commonest words of a list, ranks by frequency."""

import string
from itertools import pairwise

from probe.corpus import NOISE
from probe.draft import Ask, Draft, Kit, join, noise_filler, prose_filler

FIRST = [
    "{a} = {v}",
    "{a} := {v}",
    "let {a} = {v}",
    "set {a} to {v}",
    "{a} <- {v}",
    "REG {a} = {v}",
    "${a} = {v};",
    "store {v} in {a}",
    "{a} gets {v}",
    "put {v} into {a}",
    "cell {a} = {v}",
    "%{a} = {v}",
]
NEXT = [
    "{a} = {b}",
    "{a} := {b}",
    "let {a} = {b}",
    "set {a} to {b}",
    "{a} <- {b}",
    "REG {a} = REG {b}",
    "${a} = ${b};",
    "store {b} in {a}",
    "{a} gets {b}",
    "put {b} into {a}",
    "cell {a} = cell {b}",
    "%{a} = %{b}",
]
CHAIN_OPENINGS = [
    "",
    "",
    "",
    "Follow the assignments hidden in this text.",
    "Below, names receive values, some by way of other names.",
    "Track which names share a value while you read.",
    "The text contains a few chains of assignments; trace them.",
    "Keep track of what every name holds.",
]
CHAIN_ASKS = [
    ("Which names hold the value {v}?", "The {n} names that hold {v} are"),
    ("List all names that end up with {v}.", "These names end up with {v}:"),
    ("Find every name whose value is {v}, in order.", "In order, the {n} names with the value {v} are:"),
    ("Trace {v}: to which names was it passed?", "{v} was passed to"),
    ("Q: names equal to {v}?", "A:"),
    ("What are the names that were given {v}, directly or through others?", "Following the chain, they are"),
    ("Who carries {v} in the text above?", "According to the assignments, {n} names carry {v}, namely:"),
    ("Name everything that equals {v}.", "Everything equal to {v}:"),
]


def chains(kit: Kit) -> Draft:
    """Names that share a value by assignment, in the order of the chain."""
    rng, style = kit.rng, kit.style
    form = style.randrange(len(FIRST))
    first, following = FIRST[form], NEXT[form]
    name_kind, length = style.choice(["upper", "upper", "upper", "word", "lower"]), style.choice([3, 4, 5, 5, 5, 6])
    digits, list_form = style.choice([3, 4, 5, 5, 6]), style.choice([0, 2, 2, 2, 1])
    asking, prefixed = style.sample(CHAIN_ASKS, 2), style.random() < 0.75
    in_lines, stop = style.random() < 0.3, style.choice(["", "", "."])
    in_prose = style.random() < 0.35

    hops = rng.choice([1, 2, 3, 4, 4, 4, 5, 6])
    many = max(1, min(rng.choice([1, 1, 2, 3, 4, 6]), kit.budget // (40 * (hops + 1))))
    letters = string.ascii_uppercase if name_kind == "upper" else string.ascii_lowercase

    def make() -> str:
        if name_kind == "word":
            return kit.world.word(rng)
        return "".join(rng.choice(letters) for _ in range(length))

    names: dict[str, None] = {}
    while len(names) < many * (hops + 1):
        names[make()] = None
    flat = list(names)
    rng.shuffle(flat)
    values: dict[str, list[str]] = {}
    while len(values) < many:
        members = flat[len(values) * (hops + 1) : (len(values) + 1) * (hops + 1)]
        values.setdefault(str(rng.randint(10 ** (digits - 1), 10**digits - 1)), members)
    queues = [
        [first.format(a=members[0], v=value)] + [following.format(a=a, b=b) for b, a in pairwise(members)]
        for value, members in values.items()
    ]
    needles = []
    while any(queues):  # chains interleave, each in its own order
        queue = rng.choice([queue for queue in queues if queue])
        needles.append(("\n" if in_lines else " ") + queue.pop(0) + stop)
    asks = []
    order = list(values)
    rng.shuffle(order)
    for value in order:
        question, lead = rng.choice(asking) if many > 1 else asking[0]
        words = dict(v=value, n=hops + 1)
        text = question.format(**words) + (" " + lead.format(**words) if prefixed else "")
        asks.append(Ask(text, join(values[value], list_form)))
    filler = prose_filler(kit) if in_prose else noise_filler(kit, NOISE)
    return Draft(style.choice(CHAIN_OPENINGS), needles, filler, asks)


COMMON_ASKS = [
    ("Which {k} words occur most often in the list?", "The {k} words that occur most often are"),
    ("Name the {k} commonest words above.", "The {k} commonest words:"),
    ("Some words are repeated far more than the rest. Which {k}?", "The {k} most repeated words are"),
    ("Find the {k} most frequent entries.", "Most frequent in the list above are these {k} entries:"),
    ("Q: top {k} words?", "A:"),
    ("Give the {k} words with the highest counts.", "Highest counts:"),
    ("By number of appearances, what are the {k} leading words?", "The {k} leading words by appearances are:"),
    ("Report the {k} words that the list repeats most.", "Repeated most:"),
]
COMMON_OPENINGS = [
    "",
    "",
    "",
    "Below is a list in which some words recur more than others. Remember the most common ones.",
    "Count the words of this list as you read.",
    "A list of words follows; a few are favourites.",
    "Word list:",
]
COMPARE = [
    ("Does {a} or {b} occur more often?", "More often:"),
    ("Which is more frequent, {a} or {b}?", "The more frequent one is"),
    ("Between {a} and {b}, which appears more?", "It is"),
    ("Compare the counts of {a} and {b}: which is higher?", "Higher:"),
]


def vocabulary(kit: Kit, count: int, coined: bool) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[kit.world.coined(kit.rng) if coined else kit.world.word(kit.rng)] = None
    words = list(found)
    kit.rng.shuffle(words)
    return words


def common_words(kit: Kit) -> Draft:
    """A shuffled list with a few words far more often than the rest; asked in the order of first appearance."""
    rng, style = kit.rng, kit.style
    layout = style.choice(["{s}{i}. {w}", "{s}{i}. {w}", "{s}{i}) {w}", "\n{w}", " {w}", ", {w}", "\n- {w}"])
    separator = style.choice(["\n", " "])
    coined = style.random() < 0.15
    list_form, asking, prefixed = style.choice([4, 4, 0, 1, 2]), style.choice(COMMON_ASKS), style.random() < 0.75

    def lay(words: list[str]) -> list[str]:
        return [layout.format(s=separator, i=i, w=word) for i, word in enumerate(words, 1)]

    trial = vocabulary(kit, 40, coined)
    share = max(1, kit.budget // 8) // 40
    cost = sum(kit.size([layout.format(s=separator, i=share * i + 1, w=w) for i, w in enumerate(trial)])) / 40
    entries = max(12, int(kit.budget * 0.96 / cost))
    rare = rng.choice([1, 1, 2, 3, 3])
    top = rng.choice([3, 5, 8, 10, 10, 10])
    top = max(2, min(top, entries // (6 * rare)))
    often = max(3 * rare, min(int(entries * rng.uniform(0.2, 0.5) / top), rng.choice([10, 20, 30, 30, 40])))
    words = vocabulary(kit, top + max(1, (entries - top * often) // rare), coined)
    favourites, rest = words[:top], words[top:]
    listed = favourites * often + rest * rare
    rng.shuffle(listed)
    ranked = sorted(favourites, key=listed.index)
    question, lead = (part.format(k=top) for part in asking)
    asks = [Ask(question + (" " + lead if prefixed else ""), join(ranked, list_form))]
    for _ in range(rng.choice([0, 0, 2, 4])):
        pair = [rng.choice(favourites), rng.choice(rest)]
        asks.append(comparison(kit, pair[0], pair))
    needles = lay(listed)
    return Draft(style.choice(COMMON_OPENINGS), needles, None, asks)


def comparison(kit: Kit, winner: str, pair: list[str]) -> Ask:
    kit.rng.shuffle(pair)
    question, lead = kit.rng.choice(COMPARE)
    return Ask(question.format(a=pair[0], b=pair[1]) + " " + lead, winner)


RANK_OPENINGS = [
    "",
    "",
    "",
    "The text below is written in code words. Watch how often each one comes.",
    "Here is a stream of symbols and words. Count the words.",
    "Count every word in the following transmission.",
    "A coded message follows; some words come more often.",
]
RANK_ASKS = [
    ("Which {k} words come most often in the stream?", "The {k} words that come most often are"),
    ("Rank the {k} most frequent code words.", "From most frequent down:"),
    ("Q: the {k} commonest code words?", "A:"),
    ("Ignore the filler. What are the {k} top words by count?", "By count, the {k} top words are:"),
    ("Name the {k} words seen most in the message.", "Seen most in the message above:"),
    ("What {k} words lead the count?", "The count is led by"),
    ("State the {k} most repeated words, the most repeated first.", "Most repeated first:"),
    ("Which {k} words dominate the transmission?", "The {k} dominant words in the transmission are"),
]
FILLERS = ["", "", "....", "--", "###", "_ _", "<>", "~~~", "......"]


def ranks(kit: Kit) -> Draft:
    """Words drawn by a power law, sometimes with a filler symbol as the commonest; asked from the top down."""
    rng, style = kit.rng, kit.style
    filler, coined = style.choice(FILLERS), style.random() < 0.75
    separator = style.choice([" ", " ", " ", "\n"])
    list_form, asking, prefixed = style.choice([0, 2, 2, 1, 3]), style.choice(RANK_ASKS), style.random() < 0.75
    top = style.choice([1, 2, 3, 3, 3, 3, 4, 5])

    pool = vocabulary(kit, rng.choice([20, 50, 100, 200]), coined)
    exponent = rng.uniform(1.4, 2.4)
    shift = 2 if filler else 1
    weights = [(rank + shift) ** -exponent for rank in range(len(pool))]
    if filler:
        pool, weights = [filler, *pool], [rng.uniform(0.5, 1.6) * weights[0] * 2, *weights]
    costs = kit.size([separator + word for word in pool])
    mean = sum(c * w for c, w in zip(costs, weights, strict=True)) / sum(weights)
    stream = rng.choices(pool, weights, k=max(12, int(kit.budget * 0.95 / mean)))
    counts = {word: 0 for word in pool if word != filler}
    for word in stream:
        if word != filler:
            counts[word] += 1
    order = sorted(counts, key=lambda word: -counts[word])
    while top > 1 and counts[order[top - 1]] <= 1.12 * counts[order[top]] + 1:
        top -= 1  # only ranks that can be told apart are asked for
    question, lead = (part.format(k=top) for part in asking)
    asks = [Ask(question + (" " + lead if prefixed else ""), join(order[:top], list_form))]
    for _ in range(rng.choice([0, 0, 2, 4])):
        high, low = sorted(rng.sample(range(min(12, len(order))), 2))
        if counts[order[high]] > 1.4 * counts[order[low]] + 2:
            asks.append(comparison(kit, order[high], [order[high], order[low]]))
    return Draft(style.choice(RANK_OPENINGS), [separator + word for word in stream], None, asks)
