"""The executor that all others are compared with, compared with the model itself."""

import numpy as np
import pytest
import torch

from stille.engine.config import PAGE_SIZE, EngineConfig
from stille.engine.executor import StepInput, make_executor
from stille.engine.torch_executor import TorchExecutor


@pytest.fixture
def executor(tiny_model):
    config = EngineConfig(dtype="fp32", device="cpu", kv_cache_tokens=8 * PAGE_SIZE).resolve(tiny_model.config)
    made = make_executor(tiny_model, config)
    assert isinstance(made, TorchExecutor)
    return made


def step_of(rows: list[tuple[list[int], int, int, list[int]]]) -> tuple[StepInput, torch.Tensor]:
    """rows: (tokens, start, length, pages)."""
    width = max(len(pages) for *_, pages in rows)
    ids = np.concatenate([np.array(tokens[start : start + n], np.int64) for tokens, start, n, _ in rows])
    step = StepInput(
        slots=np.arange(len(rows), dtype=np.int32),
        starts=np.array([start for _, start, _, _ in rows], np.int32),
        lengths=np.array([n for _, _, n, _ in rows], np.int32),
        token_ids=ids,
        page_table=np.array([pages + [0] * (width - len(pages)) for *_, pages in rows], np.int32),
        sample=np.ones(len(rows), bool),
        num_decodes=sum(n == 1 for _, _, n, _ in rows),
    )
    return step, torch.from_numpy(ids)


def test_chunks_decode_rows_and_scattered_pages_give_the_models_logits(executor, tiny_model):
    generator = torch.Generator().manual_seed(0)
    one, two, three = torch.randint(0, 320, (3, 200), generator=generator).tolist()
    with torch.inference_mode():
        right = tiny_model(torch.tensor([one, two, three])).logits.float()
    plan = [
        ([(one, 0, 150, [5, 2, 7])], [(0, 149)]),
        ([(one, 150, 1, [5, 2, 7]), (two, 0, 64, [1])], [(0, 150), (1, 63)]),
        ([(one, 151, 1, [5, 2, 7]), (two, 64, 1, [1, 8]), (three, 0, 3, [4])], [(0, 151), (1, 64), (2, 2)]),
        ([(three, 3, 1, [4]), (two, 65, 70, [1, 8, 3])], [(2, 3), (1, 134)]),
    ]
    for rows, wanted in plan:
        logits = executor.forward(*step_of(rows))
        assert logits.dtype == torch.float32
        expected = torch.stack([right[sequence, position] for sequence, position in wanted])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_what_other_sequences_left_in_a_page_is_not_seen(executor):
    tokens, other = list(range(30)), list(range(100, 160))
    clean = executor.forward(*step_of([(tokens, 0, 30, [3])]))
    executor.forward(*step_of([(other, 0, 60, [3])]))
    assert torch.equal(executor.forward(*step_of([(tokens, 0, 30, [3])])), clean)


def test_half_precision_stays_close(tiny_model):
    import copy

    tokens = list(range(50))
    config = EngineConfig(dtype="bf16", device="cpu", kv_cache_tokens=128).resolve(tiny_model.config)
    executor = make_executor(copy.deepcopy(tiny_model).bfloat16(), config)
    assert executor.keys.dtype == torch.bfloat16
    logits = executor.forward(*step_of([(tokens, 0, 50, [1])]))
    with torch.inference_mode():
        right = tiny_model(torch.tensor([tokens])).logits[:, -1].float()
    assert logits.dtype == torch.float32
    assert torch.cosine_similarity(logits, right).item() > 0.99
