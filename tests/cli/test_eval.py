"""`stille eval`, from the command line to files."""

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


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "lambada.jsonl").write_text('{"text": "the quick brown fox"}\n' * 4)
    row = {"question": "the dog", "choices": ["and the fox", "12", "grey"], "answer": "C"}
    (folder / "arc_easy.jsonl").write_text((json.dumps(row) + "\n") * 5)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return folder


@pytest.fixture
def quality(stille_here, tiny_checkpoint, data, monkeypatch, tmp_path):
    monkeypatch.setenv("STILLE_HOME", str(tmp_path / "home"))
    common = ["--data", data, "--device", "cpu", "--threads", "1", "--length", "32"]
    return lambda *more: stille_here("eval", "quality", tiny_checkpoint, *common, *more)


def test_quality_is_printed_and_written(quality, data, tiny_checkpoint, tmp_path):
    files = [tmp_path / "out.json", tmp_path / "out.md"]
    more = ["--text", data / "text.txt", "--json", files[0], "--markdown", files[1]]
    run = quality("--limit", "3", *more)
    assert run.returncode == 0, run.stderr
    assert files[1].read_text() == run.stdout
    assert "| arc_easy | 3 | **acc** |" in run.stdout
    result = json.loads(files[0].read_text())
    (table,) = result["tasks"].values()
    assert table["lambada"].keys() == {"samples", "acc", "perplexity"}
    (read,) = result["texts"].values()
    assert read["text.txt"]["tokens"] % 31 == 0
    assert read["text.txt"]["kl"] is None
    assert result["retention"] == {}


@pytest.fixture
def converted(stille_here, tiny_checkpoint, data, tmp_path):
    sizes = ["--experts", "4", "--router-size", "8", "--target-k", "2", "--steps", "5", "--device", "cpu"]
    sizes += ["--tokens", "512", "--held-out", "0", "--length", "64", "--text", tmp_path / "fit.txt"]
    (tmp_path / "fit.txt").write_text("the quick brown fox jumps over the lazy dog, 12 and 123 times. " * 200)
    run = stille_here("convert", tmp_path / "delta", "-m", tiny_checkpoint, *sizes)
    assert run.returncode == 0, run.stderr
    return tmp_path / "delta"


def test_a_delta_is_held_against_its_base_at_every_budget(quality, data, converted, tiny_checkpoint, monkeypatch):
    more = [converted, "--against", tiny_checkpoint, "--budget", "1,4", "--text", data / "text.txt"]
    first = quality(*more, "--json", data / "out.json")
    assert first.returncode == 0, first.stderr
    result = json.loads((data / "out.json").read_text())
    base, few, many = str(tiny_checkpoint), f"{converted} at 1", f"{converted} at 4"
    assert list(result["tasks"]) == [base, few, many]
    assert list(result["retention"]) == [few, many]
    kl = {name: result["texts"][name]["text.txt"]["kl"] for name in (base, few, many)}
    assert kl[base] is None
    assert abs(kl[many]) < 1e-5 < kl[few]

    def refuse(*_, **__):
        raise AssertionError("a model was loaded again")

    monkeypatch.setattr("stille.evals.quality.sides.Sides.load", refuse)
    again = quality(*more)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout


def test_an_interrupted_quality_run_is_clean(quality, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("stille.evals.quality.answers.likelihoods", interrupted)
    run = quality("--answers", tmp_path / "answers.jsonl")
    assert run.returncode == 130
    assert "answers.jsonl" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--tasks", "piqa"], "AGI-Edgerunners/LLM-Adapters"),
        (["--tasks", "a/b"], "a/b"),
        (["--tasks", "none"], "nothing to answer"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--text", "/no/such/text.txt"], "/no/such/text.txt"),
        (["--budget", "many"], "many"),
        (["--dtype", "int4"], "int4"),
        (["--device", "tpu"], "tpu"),
        (["--against", "/no/such/model"], "/no/such/model"),
        (["--limit", "0"], "limit"),
    ],
)
def test_quality_tells_mistakes(quality, arguments, mentions):
    run = quality(*arguments)
    assert run.returncode == 2
    assert mentions in run.stderr
    assert "Traceback" not in run.stderr
