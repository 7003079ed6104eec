"""Our side: the whole engine (scheduler, paged cache, sampler, detokenisation), as `stille.LLM` drives it.

python stille_side.py '{"path": "model.gguf", "threads": 2, "dtype": "auto", "context": 2304}'

With "budget": the mean number of experts of a token, for a model with experts.
"""

import json
import sys

import numpy as np
import torch
from side import pin, serve

import stille
from stille.engine.build import build_engine
from stille.engine.config import PAGE_SIZE, EngineConfig
from stille.engine.executor import StepInput
from stille.engine.sampling_params import SamplingParams


class StilleSide:
    def __init__(self, path, threads, dtype, context, budget=None):
        self.budget = budget
        # One sequence at a time, and every prompt is computed: a cached prefix would be no prefill.
        self.core = build_engine(
            EngineConfig(model=path, dtype=dtype, device="cpu", threads=threads, max_num_seqs=1, max_draft_tokens=0,
                         max_model_len=context, kv_cache_tokens=context, prefix_caching=False),
            progress=False,
        ).core  # fmt: skip
        self.executor = self.core.runner.executor
        self.prefill([1] * 64)  # warm-up
        self.prefill(list(range(3, 2051)))

    def _start(self, ids, new):
        self.core.add("request", ids, self.params(new))

    def params(self, new):
        return SamplingParams(max_tokens=new, temperature=0, ignore_eos=True, expert_budget=self.budget)

    def mean_k(self):
        loads = self.executor.routing.snapshot()
        return sum(sum(load.load) for load in loads) / sum(load.tokens for load in loads)

    def _next(self):
        """Step until tokens come; the ids of all that came."""
        while True:
            ids = [token for delta in self.core.step() for token in delta.token_ids]
            if ids:
                return ids

    def prefill(self, ids):
        self._start(ids, 1)
        return self._next()[0]

    def decode(self, ids, new, clock):
        self._start(ids, new)
        out = self._next()
        with clock.running():
            while len(out) < new:
                out += self._next()
        return out

    def score(self, ids):
        """Token by token over the executor, so that it is the decode kernels whose quality is seen."""
        pages = np.arange(1, -(-len(ids) // PAGE_SIZE) + 1, dtype=np.int32)[None]
        logprobs, likeliest = [], []
        for i, token in enumerate(ids):
            logits_SV = self.executor.forward(
                StepInput(
                    slots=np.zeros(1, np.int32),
                    starts=np.array([i], np.int32),
                    lengths=np.ones(1, np.int32),
                    token_ids=np.array([token], np.int64),
                    page_table=pages[:, : i // PAGE_SIZE + 1],
                    sample=np.ones(1, bool),
                    num_decodes=1,
                    budgets=None if self.budget is None else np.full(1, self.budget, np.float32),
                ),
                torch.tensor([token]),
            )
            logprobs_V = logits_SV[0].double().log_softmax(-1)
            likeliest.append(int(logprobs_V.argmax()))
            if i + 1 < len(ids):
                logprobs.append(float(logprobs_V[ids[i + 1]]))
        return logprobs, likeliest


def main():
    settings = json.loads(sys.argv[1])
    pin(settings["threads"])
    torch.set_num_threads(settings["threads"])
    torch.set_grad_enabled(False)
    side = StilleSide(**settings)
    serve(side, {"version": f"stille {stille.__version__}", "dtype": side.core.config.dtype})


if __name__ == "__main__":
    main()
