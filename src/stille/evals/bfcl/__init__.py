"""The Berkeley Function-Calling Leaderboard (Patil et al., ICML 2025), the parts of it that run offline."""

from stille.evals.bfcl.package import CATEGORIES, SKIPPED, Package
from stille.evals.bfcl.run import Question, answer, play, select_categories, select_questions
from stille.evals.bfcl.score import Result, gold_calls, to_json, to_markdown

__all__ = [
    "Package",
    "CATEGORIES",
    "SKIPPED",
    "Question",
    "Result",
    "select_categories",
    "select_questions",
    "answer",
    "play",
    "gold_calls",
    "to_json",
    "to_markdown",
]
