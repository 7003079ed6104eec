"""The decode kernels: tiles that do not fit the sizes, and what they may not touch."""

import pytest
import torch

pytest.importorskip("triton")

from stille.kernels.experts import reference
from stille.kernels.experts.triton_decode import DecodeConfig, decode_forward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TABLE = [[2, 5, 0], [5, 5, 5], [5, 4, 5]]  # of five experts; 5 is not used


def case(width, inner, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3, width, generator=random)
    weight = torch.rand(3, 3, generator=random)
    gate_up = torch.randn(5, 2 * inner, width, generator=random) * width**-0.5
    down = torch.randn(5, width, inner, generator=random) * inner**-0.5
    return [t.to(DEVICE) for t in (x, torch.tensor(TABLE), weight, gate_up, down)]


@pytest.mark.parametrize("config", [DecodeConfig(), DecodeConfig(1, 1, 16, 1), DecodeConfig(8, 16, 32, 2)], ids=str)
@pytest.mark.parametrize(("width", "inner"), [(40, 24), (7, 33), (32, 1)])
def test_tiles_do_not_change_the_result(config, width, inner):
    tensors = case(width, inner)
    out = torch.full((3, width), float("nan"), device=DEVICE)
    got = decode_forward(*tensors, out=out, config=config)
    assert got.data_ptr() == out.data_ptr()
    torch.testing.assert_close(got, reference.moe_forward(*tensors), rtol=1e-5, atol=1e-5)
    assert not got[1].any()


def test_experts_that_do_not_run_are_not_read():
    tensors = case(24, 10)
    want = decode_forward(*tensors)
    for idle in (1, 3):
        tensors[3][idle] = float("nan")
        tensors[4][idle] = float("nan")
    tensors[2][tensors[1] == 5] = float("nan")
    assert torch.equal(decode_forward(*tensors), want)


def test_strided_tokens_and_narrow_integers():
    x, expert, weight, gate_up, down = case(24, 10)
    want = decode_forward(x, expert, weight, gate_up, down)
    strided = torch.stack([x, x * 2], dim=2)[:, :, 0]
    assert not strided.is_contiguous()
    table, shares = expert.T.contiguous().T.to(torch.int32), weight.T.contiguous().T
    assert torch.equal(decode_forward(strided, table, shares, gate_up, down), want)
