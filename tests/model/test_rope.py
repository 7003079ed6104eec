"""Rotary embedding: tables, arbitrary positions, and what a rotation must preserve."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.model import StilleConfig, StilleForCausalLM
from stille.model.rope import RotaryEmbedding, apply_rope

KINDS = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64},
}


def config(kind="default", **changes):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "vocab_size": 10, "intermediate_size": 8}
    return StilleConfig(
        **sizes, num_hidden_layers=1, max_position_embeddings=256, rope_parameters=KINDS[kind], **changes
    )


@pytest.mark.parametrize("kind", KINDS)
def test_table_holds_what_positions_give(kind):
    rotary = RotaryEmbedding(config(kind))
    cos_TD, sin_TD = rotary.table(torch.device("cpu"))
    assert cos_TD.shape == sin_TD.shape == (256, 16)
    assert cos_TD.dtype == sin_TD.dtype == torch.float32
    positions = torch.tensor([[0, 255, 17], [3, 3, 128]])
    cos, sin = rotary(positions)
    torch.testing.assert_close(cos, cos_TD[positions])
    torch.testing.assert_close(sin, sin_TD[positions])
    assert torch.equal(cos_TD[:, :8], cos_TD[:, 8:])


def test_table_grows_and_is_kept():
    model = StilleForCausalLM(config())
    cos, _ = model.model.rope_table()
    assert model.model.rope_table()[0] is cos
    longer, _ = model.model.rope_table(400)
    assert longer.shape == (400, 16)
    torch.testing.assert_close(longer[:256], cos)
    assert model.model.rope_table(100)[0] is longer


def test_table_survives_casting_and_building_without_storage():
    with torch.device("meta"):
        model = StilleForCausalLM(config())
    model.to_empty(device="cpu").to(torch.bfloat16)
    cos, sin = model.model.rope_table()
    assert cos.dtype == torch.float32
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(256, 16))


def test_yarn_scales_the_amplitude():
    cos, sin = RotaryEmbedding(config("yarn")).table(torch.device("cpu"))
    expected = (0.1 * torch.log(torch.tensor(4.0)) + 1) ** 2
    torch.testing.assert_close(cos**2 + sin**2, expected.expand(256, 16))


def test_dynamic_changes_only_beyond_the_context():
    plain, dynamic = RotaryEmbedding(config()), RotaryEmbedding(config("dynamic"))
    inside, beyond = torch.arange(256), torch.arange(300)
    torch.testing.assert_close(dynamic(inside)[0], plain(inside)[0])
    assert not torch.allclose(dynamic(beyond)[0], plain(beyond)[0])
    torch.testing.assert_close(dynamic(inside)[0], plain(inside)[0])  # and it returns


def test_frequency_factors_divide():
    factors = [1.0, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0]
    plain, divided = RotaryEmbedding(config()), RotaryEmbedding(config(rope_freq_factors=factors))
    cpu = torch.device("cpu")
    torch.testing.assert_close(divided.frequencies(cpu) * torch.tensor(factors), plain.frequencies(cpu))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 1000), st.sampled_from(["default", "linear", "llama3"]))
def test_scores_depend_on_distance_only(a, b, shift, kind):
    rotary = RotaryEmbedding(config(kind))
    q, k = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(a * 1000 + b)).double()
    scores = []
    for offset in (0, shift):
        (cos_q, cos_k), (sin_q, sin_k) = (x.double() for x in rotary(torch.tensor([a + offset, b + offset])))
        scores.append((apply_rope(q, cos_q, sin_q) * apply_rope(k, cos_k, sin_k)).sum())
        torch.testing.assert_close(apply_rope(q, cos_q, sin_q).norm(), q.norm(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=2e-3)
