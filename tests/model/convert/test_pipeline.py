"""`convert` from folder to folder: every family, resumed runs, reports, mistakes."""

import dataclasses
import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from stille.errors import ConfigError
from stille.model import expert_budget, load_model, load_tokenizer
from stille.model.convert import pipeline
from stille.model.convert.text import docstrings, library_documents, split_documents, take_tokens
from stille.model.convert.work import Work
from stille.model.experts import expert_layers
from tests import processes
from tests.processes import WarmProcess

FAMILIES = ["llama", "smollm2", "mistral", "qwen2", "qwen3-bias-tied"]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_experts_the_model_is_the_dense_one(dense, run, ids, tmp_path, family):
    source = dense(family)
    done = run(source, tmp_path / "delta")
    before = load_model(source, dtype=torch.float64, progress=False).model
    after = load_model(done.folder, dtype=torch.float64, progress=False).model
    with expert_budget(after, 4):
        torch.testing.assert_close(after(ids).logits, before(ids).logits, rtol=1e-9, atol=1e-9)
    with expert_budget(after, 1):
        assert (after(ids).logits - before(ids).logits).abs().max() > 1e-2
    assert load_tokenizer(done.folder)("abc").input_ids == load_tokenizer(source)("abc").input_ids
    assert {layer.settings.target_k for layer in expert_layers(after)} == {2.0}


@torch.no_grad()
def test_a_whole_checkpoint_is_the_delta_on_its_base(dense, run, ids, tmp_path):
    source = dense("llama")
    delta, whole = run(source, tmp_path / "delta"), run(source, tmp_path / "whole", whole=True)
    one, other = (load_model(done.folder, progress=False) for done in (delta, whole))
    assert torch.equal(one.model(ids).logits, other.model(ids).logits)
    assert one.eos_token_ids == other.eos_token_ids
    assert "model.layers.0.mlp.gate_up_proj" in load_file(whole.folder / "model.safetensors")
    size = sum(file.stat().st_size for file in delta.folder.glob("*.safetensors"))
    assert size < (whole.folder / "model.safetensors").stat().st_size / 3


def test_the_report_says_what_the_model_does(dense, run, ids, tmp_path):
    done = run(dense("llama"), tmp_path / "delta")
    report = json.loads((done.folder / "report.json").read_text())
    assert report == json.loads(json.dumps(done.report))
    one, two, four = report["judgements"]
    assert [each["budget"] for each in (one, two, four)] == [1, 2, 4]
    assert four["kl"] < 1e-6 < two["kl"] < one["kl"]
    assert four["perplexity_ratio"] == pytest.approx(1, abs=1e-4)
    assert four["mean_k"] == 4
    for layer in two["layers"]:
        assert sum(layer["histogram"]) == pytest.approx(1)
        assert sum(layer["load"]) == pytest.approx(layer["mean_k"])
    own = [layer["level"] for layer in report["layers"]]
    assert sum(own) / 3 == pytest.approx(2)
    assert [layer["mean_k"] for layer in report["layers"]] == pytest.approx(own, rel=0.05)
    markdown = (done.folder / "report.md").read_text()
    assert f"| 2 | {two['mean_k']:.2f} | {two['kl']:.4f} |" in markdown
    drawn = done.folder / "report.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_no_held_out_text_no_judgement(dense, run, tmp_path):
    settings = dataclasses.replace(pipeline_settings(), held_out=0)
    done = run(dense("llama"), tmp_path / "delta", settings)
    assert done.report["judgements"] == []
    assert "Held-out" not in (done.folder / "report.md").read_text().replace("held-out tokens", "")
    assert not (done.folder / "report.png").exists()


def pipeline_settings() -> pipeline.ConvertSettings:
    return pipeline.ConvertSettings(
        num_experts=4, router_size=8, target_k=2.0, tokens=512, profile_tokens=256, held_out=128, length=64, steps=20
    )


class TestResume:
    def test_a_second_run_computes_nothing_again(self, dense, run, tmp_path, monkeypatch):
        source = dense("llama")
        first = run(source, tmp_path / "delta")
        before = weights(first)

        def refuse(*_, **__):
            raise AssertionError("computed again")

        for name in ("convert_layer", "judge"):
            monkeypatch.setattr(pipeline, name, refuse)
        again = run(source, tmp_path / "delta")  # in the place of the first
        assert weights(again) == before
        assert again.report["judgements"] == first.report["judgements"]

    def test_other_settings_are_computed(self, dense, run, tmp_path):
        source = dense("llama")
        one = run(source, tmp_path / "one", work=tmp_path / "work")
        other = run(
            source,
            tmp_path / "other",
            work=tmp_path / "work",
            settings=dataclasses.replace(pipeline_settings(), router_size=0),
        )
        assert weights(one) != weights(other)
        assert load_model(other.folder, progress=False).model.model.layers[0].mlp.gate.down is None

    def test_an_interruption_costs_the_layer_it_fell_into(self, dense, run, tmp_path, monkeypatch):
        source = dense("llama")
        straight = run(source, tmp_path / "straight")
        convert_layer, calls = pipeline.convert_layer, []

        def interrupted(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return convert_layer(*arguments)

        monkeypatch.setattr(pipeline, "convert_layer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "delta")
        assert not (tmp_path / "delta").exists()
        resumed = run(source, tmp_path / "delta")
        assert len(calls) == 4  # three layers, one of them twice
        assert weights(resumed) == weights(straight)

    def test_reading_goes_on_behind_the_sequences_that_are_there(self, dense, run, tmp_path, monkeypatch):
        source = dense("llama")
        straight = run(source, tmp_path / "straight")
        collect = pipeline.LayerInputs.collect

        def killed(self, *arguments):
            for done in collect(self, *arguments):
                yield done
                if done == 3:
                    raise KeyboardInterrupt

        monkeypatch.setattr(pipeline.LayerInputs, "collect", killed)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "delta")
        seen = []
        monkeypatch.setattr(
            pipeline.LayerInputs, "collect", lambda self, *a: (seen.append(n) or n for n in collect(self, *a))
        )
        resumed = run(source, tmp_path / "delta")
        assert seen == [3, 4, 5, 6, 7, 8]
        assert weights(resumed) == weights(straight)

    def test_after_a_kill_the_same_call_finishes(self, dense, run, text, tmp_path):
        """SIGKILL, whenever it falls."""
        source = dense("llama")
        code = (
            "import sys; from pathlib import Path; from stille.model.convert.pipeline import convert, ConvertSettings\n"
            f"convert({str(source)!r}, {str(tmp_path / 'delta')!r}, {pipeline_settings()!r},"
            f" text=[Path(p) for p in {list(map(str, text))!r}], progress=False)"
        )
        process = WarmProcess(processes.code, code)
        work = tmp_path / "delta.work"
        deadline = time.monotonic() + 100
        while process.poll() is None and not list(work.glob("layer-0-*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(work.glob("layer-0-*.safetensors"))
        resumed = run(source, tmp_path / "delta", pipeline_settings())
        assert weights(resumed) == weights(run(source, tmp_path / "other", pipeline_settings()))

    def test_a_damaged_stage_is_made_again(self, tmp_path):
        work, made = Work(tmp_path), []

        def make():
            made.append(1)
            return {"x": torch.arange(5)}, {"n": 5}

        work.stage("part", "key", make)
        (file,) = tmp_path.iterdir()
        os.truncate(file, 20)
        tensors, found = work.stage("part", "key", make)
        assert len(made) == 2
        assert (tensors["x"].tolist(), found) == ([0, 1, 2, 3, 4], {"n": 5})
        assert work.stage("part", "key", make)[1] == {"n": 5}
        assert len(made) == 2
        assert list(tmp_path.iterdir()) == [file]


def weights(done: pipeline.Conversion) -> dict[str, list]:
    (file,) = done.folder.glob("*.safetensors")
    return {name: value.tolist() for name, value in load_file(file).items()}


class TestMistakes:
    def test_a_folder_with_something_else_is_left_alone(self, dense, run, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "letter.txt").write_text("dear")
        with pytest.raises(ConfigError, match="mine exists and is no delta"):
            run(dense("llama"), tmp_path / "mine")
        assert [file.name for file in (tmp_path / "mine").iterdir()] == ["letter.txt"]

    def test_what_has_experts_already(self, dense, run, tmp_path):
        source = dense("llama")
        delta, whole = run(source, tmp_path / "delta"), run(source, tmp_path / "whole", whole=True)
        with pytest.raises(ConfigError, match="is a delta; convert the dense checkpoint"):
            run(delta.folder, tmp_path / "again")
        with pytest.raises(ConfigError, match="is not dense: its layers are experts"):
            run(whole.folder, tmp_path / "again")

    def test_too_little_text(self, dense, run, tmp_path):
        with pytest.raises(ConfigError, match=r"the text gives [\d,]+ calibration tokens, 99,968 are wanted"):
            run(dense("llama"), tmp_path / "delta", dataclasses.replace(pipeline_settings(), tokens=100_000))

    @pytest.mark.parametrize("values", [{"tokens": 100}, {"length": 1}])
    def test_too_few_tokens(self, dense, run, tmp_path, values):
        with pytest.raises(ConfigError, match="expected at least 256 tokens in sequences of at least 2"):
            run(dense("llama"), tmp_path / "delta", dataclasses.replace(pipeline_settings(), **values))

    def test_sizes_and_bounds(self, dense, run, tmp_path):
        source = dense("llama")
        for values, message in [
            ({"shared_size": 41}, "Sizes that fit"),
            ({"target_k": 9.0}, "mean of 9"),
            ({"gate_tokens": -1}, "gate_tokens=-1"),
            ({"fisher": float("nan")}, "fisher=nan"),
        ]:
            with pytest.raises(ConfigError, match=message):
                run(source, tmp_path / "delta", dataclasses.replace(pipeline_settings(), **values))

    def test_text_that_is_not_there(self, dense, tmp_path):
        with pytest.raises(ConfigError, match=r"no\.txt cannot be read"):
            pipeline.convert(dense("llama"), tmp_path / "d", text=[tmp_path / "no.txt"], progress=False)


class TestMoreText:
    """`gate_tokens`: gates that go on to be fitted while text runs through the dense model."""

    SETTINGS = dataclasses.replace(pipeline_settings(), gate_tokens=10**9)

    @torch.no_grad()
    def test_it_takes_what_there_is_and_changes_gates_alone(self, dense, run, ids, tmp_path):
        source = dense("llama")
        few, more = run(source, tmp_path / "few", pipeline_settings()), run(source, tmp_path / "more", self.SETTINGS)
        about = more.report["about"]
        assert few.report["about"]["more tokens for the gates"] == 0
        assert about["calibration tokens"] == 512
        assert about["more tokens for the gates"] > 1000
        one, other = weights(few), weights(more)
        assert one.keys() == other.keys()
        changed = {name.rpartition("gate.")[2] for name in one if one[name] != other[name]}
        assert {"down.weight", "up.weight", "up.bias", "quantiles"} <= changed
        assert not any("order" in name for name in changed)
        after = load_model(more.folder, dtype=torch.float64, progress=False).model
        with expert_budget(after, 4):
            before = load_model(source, dtype=torch.float64, progress=False).model
            torch.testing.assert_close(after(ids).logits, before(ids).logits, rtol=1e-9, atol=1e-9)
        own = [layer["level"] for layer in more.report["layers"]]
        assert [layer["mean_k"] for layer in more.report["layers"]] == pytest.approx(own, rel=0.05)

    def test_it_is_kept(self, dense, run, tmp_path, monkeypatch):
        source = dense("llama")
        first = weights(run(source, tmp_path / "delta", self.SETTINGS))
        monkeypatch.setattr(pipeline, "fit_routers", lambda *_, **__: pytest.fail("computed again"))
        second = weights(run(source, tmp_path / "delta", self.SETTINGS))
        assert first == second


class TestText:
    def test_the_library_is_sources_and_prose(self):
        documents = library_documents()
        assert any("def dumps(" in text for text in documents)
        assert any(text.startswith("textwrap\nText wrapping and filling.") for text in documents)

    def test_docstrings(self):
        assert docstrings("m", '"""Of m."""\ndef f():\n    "Of f."\ndef g(): pass') == "m\nOf m.\n\nf\nOf f."
        assert docstrings("m", "def (") == ""

    @pytest.mark.parametrize("count", [1, 3, 8, 20])
    def test_held_out_text_is_other_text(self, count):
        documents = [f"{i:03}" * 800 for i in range(count)]
        fitted, judged = split_documents(documents)
        assert sum(map(len, fitted)) + sum(map(len, judged)) == 2400 * count
        assert 0.03 < sum(map(len, judged)) / (2400 * count) <= 0.126
        if count >= 8:
            assert not set(fitted) & set(judged)

    def test_a_seed_gives_one_choice(self, tiny_checkpoint):
        tokenizer = load_tokenizer(tiny_checkpoint)
        documents = ["".join(f"{i} and {j}, " for j in range(99)) for i in range(9)]
        one, same, other = (take_tokens(tokenizer, documents, 640, 64, seed, "x") for seed in (0, 0, 1))
        assert one.shape == (10, 64)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
