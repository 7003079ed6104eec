"""Pairs of low rank: gradients as autograd's, the matrices of experts, exact resuming, deltas that give it back."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stille.errors import CheckpointError, ConfigError, UnsupportedError
from stille.kernels import grids
from stille.model import StilleForCausalLM, load_config, load_model
from stille.model.convert.delta import DeltaSource, from_int8, read_delta, to_int8, write_delta
from stille.model.convert.low_rank import dense_matrices
from stille.model.convert.pipeline import ConvertSettings, convert
from stille.model.convert.split import Layout, split_ffn
from stille.model.load import open_weights
from stille.train import DISTILL, TokenStore, World, checkpoint, train
from stille.train.config import GRIDS
from stille.train.data import Batches
from stille.train.export import export_delta
from stille.train.loop import CHECKPOINTS
from stille.train.losses import Objective, Scales
from stille.train.low_rank import LowRank, round_weights

ALONE = World(0, 1, torch.device("cpu"))
GATE_UP, GATE = "model.layers.1.mlp.gate_up_proj", "model.layers.1.mlp.gate_proj.weight"


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def factors(pairs, name) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B in float32."""
    a, b = (pairs.tensors[f"{name}.low_rank_{half}"] for half in "ab")
    assert a.dtype == b.dtype == torch.int8
    a_scale, b_scale = (pairs.tensors[f"{name}.low_rank_{half}.factors"] for half in "ab")
    return a.float() * a_scale[:, None], b.float() * b_scale


def low_rank(model, config, rank=3, dtype=torch.float32) -> LowRank:
    return LowRank(Objective(model, config.loss), dtype, ALONE, rank, seed=0)


def test_dense_matrices_are_those_of_the_unsplit_layer(make_model):
    model = make_model()
    inner, width, experts, size = 16 + 4 * 8, 16, 4, 8
    gate, up, down = torch.randn(inner, width), torch.randn(inner, width), torch.randn(width, inner)
    split = split_ffn(gate, up, down, torch.arange(inner), Layout(16, experts, size))
    tensors = {f"model.layers.1.mlp.{name}": value for name, value in split.items()}
    found = {m.name: m for m in dense_matrices(model)}
    assert len(found) == 2 * 7
    for name, value in (("gate", gate), ("up", up), ("down", down)):
        matrix = found[f"model.layers.1.mlp.{name}_proj.weight"]
        assert torch.equal(matrix.gather(tensors), value)
        empty = {part: torch.zeros_like(each) for part, each in tensors.items()}
        matrix.put(value, empty)
        assert torch.equal(matrix.gather(empty), value)


def test_gradients_of_the_pairs_are_autograds(make_model, settings, store):
    config = settings()
    model = make_model(dense=False).train()
    place = low_rank(model, config)
    with torch.no_grad():
        for matrix in place.matrices:
            place.pair(matrix)[1].normal_(std=0.05)
    place.publish()
    batch = Batches(store, length=32, batch=4, micro_batch=4).step(0)[0]
    place.module(batch, Scales(1.0, 1.0))[0].backward()
    held = {name: p.grad.clone() for name, p in place._held.items()}
    place.collect()
    assert all(p.grad is None for p in place._held.values())
    for matrix in place.matrices:
        a, b = place.pair(matrix)
        left, right = (x.detach().clone().requires_grad_() for x in (a, b))
        value = right @ left
        (value * matrix.gather(held)).sum().backward()
        torch.testing.assert_close(a.grad, left.grad)
        torch.testing.assert_close(b.grad, right.grad)
        assert b.grad.abs().max() > 0
    assert model.model.embed_tokens.weight.grad is None


def test_a_step_changes_what_it_should_and_nothing_else(make_model, settings, store, tmp_path):
    start = weights(make_model())
    result = train(make_model(), store, settings(steps=3, rank=2), tmp_path)
    end = weights(result.model)
    for name in start:
        moved = not torch.equal(start[name], end[name])
        assert moved == (name not in ("model.embed_tokens.weight", "lm_head.weight", *_at_rest())), name
    for matrix in dense_matrices(result.model):
        rank = torch.linalg.matrix_rank(matrix.gather(end) - matrix.gather(start), atol=1e-5)
        assert 1 <= int(rank) <= 2


def _at_rest() -> set[str]:
    return {f"model.layers.{layer}.mlp.gate.{name}" for layer in (0, 1) for name in ("layer_share", "load_bias")}


def test_optimizer_and_checkpoints_know_the_pairs_only(make_model, settings, store, tmp_path):
    train(make_model(), store, settings(steps=2, rank=2), tmp_path)
    state = checkpoint.load_latest(tmp_path / CHECKPOINTS)
    assert "model.model.embed_tokens.weight" not in state["masters"]
    assert not any(name.endswith(("gate_up_proj", "q_proj.weight")) for name in state["masters"])
    assert len(state["optimizer"]["state"]) == len(state["masters"])


@pytest.mark.parametrize(("dtype", "quantize"), [("fp32", "none"), ("bf16", "none"), ("bf16", "int4")])
def test_stopped_and_resumed_equals_uninterrupted(make_model, settings, store, tmp_path, dtype, quantize):
    config = settings(dtype=dtype, rank=2, quantize=quantize)
    whole = train(make_model(), store, config, tmp_path / "whole")

    def stop(progress):
        if progress.step in (1, 4):
            os.kill(os.getpid(), signal.SIGINT)

    steps = []
    for _ in range(4):
        part = train(make_model(), store, config, tmp_path / "parts", on_step=stop)
        steps.append((part.step, part.finished))
    assert steps == [(1, False), (4, False), (6, True), (6, True)]
    mine, theirs = weights(whole.model), weights(part.model)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(ConfigError, match="weights it started from differ"):
        train(make_model(seed=1), store, config, tmp_path / "parts")


@pytest.mark.slow
def test_it_learns(make_model, settings, store, make_store, tmp_path):
    config = settings(steps=60, lr=1e-2, rank=4, save_every=100)
    result = train(make_model(), store, config, tmp_path, held_out=make_store(20, seed=1))
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert result.evaluation["held_out"] < first["next_token"] - 0.5


@pytest.mark.parametrize(
    ("quantize", "compiled"),
    [
        ("int4", False),
        ("int8", False),
        pytest.param(
            "int4", True,
            marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")],
        ),
    ],
)  # fmt: skip
def test_the_model_is_on_the_grid_and_the_pairs_are_not(make_model, settings, store, tmp_path, quantize, compiled):
    config = settings(steps=3, rank=2, quantize=quantize, compile=compiled)
    start = weights(make_model())
    result = train(make_model(), store, config, tmp_path)
    end = weights(result.model)
    matrices = dense_matrices(result.model)
    sums = {part.name: torch.empty_like(end[part.name]) for matrix in matrices for part in matrix.parts}
    for matrix in matrices:
        a, b = factors(result.pairs, matrix.name)
        assert b.abs().max() > 0
        matrix.put(matrix.gather(start) + b @ a, sums)
    for name, value in sums.items():
        wide = torch.nn.functional.pad(value, (0, -value.shape[-1] % 32))
        packed = grids.dequantize(grids.quantize(wide.flatten(0, -2), GRIDS[quantize])).view(wide.shape)
        assert torch.equal(end[name], packed[..., : value.shape[-1]])
        assert not torch.equal(end[name], value)
    loaded = make_model()
    loaded.load_state_dict({**end, **sums})
    round_weights(loaded, GRIDS[quantize])
    assert all(torch.equal(value, end[name]) for name, value in weights(loaded).items())


def test_rounding_is_for_pairs_alone(settings):
    with pytest.raises(ConfigError, match="rank"):
        settings(quantize="int4")


def test_sharded_weights_are_refused(settings):
    with pytest.raises(ConfigError, match="rank"):
        settings(rank=2, parallel="fsdp")


def test_checkpoints_by_the_clock(make_model, settings, store, tmp_path):
    seen = []
    config = settings(steps=4, save_every=1000, save_minutes=1e-9)
    train(
        make_model(), store, config, tmp_path,
        on_step=lambda p: seen.append((p.step, [f.name for f in checkpoint.saved(tmp_path / CHECKPOINTS)][:1])),
    )  # fmt: skip
    assert seen[2] == (3, ["step-00000003.pt"])


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_checkpoint) -> Path:
    """A delta on the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("start") / "delta"
    text = folder.with_name("a.txt")
    text.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    settings = ConvertSettings(
        num_experts=4, router_size=8, target_k=2.0, tokens=256, profile_tokens=128, held_out=0, length=64, steps=5
    )
    convert(tiny_checkpoint, folder, settings, text=[text], progress=False)
    return folder


class TestDeltas:
    def trained(self, start, tiny_checkpoint, settings, out, dtype="fp32"):
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        ids = torch.randint(0, 300, (600,), generator=torch.Generator().manual_seed(0)).numpy()
        store = TokenStore.from_documents([ids])
        return train(
            load_model(start, progress=False).model, store,
            settings(steps=3, rank=4, lr=1e-2, dtype=dtype, loss=DISTILL), out,
            teacher=load_model(tiny_checkpoint, dtype=kind, progress=False).model,
        )  # fmt: skip

    @pytest.mark.parametrize("dtype", ["fp32", "bf16"])
    def test_exported_equals_trained(self, start, tiny_checkpoint, settings, tmp_path, dtype):
        result = self.trained(start, tiny_checkpoint, settings, tmp_path / "run", dtype)
        export_delta(result, start, tmp_path / "model")
        loaded = load_model(tmp_path / "model", dtype=result.model.dtype, progress=False).model
        mine, theirs = weights(result.model), weights(loaded)
        assert mine.keys() == theirs.keys()
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
        ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
        before = load_model(start, dtype=result.model.dtype, progress=False).model
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, result.model(ids).logits)
            assert not torch.equal(before(ids).logits, loaded(ids).logits)
        names = set(DeltaSource(*opened(tmp_path / "model")).own())
        assert {GATE + ".low_rank_a", GATE + ".low_rank_b", "model.norm.weight"} <= names
        assert not {GATE_UP, "model.embed_tokens.weight", "lm_head.weight"} & names

    def test_a_trained_delta_can_be_trained_again(self, start, tiny_checkpoint, settings, tmp_path):
        first = self.trained(start, tiny_checkpoint, settings, tmp_path / "a")
        export_delta(first, start, tmp_path / "first")
        second = self.trained(tmp_path / "first", tiny_checkpoint, settings, tmp_path / "b")
        export_delta(second, tmp_path / "first", tmp_path / "second")
        loaded = weights(load_model(tmp_path / "second", progress=False).model)
        for name, value in weights(second.model).items():
            torch.testing.assert_close(loaded[name], value, rtol=1e-5, atol=1e-6)
        assert DeltaSource(*opened(tmp_path / "second")).own()[GATE + ".low_rank_a"].shape[0] == 8

    def test_pairs_in_floating_point_become_eight_bits(self, start, tiny_checkpoint, settings, tmp_path):
        """As deltas of format 1 have them: read as they are, rounded once they are trained again."""
        export_delta(self.trained(start, tiny_checkpoint, settings, tmp_path / "a"), start, tmp_path / "first")
        source = DeltaSource(*opened(tmp_path / "first"))
        wide = {name: value for name, value in source.own().items() if not name.endswith(".factors")}
        for name in [name for name, value in wide.items() if value.dtype == torch.int8]:
            axis = -2 if name.endswith("_a") else -1
            wide[name] = from_int8(wide[name], source.own()[name + ".factors"], axis)
        delta, config, *_ = opened(tmp_path / "first")
        write_delta(tmp_path / "wide", config, tiny_checkpoint, delta.digests, wide)
        same, other = (weights(load_model(tmp_path / name, progress=False).model) for name in ("first", "wide"))
        assert all(torch.equal(same[name], other[name]) for name in same)
        second = self.trained(tmp_path / "wide", tiny_checkpoint, settings, tmp_path / "b")
        export_delta(second, tmp_path / "wide", tmp_path / "second")
        own = DeltaSource(*opened(tmp_path / "second")).own()
        assert own[GATE + ".low_rank_a"].dtype == torch.int8
        loaded = weights(load_model(tmp_path / "second", progress=False).model)
        for name, value in weights(second.model).items():
            torch.testing.assert_close(loaded[name], value, rtol=1e-2, atol=1e-3)

    def test_pairs_that_do_not_fit_and_matrices_replaced(self, start, tiny_checkpoint, settings, tmp_path):
        result = self.trained(start, tiny_checkpoint, settings, tmp_path / "run")
        delta, config, *_ = opened(start)
        own = DeltaSource(*opened(start)).own()
        write_delta(
            tmp_path / "odd", config, tiny_checkpoint, delta.digests, own | {GATE + ".low_rank_a": torch.ones(2, 3)}
        )
        with pytest.raises(CheckpointError, match=r"low_rank_a \[2, 3\] of the delta .* on the base"):
            load_model(tmp_path / "odd", progress=False)
        export_delta(result, start, tmp_path / "whole")
        own = {
            n: v for n, v in DeltaSource(*opened(tmp_path / "whole")).own().items() if n != GATE + ".low_rank_b.factors"
        }
        write_delta(tmp_path / "half", config, tiny_checkpoint, delta.digests, own)
        with pytest.raises(CheckpointError, match="low_rank_a"):
            load_model(tmp_path / "half", progress=False)
        own = DeltaSource(*opened(start)).own()
        q = "model.layers.0.self_attn.q_proj.weight"
        write_delta(tmp_path / "q", config, tiny_checkpoint, delta.digests, own | {q: torch.zeros(64, 64)})
        with pytest.raises(UnsupportedError, match="q_proj"):
            export_delta(result, tmp_path / "q", tmp_path / "no")
        assert not (tmp_path / "no").exists()

    def test_only_pairs_make_a_delta(self, start, make_model, settings, store, tmp_path):
        result = train(make_model(), store, settings(steps=1), tmp_path / "run")
        with pytest.raises(ConfigError, match="all weights"):
            export_delta(result, start, tmp_path / "model")

    def test_a_known_name_goes_before_a_folder_of_that_name(self, start, tmp_path, monkeypatch):
        delta, config, *_ = opened(start)
        (tmp_path / "stille-135m").mkdir()
        monkeypatch.chdir(tmp_path)
        write_delta(tmp_path / "named", config, "stille-135m", delta.digests, {})
        written = read_delta(tmp_path / "named")
        assert (written.base, written.relative) == ("stille-135m", None)


@given(st.integers(1, 5), st.integers(1, 40), st.floats(1e-6, 1e6), st.integers(0, 99), st.sampled_from([-2, -1]))
def test_eight_bits_are_half_a_step_off_at_most(rank, size, scale, seed, axis):
    shape = (rank, size) if axis == -2 else (size, rank)
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    stored, factors = to_int8(value, axis)
    assert factors.shape == (rank,)
    step = factors.unsqueeze(-1) if axis == -2 else factors
    assert ((from_int8(stored, factors, axis) - value).abs() <= 0.501 * step).all()


def opened(folder):
    delta = read_delta(folder)
    return delta, load_config(folder), *open_weights(delta.base_source())


def test_models_are_not_what_the_optimizer_moves_alone(make_model, settings, store, tmp_path):
    """A dense model learns by pairs as well."""
    result = train(make_model(dense=True), store, settings(steps=2, rank=2), tmp_path)
    assert isinstance(result.model, StilleForCausalLM)
    assert len(result.pairs.tensors) == 2 * 2 * 2 * 7
