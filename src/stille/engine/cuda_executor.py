"""The executor for CUDA: Triton kernels, decode steps as CUDA graphs, no wait for the device anywhere.

A dense model runs through `FusedDecoder`; a model with other kinds of FFN through its own modules over the same paged
attention. Decode steps are padded to one of a few sizes, each captured once; steps with prompt chunks run eagerly.
With Triton's interpreter the executor also runs on the CPU, without graphs, which is how it is tested there.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stille.engine.config import PAGE_SIZE, EngineConfig, plan_pages
from stille.engine.cuda_staging import Staging
from stille.engine.embedding import sums_of
from stille.engine.executor import ExpertRange, StepInput, monitor_of
from stille.engine.hsa import PromptRule
from stille.engine.speculate.head import States
from stille.errors import UnsupportedError
from stille.kernels.hsa.config import TILE
from stille.kernels.triton_support import IN_TRITON, interpreting, require_triton

if TYPE_CHECKING:
    from stille.engine.cuda_batch import Batch
    from stille.engine.cuda_draft import FusedDrafter
    from stille.engine.cuda_hsa import SparseCache
    from stille.kernels.hsa.paged import PageCodes
    from stille.model import StilleForCausalLM
    from stille.model.draft import DraftHead

logger = logging.getLogger(__name__)


PDL_ROWS = 16
"""Most rows of a decode step for which programmatic dependent launch (Hopper and later) pays."""


def padded_sizes(most: int) -> list[int]:
    """Row counts that decode steps are padded to: powers of two, then steps of 16, 32 and 64, and `most` itself."""
    sizes = [1, 2, 4, 8, *range(16, 65, 16), *range(96, 257, 32), *range(320, most + 64, 64)]
    return sorted({size for size in sizes if size < most} | {most})


class CudaExecutor:
    """See `executor.Executor`.

    Args:
        model: on its device, in float32, bfloat16 or float16. Its projections are fused in place.
        config: resolved.
        draft_head: guesses after each decode step; None: nothing does.
        pdl: programmatic dependent launch between the kernels of a decode step; None: where it pays.

    Raises:
        UnsupportedError: Triton is missing, or a dtype, device, head width or attention kind that has no kernels here.
    """

    def __init__(
        self,
        model: StilleForCausalLM,
        config: EngineConfig,
        draft_head: DraftHead | None = None,
        *,
        pdl: bool | None = None,
    ):
        shape: Any = model.config
        weight: Tensor = model.model.embed_tokens.weight.data
        self.device = weight.device
        _check(model, weight)
        from stille.engine.cuda_batch import DecodeInputs, KVCache
        from stille.engine.cuda_draft import FusedDrafter
        from stille.engine.cuda_fused import FusedDecoder, is_dense
        from stille.kernels.paged.triton_decode import ROWS_TOGETHER

        assert config.max_num_seqs, "config not resolved"
        assert config.max_model_len, "config not resolved"
        self.model = model.eval()
        self.vocab_size, self.hidden_size = int(shape.vocab_size), int(shape.hidden_size)
        self.experts, self.routing = ExpertRange.of(shape), monitor_of(model)
        self.async_depth = 1 if self.device.type == "cuda" else 0
        self.dtype = weight.dtype
        if self.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            logger.info("setting torch's float32 matmul precision to 'highest': fp32 is the exactness mode")
            torch.set_float32_matmul_precision("highest")
        self._group = int(shape.num_attention_heads) // int(shape.num_key_value_heads)
        self._head_dim = int(shape.head_dim)
        self._pdl = pdl
        self._max_len = config.max_model_len

        self._sizes = padded_sizes(config.max_decode_rows)
        most = self._sizes[-1]
        width = -(-config.max_model_len // PAGE_SIZE)
        self._inputs = DecodeInputs(most, width, self.device, self.experts is not None)
        self._staging = Staging(self.device)
        self._logits_BV = torch.empty(most, self.vocab_size, dtype=torch.float32, device=self.device)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._use_graphs = config.cuda_graphs and self.device.type == "cuda"
        self._pool: Any = None

        layers, kv_heads = int(shape.num_hidden_layers), int(shape.num_key_value_heads)
        page_bytes = 2 * layers * kv_heads * PAGE_SIZE * self._head_dim * weight.element_size()
        heads, workspace = int(shape.num_attention_heads), None
        if config.hsa is not None:
            from stille.kernels.hsa.paged import HSAWorkspace, PageCodes

            page_bytes += layers * PageCodes.bytes_per_page(kv_heads, self._head_dim, config.hsa)
            # Before the pages are planned: in long contexts it takes a share of the memory.
            workspace = HSAWorkspace(
                most, heads, kv_heads, self._head_dim, self._max_len, config.hsa, self.dtype, self.device
            )
        self.num_pages = plan_pages(config, page_bytes, self.device)
        cache_shape = (layers, self.num_pages, kv_heads, PAGE_SIZE, self._head_dim)
        self._cache = KVCache.allocate(cache_shape, heads, most, self.dtype, self.device)
        self._rule: PromptRule | None = None
        self.codes: PageCodes | None = None
        if config.hsa is not None and workspace is not None:
            from stille.engine.cuda_hsa import SparseCache

            self._cache.sparse = SparseCache(config.hsa, cache_shape, self.device, workspace)
            self._rule, self.codes = self._cache.sparse.rule, self._cache.sparse.codes
        self.drafter: FusedDrafter | None = None
        states = None if draft_head is None else States(draft_head, most, weight)
        self._fused = None
        if is_dense(shape):
            self._fused = FusedDecoder(model, self._cache, most, config.max_model_len, states)
        elif states is not None:
            states.watch(model.model.layers)
        if draft_head is not None and states is not None:
            early = self._early_launch(1) if pdl is None else pdl
            self.drafter = FusedDrafter(draft_head, states, self._use_graphs, early)
        self._together = [n for n in ROWS_TOGETHER[1:] if config.max_draft_tokens and config.hsa is None and n <= most]
        if self._fused is None:
            model.model.rope_table()  # made now: a graph cannot capture it
            logger.info("a layer has no fused kernels: the model runs through its own modules")

    @torch.inference_mode()
    def warmup(self) -> None:
        """Compiles the kernels and captures a graph for every padded size."""
        start = time.perf_counter()
        for lengths in ((PAGE_SIZE + 1, 1), (1,)):
            self._prefill(_blank_step(lengths), torch.zeros(sum(lengths), dtype=torch.int64, device=self.device))
        if self._cache.sparse is not None:
            self._rehearse_sparse(self._cache.sparse)
        for done, rows in enumerate(reversed(self._sizes), 1):  # the largest first: smaller ones reuse its memory
            if self._use_graphs:
                self._capture(rows)
                logger.info("captured decode step of %d (%d of %d)", rows, done, len(self._sizes))
        for rows in self._together if self._use_graphs else ():
            self._capture(rows, rows)
        if self.drafter is not None:
            self.drafter.warmup()
        logger.info("kernels ready in %.1f s", time.perf_counter() - start)

    @torch.inference_mode()
    def forward(self, step: StepInput, ids_N: Tensor) -> Tensor:
        if step.is_decode and step.num_seqs <= self._sizes[-1]:
            return self._decode(step, ids_N)
        return self._prefill(step, ids_N)

    def _decode(self, step: StepInput, ids_S: Tensor) -> Tensor:
        sequences, together = step.num_seqs, 1
        rows = next(size for size in self._sizes if size >= sequences)
        if self._together and sequences > 1 and (step.slots == step.slots[0]).all():
            fitting = next((size for size in self._together if size >= sequences), None)
            if fitting is not None:
                rows = together = fitting
        self._inputs.load(step, ids_S, rows, self._staging)
        if not self._use_graphs:
            self._decode_rows(rows, together)
        else:
            if (rows, together) not in self._graphs:
                self._capture(rows, together)
            self._graphs[rows, together].replay()
        return self._logits_BV[:sequences]

    def _prefill(self, step: StepInput, ids_N: Tensor) -> Tensor:
        from stille.engine.cuda_batch import mixed_batch

        batch = mixed_batch(step, self._group, self._head_dim, self.dtype, self._staging, self._rule)
        if self._fused is not None:
            return self._fused.prefill(ids_N, batch)
        return self._through_modules(ids_N, batch)

    def _decode_rows(self, rows: int, together: int = 1) -> None:
        """One decode step of the inputs' first `rows`, eagerly or under capture."""
        batch = self._inputs.batch(rows, self._early_launch(rows) if self._pdl is None else self._pdl, together)
        ids_B, logits_BV = self._inputs.ids_B[:rows], self._logits_BV[:rows]
        if self._fused is not None:
            self._fused.decode(ids_B, batch, logits_BV)
        else:
            logits_BV.copy_(self._through_modules(ids_B, batch))

    def _early_launch(self, rows: int) -> bool:
        """Whether kernels of a step of so many rows start before the one before has ended.

        It hides launch gaps while a step is limited by them (measured on one H200: 587 to 437 us at one row, 918 to
        846 at 16) and takes room from the running kernel when it is not (970 to 1,041 at 32).
        """
        return (
            rows <= PDL_ROWS and self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= (9, 0)
        )

    @torch.inference_mode()
    def embed(self, step: StepInput, ids_N: Tensor) -> Tensor:
        from stille.engine.cuda_batch import mixed_batch

        # The fused kernels go on to logits at once; the modules share their weights.
        batch = mixed_batch(step, self._group, self._head_dim, self.dtype, self._staging, self._rule)
        return sums_of(self._hidden(ids_N, batch), step.lengths)

    def _through_modules(self, ids_N: Tensor, batch: Batch) -> Tensor:
        hidden_NC = self._hidden(ids_N, batch)
        if batch.last_rows_S is not None:
            hidden_NC = hidden_NC.index_select(0, batch.last_rows_S)
        return self.model.compute_logits(hidden_NC).float()

    def _hidden(self, ids_N: Tensor, batch: Batch) -> Tensor:
        from stille.engine.cuda_batch import PagedBackend

        backend = PagedBackend(self._cache, batch)
        watched: AbstractContextManager[None] = nullcontext()
        if self.routing is not None and batch.budgets_N is not None:
            # What a graph replays cannot be counted now and then, so steps that only decode are not.
            watched = self.routing.watch(batch.budgets_N, count=batch.last_rows_S is not None)
        with watched:
            return self.model.forward_tokens(ids_N, batch.positions_N.long(), backend)

    def _rehearse_sparse(self, sparse: SparseCache) -> None:
        """Decode rows beside a prompt, in every cut that their number leads to, and sparse chunks.

        As the number of leaves doubles, another kernel selects: each is compiled now.
        """
        for rows in sparse.sizes(self._sizes[-1]):
            lengths = (*[1] * rows, 2)
            self._prefill(_blank_step(lengths), torch.zeros(sum(lengths), dtype=torch.int64, device=self.device))
        for pages in (self._cache.keys, self._cache.values):
            pages[:, 0].zero_()  # the scratch page stands for the keys before; it was never written
        length, start = 2 * TILE + 1, sparse.rule.dense_until  # partly row by row
        while start + length <= self._max_len:
            ids_N = torch.zeros(length, dtype=torch.int64, device=self.device)
            self._prefill(_blank_step((length,), start), ids_N)
            start = max(128 * sparse.config.leaf, 1 << start.bit_length())

    def _capture(self, rows: int, together: int = 1) -> None:
        """Record the decode step of `rows` rows.

        The rehearsal compiles kernels and may compute a real step; doing that twice writes the same values twice.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._decode_rows(rows, together)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._decode_rows(rows, together)
        self._pool = graph.pool()
        self._graphs[rows, together] = graph


def _check(model: StilleForCausalLM, weight: Tensor) -> None:
    require_triton("the CUDA engine")
    config: Any = model.config
    if weight.device.type != "cuda" and not interpreting():
        raise UnsupportedError(f"CudaExecutor runs on CUDA devices; the model is on {weight.device}")
    if weight.dtype not in IN_TRITON:
        raise UnsupportedError(f"CudaExecutor computes in {', '.join(IN_TRITON.values())}; the model is {weight.dtype}")
    if config.head_dim > 256:
        raise UnsupportedError(f"the attention kernels take heads up to 256 wide; the model's are {config.head_dim}")
    others = sorted(set(config.attention_kinds) - {"full"})
    if others:
        raise UnsupportedError(f"attention kinds {', '.join(others)} have no paged kernels yet")


def _blank_step(lengths: tuple[int, ...], start: int = 0) -> StepInput:
    """A step over sequences that live in the scratch page and have `start` tokens there, as a rehearsal."""
    counts = np.array(lengths, np.int32)
    order = np.argsort(counts > 1, kind="stable")
    counts = counts[order]
    sequences = len(counts)
    return StepInput(
        slots=np.arange(sequences, dtype=np.int32),
        starts=np.full(sequences, start, np.int32),
        lengths=counts,
        token_ids=np.zeros(int(counts.sum()), np.int64),
        page_table=np.zeros((sequences, -(-(start + int(counts.max())) // PAGE_SIZE)), np.int32),
        sample=np.ones(sequences, bool),
        num_decodes=int((counts == 1).sum()),
    )
