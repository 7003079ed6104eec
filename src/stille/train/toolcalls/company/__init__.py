"""Conversations with the twelve tools of a small company (stille.evals.toolworld), in companies of random state.

>>> from stille.train.toolcalls.company import conversation
"""

from stille.train.toolcalls.company.made import company_of, conversation

__all__ = ["company_of", "conversation"]
