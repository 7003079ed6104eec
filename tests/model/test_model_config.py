"""Configurations that contradict themselves are refused; kinds are looked up in registries."""

import pytest
import torch
from torch import nn

from stille.errors import ConfigError
from stille.model import StilleConfig, StilleForCausalLM
from stille.model.attention import ATTENTION_KINDS, Attention
from stille.model.draft import DRAFT_KINDS
from stille.model.ffn import FFN_KINDS, DenseFFN
from stille.model.registry import Registry

SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def config(**changes):
    return StilleConfig(**(SIZES | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is not a multiple of num_key_value_heads=3"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
        ({"vocab_size": "many"}, "vocab_size='many'"),
        ({"intermediate_size": 1.5}, "intermediate_size=1.5"),
        ({"max_position_embeddings": True}, "max_position_embeddings=True"),
        ({"head_dim": 5}, "head_dim=5 is odd"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"sliding_window": 63}, "sliding_window=63 is shorter than max_position_embeddings=64"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope_type='spiral'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta=-1.0"),
        ({"rope_parameters": "yarn"}, "rope parameters are 'yarn'"),
        ({"rope_scaling": [2.0]}, r"rope parameters are \[2.0\]"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_freq_factors": [1.0]}, "rope_freq_factors has 1 entries, expected head_dim / 2 = 2"),
        ({"attention_kinds": ["full"]}, "attention_kinds has 1 entries, expected one for each of the 2 layers"),
        ({"ffn_kinds": "dense"}, "ffn_kinds='dense'"),
        ({"ffn_kinds": ["dense", 3]}, "ffn_kinds="),
        ({"ffn_kinds": ["dense", "experts"]}, "kind 'experts', but the 'experts' settings are missing"),
        ({"experts": {"count": 4}}, "'experts' settings are given, but no layer"),
        ({"attention_kinds": ["hsa", "full"]}, "kind 'hsa', but the 'hsa' settings are missing"),
        ({"hsa": {}}, "'hsa' settings are given, but no layer"),
        ({"draft": {"layers": 1}}, "needs a 'kind'"),
    ],
)
def test_contradictions_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_what_is_left_out_is_derived():
    made = config()
    assert made.num_key_value_heads == 4
    assert made.head_dim == 4
    assert made.attention_kinds == ["full", "full"]
    assert made.ffn_kinds == ["dense", "dense"]
    assert made.rope_kind == "default"
    assert made.rope_parameters["rope_theta"] == 10000.0


def test_older_rope_arguments():
    made = config(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    assert made.rope_kind == "linear"
    assert made.rope_parameters["rope_theta"] == 5e5


def test_the_callers_dictionary_is_left_alone():
    rope = {"rope_theta": 5e5}
    config(rope_parameters=rope)
    assert rope == {"rope_theta": 5e5}


def test_a_window_that_changes_nothing_is_forgotten():
    assert config(sliding_window=64).sliding_window is None


def test_round_trip_through_a_folder(tmp_path):
    made = config(qk_norm=True, eos_token_id=[2, 5], rope_freq_factors=[1.0, 4.0])
    made.save_pretrained(tmp_path)
    assert StilleConfig.from_pretrained(tmp_path).to_diff_dict() == made.to_diff_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_kinds": ["full", "no-such"]},
            r"attention kind 'no-such' is not registered \(registered: full, hsa\)",
        ),
        ({"ffn_kinds": ["no-such", "dense"]}, r"ffn kind 'no-such' is not registered \(registered: .*dense.*\)"),
        ({"draft": {"kind": "no-such"}}, "draft kind 'no-such' is not registered"),
    ],
)
def test_unregistered_kinds_are_refused_when_built(changes, message):
    with pytest.raises(ConfigError, match=message):
        StilleForCausalLM(config(**changes))


class WindowlessAttention(Attention):
    """Attention without RoPE, as some layers of some models have it."""

    def forward(self, x, cos, sin, attend):
        return super().forward(x, torch.ones_like(cos), torch.zeros_like(sin), attend)


class WideFFN(DenseFFN):
    """A dense FFN of another width, given in the settings."""

    def __init__(self, config, layer):
        super().__init__(type(config)(**(SIZES | {"intermediate_size": config.draft["width"]})), layer)


class NextTokenHead(nn.Linear):
    def __init__(self, config):
        super().__init__(config.hidden_size, config.draft["vocabulary"], bias=False)


@pytest.fixture
def kinds():
    """Three kinds registered as later code will do it, and taken away again."""
    ATTENTION_KINDS.register("windowless")(WindowlessAttention)
    FFN_KINDS.register("wide")(WideFFN)
    DRAFT_KINDS.register("next")(NextTokenHead)
    yield
    for registry, kind in ((ATTENTION_KINDS, "windowless"), (FFN_KINDS, "wide"), (DRAFT_KINDS, "next")):
        del registry._builders[kind]


@torch.no_grad()
def test_a_new_kind_is_one_registration(kinds, tmp_path):
    torch.manual_seed(0)
    model = StilleForCausalLM(
        config(
            attention_kinds=["windowless", "full"],
            ffn_kinds=["dense", "wide"],
            draft={"kind": "next", "vocabulary": 7, "width": 40},
        )
    ).eval()
    assert isinstance(model.model.layers[0].self_attn, WindowlessAttention)
    assert model.model.layers[1].mlp.up_proj.weight.shape == (40, 16)
    assert model.model.draft.weight.shape == (7, 16)
    ids = torch.arange(12)[None]
    assert torch.isfinite(model(ids).logits).all()
    model.save_pretrained(tmp_path)
    assert torch.equal(StilleForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_registry_refuses_a_taken_name():
    registry = Registry("part")
    registry.register("one")(int)
    registry.register("one")(int)  # the same again is no conflict: modules may be reloaded
    with pytest.raises(ConfigError, match="part kind 'one' is registered already"):
        registry.register("one")(float)
    assert list(registry) == ["one"]
    assert "two" not in registry
