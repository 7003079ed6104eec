"""Speculative decoding: tokens are guessed, one step of the model checks several at once, and nothing else changes.

A guess is kept if it is the very token that the engine samples at that place, with that place's own random number. An
answer is therefore the same with and without speculation, token for token, greedy or not, with penalties, grammars and
stop strings: guesses decide what is computed together, never what is said. (Rejection sampling keeps the distribution
alone; with guesses of probability 1 it keeps no more of them than this does.)
"""

from stille.engine.speculate.history import History
from stille.engine.speculate.policy import Costs
from stille.engine.speculate.speculator import SpeculationStats, Speculator

__all__ = ["Costs", "History", "SpeculationStats", "Speculator"]
