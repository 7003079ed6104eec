"""From a configuration to a core that is ready to run."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stille.engine.config import EngineConfig
from stille.engine.core import EngineCore
from stille.engine.executor import make_executor
from stille.engine.speculate import Costs
from stille.errors import ModelNotFoundError, UnsupportedError

if TYPE_CHECKING:
    from stille.model import LoadedModel
    from stille.model.draft import DraftHead

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Engine:
    """A core, the tokenizer it speaks, and the name its model was asked for by."""

    core: EngineCore
    tokenizer: Any
    model_name: str


def build_engine(config: EngineConfig, progress: bool = True) -> Engine:
    """Loads the model that `config` names, makes the executor for it, and warms it up.

    Raises:
        StilleError: of the kind that fits; see `load_model`, `EngineConfig.resolve` and `make_executor`.
    """
    from stille.model import load_config, load_model

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    resolved = config.resolve(load_config(config.model))
    # No variable for the loaded model here: it would keep weights alive that the executor has packed.
    engine = assemble(
        load_model(config.model, dtype=resolved.load_dtype, device=resolved.device, progress=progress), config
    )
    gc.collect()
    _give_back_freed_memory()
    return engine


def assemble(loaded: LoadedModel, config: EngineConfig) -> Engine:
    """As `build_engine`, for a model that is loaded already; an executor that packs weights may take its own away."""
    resolved = config.resolve(loaded.config)
    head = _draft_head(loaded, resolved)
    try:
        executor = make_executor(loaded.model, resolved, head)
    except UnsupportedError:
        if config.dtype != "auto":
            raise
        logger.warning("no %s kernels for this model; running it in fp32", resolved.dtype, exc_info=True)
        resolved = dataclasses.replace(resolved, dtype="fp32")
        executor = make_executor(loaded.model.float(), resolved, None if head is None else head.float())
    tokenizer, eos, name = loaded.tokenizer, loaded.eos_token_ids, loaded.name
    del loaded
    executor.warmup()
    attention = "full attention" if resolved.hsa is None else f"sparse attention (HSA, {resolved.hsa.budget} keys)"
    logger.info(
        "%s on %s in %s, %s, %d KV pages", name, resolved.device, resolved.dtype, attention, executor.num_pages - 1
    )
    costs = Costs.measure(executor, resolved.max_decode_rows) if resolved.max_draft_tokens else None
    return Engine(EngineCore(executor, tokenizer, resolved, eos, costs), tokenizer, name)


def _draft_head(loaded: LoadedModel, config: EngineConfig) -> DraftHead | None:
    """The head that a resolved config asks for, if there is one and the executor has a use for it."""
    from stille.model.draft import DraftHead, resolve_draft

    if not config.max_draft_tokens or config.draft == "none":
        return None
    source = loaded.name if config.draft == "auto" else config.draft
    if config.draft == "auto":
        try:
            resolve_draft(source)
        except ModelNotFoundError:
            return None
    if config.dtype in ("int8", "int4"):
        if config.draft != "auto":
            raise UnsupportedError(f"draft heads run on a CPU in fp32 only; dtype is {config.dtype}: use draft 'none'")
        return None
    return DraftHead.load(source, loaded.model)


def _give_back_freed_memory() -> None:
    """glibc keeps what loading has freed (over 100 MiB for the default model) unless asked."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
