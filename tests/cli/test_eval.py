"""`stille eval ruler`, from the command line to files."""

import json

import pytest

ASKED = ["eval", "ruler", "--length", "2600", "--tasks", "niah_single_1,vt", "--samples", "1", "--workers", "1"]


@pytest.fixture
def evaluate(stille_here, tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("STILLE_HOME", str(tmp_path / "home"))
    return lambda *more: stille_here(*ASKED, *tiny, *more)


def test_scores_and_comparison_are_printed_and_written(evaluate, tmp_path):
    files = [tmp_path / "out.json", tmp_path / "out.md"]
    run = evaluate("--attention", "full,hsa", "--budget", "1024", "--json", files[0], "--markdown", files[1])
    assert run.returncode == 0, run.stderr
    assert "| task | full | hsa:1024 |" in run.stdout
    assert files[1].read_text() == run.stdout
    result = json.loads(files[0].read_text())
    assert set(result["scores"]) == {"full", "hsa:1024"}
    assert set(result["scores"]["full"]["2600"]) == {"niah_single_1", "vt"}
    assert result["settings"][1]["hsa"]["budget"] == 1024
    assert result["comparisons"]["hsa:1024"][0]["length"] == 2600


def test_a_second_run_asks_nothing_again(evaluate, tmp_path, monkeypatch):
    first = evaluate("--attention", "full")
    (kept,) = (tmp_path / "home" / "evals").glob("*.jsonl")
    before = kept.read_bytes()
    assert before.count(b"\n") == 2

    def refuse(*_, **__):
        raise AssertionError("the engine was built again")

    monkeypatch.setattr("stille.engine.llm.LLM.__init__", refuse)
    again = evaluate("--attention", "full")
    assert again.stdout == first.stdout
    assert kept.read_bytes() == before


def test_an_interruption_is_clean_and_says_how_to_go_on(evaluate, tmp_path, monkeypatch):
    def interrupted(llm):
        def generate(prompts, most):
            raise KeyboardInterrupt

        return generate

    monkeypatch.setattr("stille.evals.backends.engine_generate", interrupted)
    run = evaluate("--attention", "full", "--answers", tmp_path / "answers.jsonl")
    assert run.returncode == 130
    assert "answers.jsonl" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--tasks", "bogus"], "bogus"),
        (["--length", "4k"], "4k"),
        (["--length", "100"], "greater length"),
        (["--attention", "dense"], "dense"),
        (["--attention", "full", "--budget", "1024"], "--budget"),
        (["--budget", "1000"], "1000"),
        (["--backend", "vllm"], "vllm"),
        (["--samples", "0"], "samples"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(evaluate, arguments, mentions):
    run = evaluate(*arguments)
    assert run.returncode == 2
    assert mentions in run.stderr
    assert "Traceback" not in run.stderr
