"""Live understanding of camera streams: sources, perception with identities, rules, events, sinks.

Importing this package is cheap; the names below load what they need on first use. The perception model is in
`stille.video.model`, its training in `stille.video.training`, synthetic scenes in `stille.video.scenes`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stille.video.events import Desk
    from stille.video.pipeline import Pipeline
    from stille.video.rules import Rules, load_rules
    from stille.video.sources import open_source
    from stille.video.store import Store

_HOME = {
    "Desk": "events",
    "Pipeline": "pipeline",
    "Rules": "rules",
    "Store": "store",
    "load_rules": "rules",
    "open_source": "sources",
}

__all__ = ["Desk", "Pipeline", "Rules", "Store", "load_rules", "open_source"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
