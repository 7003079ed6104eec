"""The CUDA executor's sparse attention, in Triton's interpreter, against the torch executor on the same steps."""

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from stille.engine.config import PAGE_SIZE, EngineConfig
from stille.engine.cuda_executor import CudaExecutor
from stille.engine.executor import StepInput
from stille.engine.torch_executor import TorchExecutor
from stille.kernels.hsa import HSAConfig
from stille.model import StilleConfig, StilleForCausalLM
from stille.model.registry import FFN_KINDS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_hsa_gpu.py runs it on the card")

TINY = dict(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rope_parameters={"rope_theta": 100.0},
)  # fmt: skip
ONE_HEAD = dict(num_attention_heads=1, num_key_value_heads=1)
SPARSE = HSAConfig(budget=256, sinks=64, local=0, tail=40, dense_below=128, candidates=768)


@FFN_KINDS.register("test-tanh")
class TanhFFN(torch.nn.Module):
    """A kind that the fused path does not know."""

    def __init__(self, config, layer):
        super().__init__()
        self.up_proj = torch.nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = torch.nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(self.up_proj(x).tanh())


class Pair:
    """Two executors of one model that compute the same steps."""

    def __init__(self, hsa: HSAConfig, count: int = 3, length: int = 400, **options: Any):
        torch.manual_seed(0)
        self.model = StilleForCausalLM(StilleConfig(**(TINY | options))).eval()
        for parameter in self.model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        settings: dict = dict(max_num_seqs=3, max_num_batched_tokens=256, max_model_len=400, kv_cache_tokens=1600)
        config = EngineConfig(device="cpu", dtype="fp32", attention="hsa", hsa=hsa, **settings)
        resolved = config.resolve(self.model.config)
        self.right, self.got = TorchExecutor(self.model, resolved), CudaExecutor(self.model, resolved)
        random = np.random.default_rng(1)
        self.tokens = random.integers(0, self.model.config.vocab_size, (count, length))
        pages = random.permutation(np.arange(1, self.got.num_pages))
        self.table = pages[: count * (length // PAGE_SIZE + 1)].reshape(count, -1).astype(np.int32)
        self.done = np.zeros(count, np.int32)

    def step(self, decodes: list[int], chunks: dict[int, int], total: int = 400) -> torch.Tensor:
        seqs = np.array([*decodes, *chunks])
        lengths = np.array([1] * len(decodes) + list(chunks.values()), np.int32)
        starts = self.done[seqs]
        ids = np.concatenate([self.tokens[s, a : a + n] for s, a, n in zip(seqs, starts, lengths, strict=True)])
        width = -(-int((starts + lengths).max()) // PAGE_SIZE)
        step = StepInput(
            seqs.astype(np.int32), starts, lengths, ids, self.table[seqs, :width], np.ones(len(seqs), bool),
            len(decodes), np.full(len(seqs), total, np.int32),
        )  # fmt: skip
        logits, right = (each.forward(step, torch.from_numpy(ids)) for each in (self.got, self.right))
        self.done[seqs] += lengths
        torch.testing.assert_close(logits, right, rtol=2e-4, atol=2e-4)
        return logits


def test_every_step_gives_the_logits_of_the_specification():
    pair = Pair(SPARSE)
    pair.step([], {0: 256})  # in full, then sparse
    pair.step([0], {1: 128}, total=191)  # below the limit, beside a row whose context exceeds the budget
    pair.step([], {1: 63, 2: 1}, total=191)  # the end of a prompt, row by row; and a prompt of one token
    pair.step([1, 0, 2], {})


def test_other_kinds_run_through_their_modules():
    pair = Pair(SPARSE, ffn_kinds=["test-tanh"], **ONE_HEAD)
    pair.step([], {0: 256})
    pair.step([0], {})


def test_codes_follow_whoever_writes_the_keys():
    """A prompt fills leaves of 16 up to 32; the decoded token at 47 fills the third, the one at 48 none."""
    pair = Pair(SPARSE, count=1, **ONE_HEAD)
    pair.step([], {0: 47})
    for _ in range(2):
        pair.step([0], {})
    codes, page = pair.got.codes.layer(0), int(pair.table[0, 0])
    right = pair.right.codes.layer(0)
    assert right.signs[page, :, :48].any(-1).all()
    torch.testing.assert_close(codes.signs[page, :, :48], right.signs[page, :, :48], rtol=0, atol=0)
    torch.testing.assert_close(codes.scales[page, :, :48], right.scales[page, :, :48], rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(codes.means[page, :, :3], right.means[page, :, :3], rtol=1e-4, atol=1e-5)


def test_warmup_runs_and_the_cache_counts_the_codes():
    pair = Pair(SPARSE, count=1, **ONE_HEAD)
    pair.got.warmup()
    pair.step([], {0: 40})
    full = EngineConfig(device="cpu", dtype="fp32", max_model_len=400).resolve(pair.model.config)
    sparse = EngineConfig(device="cpu", dtype="fp32", max_model_len=400, attention="hsa").resolve(pair.model.config)
    assert CudaExecutor(pair.model, sparse).num_pages < CudaExecutor(pair.model, full).num_pages
