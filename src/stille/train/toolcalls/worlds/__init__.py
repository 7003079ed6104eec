"""The worlds. Importing this registers them."""

from stille.train.toolcalls.worlds import life, money, office, things, town

__all__ = ["life", "money", "office", "things", "town"]
