"""Conversations with tool calls, to learn from: made backwards in simulated worlds, executed, put into words.

>>> from stille.train.toolcalls import generate
"""

from stille.train.toolcalls.generate import Split, Statistics, example, generate, pool
from stille.train.toolcalls.tools import WORLDS, Tool, World, all_tools, run

__all__ = ["WORLDS", "Split", "Statistics", "Tool", "World", "all_tools", "example", "generate", "pool", "run"]
