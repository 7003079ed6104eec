"""`attn_implementation="hsa"` on a GPU: half precision, padding, torch.compile with inductor, graphs, no waiting."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from stille.kernels.hsa import HSAConfig
from stille.kernels.hsa.cached import cached_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a CUDA device"),
]

SPARSE = HSAConfig(budget=512, sinks=64, local=64, dense_below=0)
N = 2000


def inputs(batch=2, m=N, heads=8, k_heads=2, dim=64):
    torch.manual_seed(0)
    shapes = ((batch, heads, m, dim), (batch, k_heads, N, dim), (batch, k_heads, N, dim))
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    return q * 2, k, v


def padded():
    present = torch.ones(2, N, dtype=torch.bool, device="cuda")
    present[1, :700] = False
    return present


def close(got, want, share=0.02):
    assert ((got.float() - want.float()).norm() / want.float().norm()).item() < share


def build(**hsa):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=4096, attn_implementation="hsa",
    )  # fmt: skip
    config.hsa = {"budget": 512, "sinks": 64, "local": 64, "dense_below": 0, **hsa}
    return LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()


@pytest.fixture
def ids():
    return torch.randint(3, 500, (2, N), device="cuda", generator=torch.Generator("cuda").manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("m", [N, 100, 1])
def test_padded_row_equals_alone(m):
    q, k, v = inputs(m=m)
    got = cached_attention(q, k, v, SPARSE, present_BN=padded())
    new = slice(max(0, 700 - (N - m)), None)
    if m == 100:  # with padding every query chooses for itself
        alone = torch.cat(
            [cached_attention(q[1:, :, i : i + 10], k[1:, :, 700 : N - 90 + i], v[1:, :, 700 : N - 90 + i], SPARSE)
             for i in range(0, 100, 10)], 2,
        )  # fmt: skip
    else:
        alone = cached_attention(q[1:, :, new], k[1:, :, 700:], v[1:, :, 700:], SPARSE)
    close(got[1:, :, new], alone)
    assert got.isfinite().all()


@torch.no_grad()
def test_a_budget_for_everything_is_full_attention(ids):
    model = build(budget=4096)
    mask = padded().long()
    got = model(ids, attention_mask=mask).logits
    model.set_attn_implementation("sdpa")
    want = model(ids, attention_mask=mask).logits
    close(got[mask.bool()], want[mask.bool()])


@pytest.mark.parametrize(("m", "with_padding"), [(N, False), (N, True), (1, True)])
def test_compiled_with_gradients(m, with_padding):
    present = padded() if with_padding else None

    def run(q, k, v):
        return cached_attention(q, k, v, SPARSE, present_BN=present)

    torch._dynamo.reset()
    results = []
    for function in (run, torch.compile(run, fullgraph=True, dynamic=False)):
        leaves = [x.detach().requires_grad_() for x in inputs(m=m)]
        out = function(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)])
    for want, got in zip(*results, strict=True):
        close(got, want)


@torch.no_grad()
def test_compiled_decoding_over_a_static_cache(ids):
    """Steps replayed as CUDA graphs give what eager steps over a growing cache give."""
    model, mask, start = build(), padded().long(), N - 8
    options = {"attention_mask": mask[:, :start]}
    eager = model(ids[:, :start], use_cache=True, **options).past_key_values
    static = StaticCache(config=model.config, max_cache_len=N + 48)
    model(ids[:, :start], past_key_values=static, **options)
    torch._dynamo.reset()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    room = torch.zeros(2, N + 48, dtype=torch.long, device="cuda")
    for end in range(start + 1, N + 1):
        step = ids[:, end - 1 : end].clone()
        want = model(step, past_key_values=eager, attention_mask=mask[:, :end]).logits
        room[:, :end] = mask[:, :end]
        # compiled code rounds otherwise, and in bf16 that may swap a leaf at the edge of the budget
        close(compiled(step, past_key_values=static, attention_mask=room).logits.clone(), want, 0.1)


@torch.no_grad()
def test_generate_over_a_static_cache(ids):
    """transformers compiles it by itself."""
    model = build()
    options = {"attention_mask": padded().long(), "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    text = model.generate(ids, cache_implementation="static", **options)
    assert text.shape == (2, N + 6)
    assert torch.equal(text[:, : N + 1], model.generate(ids, **options)[:, : N + 1])


@torch.no_grad()
@pytest.mark.parametrize("m", [N, 100, 4, 1])
@pytest.mark.parametrize("with_padding", [False, True])
def test_nothing_waits_and_a_graph_takes_it(m, with_padding):
    q, k, v = inputs(m=m)
    present = padded() if with_padding else None
    want = cached_attention(q, k, v, SPARSE, present_BN=present)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        cached_attention(q, k, v, SPARSE, present_BN=present)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cached_attention(q, k, v, SPARSE, present_BN=present)
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, want)


def test_training(ids):
    grads = []
    for implementation in ("hsa", "sdpa"):
        model = build(budget=4096).train()
        model.set_attn_implementation(implementation)
        mask = padded().long()
        model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        grads.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    close(*grads, 0.05)
