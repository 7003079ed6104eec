"""Rules about what is seen, and the engine that makes events of it. A new family of rules: see `register`."""

from stille.video.rules import persons, places, traffic  # noqa: F401  (registers the families)
from stille.video.rules.engine import Engine
from stille.video.rules.load import load_rules, parse_rules
from stille.video.rules.schema import Rule, Rules, register
from stille.video.rules.view import Finding, View

__all__ = ["Engine", "Finding", "Rule", "Rules", "View", "load_rules", "parse_rules", "register"]
