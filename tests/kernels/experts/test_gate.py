"""The gate of dense rows by kernels: values and gradients of torch's, for one tensor or two, also strided ones."""

import pytest
import torch

from stille.kernels.experts import swiglu

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 2e-2)]


def randn(*shape, seed, dtype):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def both(inputs, d_out, kernels):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = swiglu(*inputs, kernels=kernels)
    out.backward(d_out)
    return [out, *(x.grad for x in inputs)]


def check(inputs, d_out, tolerance):
    want = both([x.double() for x in inputs], d_out.double(), kernels=False)
    got = both(inputs, d_out, kernels=True)
    for mine, wanted in zip(got, want, strict=True):
        assert mine.shape == wanted.shape
        assert mine.dtype == d_out.dtype
        torch.testing.assert_close(mine.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=lambda x: str(x))
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 7), (1, 1), (0, 8), (3, 2100), (9,)])
def test_one_tensor_and_two(shape, dtype, tolerance):
    gate, up, d_out = (randn(*shape, seed=seed, dtype=dtype) for seed in range(3))
    check([gate, up], d_out, tolerance)
    check([torch.cat([gate, up], dim=-1)], d_out, tolerance)


def test_strides():
    gate, up = randn(6, 40, seed=0, dtype=torch.float32).chunk(2, dim=1)
    d_out = randn(6, 3, 20, seed=1, dtype=torch.float32)[:, 1]
    check([gate, up], d_out, 1e-5)
    check([gate.T.contiguous().T, up], d_out.T.contiguous().T, 1e-5)
    check([gate, up], torch.ones((), device=DEVICE).expand(6, 20), 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="on a GPU only")
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=lambda x: str(x))
def test_many_elements_go_by_kernels(dtype, tolerance):
    gate, up = (randn(1024, 1024, seed=seed, dtype=dtype) for seed in range(2))
    assert torch.equal(swiglu(gate, up), swiglu(gate, up, kernels=True))
    check([gate, up], up, tolerance)
