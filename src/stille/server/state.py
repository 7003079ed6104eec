"""What the routes and the life cycle share."""

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from stille.engine.async_llm import AsyncLLM
from stille.server.metrics import ServerMetrics
from stille.server.prompts import PromptBuilder
from stille.server.settings import ServerSettings

if TYPE_CHECKING:
    from stille.server.batches.service import BatchService
    from stille.server.responses_run import Responses


@dataclass
class ServerState:
    """One running server.

    Attributes:
        draining: new work is refused.
        active: requests that are being answered, probes not counted, and responses in the background.
        responses: those that are kept or being made; set when the application is built.
        batches: with the files that they read and write; None: there is no data directory.
    """

    engine: AsyncLLM
    settings: ServerSettings
    metrics: ServerMetrics
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    active: int = 0
    responses: "Responses" = field(init=False, repr=False)
    batches: "BatchService | None" = field(default=None, repr=False)

    # The engine knows its model once it is started, so these are made at the first request.

    @cached_property
    def prompts(self) -> PromptBuilder:
        return PromptBuilder(self.engine)

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        return self.settings.served_model_names or (self.engine.model_name,)
