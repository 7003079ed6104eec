"""The fused operations against plain torch, over shapes that fill no tile."""

import pytest
import torch

from stille.kernels.fused import reference
from stille.kernels.fused.configs import LinearConfig, linear_config
from stille.kernels.paged import reference as paged_reference
from stille.kernels.triton_support import PAGE

pytest.importorskip("triton")

from stille.kernels.fused import triton_linear, triton_pointwise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
# Triton's interpreter has no bf16 matrix product.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])


def randn(*shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(*shape) * scale).to(dtype).to(DEVICE)


def check(got, expected, dtype):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert not got.isnan().any()
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_add_rms_norm(dtype, rows):
    delta, residual, weight = randn(rows, 200, dtype=dtype), randn(rows, 200, dtype=dtype), randn(200, dtype=dtype)
    expected_residual, got_residual = residual.clone(), residual.clone()
    expected = reference.add_rms_norm(delta, expected_residual, weight, 1e-5)
    got = triton_pointwise.add_rms_norm(delta, got_residual, weight, 1e-5)
    if rows:
        check(got, expected, dtype)
        check(got_residual, expected_residual, dtype)
        check(triton_pointwise.add_rms_norm(None, residual, weight, 1e-5), reference.rms_norm(residual, weight, 1e-5),
              dtype)  # fmt: skip
    assert got.shape == (rows, 200)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_silu_mul(dtype, rows):
    x = randn(rows, 2 * 300, dtype=dtype, scale=4)
    got = triton_pointwise.silu_mul(x)
    assert got.shape == (rows, 300)
    if rows:
        check(got, reference.silu_mul(x), dtype)


ROWS = [1, 17, 130]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_linear_with_norm_and_bias(dtype, rows):
    x, w, bias = randn(rows, 72, dtype=dtype), randn(50, 72, dtype=dtype, scale=0.1), randn(50, dtype=dtype)
    norm = randn(72, dtype=dtype)
    out = torch.full((rows, 50), float("nan"), dtype=torch.float32, device=DEVICE)
    got = triton_linear.linear(x, w, bias, norm_K=norm, eps=1e-5, out=out)
    assert got.data_ptr() == out.data_ptr()
    expected = reference.linear(x, w, bias, norm_K=norm, eps=1e-5, out_dtype=torch.float32)
    check(got, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_linear_adds_to_the_residual_in_place(dtype, rows):
    x, w, residual = randn(rows, 136, dtype=dtype), randn(50, 136, dtype=dtype, scale=0.1), randn(rows, 50, dtype=dtype)
    expected = reference.linear(x, w, residual_MF=residual.clone())
    got = triton_linear.linear(x, w, residual_MF=residual)
    assert got.data_ptr() == residual.data_ptr()
    check(got, expected, dtype)


@pytest.mark.parametrize(
    "config",
    [
        LinearConfig(1, 4, 32),
        LinearConfig(1, 8, 256),
        LinearConfig(2, 4, 32),
        LinearConfig(4, 8, 256),
        LinearConfig(16, 32, 32),
        LinearConfig(16, 16, 256),
    ],
    ids=str,
)
def test_tiles_do_not_change_the_result(config):
    x, w, norm = randn(3, 100), randn(37, 100), randn(100)
    got = triton_linear.linear(x, w, norm_K=norm, eps=1e-5, config=config)
    check(got, reference.linear(x, w, norm_K=norm, eps=1e-5), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_gate_up(dtype, rows):
    x, w, norm = randn(rows, 72, dtype=dtype), randn(2 * 50, 72, dtype=dtype, scale=0.3), randn(72, dtype=dtype)
    out = torch.full((rows, 50), float("nan"), dtype=dtype, device=DEVICE)
    check(triton_linear.gate_up(x, w, norm, 1e-5, out=out), reference.gate_up(x, w, norm, 1e-5), dtype)


def test_fp16_norm_holds_outliers_of_the_residual_stream():
    x = randn(3, 72, dtype=torch.float16)
    x[:, 5] = 6e4  # times its norm weight this is beyond fp16
    w, norm = randn(50, 72, dtype=torch.float16, scale=0.1), randn(72, dtype=torch.float16).abs() * 4
    expected = reference.linear(x, w, norm_K=norm, eps=1e-5)
    check(triton_linear.linear(x, w, norm_K=norm, eps=1e-5), expected, torch.float16)


@pytest.mark.parametrize("head_dim", [16, 80])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rows", [1, 19])
@pytest.mark.parametrize("bias", [False, True])
def test_qkv_equals_projection_then_write(head_dim, qk_norm, rows, bias):
    heads, kv_heads, width = 2, 1, 72
    features = (heads + 2 * kv_heads) * head_dim
    x, w, norm = randn(rows, width), randn(features, width, scale=0.1), randn(width)
    b = randn(features) if bias else None
    q_norm, k_norm = (randn(head_dim), randn(head_dim)) if qk_norm else (None, None)
    angles = torch.rand(300, head_dim // 2, device=DEVICE).repeat(1, 2) * 6
    slots = torch.randperm(3 * PAGE)[:rows].to(torch.int32).to(DEVICE)
    positions = torch.randint(0, 300, (rows,), dtype=torch.int32).to(DEVICE)
    empty = torch.full((4, kv_heads, PAGE, head_dim), float("nan"), device=DEVICE)
    got_pages, expected_pages = (empty.clone(), empty.clone()), (empty.clone(), empty.clone())
    q_out = torch.full((rows, heads, head_dim), float("nan"), device=DEVICE)
    got = triton_linear.qkv(
        x, w, b, norm, 1e-5, *got_pages, slots, positions, angles.cos(), angles.sin(), q_out,
        q_norm_D=q_norm, k_norm_D=k_norm,
    )  # fmt: skip
    q, k, v = (
        reference.linear(x, w, b, norm_K=norm, eps=1e-5)
        .unflatten(1, (-1, head_dim))
        .split((heads, kv_heads, kv_heads), dim=1)
    )
    expected = paged_reference.write_kv(
        q, k, v, *expected_pages, slots, positions_N=positions, cos_TD=angles.cos(), sin_TD=angles.sin(),
        q_norm_D=q_norm, k_norm_D=k_norm, eps=1e-5,
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for got_page, expected_page in zip(got_pages, expected_pages, strict=True):
        torch.testing.assert_close(got_page, expected_page, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize(("columns", "inputs"), [(576, 1536), (49152, 576), (4096, 14336)])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit_the_shared_memory_of_a_gpu(rows, columns, inputs, itemsize):
    config = linear_config(rows, columns, inputs, itemsize)
    assert config.uses_dot == (config.m >= 16)
    assert rows <= 8 or config.uses_dot
    if config.uses_dot:
        assert (config.m + config.n) * config.k * itemsize * config.stages <= 227 * 1024
