"""`stille convert`, from the command line to a model that other commands run."""

import json

import pytest

SMALL = ["--experts", "4", "--router-size", "8", "--target-k", "2", "--steps", "10", "--device", "cpu"]
FEW = ["--tokens", "512", "--held-out", "128", "--length", "64"]


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog, 12 and 123 times. " * 200)
    return ["--text", file]


@pytest.fixture
def convert(stille_here, tiny_checkpoint, text, tmp_path):
    return lambda *more: stille_here("convert", tmp_path / "out", "-m", tiny_checkpoint, *SMALL, *FEW, *text, *more)


def test_the_result_is_a_model_and_the_report_is_printed(convert, stille_here, tmp_path):
    run = convert()
    assert run.returncode == 0, run.stderr
    assert run.stdout == (tmp_path / "out" / "report.md").read_text()
    assert "| 2 |" in run.stdout
    assert "text.txt" in run.stdout
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / "out" / "report.json").read_text())["about"]["text"])
    assert "out.work holds finished stages" in run.stderr
    asked = ["hi", "-m", tmp_path / "out", "--dtype", "fp32", "--device", "cpu", "-n", "3", "--raw"]
    answer = stille_here("generate", *asked)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_whole_checkpoint(convert, tmp_path):
    assert convert("--full", "--held-out", "0").returncode == 0
    assert {"model.safetensors", "tokenizer.json", "report.md"} <= {file.name for file in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "delta.json").exists()


@pytest.mark.parametrize(("options", "told"), [([], "KL alone"), (["--no-layer-budgets"], "budgets by layer: equal"),
                                               (["--gate", "top_k"], "budgets by layer: equal")])  # fmt: skip
def test_budgets_by_layer_can_be_chosen(convert, options, told):
    run = convert(*options)
    assert run.returncode == 0, run.stderr
    assert told in run.stdout
    assert ("KL alone" in run.stdout) == (not options)


def test_an_interruption_is_clean_and_says_how_to_go_on(convert, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("stille.model.convert.pipeline.convert_layer", interrupted)
    run = convert()
    assert run.returncode == 130
    assert run.stderr.strip().endswith("stopped; what is finished is kept, and the same command goes on from there")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--shared-size", "63"], "Sizes that fit"),
        (["--target-k", "5"], "5.0 experts"),
        (["--gate", "both"], "both"),
        (["--dtype", "int4"], "int4"),
        (["--gate", "top_k", "--layer-budgets"], "needs thresholds"),
        (["--device", "tpu"], "tpu"),
        (["--text", "/no/such.txt"], "/no/such.txt"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--tokens", "9"], "at least 256 tokens"),
    ],
)
def test_mistakes_are_one_line(convert, tmp_path, arguments, mentions):
    run = convert(*arguments)
    assert run.returncode == 2
    assert mentions in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()
