"""The place of a draft head (speculative decoding): kinds register here, `StilleConfig.draft` names one.

A kind is built as `kind(config)` and becomes `StilleModel.draft`; what it computes is between it and the engine.
"""

from typing import Any

from stille.model.config import StilleConfig
from stille.model.registry import DRAFT_KINDS

__all__ = ["DRAFT_KINDS", "build_draft"]


def build_draft(config: StilleConfig) -> Any:
    """The draft module that the configuration asks for, or None.

    Raises:
        ConfigError: its kind is not registered.
    """
    return None if config.draft is None else DRAFT_KINDS.build(config.draft["kind"], config)
