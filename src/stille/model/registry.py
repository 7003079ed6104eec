"""Named kinds of a part of the decoder, so that a new kind is a new file and one registration.

A kind maps its name in the configuration to the callable that builds the module. The decoder looks kinds up when it is
built; it never names one itself.
"""

from collections.abc import Callable
from typing import Any

from stille.errors import ConfigError


class Registry:
    """Kinds of one part (attention, ffn, draft) by name.

    Args:
        part: what the kinds are kinds of, for error messages.
    """

    def __init__(self, part: str):
        self.part = part
        self._builders: dict[str, Callable[..., Any]] = {}

    def register(self, kind: str) -> Callable[[Any], Any]:
        """Decorator that registers a module class (or a function that builds a module) as `kind`.

        Raises:
            ConfigError: the name is taken by something else.
        """

        def add(builder):
            if self._builders.get(kind, builder) is not builder:
                raise ConfigError(f"{self.part} kind {kind!r} is registered already; choose another name.")
            self._builders[kind] = builder
            return builder

        return add

    def build(self, kind: str, *args: Any) -> Any:
        """Build the module of a kind; the arguments go to its constructor.

        Raises:
            ConfigError: the kind is not registered; the message lists those that are.
        """
        if kind not in self._builders:
            known = ", ".join(sorted(self._builders)) or "none"
            raise ConfigError(
                f"{self.part} kind {kind!r} is not registered (registered: {known}). Import the module that registers "
                "it before the model is built, or correct the configuration."
            )
        return self._builders[kind](*args)

    def __contains__(self, kind: object) -> bool:
        return kind in self._builders

    def __iter__(self):
        return iter(sorted(self._builders))


ATTENTION_KINDS = Registry("attention")  # built as kind(config, layer)
FFN_KINDS = Registry("ffn")  # built as kind(config, layer)
DRAFT_KINDS = Registry("draft")  # built as kind(config)
