"""The page of `stille watch`: cameras live, zones, events, timeline, health, questions. Needs `stille[web]`.

    browser -> access (who may) -> app (pictures, evidence, pages) -> site (what the pages know and do)

The pipeline keeps its thread: what changes it there is an errand that `Site.look` runs between two frames.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stille.web.ask import Ask
    from stille.web.rules_file import RulesFile
    from stille.web.serve import PageServer
    from stille.web.site import Site

_HOME = {"Ask": "ask", "PageServer": "serve", "RulesFile": "rules_file", "Site": "site"}

__all__ = ["Ask", "PageServer", "RulesFile", "Site"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
