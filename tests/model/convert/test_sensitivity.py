"""Budgets by layer: what layers lose alone, the shares made of it, and the stage of a conversion that does both."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import settings as options
from hypothesis import strategies as st
from safetensors.torch import load_file

from stille.errors import ConfigError
from stille.model import expert_budget, load_config, load_model
from stille.model.convert import pipeline
from stille.model.convert.delta import DeltaSource, changes, read_delta, write_delta
from stille.model.convert.judge import judge
from stille.model.convert.sensitivity import POWER, alone, layer_shares
from stille.model.experts import expert_layers, record_routing
from stille.model.load import open_weights
from stille.model.routing import ExpertsConfig, Gate

SETTINGS = pipeline.ConvertSettings(
    num_experts=4, router_size=8, target_k=2.0, tokens=512, profile_tokens=256, held_out=128, length=64, steps=20,
    budgets=(1, 2, 3, 4), sensitivity_tokens=128,
)  # fmt: skip
LAYERS = 3


def settings_of(**values) -> ExpertsConfig:
    return ExpertsConfig(**{"num_experts": 16, "max_k": 16, "target_k": 4.8} | values)


def levels(shares: list[float], config: ExpertsConfig, target: float) -> list[float]:
    gate, found = Gate(4, config), []
    for share in shares:
        gate.layer_share.fill_(share)
        found.append(float(gate.level(target)))
    return found


class TestShares:
    @given(
        st.lists(st.floats(0, 10, allow_subnormal=False), min_size=1, max_size=40), st.integers(2, 16),
        st.floats(0, 1), st.integers(0, 4), st.integers(0, 4),
    )  # fmt: skip
    @example([3.0], 4, 1 - 2**-53, 0, 0)  # a target next to all experts
    @options(max_examples=150, deadline=None)
    def test_the_mean_is_kept_within_the_bounds(self, kl, experts, place, min_k, less):
        least, most = max(1, min_k), experts - less
        assume(least <= most)
        target = least + place * (most - least)
        config = settings_of(num_experts=experts, min_k=min_k, max_k=most, target_k=target)
        shares = layer_shares(kl, config)
        assert math.fsum(shares) / len(shares) == pytest.approx(1, abs=1e-6)
        own = levels(shares, config, target)
        assert all(least - 1e-4 <= level <= most + 1e-4 for level in own)
        assert sum(own) / len(own) == pytest.approx(target, abs=1e-4)
        low = levels(shares, config, min(target, least + 1))
        assert min(low) >= least - 1e-4
        order = sorted(range(len(kl)), key=kl.__getitem__)
        assert all(shares[a] >= shares[b] - 1e-9 for a, b in itertools.pairwise(order))

    def test_levels_go_with_the_fourth_root(self):
        kl = [0.03, 0.012, 0.01, 0.014]
        own = levels(layer_shares(kl, settings_of()), settings_of(), 4.8)
        assert [level / own[1] for level in own] == pytest.approx([(each / kl[1]) ** POWER for each in kl], rel=1e-4)

    def test_what_a_bound_takes_the_others_share(self):
        shares = layer_shares([1e-9, 1.0, 1.0, 1.0], settings_of())
        assert shares[0] == pytest.approx(15 / 14)
        assert shares[1:] == pytest.approx([(4 - 15 / 14) / 3] * 3)
        assert levels(shares, settings_of(), 2)[0] == pytest.approx(1)

    @pytest.mark.parametrize("kl", [[0.0, 0.0], [0.5]])
    def test_nothing_to_tell_layers_apart(self, kl):
        assert layer_shares(kl, settings_of()) == pytest.approx([1.0] * len(kl))

    def test_no_number(self):
        with pytest.raises(ConfigError, match="layer 1 alone is nan"):
            layer_shares([0.1, math.nan], settings_of())


@pytest.fixture
def sensitive(dense, make_checkpoint) -> Path:
    """A dense model whose second layer's FFN says more than the others'."""
    folder = dense("llama")
    model = make_checkpoint("llama")
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight *= 4.0 if index == 1 else 0.05
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("weights", ["unit", "sigmoid"])
def test_alone_is_what_a_judge_finds_with_the_others_at_all_experts(dense, run, ids, tmp_path, weights):
    source = dense("llama")
    done = run(source, tmp_path / "delta", dataclasses.replace(SETTINGS, weights=weights))
    before, after = (load_model(each, dtype=torch.float64, progress=False).model for each in (source, done.folder))
    told: list[int] = []
    found = alone(before, after, ids, 1.5, told.append)
    assert told == [1] * LAYERS
    base = before(ids).logits.float().log_softmax(-1)
    for index, layer in enumerate(expert_layers(after)):
        with expert_budget(after, 4.0):
            layer.budget = 1.5
            logits = after(ids).logits
        kl = torch.nn.functional.kl_div(logits.float().log_softmax(-1), base, reduction="sum", log_target=True)
        assert found[index] == pytest.approx(float(kl), rel=1e-4)
        assert found[index] > 0
    assert all(layer.budget is None for layer in expert_layers(after))
    assert not any(layer._forward_pre_hooks for layer in after.model.layers)


class TestConversion:
    def test_a_sensitive_layer_gets_more_experts(self, sensitive, run, tmp_path):
        done = run(sensitive, tmp_path / "delta", SETTINGS)
        layers = done.report["layers"]
        assert max(range(LAYERS), key=lambda at: layers[at]["kl_alone"]) == 1
        own = [layer["level"] for layer in layers]
        assert own[1] > 2.2 > 2 > max(own[0], own[2]) > 0.99
        assert sum(own) / LAYERS == pytest.approx(2, abs=1e-5)
        for layer in layers:  # at the layer's own level, by the thresholds as they are stored
            assert layer["mean_k"] == pytest.approx(layer["level"], rel=0.05)
            assert layer["mean_k_by_target"][1] == pytest.approx(layer["mean_k"], abs=1e-6)
            assert layer["mean_k_by_target"][3] == 4
        assert [sum(layer["mean_k_by_target"][2] for layer in layers) / LAYERS] == pytest.approx([3], rel=0.05)
        one, two, three, four = done.report["judgements"]
        assert four["kl"] < 1e-5
        assert one["mean_k"] < two["mean_k"] < three["mean_k"] < four["mean_k"] == 4
        assert two["layers"][1]["mean_k"] > max(two["layers"][at]["mean_k"] for at in (0, 2)) + 0.2

    def test_the_report_shows_it(self, sensitive, run, tmp_path):
        done = run(sensitive, tmp_path / "delta", SETTINGS)
        assert json.loads((done.folder / "report.json").read_text())["layers"] == done.report["layers"]
        markdown, layer = (done.folder / "report.md").read_text(), done.report["layers"][1]
        assert "- budgets by layer: measured on 128 tokens" in markdown
        assert (
            f"| 1 | {layer['r2']:.3f} | {layer['kl_alone']:.4f} | {layer['level']:.2f} | {layer['mean_k']:.2f} |"
            in markdown
        )
        assert (done.folder / "report.png").read_bytes().startswith(b"\x89PNG")

    def test_it_loses_less_than_with_the_same_for_all(self, sensitive, run, tmp_path):
        work = tmp_path / "work"
        own = run(sensitive, tmp_path / "own", SETTINGS, work=work).report["judgements"][1]
        same = run(sensitive, tmp_path / "same", dataclasses.replace(SETTINGS, layer_budgets=False), work=work)
        assert own["kl"] < same.report["judgements"][1]["kl"]

    @pytest.mark.parametrize("values", [{"layer_budgets": False}, {"gate": "top_k"}, {"target_k": 4.0}])
    def test_without(self, dense, run, tmp_path, values):
        done = run(dense("llama"), tmp_path / "delta", dataclasses.replace(SETTINGS, **values))
        assert shares_of(done.folder) == [1.0] * LAYERS
        assert not any("level" in layer for layer in done.report["layers"])
        markdown = (done.folder / "report.md").read_text()
        assert "- budgets by layer: equal" in markdown
        assert "KL alone" not in markdown
        assert not list(done.work.glob("alone-*"))

    def test_text_is_what_was_calibrated_with(self, dense, run, tmp_path, monkeypatch):
        """And never more of it than there is."""
        seen, read = [], []
        monkeypatch.setattr(pipeline, "ALONE", 128)
        monkeypatch.setattr(pipeline, "alone", lambda *given: seen.append(given[2]) or alone(*given))
        monkeypatch.setattr(pipeline, "judge", lambda *given: read.append(given[2]) or judge(*given))
        settings = dataclasses.replace(SETTINGS, sensitivity_tokens=100_000)
        run(dense("llama"), tmp_path / "delta", settings)
        assert [part.shape for part in seen] == [(2, 64)] * 4
        assert not {tuple(row) for part in seen for row in part.tolist()} & {tuple(row) for row in read[0].tolist()}


class TestResume:
    def test_a_second_run_computes_nothing_again(self, sensitive, run, tmp_path, monkeypatch):
        first = run(sensitive, tmp_path / "delta", SETTINGS)
        before = weights(first.folder)

        def refuse(*_, **__):
            raise AssertionError("computed again")

        for name in ("alone", "layer_shares", "measure", "judge"):
            monkeypatch.setattr(pipeline, name, refuse)
        again = run(sensitive, tmp_path / "delta", SETTINGS)
        assert weights(again.folder) == before
        assert again.report["layers"] == first.report["layers"]
        assert again.report["judgements"] == first.report["judgements"]

    @pytest.mark.parametrize(("stopped", "at"), [("alone", 2), ("measure", 2), ("judge", 1)])
    def test_an_interruption_costs_the_part_it_fell_into(self, sensitive, run, tmp_path, monkeypatch, stopped, at):
        monkeypatch.setattr(pipeline, "ALONE", 64)
        straight, calls, first = run(sensitive, tmp_path / "straight", SETTINGS), [], getattr(pipeline, stopped)

        def interrupted(*given):
            calls.append(given)
            if len(calls) == at:
                raise KeyboardInterrupt
            return first(*given)

        measured = []
        monkeypatch.setattr(pipeline, "alone", lambda *given: measured.append(given) or alone(*given))
        first = getattr(pipeline, stopped)
        monkeypatch.setattr(pipeline, stopped, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(sensitive, tmp_path / "delta", SETTINGS)
        assert not (tmp_path / "delta").exists()
        resumed = run(sensitive, tmp_path / "delta", SETTINGS)
        assert len(measured) == 2  # parts, each of which was finished once
        assert weights(resumed.folder) == weights(straight.folder)
        assert resumed.report["layers"] == straight.report["layers"]

    def test_more_text_is_measured(self, sensitive, run, tmp_path):
        work = tmp_path / "work"
        few = run(sensitive, tmp_path / "few", SETTINGS, work=work)
        more = run(sensitive, tmp_path / "more", dataclasses.replace(SETTINGS, sensitivity_tokens=512), work=work)
        assert [
            a["kl_alone"] == b["kl_alone"] for a, b in zip(few.report["layers"], more.report["layers"], strict=True)
        ]
        assert shares_of(few.folder) != shares_of(more.folder)


class TestDelta:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_shares_are_kept(self, sensitive, run, tmp_path, dtype):
        done = run(sensitive, tmp_path / "delta", SETTINGS)
        wanted = [layer["layer_share"] for layer in done.report["layers"]]
        assert len({*wanted, 1.0}) > 2
        assert shares_of(done.folder, dtype) == wanted
        model = load_model(done.folder, progress=False).model  # and through what training exports
        opened = read_delta(done.folder)
        source = DeltaSource(opened, load_config(done.folder), *open_weights(opened.base_source()))
        kept = changes(model.state_dict(), source)
        write_delta(tmp_path / "other", load_config(done.folder), opened.base_source(), opened.digests, kept)
        assert shares_of(tmp_path / "other", dtype) == wanted

    @torch.no_grad()
    def test_a_whole_checkpoint_has_them_too(self, sensitive, run, ids, tmp_path):
        work = tmp_path / "work"
        delta = run(sensitive, tmp_path / "delta", SETTINGS, work=work)
        whole = run(sensitive, tmp_path / "whole", SETTINGS, work=work, whole=True)
        assert shares_of(whole.folder) == shares_of(delta.folder)
        for budget in (1.5, 2, 3.2, 4):
            found = []
            for folder in (delta.folder, whole.folder):
                model = load_model(folder, progress=False).model
                with expert_budget(model, budget), record_routing(model) as logs:
                    model(ids)
                found.append([log.mean_k for log in logs])
            assert found[0] == found[1]


def shares_of(folder: Path, dtype: torch.dtype = torch.float32) -> list[float]:
    model = load_model(folder, dtype=dtype, progress=False).model
    return [float(layer.gate.layer_share) for layer in expert_layers(model)]


def weights(folder: Path) -> dict[str, list]:
    (file,) = folder.glob("*.safetensors")
    return {name: value.tolist() for name, value in load_file(file).items()}
