"""Supervised fine-tuning of any model on conversations, tool calls included.

>>> from stille.train.sft import make_sft, prepare_conversations
"""

from stille.train.sft.conversations import Conversation, conversation, read_conversations
from stille.train.sft.data import Rows, pack, render_all
from stille.train.sft.loop import fine_tune, judge
from stille.train.sft.making import SftData, make_sft, prepare_conversations, steps_of
from stille.train.sft.render import Rendered, Renderer

__all__ = [
    "Conversation",
    "Rendered",
    "Renderer",
    "Rows",
    "SftData",
    "conversation",
    "fine_tune",
    "judge",
    "make_sft",
    "pack",
    "prepare_conversations",
    "read_conversations",
    "render_all",
    "steps_of",
]
