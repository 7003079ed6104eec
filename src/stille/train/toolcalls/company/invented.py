"""Names and things that nobody has heard of, so that a model learns to copy words instead of knowing them all."""

# ruff: noqa: E501  (a line holds many words)

from collections.abc import Callable

from stille.train.toolcalls.dice import Dice, is_held_out
from stille.train.toolcalls.words import listed


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONSETS = _words(
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl sm sp st str t th tr v w y z"
)
_VOWELS = _words("a a e e i i o o u ai au ea ee ie oa oo ou")
_CODAS = _words("b ck d f ft g l ld lf lk ll lm lt m mp n nd ng nk nt p r rd rk rl rm rn rt s sk ss st t tt th x z")
NOUNS = _words("""
    acorn anchor apron arrow axle badge bamboo banner barrel basket beacon bell bench blanket boat bottle bracket bridge bronze bucket butter
    button cabin cactus camel candle canvas carbon castle cedar cello cement cereal chalk cherry chimney cinema circuit clay clover coal coast
    cobra coconut collar comet copper coral cotton cradle cream crystal curtain cushion dagger desert diamond dolphin dragon drum eagle
    elbow ember engine fabric falcon feather fence ferry fiddle flute forest fossil fountain galaxy garlic ginger glacier goose granite grape
    gravel guitar hammer harbour harvest hazel helmet honey horizon iceberg igloo ivory jacket jaguar jelly jungle kettle kiwi ladder lagoon
    lantern lavender leather lemon leopard lily linen lizard lobster locket mango marble meadow melon meteor mint mirror mosaic mustard
    napkin nectar needle nickel oasis ocean olive onion orbit otter oyster paddle palace panther paprika parrot peach pebble pepper piano
    pigeon pillow pirate planet plaster plum pocket pony poppy prism puzzle quartz quilt rabbit radish raven ribbon river rocket rubber
    saddle salmon sapphire satin sauce scarf shadow shark shield silk silver smoke snail sofa spark spider spoon squirrel statue sugar
    sunset swan syrup teapot temple thunder tiger tomato tornado tower tractor trumpet tulip tunnel turtle umbrella vanilla velvet violet
    volcano waffle walnut walrus whistle willow yoghurt zebra
""")
_KINDS = listed("""
    agreement, analysis, budget, calendar, catalogue, certificate, checklist, contract, diagram, drawing, estimate, flyer, form, guide, handbook,
    inventory, invoice, label, leaflet, letter, licence, list, log, manual, map, memo, offer, order, overview, plan, policy, poster, presentation,
    proposal, protocol, receipt, recipe, record, report, schedule, sheet, sketch, statement, summary, survey, table, template, timetable, tutorial
""")  # fmt: skip


def word(dice: Dice, written: Callable[[str], str] = str) -> str:
    """One that is not in any dictionary, pronounceable, of the side that the dice draw from."""
    while True:
        syllables = [dice.choice(_ONSETS) + dice.choice(_VOWELS) for _ in range(dice.choice([1, 2, 2]))]
        end = dice.choice(_CODAS) + dice.choice(["", "", "", "a", "er", "o", "y", "en"])
        made = written("".join(syllables) + end)
        if 4 <= len(made) <= 10 and is_held_out(made) == dice.held_out:
            return made


def name(dice: Dice) -> str:
    """Of a person, place or company. Those that end in "a" are taken for women's."""
    return word(dice, str.capitalize)


def noun(dice: Dice) -> str:
    """What a thing or a project may be called."""
    return dice.one(NOUNS) if dice.chance(0.7) else word(dice)


def paper(dice: Dice) -> str:
    """What a file is about."""
    return f"{noun(dice)} {dice.one(_KINDS)}" if dice.chance(0.85) else f"{noun(dice)} {noun(dice)} {dice.one(_KINDS)}"
