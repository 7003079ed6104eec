"""`hsa_attention` without kernels: the reference on CPUs, dense attention below the length that pays, bad input."""

import pytest
import torch

from stille.errors import UnsupportedError
from stille.kernels.hsa import HSAConfig, hsa_attention
from stille.kernels.hsa import reference as ref

SPARSE = HSAConfig(budget=512, sinks=64, local=64, dense_below=0)


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def make(batch=1, heads=4, kv_heads=2, queries=700, keys=700, dim=64, dtype=torch.float32):
    random = torch.Generator().manual_seed(queries)
    return (
        torch.randn(batch, heads, queries, dim, generator=random).to(dtype),
        torch.randn(batch, kv_heads, keys, dim, generator=random).to(dtype),
        torch.randn(batch, kv_heads, keys, dim, generator=random).to(dtype),
    )


def dense(q, k, v, scale):
    group, m, n = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    mask = torch.ones(m, n, dtype=torch.bool).tril(n - m)
    return (q.double() @ k.mT * scale).masked_fill(~mask, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reference_runs_on_cpu_tensors(dtype):
    q, k, v = make(batch=2, queries=600, dtype=dtype)
    got = hsa_attention(q, k, v, SPARSE, scale=0.2)
    assert got.dtype == dtype
    for b in (0, 1):
        want, _, _ = ref.hsa_attention(q[b], k[b], v[b], SPARSE, 0.2)
        torch.testing.assert_close(got[b].float(), want, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-2)
    assert not torch.allclose(got.double(), dense(q, k, v, 0.2), atol=1e-3), "it was sparse"


@pytest.mark.parametrize(("queries", "keys"), [(700, 700), (1, 700), (63, 700), (1, 1)])
def test_short_sequences_are_attended_in_full(queries, keys):
    q, k, v = make(queries=queries, keys=keys)
    want = dense(q, k, v, 0.125)
    got = hsa_attention(q, k, v)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-4)
    details = hsa_attention(q, k, v, HSAConfig(residual=True), return_details=True)
    torch.testing.assert_close(details.out.double(), want, atol=1e-5, rtol=1e-4)
    logits = q.double() @ k.double().repeat_interleave(2, 1).mT * 0.125
    logits = logits.masked_fill(~torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries), -torch.inf)
    torch.testing.assert_close(details.lse.double(), logits.logsumexp(-1), atol=1e-4, rtol=1e-5)
    assert details.missed is not None
    assert (details.missed == 0).all()


def test_nothing_to_do():
    q, k, v = make(queries=0)
    assert hsa_attention(q, k, v).shape == q.shape
    q, k, v = make(batch=0)
    details = hsa_attention(q, k, v, return_details=True)
    assert (details.out.shape, details.lse.shape, details.missed) == (q.shape, q.shape[:3], None)


def test_wrong_shapes_are_refused():
    q, k, v = make()
    with pytest.raises(ValueError, match="of one shape"):
        hsa_attention(q, k, v[:, :, 1:])
    with pytest.raises(ValueError, match=r"expected q \[batch, heads"):
        hsa_attention(q[0], k[0], v[0])
    with pytest.raises(ValueError, match="batch or head_dim"):
        hsa_attention(q[..., :32], k, v)
    with pytest.raises(ValueError, match="not a multiple of 2"):
        hsa_attention(q[:, :3], k, v)
    with pytest.raises(ValueError, match="700 queries cannot be the last of 600"):
        hsa_attention(q, k[:, :, :600], v[:, :, :600])
    with pytest.raises(ValueError, match="one device"):
        hsa_attention(q, k.to("meta"), v)


def test_lengths_that_do_not_fit_are_refused():
    q, k, v = make(batch=2)
    with pytest.raises(ValueError, match="expected int32 or int64"):
        hsa_attention(q, k, v, lengths_B=torch.tensor([700.0, 3.0]))
    with pytest.raises(ValueError, match=r"expected int32 or int64 \(2,\)"):
        hsa_attention(q, k, v, lengths_B=torch.tensor([700]))
    with pytest.raises(ValueError, match="as many queries as keys"):
        hsa_attention(q[:, :, 1:], k, v, lengths_B=torch.tensor([700, 3]))


def test_what_the_kernels_do_not_take_is_refused():
    q, k, v = make()
    with pytest.raises(UnsupportedError, match="float64"):
        hsa_attention(q.double(), k.double(), v.double())
    with pytest.raises(UnsupportedError, match="bfloat16"):
        hsa_attention(q, k.bfloat16(), v)
    with pytest.raises(UnsupportedError, match="head_dim is 40"):
        hsa_attention(q[..., :40], k[..., :40], v[..., :40])
    with pytest.raises(UnsupportedError, match="at most 64"):
        hsa_attention(*make(heads=130, kv_heads=2, queries=1, keys=8))
