"""More than one process: cameras shared out to shards over Ray, with their state kept through the loss of a shard.

Importing this package is cheap; Ray is loaded when a fleet starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stille.scale.fleet import Fleet
    from stille.scale.shard import ShardSettings

_HOME = {"Fleet": "fleet", "ShardSettings": "shard"}

__all__ = ["Fleet", "ShardSettings"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
