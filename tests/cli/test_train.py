"""`stille train`, from the command line to a model that the engine runs; killed and continued."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from stille.model import load_model

SHAPE = ["--hidden", "16", "--depth", "2", "--heads", "2", "--expert-size", "8", "--shared-size", "16"]
SHORT = ["--batch", "4", "--length", "32", "--held-out", "0.2", "--log-every", "1", "--eval-sequences", "4"]
CPU = ["--device", "cpu"]


@pytest.fixture
def text(tmp_path):
    """A .jsonl file of documents."""
    file = tmp_path / "text.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"{n} green bottles hanging on the wall " * 3}) + "\n" for n in range(60))
    )
    return file


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLE_HOME", str(tmp_path / "home"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def steps(out) -> list[int]:
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def test_a_killed_run_goes_on_to_the_very_weights_of_an_uninterrupted_one(stille_here, spawn, text, tmp_path):
    asked = ["train", "pretrain", text, *SHAPE, *SHORT, *CPU, "--steps", "40", "--save-every", "3", "--out"]
    process = spawn(*map(str, asked), str(tmp_path / "killed"))
    deadline = time.monotonic() + 100
    while len(steps(tmp_path / "killed")) < 5:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    reached = steps(tmp_path / "killed")[-1]
    assert reached < 40
    assert not (tmp_path / "killed" / "model").exists()
    for name in ("killed", "whole"):
        run = stille_here(*asked, tmp_path / name)
        assert run.returncode == 0, run.stderr
        assert "40 steps" in run.stdout
        assert steps(tmp_path / name) == [*range(1, 41), 40]
    killed, whole = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


def test_the_result_is_a_model_that_answers(stille_here, text, tmp_path):
    run = stille_here("train", "pretrain", text, *SHAPE, *SHORT, *CPU, "--steps", "3", "--out", tmp_path / "run")
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "run" / "model"
    loaded = load_model(folder, progress=False)
    assert loaded.config.experts["target_k"] == 4.8
    assert loaded.tokenizer.decode(loaded.tokenizer("naïve").input_ids) == "naïve"


def test_distillation_from_files_to_files(stille_here, text, tmp_path):
    dense = [
        "train",
        "pretrain",
        text,
        *SHAPE,
        *SHORT,
        *CPU,
        "--experts",
        "0",
        "--steps",
        "2",
        "--out",
        tmp_path / "teacher",
    ]
    assert stille_here(*dense).returncode == 0
    routed = ["train", "pretrain", text, *SHAPE, *SHORT, *CPU, "--steps", "1", "--out", tmp_path / "start"]
    assert stille_here(*routed).returncode == 0
    (tmp_path / "settings.json").write_text(json.dumps({"lr": 0.5, "warmup": 7, "loss": {"layers": 0.25}}))
    run = stille_here(
        "train", "distill", tmp_path / "start" / "model", text, "--teacher", tmp_path / "teacher" / "model",
        *SHORT, *CPU,
        "--steps", "4", "--out", tmp_path / "run", "--config", tmp_path / "settings.json", "--lr", "0.01",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "held out kl" in run.stdout
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["lr"] == pytest.approx(0.01 / 7)  # the file's warm-up, the command line's rate
    assert {"kl", "layers", "mean_k", "target_k"} <= set(first)
    again = stille_here(
        "train", "distill", tmp_path / "start" / "model", text, "--teacher", tmp_path / "teacher" / "model",
        *SHORT, *CPU,
        "--steps", "4", "--out", tmp_path / "run", "--lr", "0.01",
    )  # fmt: skip
    assert again.returncode == 2
    assert "warmup was 7" in again.stderr
    assert "loss was" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["/no/such/text"], "/no/such/text"),
        (["TEXT", "--gate", "random"], "random"),
        (["TEXT", "--target-k", "40"], "40"),
        (["TEXT", "--steps", "0"], "steps=0"),
        (["TEXT", "--batch", "5", "--micro-batch", "2"], "multiple"),
        (["TEXT", "--schedule", "linear"], "linear"),
        (["TEXT", "--tokenizer", "/no/such/model"], "/no/such/model"),
        (["TEXT", "--device", "tpu"], "tpu"),
        (["TEXT", "--length", "100000"], "less than one sequence"),
    ],
)
def test_mistakes_are_told(stille_here, text, tmp_path, arguments, mentions):
    given = [str(text) if argument == "TEXT" else argument for argument in arguments]
    run = stille_here("train", "pretrain", *SHAPE, *SHORT, *CPU, "--out", tmp_path / "run", *given)
    assert run.returncode == 2
    assert mentions in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "run" / "model").exists()


@pytest.fixture
def plan(tmp_path, tiny_checkpoint) -> list:
    """Options of `stille train default` for a run of seconds."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "old", "grey", "stones"]
    lines = [" ".join(words[(at * step) % len(words)] for at in range(12)) for step in range(1, 60)]
    (tmp_path / "local.txt").write_text("\n".join(lines))
    values = dict(
        text=[str(tmp_path / "local.txt")], tokens=500, held_out_tokens=100, sequences=4, shard=4, answer_tokens=24,
        question_tokens=8, prefix_tokens=[4, 8], calibration_tokens=256, router_steps=3, num_experts=4, router_size=4,
        budgets=[1, 4], minutes=None, steps=30, rank=2, batch=2, length=32, judge_tokens=64,
    )  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(values))
    options = ["--config", tmp_path / "plan.json", "--model", tiny_checkpoint, "--target-k", "2", *CPU]
    return ["train", "default", *options, "--out", tmp_path / "made"]


@pytest.mark.slow
def test_the_default_model_is_made_though_it_is_killed(stille_here, spawn, plan, tmp_path):
    made, deadline = tmp_path / "made", time.monotonic() + 100
    run = stille_here(*plan, "--list")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[1:4] == ["samples", "to", "do"]
    process = spawn(*map(str, plan), "--threads", "1")
    while not list(made.glob("work/03-distill-*/metrics.jsonl")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = {path.name for path in (made / "stages").iterdir()}
    assert {name[3:10] for name in done} >= {"samples", "convert"}
    assert not (made / "stille-135m").exists()
    run = stille_here(*plan)
    assert run.returncode == 0, run.stderr
    assert done <= {path.name for path in (made / "stages").iterdir()}
    assert run.stdout == (made / "stille-135m" / "README.md").read_text()
    assert load_model(made / "stille-135m", progress=False).config.experts["target_k"] == 2
    run = stille_here(*plan, "--list")
    assert [line.split()[2] for line in run.stdout.splitlines()] == ["done"] * 5

    # A delta is taught further, and is a delta again.
    samples = next(made.glob("stages/01-samples-*")) / "samples.jsonl"
    teach = ["train", "distill", made / "stille-135m", samples, "--teacher", plan[5], *CPU, "--rank", "2", *SHORT]
    run = stille_here(*teach, "--steps", "2", "--out", tmp_path / "more")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "more" / "model" / "delta.json").exists()
    assert not (tmp_path / "more" / "model" / "model.safetensors").exists()
    first = json.loads((tmp_path / "more" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["lr"] == pytest.approx(2e-4 / 50)  # the default peak, in its first step of warm-up
    assert load_model(tmp_path / "more" / "model", progress=False).config.experts["target_k"] == 2


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--until", "nothing"], "no stage 'nothing'"),
        (["--only", "judge"], "needs samples, distill first"),
        (["--judge", "law"], "NAME=FILE"),
        (["--judge", "law=/no/such/law.txt", "--list"], "law.txt"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--samples", "/no/such.jsonl"], "/no/such.jsonl"),
        (["--target-k", "40", "--list"], "40"),
        (["--device", "tpu"], "tpu"),
        (["--config", "/no/such.json"], "/no/such.json"),
    ],
)
def test_mistakes_about_the_default_model_are_told(stille_here, plan, tmp_path, arguments, mentions):
    run = stille_here(*plan, *arguments)
    assert run.returncode == 2
    assert mentions in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "made" / "stages").exists()
