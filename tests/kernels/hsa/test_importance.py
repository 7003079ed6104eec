"""The Triton kernel that keeps the mean squares of a prompt's first queries, against the specification."""

import pytest
import torch

from stille.kernels.hsa import reference
from stille.kernels.hsa.config import TILE
from stille.kernels.triton_support import PAGE

pytestmark = pytest.mark.skipif("not __import__('importlib').util.find_spec('triton')", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("group", "dim", "dtype"), [(1, 48, torch.float32), (5, 16, torch.bfloat16)])
def test_parts_of_prompts_that_begin(group, dim, dtype):
    from stille.kernels.hsa.triton_importance import write_importance

    torch.manual_seed(0)
    kv_heads, counts, firsts = 2, [128, 70, 64, 3], [5, 140, 215, 280]
    qkv = torch.randn(290, kv_heads * (group + 2), dim, device=DEVICE) * torch.linspace(0.1, 3, dim, device=DEVICE)
    q_NHD = qkv.to(dtype)[:, : kv_heads * group]  # rows apart, as the engine has them
    begun = [[first, count, 2 * i + 1, 2 * i + 2] for i, (first, count) in enumerate(zip(firsts, counts, strict=True))]
    parts = torch.full((2 * len(counts) + 1, kv_heads, dim), -1.0, dtype=torch.bfloat16, device=DEVICE)
    write_importance(q_NHD, torch.tensor(begun, dtype=torch.int32, device=DEVICE), parts)
    right = torch.full_like(parts, -1.0)
    for first, count, *pages in begun:
        for page, rows in zip(pages, q_NHD[first : first + count].split(PAGE), strict=False):
            right[page] = reference.importance(rows.transpose(0, 1), kv_heads) * (len(rows) / TILE)
    assert (right < 0).sum() == 3 * kv_heads * dim, "page 0 and the second pages of the two short prompts"
    torch.testing.assert_close(parts, right, rtol=1e-2, atol=0)
