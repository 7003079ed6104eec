"""Masks of grammars on logits, against numpy."""

import numpy as np
import pytest
import torch

from stille.kernels.triton_support import interpreting

pytestmark = pytest.mark.skipif("not __import__('importlib').util.find_spec('triton')", reason="needs triton")
DEVICE = "cuda" if torch.cuda.is_available() and not interpreting() else "cpu"


@pytest.mark.parametrize("width", [32, 77, 4133])
def test_what_a_mask_leaves_out_becomes_minus_infinity(width):
    from stille.kernels.fused.triton_mask import restrict

    generator = np.random.default_rng(width)
    logits = torch.randn(4, width, device=DEVICE)
    words = -(-width // 32)
    mask = generator.integers(-(2**31), 2**31, (2, words), dtype=np.int64).astype(np.int32)
    places = [1, -1, 0, 1]
    before = logits.clone()
    out = restrict(logits, torch.tensor(places, dtype=torch.int32, device=DEVICE), torch.from_numpy(mask).to(DEVICE))
    assert torch.equal(logits, before)
    allowed = np.unpackbits(mask.view(np.uint8), axis=1, bitorder="little")[:, :width].astype(bool)
    for row, place in enumerate(places):
        expected = before[row].cpu()
        if place >= 0:
            expected = torch.where(torch.from_numpy(allowed[place]), expected, -torch.inf)
        assert torch.equal(out[row].cpu(), expected)
