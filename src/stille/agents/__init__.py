"""Agents: typed tools, shared context, effects that happen once, budgets and policies outside the model.

Importing this package is cheap; the names below load what they need on first use. Durable workflows are in
`stille.agents.durable`, tools of services in `stille.agents.openapi` and `stille.agents.mcp`, spans in
`stille.agents.tracing`, datasets of cases in `stille.agents.evals`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stille.agents.agent import Agent
    from stille.agents.blackboard import Blackboard, Source
    from stille.agents.budget import Budget, Price, Prices
    from stille.agents.enforcement import PolicyGuard
    from stille.agents.events import Run
    from stille.agents.models.endpoint import EndpointModel
    from stille.agents.models.engine import EngineModel
    from stille.agents.policy import Policy
    from stille.agents.resilience import Breaker, Retry, TransientError
    from stille.agents.secrets import Secrets
    from stille.agents.tools import Quoted, Tool, ToolContext, digest, tool

_HOMES = {
    "agent": ("Agent",),
    "blackboard": ("Blackboard", "Source"),
    "budget": ("Budget", "Price", "Prices"),
    "enforcement": ("PolicyGuard",),
    "events": ("Run",),
    "models.endpoint": ("EndpointModel",),
    "models.engine": ("EngineModel",),
    "policy": ("Policy",),
    "resilience": ("Breaker", "Retry", "TransientError"),
    "secrets": ("Secrets",),
    "tools": ("Quoted", "Tool", "ToolContext", "digest", "tool"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Agent",
    "Blackboard",
    "Breaker",
    "Budget",
    "EndpointModel",
    "EngineModel",
    "Policy",
    "PolicyGuard",
    "Price",
    "Prices",
    "Quoted",
    "Retry",
    "Run",
    "Secrets",
    "Source",
    "Tool",
    "ToolContext",
    "TransientError",
    "digest",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stille.agents' has no attribute {name!r}")
    return getattr(import_module(f"stille.agents.{_HOME[name]}"), name)
