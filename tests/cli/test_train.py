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
