"""What the tasks are written with: words, made-up names, and prose, all found on the machine itself.

Prose comes from the documentation strings and descriptions of the installed Python packages; words from the model's
own vocabulary. Nothing is fetched, and words can be kept out (`exclude`), so that an evaluation has words of its own.
"""

import random
import re
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = [
    "torch",
    "numpy",
    "transformers",
    "jax",
    "scipy",
    "sympy",
    "pandas",
    "sklearn",
    "accelerate",
    "peft",
    "networkx",
    "huggingface_hub",
    "tokenizers",
    "pytorch_lightning",
    "gpytorch",
    "botorch",
    "sentence_transformers",
    "numpyro",
    "setuptools",
    "pip",
    "pytest",
    "hypothesis",
    "fastapi",
    "starlette",
]
STDLIB_FIRST = [
    "pydoc_data",
    "argparse",
    "asyncio",
    "email",
    "http",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
    "concurrent",
]
DOCSTRING = re.compile(r'"""(.{80,4000}?)"""', re.DOTALL)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
PROSE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'()\-]{35,260}[.!?]")
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
SYLLABLES = [c + v for c in CONSONANTS for v in VOWELS] + [
    c + v + e for c in "bdfgklmnprst" for v in VOWELS for e in "lnrs"
]

# Sentences of no consequence; a haystack of noise repeats a few of them.
NOISE = [
    "Rain fell on the roof all night.",
    "A kettle hummed in the kitchen.",
    "The clock kept its slow time.",
    "Nobody hurried that afternoon.",
    "Two gulls circled above the pier.",
    "The gate was left open again.",
    "Bread cooled near the window.",
    "Dust settled on the old piano.",
    "A tram passed every nine minutes.",
    "The lamps came on at dusk.",
    "Snow covered the northern fields.",
    "Someone laughed in the next room.",
    "The river ran high this spring.",
    "Leaves gathered by the fence.",
    "The shop opened late on Mondays.",
    "A cat slept on the warm stones.",
    "The train was on time.",
    "Paint peeled from the green door.",
    "They walked home along the canal.",
    "The tea had gone cold.",
    "Fog hid the hills until noon.",
    "The choir rehearsed on Thursdays.",
    "A bicycle leaned against the wall.",
    "The market was quiet today.",
    "Waves broke over the harbour wall.",
    "The letter arrived a week late.",
    "Candles burned low on the table.",
    "Children played near the fountain.",
    "The map was folded the wrong way.",
    "Wind moved through the tall grass.",
    "The bakery sold out by eight.",
    "An owl called from the orchard.",
    "The road bends after the mill.",
    "Somebody had swept the stairs.",
    "The soup needed more salt.",
    "Boats rocked gently in the bay.",
]


@dataclass(slots=True)
class World:
    """The material that every task draws on.

    Attributes:
        words: lower-case English words of the tokenizer's vocabulary, 4 letters or more, one token each.
        sentences: prose, in the order of its sources.
        excluded: words that no task may use.
    """

    words: list[str]
    sentences: list[str]
    excluded: frozenset[str] = field(default_factory=frozenset)

    def word(self, rng: random.Random) -> str:
        """A word; one in four is made up."""
        return rng.choice(self.words) if rng.random() < 0.75 else self.coined(rng)

    def coined(self, rng: random.Random, low: int = 2, high: int = 3) -> str:
        """A made-up word of so many syllables."""
        while True:
            word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(low, high)))
            if word not in self.excluded:
                return word

    def name(self, rng: random.Random) -> str:
        """A made-up proper name."""
        return self.coined(rng).capitalize()

    def prose(self, rng: random.Random, count: int) -> list[str]:
        """So many consecutive sentences from somewhere."""
        start = rng.randrange(len(self.sentences))
        chosen = self.sentences[start : start + count]
        while len(chosen) < count:
            chosen = chosen + self.sentences[: count - len(chosen)]
        return chosen


def build_world(vocabulary: Iterable[str], exclude: Iterable[str] = (), characters: int = 4_000_000) -> World:
    """Collect the material.

    Args:
        vocabulary: the tokenizer's tokens in byte-level form; those that begin a word are taken.
        exclude: words to keep out, in any case.
        characters: of prose, at most.
    """
    excluded = frozenset(word.lower() for word in exclude)
    words = sorted(
        token[1:] for token in vocabulary if re.fullmatch(r"Ġ[a-z]{4,12}", token) and token[1:] not in excluded
    )
    return World(words, read_prose(characters), excluded)


def read_prose(characters: int) -> list[str]:
    """Sentences from documentation strings and package descriptions, without repetition."""
    paths = sysconfig.get_paths()
    library, site = Path(paths["stdlib"]), Path(paths["purelib"])
    sites = dict.fromkeys([site, *(Path(entry) for entry in sys.path if entry.endswith("site-packages"))])
    sources = [library / name for name in STDLIB_FIRST]
    sources += [folder / name for folder in sites for name in PACKAGES]
    seen: dict[str, None] = {}
    total = 0
    descriptions = [file for folder in sites if folder.is_dir() for file in sorted(folder.glob("*.dist-info/METADATA"))]
    files = [*sorted(library.glob("*.py")), *(file for source in sources for file in sorted(source.rglob("*.py")))]
    for file in [*descriptions, *files]:
        if total > characters:
            break
        try:
            text = file.read_text(encoding="utf-8", errors="ignore")
        except OSError:
            continue
        blocks = [text] if file.suffix != ".py" else DOCSTRING.findall(text)
        if "topics" in file.name:
            blocks = [text.replace("\\n", "\n")]
        for block in blocks:
            for paragraph in block.split("\n\n"):
                for sentence in SENTENCE_END.split(" ".join(paragraph.split())):
                    if PROSE.fullmatch(sentence) and sentence not in seen and sentence.count(" ") > 5:
                        seen[sentence] = None
                        total += len(sentence)
    if len(seen) < 200:
        raise RuntimeError(f"only {len(seen)} sentences of prose were found under {library} and {site}")
    return list(seen)
