"""Stille: an open language-model stack (decoder, engine, server) for hardware people own.

Importing this package is cheap; the names below load what they need on first use.
"""

from typing import TYPE_CHECKING

from stille._version import __version__

if TYPE_CHECKING:
    from stille.engine.grammar import Grammar
    from stille.engine.llm import LLM
    from stille.engine.sampling_params import SamplingParams

__all__ = ["LLM", "Grammar", "SamplingParams", "__version__"]


def __getattr__(name: str):
    if name == "LLM":
        from stille.engine.llm import LLM

        return LLM
    if name == "Grammar":
        from stille.engine.grammar import Grammar

        return Grammar
    if name == "SamplingParams":
        from stille.engine.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'stille' has no attribute {name!r}")
