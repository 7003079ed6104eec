"""A draft head for speculative decoding, made for any model out of text that the model writes itself.

>>> from stille.train.draft import DraftTrainConfig, TextSettings, make_draft
"""

from stille.train.draft.config import DraftTrainConfig
from stille.train.draft.data import DraftText, open_text
from stille.train.draft.evaluate import evaluate
from stille.train.draft.loop import DraftResult, train_draft
from stille.train.draft.making import Made, MakeSettings, make_draft, write_text
from stille.train.draft.prompts import Prompt, read_prompts
from stille.train.draft.text import TextSettings, make_text

__all__ = [
    "DraftResult",
    "DraftText",
    "DraftTrainConfig",
    "MakeSettings",
    "Made",
    "Prompt",
    "TextSettings",
    "evaluate",
    "make_draft",
    "make_text",
    "open_text",
    "read_prompts",
    "train_draft",
    "write_text",
]
