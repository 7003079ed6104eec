"""The pipeline on a tiny model: from its own text to a delta with a card; killed, stopped, changed, run in parts."""

import json
import os
import re
import shutil
import signal

import pytest
import torch

from stille.errors import ConfigError
from stille.model import load_model
from stille.model.experts import expert_layers, record_routing
from stille.train.data import in_order, store_of
from stille.train.default import STAGES, Context, DefaultSettings, Pipeline, Stage, Stopped, make
from stille.train.default import pipeline as pipeline_of
from stille.train.default.making import distill_inputs
from stille.train.default.samples import read_lines
from stille.train.default.stages import note_of
from stille.train.losses import run_model

NAMES = [stage.name for stage in STAGES]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_settings):
    """The folder of a finished run; do not change it."""
    out = tmp_path_factory.mktemp("made")
    seen = []
    make(out, tiny_settings(), report=seen.append, quiet=True)
    assert {progress.stage for progress in seen} == {"samples", "distill", "judge"}
    return out


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def states(out, settings) -> list[str]:
    return [status.state for status in pipeline_of(out, settings).status()]


def folder(out, name):
    (found,) = (out / "stages").glob(f"*-{name}-*")
    return found


def digests(out) -> dict[str, str]:
    return {each.name: note_of(each)["output"] for each in (out / "stages").iterdir()}


def test_the_result_is_a_model_with_a_card_of_its_own_figures(made, tiny_settings, tiny_checkpoint):
    ids = torch.randint(3, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    result = load_model(made / "tiny", progress=False)
    dense = load_model(tiny_checkpoint, progress=False)
    with torch.no_grad():
        assert not torch.equal(result.model(ids).logits, dense.model(ids).logits)
    card = (made / "tiny" / "README.md").read_text()
    judged = json.loads((made / "tiny" / "judge.json").read_text())
    assert set(judged["domains"]) == {"samples", "library", "law"}
    for domain in judged["domains"].values():
        assert [each["budget"] for each in domain["budgets"]] == [1, 2, 4]
        assert len(domain["budgets"][0]["k_by_entropy"]) == 10
        assert domain["budgets"][2]["mean_k"] == 4
        assert domain["budgets"][2]["kl"] >= 0
        for each in domain["budgets"]:
            assert f"| {each['mean_k']:.2f} | {each['kl']:.4f} |" in card
    assert "license: apache-2.0" in card
    assert f"{note_of(folder(made, 'distill'))['found']['tokens']:,} tokens" in card
    told = re.search(r"what differs from the defaults: `(.*)`", card)
    settings = tiny_settings()
    again = DefaultSettings.from_dict(json.loads(told[1]))
    assert all(getattr(again, name) == getattr(settings, name) for name in ("rank", "steps", "tokens", "target_k"))
    assert again.text == ("a.txt", "b.txt")
    assert str(tiny_checkpoint.parent) not in told[1]  # no paths of the machine
    assert not (made / "work").exists() or not any((made / "work").iterdir())


def test_thresholds_are_those_of_the_trained_model(made, tiny_settings):
    """At the target the mean is met on the text that was learned; the controller, which training moved, is at rest."""
    text = [folder(made, "samples") / f"{name}.jsonl" for name in ("samples", "library")]
    result = load_model(folder(made, "distill") / "model", progress=False)
    with torch.no_grad(), record_routing(result.model) as logs:
        for batch in in_order(store_of(text, result.tokenizer, made / "tokens"), 32, 2, 256 // 32):
            run_model(result.model, batch)
    shutil.rmtree(made / "tokens")
    for layer, log in zip(expert_layers(result.model), logs, strict=True):
        assert not layer.gate.correction.any()
        assert log.mean_k == pytest.approx(float(layer.gate.level(2)), rel=0.05)
    start = expert_layers(load_model(folder(made, "convert") / "delta", progress=False).model)
    for before, layer in zip(start, expert_layers(result.model), strict=True):
        assert not torch.equal(before.gate.quantiles, layer.gate.quantiles)
    keys = [distill_inputs(tiny_settings(**c).filled("cpu")) for c in ({}, {"calibration_tokens": 320})]
    assert keys[0] != keys[1]


def test_samples_are_chats_and_continuations_and_none_is_judged_and_learned(made):
    samples = folder(made, "samples")
    learned, judged = read_lines(samples / "samples.jsonl"), read_lines(samples / "held-out.jsonl")
    assert {row["kind"] for row in learned} == {"chat", "continuation"}
    assert sum(row["tokens"] for row in learned) >= 600
    for row in learned:
        assert row["text"].startswith("<|im_start|>user\n") == (row["kind"] == "chat")
    assert not {row["text"] for row in learned} & {row["text"] for row in judged}
    local = [{row["text"] for row in read_lines(samples / f"{name}.jsonl")} for name in ("library", "library-held-out")]
    assert not local[0] & local[1]


def test_it_is_made_once_and_what_a_change_reaches_is_made_again(copy, tiny_settings):
    assert states(copy, tiny_settings()) == ["done"] * 5
    before = digests(copy)

    def forbidden(progress):
        raise AssertionError(progress)

    make(copy, tiny_settings(), report=forbidden, quiet=True)
    assert digests(copy) == before
    changed = tiny_settings(lr=2e-3)
    assert states(copy, changed) == ["done", "done", "stale", "stale", "stale"]
    make(copy, changed, quiet=True)
    assert states(copy, changed) == states(copy, tiny_settings()) == ["done"] * 5
    assert len(digests(copy)) == 5 + 3
    assert states(copy, tiny_settings(seed=1)) == ["stale"] * 5


def test_a_twin_with_fixed_numbers_shares_the_samples(copy, tiny_settings):
    twin = tiny_settings(gate="top_k")
    assert states(copy, twin) == ["done", *["stale"] * 4]
    result = make(copy, twin, quiet=True)
    assert result == copy / "tiny-top-2"
    assert load_model(result, progress=False).config.experts["gate"] == "top_k"
    assert load_model(copy / "tiny", progress=False).config.experts["gate"] == "threshold"
    budgets = json.loads((result / "judge.json").read_text())["domains"]["law"]["budgets"]
    assert [each["mean_k"] for each in budgets] == [1, 2, 4]


@pytest.mark.slow
def test_runs_alone_and_up_to(tmp_path, tiny_settings):
    settings = tiny_settings()
    with pytest.raises(ConfigError, match="needs samples, convert first"):
        make(tmp_path, settings, only="distill", quiet=True)
    with pytest.raises(ConfigError, match="no stage 'dostill'; stages are samples, convert"):
        make(tmp_path, settings, until="dostill", quiet=True)
    assert make(tmp_path, settings, until="convert", quiet=True) is None
    assert states(tmp_path, settings) == ["done", "done", "to do", "to do", "to do"]
    make(tmp_path, settings, only="distill", quiet=True)
    assert states(tmp_path, settings) == ["done", "done", "done", "to do", "to do"]


def test_stopped_anywhere_it_goes_on_to_the_same(made, tmp_path, tiny_settings):
    settings = tiny_settings()
    wanted = [read_lines(folder(made, "samples") / f"{name}.jsonl") for name in ("samples", "held-out")]
    shards = []

    def interrupt(progress):
        if progress.stage == "samples":
            shards.append(progress.done)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, settings, report=interrupt, quiet=True)
    assert states(tmp_path, settings)[0] == "begun"
    work = next((tmp_path / "work").iterdir())
    assert len(list((work / "shards").iterdir())) == 1
    (work / "shards" / "samples-00000.tmp").write_text("half a li")  # as a kill leaves it

    def stop(progress):
        if progress.stage == "distill":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        make(tmp_path, settings, report=stop, quiet=True)
    assert [read_lines(folder(tmp_path, "samples") / f"{n}.jsonl") for n in ("samples", "held-out")] == wanted
    assert states(tmp_path, settings) == ["done", "done", "begun", "to do", "to do"]
    make(tmp_path, settings, quiet=True)
    mine, theirs = (load_model(out / "tiny", progress=False).model.state_dict() for out in (tmp_path, made))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_brought_text_takes_the_place_of_the_models(tmp_path, tiny_settings):
    rows = [{"text": f"sample {n}: {n * n} {n * 7} apples and pears in the old harbour"} for n in range(200)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = tiny_settings(samples=str(file))
    make(tmp_path / "out", settings, until="samples", quiet=True)
    found = folder(tmp_path / "out", "samples")
    learned, judged = ({r["text"] for r in read_lines(found / f"{n}.jsonl")} for n in ("samples", "held-out"))
    assert learned | judged == {row["text"] for row in rows}
    assert learned
    assert judged
    assert not learned & judged
    file.write_text(json.dumps({"text": "another"}) + "\n")
    assert states(tmp_path / "out", settings)[0] == "stale"


def test_a_model_that_learned_for_a_grid_is_judged_on_it_too(copy, tiny_settings):
    made = make(copy, tiny_settings(quantize="int8"), quiet=True)
    judgement = json.loads((made / "judge.json").read_text())["domains"]
    assert {"samples", "samples, int8", "library", "library, int8"} <= set(judgement)
    plain, rounded = (judgement[name]["budgets"][0]["kl"] for name in ("samples", "samples, int8"))
    assert plain != rounded
    assert plain == pytest.approx(rounded, rel=0.05)
    assert '"quantize": "int8"' in (made / "README.md").read_text()


def test_a_stage_is_there_whole_or_not_at_all_and_its_time_adds_up(tmp_path):
    runs = []

    def run(context: Context):
        runs.append(sorted(path.name for path in context.folder.iterdir()))
        (context.folder / "part").write_text("x")
        if len(runs) < 3:
            raise RuntimeError("a crash")
        (context.folder / "result").write_text("whole")
        return {"fact": 1}

    stage = Stage("one", 1, lambda settings: {"seed": settings.seed}, run, kept=("result",))
    pipeline = Pipeline([stage], tmp_path, DefaultSettings(), "cpu")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            pipeline.run()
        assert not (tmp_path / "stages").exists()
        (seconds,) = (tmp_path / "work").glob("*/seconds")
        seconds.write_text(f"{float(seconds.read_text()) + 60:.1f}")
    done = pipeline.run()["one"]
    assert runs[1:] == [["part", "seconds"]] * 2
    assert sorted(path.name for path in done.iterdir()) == ["result", "stage.json"]
    note = note_of(done)
    assert note["found"] == {"fact": 1}
    assert 120 <= note["seconds"] < 130
    assert pipeline.status()[0].minutes == pytest.approx(note["seconds"] / 60)
    (done / "stage.json").write_text("{")  # damaged: not there
    assert [status.state for status in pipeline.status()] == ["to do"]


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        (dict(tokens=0), "tokens=0"),
        (dict(temperature=0), "temperature"),
        (dict(prefix_tokens=[8, 4]), "prefix_tokens"),
        (dict(name="a/b"), "a/b"),
        (dict(judge=[["samples", "x"]]), "neither samples nor library"),
        (dict(minutes=None, steps=None), "end"),
        (dict(colour="red"), "colour"),
        (dict(loss=dict(kld=1)), "kld"),
        (dict(judge=["x"]), "settings of the pipeline"),
    ],
)
def test_wrong_settings_are_told(tiny_settings, changes, mentions):
    with pytest.raises(ConfigError, match=mentions):
        tiny_settings(**changes)


def test_files_that_are_not_there_are_told(tmp_path, tiny_settings):
    with pytest.raises(ConfigError, match="nowhere"):
        make(tmp_path, tiny_settings(samples="/nowhere.jsonl"), quiet=True)
    with pytest.raises(ConfigError, match="device"):
        make(tmp_path, tiny_settings(), "tpu", quiet=True)
