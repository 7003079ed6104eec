"""Splitting a dense FFN: with all experts it is the dense layer; groups are what fires together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.model import StilleConfig
from stille.model.convert.split import Layout, balanced_clusters, importance, neuron_order, split_ffn
from stille.model.experts import ExpertsFFN
from stille.model.ffn import DenseFFN
from stille.model.routing import ExpertsConfig

WIDTH, INNER = 12, 40


def dense_ffn(inner: int = INNER) -> DenseFFN:
    torch.manual_seed(0)
    config = StilleConfig(hidden_size=WIDTH, intermediate_size=inner, num_attention_heads=2, num_hidden_layers=1)
    return DenseFFN(config, 0).double().requires_grad_(False)


def experts_ffn(layout: Layout, **options) -> ExpertsFFN:
    values = {"num_experts": layout.experts, "expert_size": layout.size, "shared_size": layout.shared}
    values |= {"router_size": 5, "target_k": float(layout.experts), "max_k": layout.experts}
    config = StilleConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_attention_heads=2, num_hidden_layers=1,
        ffn_kinds=["experts"], experts=values | options,
    )  # fmt: skip
    return ExpertsFFN(config, 0).double().requires_grad_(False).eval()


@given(experts=st.integers(1, 8), size=st.integers(1, 5), tokens=st.integers(0, 9), seed=st.integers(0, 2**31 - 1))
def test_all_experts_together_are_the_dense_layer(experts, size, tokens, seed):
    shared = INNER - experts * size
    layout, generator = Layout.of(INNER, experts, shared, size), torch.Generator().manual_seed(seed)
    dense, split = dense_ffn(), experts_ffn(layout)
    h_TI = torch.randn(20, INNER, generator=generator)
    order = neuron_order(h_TI, dense.down_proj.weight, layout)
    tensors = split_ffn(dense.gate_proj.weight, dense.up_proj.weight, dense.down_proj.weight, order, layout)
    left = split.load_state_dict(tensors, strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith("gate.") for name in left.missing_keys)
    x = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(split(x), dense(x), rtol=1e-12, atol=1e-14)


def test_fewer_experts_are_not_the_dense_layer():
    """So that the test above means something."""
    layout, dense = Layout.of(INNER, 4), dense_ffn()
    split = experts_ffn(layout, target_k=2.0)
    order = neuron_order(torch.randn(20, INNER), dense.down_proj.weight, layout)
    tensors = split_ffn(dense.gate_proj.weight, dense.up_proj.weight, dense.down_proj.weight, order, layout)
    split.load_state_dict(tensors, strict=False)
    x = torch.randn(9, WIDTH, dtype=torch.float64)
    assert (split(x) - dense(x)).abs().max() > 1e-3


def test_the_strongest_neurons_are_shared():
    layout, down = Layout.of(INNER, 4), torch.randn(WIDTH, INNER)
    h_TI = torch.randn(50, INNER) * torch.logspace(-1, 1, INNER)
    order = neuron_order(h_TI, down, layout)
    assert order.dtype == torch.int32
    assert order.sort().values.tolist() == list(range(INNER))
    shared = set(order[: layout.shared].tolist())
    assert shared == set(importance(h_TI, down).topk(layout.shared).indices.tolist())


def test_neurons_that_fire_together_are_together():
    """Four groups, each active on its own tokens: the clusters are the groups."""
    generator = torch.Generator().manual_seed(3)
    group_N = torch.randperm(32, generator=generator) % 4
    active_NT = torch.nn.functional.one_hot(group_N, 4).repeat_interleave(25, dim=1).float()
    profile_NT = active_NT * (torch.rand(32, 100, generator=generator) < 0.8)
    label = balanced_clusters(profile_NT, 4)
    assert len({(int(a), int(b)) for a, b in zip(group_N, label, strict=True)}) == 4


@given(clusters=st.integers(1, 6), size=st.integers(1, 5), tokens=st.integers(1, 12), seed=st.integers(0, 999))
def test_clusters_are_of_equal_size_whatever_the_rows(clusters, size, tokens, seed):
    profile = (torch.rand(clusters * size, tokens, generator=torch.Generator().manual_seed(seed)) < 0.3).float()
    label = balanced_clusters(profile, clusters)
    assert torch.bincount(label, minlength=clusters).tolist() == [size] * clusters
    assert torch.equal(label, balanced_clusters(profile, clusters))


class TestLayout:
    def test_defaults_are_about_a_half_and_equal_parts(self):
        assert Layout.of(1536) == Layout(768, 16, 48)
        assert Layout.of(11008) == Layout(5504, 16, 344)
        assert Layout.of(80) in (Layout(32, 16, 3), Layout(48, 16, 2))

    def test_one_size_gives_the_other(self):
        assert Layout.of(1536, 16, shared=0) == Layout(0, 16, 96)
        assert Layout.of(1536, 16, size=24) == Layout(1152, 16, 24)

    @pytest.mark.parametrize(
        "sizes", [{"shared": 100}, {"shared": 768, "size": 47}, {"size": 97}, {"shared": 1536}, {"shared": -16}]
    )
    def test_sizes_that_do_not_fit_are_told_with_some_that_do(self, sizes):
        with pytest.raises(ConfigError, match=r"FFN has 1536\. Sizes that fit: \d+ \+ 16 x \d+") as error:
            Layout.of(1536, 16, **sizes)
        for fit in str(error.value).split("fit: ")[1].rstrip(".").split(", "):
            shared, _, rest = fit.partition(" + 16 x ")
            assert int(shared) + 16 * int(rest) == 1536
            assert int(rest) > 0

    @pytest.mark.parametrize("experts", [0, 81])
    def test_a_number_of_experts_that_is_impossible(self, experts):
        with pytest.raises(ConfigError, match=f"{experts} experts of 80 neurons"):
            Layout.of(80, experts)


def test_the_settings_of_a_layout_are_a_configuration():
    layout = Layout.of(1536)
    assert ExpertsConfig(num_experts=layout.experts, expert_size=layout.size, shared_size=layout.shared)
