"""Functions by `torch.compile`, once for batches of all sizes; where that fails, as they were."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

LEAST = 8
"""Of a batch that is computed so: those of one or two would be compiled once more, each by itself."""


class Compiled:
    """A function of tensors, and lists of them, whose first axis is one batch.

    Args:
        held: tensors that it reads besides; their first size may change as well.
    """

    def __init__(self, function: Callable[..., Any], held: Callable[[], Iterable[Tensor]] = tuple):
        self._plain, self._held = function, held
        self._compiled: Callable[..., Any] | None = torch.compile(function)

    def __call__(self, *arguments: Any) -> Any:
        given = _tensors(arguments)
        if self._compiled is not None and len(given[0]) >= LEAST:
            try:
                for x in (*given, *self._held()):
                    torch._dynamo.maybe_mark_dynamic(x, 0)
                return self._compiled(*arguments)
            except Exception:
                name = getattr(self._plain, "__name__", "a function")
                log.warning("torch.compile of %s failed; going on without", name, exc_info=True)
                self._compiled = None
        return self._plain(*arguments)


def _tensors(arguments: Iterable[Any]) -> list[Tensor]:
    found = []
    for one in arguments:
        found += [one] if isinstance(one, Tensor) else list(one)
    return found
