"""HSA on CPU tensors against its specification."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from stille.kernels.hsa import HSAConfig, cpu, hsa_attention
from stille.kernels.hsa import reference as ref

SMALL = HSAConfig(budget=512, leaf=32, sinks=64, local=64, candidates=768, candidates_from=1 << 30)
CHANGES = [
    {},
    {"leaf": 16, "tail": 0},
    {"leaf": 128, "budget": 640, "sinks": 128, "local": 128, "tail": 300, "candidates": 1024},
    {"leaf": 64, "unit": 32, "coverage": 0.9},
    {"codes": "sign"},
    {"row_weight": 0},
    {"row_weight": 1, "candidates_from": 0, "outliers": 7, "tail": 0},
    {"candidates_from": 0},
    {"candidates_from": 0, "span": 256, "unit": 64, "residual": True},
]


@pytest.fixture(autouse=True, params=[1, 3], ids=["alone", "threads"])
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    assert torch.get_num_threads() == request.param, "the caller's threads are the caller's"
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch):
    """Several gathers per tile and several blocks of scores, as in long sequences."""
    monkeypatch.setattr(cpu, "_GATHERED", 256 * 64)
    monkeypatch.setattr(cpu, "_SCORES", 5000)


def make(n=1030, m=1030, gain=1.0, dtype=torch.float32, dim=64, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = ((4, m, dim), (2, n, dim), (2, n, dim))
    q, k, v = (torch.randn(shape, generator=random) for shape in shapes)
    return (q * gain).to(dtype), k.to(dtype), v.to(dtype)


def selection(q, k, scale, config):
    return torch.cat([cpu.select(q[2 * i : 2 * i + 2], k[i : i + 1], scale, config) for i in (0, 1)])


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize(("n", "m"), [(1030, 1030), (1100, 700), (900, 1)])
def test_it_is_the_specification(change, n, m):
    config = dataclasses.replace(SMALL, **change)
    q, k, v = make(n, m)
    chosen = selection(q, k, 0.125, config)
    assert (chosen != ref.select(q, k, 0.125, config)).sum() <= 2, "no more than one near tie fell the other way"
    want = ref.attend(q, k, v, chosen, 0.125, config)
    for got, expected in zip(cpu.hsa_attention(q, k, v, config, 0.125), want, strict=True):
        torch.testing.assert_close(got, expected, atol=5e-6, rtol=1e-5)
    fast, _, _ = cpu.hsa_attention(q, k, v, config, 0.125, want_lse=False)
    torch.testing.assert_close(fast, want[0], atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_full(dtype):
    q, k, v = make(dtype=dtype)
    out, lse, _ = cpu.hsa_attention(q, k, v, SMALL, 0.125)
    want, want_lse, _ = ref.attend(q, k, v, selection(q, k, 0.125, SMALL), 0.125, SMALL)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), want, atol=1e-3, rtol=2**-8)  # one rounding, at the end
    torch.testing.assert_close(lse, want_lse)


def test_scores_beyond_the_range_of_exponentials():
    """One head has scores of several hundred in either direction, one only in some rows, two are tame."""
    q, k, v = make()
    q[0] *= 60
    q[1, 700:720] *= 80
    k[1, :, 0] = k[1, :, 0].abs() + 15
    q[2, :, 0] -= 40  # all far below zero
    assert (q[0] @ k[0].T * 0.125).max() > 150
    assert (q[2] @ k[1].T * 0.125).amax(-1).min() < -60
    out, lse, _ = cpu.hsa_attention(q, k, v, SMALL, 0.125)
    want, want_lse, _ = ref.attend(q, k, v, selection(q, k, 0.125, SMALL), 0.125, SMALL)
    torch.testing.assert_close(out, want, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(lse, want_lse, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("dim", [16, 96])
def test_a_budget_for_everything_is_dense(dim):
    q, k, v = make(777, 777, dim=dim)
    want = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True, scale=0.2)[0]
    for want_lse in (False, True):
        full = dataclasses.replace(SMALL, budget=1024)
        got, _, _ = cpu.hsa_attention(q, k, v, full, 0.2, want_lse=want_lse)
        torch.testing.assert_close(got, want, atol=5e-6, rtol=1e-5)


def test_strides_do_not_matter():
    q, k, v = make()
    want = cpu.hsa_attention(q, k, v, SMALL, 0.125)
    q, k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
    for got, expected in zip(cpu.hsa_attention(q, k, v, SMALL, 0.125), want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_the_future_changes_nothing_even_if_it_is_not_a_number():
    q, k, v = make()
    out, lse, _ = cpu.hsa_attention(q, k, v, SMALL, 0.125)
    cut = 896  # tiles and spans end here
    k[:, cut:], v[:, cut:] = math.nan, math.inf
    out2, lse2, _ = cpu.hsa_attention(q, k, v, SMALL, 0.125)
    torch.testing.assert_close(out[:, :cut], out2[:, :cut], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lse[:, :cut], lse2[:, :cut], atol=1e-6, rtol=1e-5)
    assert out2[:, cut:].isnan().all()


def test_callers_at_the_same_time():
    def call(seed):
        q, k, v = make(seed=seed)
        return cpu.hsa_attention(q, k, v, SMALL, 0.125)[0]

    want = [call(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(call, range(3)))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_public_function_uses_it(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delattr(ref, "attend")  # not the specification
    config = dataclasses.replace(SMALL, dense_below=0)
    q, k, v = make()
    want, want_lse, _ = cpu.hsa_attention(q, k, v, config, 0.125)
    with torch.inference_mode():
        got = hsa_attention(q[None], k[None], v[None], config, return_details=True)
        plain = hsa_attention(q[None], k[None], v[None], config)
    torch.testing.assert_close(got.out[0], want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.lse[0], want_lse, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(plain[0], want, atol=5e-6, rtol=1e-5)
