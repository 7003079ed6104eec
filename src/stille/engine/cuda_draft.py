"""A draft head on CUDA: fused kernels, one graph for each number of sequences.

Shapes: see `speculate.head`; F features, I inner width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stille.engine.sampling_state import to_device
from stille.kernels.fused import triton_draft, triton_linear

if TYPE_CHECKING:
    from stille.engine.speculate.head import States
    from stille.model.draft import DraftHead

MOST = 8
"""Sequences for which it is used: beyond it the target's rows are dearer than the launches that guesses save."""


class FusedDrafter:
    """See `speculate.head.Drafter`.

    Args:
        head: attached to the target, in its dtype.
        states: of the executor.
        graphs: capture them.
        pdl: programmatic dependent launch.
        steps: T; None: as many as the head was trained for.
    """

    def __init__(self, head: DraftHead, states: States, graphs: bool, pdl: bool, steps: int | None = None):
        assert head.embed_VC is not None
        assert head.head_DC is not None
        self.head, self.states = head, states
        self.steps = steps or head.config.steps
        rows = states.parts[0].shape[0]
        self.most = min(MOST, rows)
        self._pdl, self._use_graphs = pdl, graphs
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._head_DC: Tensor = head.head_DC
        like: Any = {"dtype": head.embed_VC.dtype, "device": head.embed_VC.device}
        width, config = head.config.hidden_size, head.config
        self._eps = config.rms_norm_eps
        self._table_VC = head.token_proj(head.embed_VC).contiguous()  # what a token adds to the state
        whole: dict[str, Any] = {"device": like["device"]}
        self._sampled = torch.zeros(rows, dtype=torch.int64, **whole)
        self._ids = torch.zeros(rows, dtype=torch.int64, **whole)
        self._places = torch.zeros(2, self.most, dtype=torch.int32, **whole)
        self._row = torch.zeros(self.most, dtype=torch.int32, **whole)
        self._token = torch.zeros(self.most, dtype=torch.int64, **whole)
        self._features = torch.zeros(self.most, config.features, **like)
        self._x = torch.zeros(self.most, width, **like)
        self._inner = torch.zeros(self.most, config.inner_size, **like)
        self._logits = torch.zeros(self.most, config.draft_vocab, dtype=torch.float32, **whole)
        self._tokens = {n: torch.zeros(n, self.steps, dtype=torch.int64, **whole) for n in range(1, self.most + 1)}
        self._chances = {n: torch.zeros(n, self.steps, dtype=torch.float32, **whole) for n in self._tokens}

    @torch.inference_mode()
    def warmup(self) -> None:
        """Compiles the kernels and captures the graphs."""
        for sequences in self._tokens:
            if self._use_graphs:
                self._capture(sequences)
            else:
                self._run(sequences)

    @torch.inference_mode()
    def draft(self, sampled_R: Tensor, ids_R: Tensor, first: np.ndarray, count: np.ndarray) -> tuple[Tensor, Tensor]:
        rows, sequences = len(sampled_R), len(first)
        self._sampled[:rows].copy_(sampled_R)
        self._ids[:rows].copy_(ids_R)
        self._places[:, :sequences].copy_(to_device(np.stack((first, count)).astype(np.int32), self._places.device))
        if self._use_graphs:
            if sequences not in self._graphs:
                self._capture(sequences)
            self._graphs[sequences].replay()
        else:
            self._run(sequences)
        return self._tokens[sequences], self._chances[sequences]

    def _run(self, sequences: int) -> None:
        n, pdl, head = sequences, self._pdl, self.head
        row, token, x, inner, logits = (
            part[:n] for part in (self._row, self._token, self._x, self._inner, self._logits)
        )
        tokens, chances = self._tokens[n], self._chances[n]
        triton_draft.accept(self._sampled, self._ids, self._places[0, :n], self._places[1, :n], row, token)
        triton_draft.gather(self.states.parts, row, self._eps, self._features[:n], pdl=pdl)
        triton_linear.linear(self._features[:n], head.feature_proj.weight, out=x, pdl=pdl)
        for step in range(self.steps + 1):
            triton_draft.pick(logits, head.draft_tokens_D, self._table_VC, x, token, tokens, chances, step, pdl=pdl)
            if step == self.steps:
                return
            for layer in head.layers:
                layer: Any
                triton_linear.gate_up(x, layer.gate_up_2IC, layer.norm_C, self._eps, out=inner, pdl=pdl)
                triton_linear.linear(inner, layer.down_CI, residual_MF=x, pdl=pdl)
            triton_linear.linear(x, self._head_DC, norm_K=head.final_norm_C, eps=self._eps, out=logits, pdl=pdl)

    def _capture(self, sequences: int) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run(sequences)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run(sequences)
        self._graphs[sequences] = graph
