"""Embeddings: mean-pooled final hidden states of whole prompts, computed between the steps that generate.

A generic representation of what the served model, a chat model, makes of a text; nothing was trained for it. Inputs are
computed in pages of the KV cache that are taken for one turn and given back at its end, so that generation never
competes with a half-computed input, and no turn computes more than about a step's worth of tokens.
Shapes: S inputs, N tokens of all of them, C hidden size, P pages.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stille.engine.config import PAGE_SIZE
from stille.engine.executor import StepInput
from stille.errors import InvalidRequestError, PromptTooLongError, QueueFullError

if TYPE_CHECKING:
    from stille.engine.core import EngineCore

TURN_AT_LEAST = 2048
"""An input may have as many tokens even where a step takes less (512 on a CPU): it is then a turn of its own."""


class EmbeddingJob:
    """The inputs of one request.

    Attributes:
        inputs: token ids.
        future: float32 [inputs, C], rows of length 1.
    """

    def __init__(self, inputs: Seq[Seq[int]], width: int):
        self.inputs = [np.asarray(ids, np.int64) for ids in inputs]
        self.future: Future[np.ndarray] = Future()
        self.begun = 0
        self._vectors = np.zeros((len(inputs), width), np.float32)
        self._left = len(inputs)

    def take(self) -> tuple[int, np.ndarray]:
        """(place, token ids) of the next input."""
        self.begun += 1
        return self.begun - 1, self.inputs[self.begun - 1]

    @property
    def exhausted(self) -> bool:
        return self.begun == len(self.inputs) or self.future.cancelled()

    def put(self, place: int, vector: np.ndarray) -> None:
        """An input's embedding; the last one completes the job."""
        self._vectors[place] = vector
        self._left -= 1
        if not self._left and self.future.set_running_or_notify_cancel():
            self.future.set_result(self._vectors)


class Embedder:
    """Computes jobs on the engine's thread, a turn at a time; `add` may be called from any thread.

    Attributes:
        limit: most tokens of an input.
        width: C.
    """

    def __init__(self, core: EngineCore):
        step = int(core.config.max_num_batched_tokens or 0)
        self.executor = core.runner.executor
        self.limit = min(core.max_model_len, max(step, TURN_AT_LEAST))
        self.width = self.executor.hidden_size
        self._core, self._turn = core, step
        self._jobs: deque[EmbeddingJob] = deque()
        self._running: list[EmbeddingJob] = []

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    def add(self, inputs: Seq[Seq[int]]) -> EmbeddingJob:
        """Queues a request.

        Raises:
            InvalidRequestError: no input, an empty one, or a token outside the vocabulary.
            PromptTooLongError: an input has more than `limit` tokens.
            QueueFullError: too many are waiting.
        """
        if not inputs:
            raise InvalidRequestError("there is no input; give at least one", "input")
        for ids in inputs:
            if not len(ids):
                raise InvalidRequestError("an input is empty; give at least one token", "input")
            least, most = min(ids), max(ids)
            if least < 0 or most >= self._core.vocab_size:
                bad = least if least < 0 else most
                raise InvalidRequestError(
                    f"token {bad} is outside the vocabulary 0..{self._core.vocab_size - 1}", "input"
                )
            if len(ids) > self.limit:
                raise PromptTooLongError(
                    f"an input has {len(ids)} tokens, but this engine embeds {self.limit} at once; split it, or raise "
                    "max_num_batched_tokens",
                    "input",
                )
        if len(self._jobs) >= self._core.max_queue:
            raise QueueFullError(
                f"{len(self._jobs)} requests for embeddings are waiting already (max_queue {self._core.max_queue}); "
                "try again later",
                1.0,
            )
        job = EmbeddingJob(inputs, self.width)
        self._jobs.append(job)
        return job

    def turn(self) -> None:
        """Computes the next inputs, of different jobs in turn, as many as a step may hold; at least one.

        It computes none if the pages are in use: later then, when a sequence has ended.
        """
        taken: list[tuple[EmbeddingJob, int, np.ndarray, list[int]]] = []
        tokens = 0
        while self._jobs:
            job = self._jobs[0]
            if job.exhausted:
                self._jobs.popleft()
                continue
            length = len(job.inputs[job.begun])
            if taken and tokens + length > self._turn:
                break
            pages = self._core.blocks.allocate(-(-length // PAGE_SIZE))
            if pages is None:
                break
            taken.append((job, *job.take(), pages))
            tokens += length
            self._jobs.rotate(-1)
        if not taken:
            return
        self._running = [job for job, *_ in taken]
        try:
            vectors_SC = self._compute([ids for _, _, ids, _ in taken], [pages for *_, pages in taken])
        finally:
            for *_, pages in taken:
                self._core.blocks.release(pages)
        self._core.metrics.embedding_tokens += tokens
        for (job, place, _, _), vector in zip(taken, vectors_SC, strict=True):
            job.put(place, vector)

    def fail(self, error: Exception) -> None:
        """Ends every job with an error."""
        for job in {*self._jobs, *self._running}:
            if not job.future.done() and job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        self._jobs.clear()

    def _compute(self, inputs: list[np.ndarray], pages: list[list[int]]) -> np.ndarray:
        lengths = np.array([len(ids) for ids in inputs], np.int32)
        table_SP = np.array(list(itertools.zip_longest(*pages, fillvalue=0)), np.int32).T
        ids = np.concatenate(inputs)
        experts = self._core.experts
        step = StepInput(
            slots=np.arange(len(inputs), dtype=np.int32),
            starts=np.zeros(len(inputs), np.int32),
            lengths=lengths,
            token_ids=ids,
            page_table=np.ascontiguousarray(table_SP),
            sample=np.zeros(len(inputs), bool),
            num_decodes=0,
            budgets=None if experts is None else np.full(len(inputs), experts.own, np.float32),
        )
        sums_SC = self.executor.embed(step, torch.from_numpy(ids).to(self.executor.device))
        return torch.nn.functional.normalize(sums_SC.double()).float().cpu().numpy()  # of the mean as of the sum


def sums_of(hidden_NC: Tensor, lengths_S: np.ndarray) -> Tensor:
    """float32 [S, C]: sums of so many rows each, one after another."""
    sums_SC = hidden_NC.new_zeros(len(lengths_S), hidden_NC.shape[1], dtype=torch.float32)
    row_N = torch.from_numpy(np.repeat(np.arange(len(lengths_S)), lengths_S)).to(hidden_NC.device)
    return sums_SC.index_add_(0, row_N, hidden_NC.float())
