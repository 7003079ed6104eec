"""`stille generate`: one prompt, stdin, files, resuming."""

import json

import pytest

SHORT = ["--max-tokens", "8"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A JSONL file that uses what a line may say."""
    lines = [
        {"prompt": "the quick brown fox"},
        {"prompt": "old grey stones", "id": "stones", "max_tokens": 3},
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "harbour"}],
            "id": "chat",
        },
        {"prompt": "far too long " * 8000, "id": "long"},
    ]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    return {entry["id"]: entry for entry in map(json.loads, path.read_text().splitlines())}


def test_one_prompt_from_stdin(stille_started, tiny):
    run = stille_started("generate", "--raw", *tiny, *SHORT, input="the quick brown")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    assert run.stderr == ""


def test_a_file_of_prompts_and_resuming_after_a_cut(stille, tiny, prompts, tmp_path):
    output = tmp_path / "answers.jsonl"
    run = stille("generate", "--input", prompts, "--output", output, *tiny, *SHORT)
    assert run.returncode == 2  # one prompt cannot be answered
    assert "1 of 4" in run.stderr
    whole = read(output)
    assert set(whole) == {0, "stones", "chat", "long"}
    assert "error" in whole["long"]
    assert "Traceback" not in run.stderr
    assert whole["stones"]["usage"]["completion_tokens"] <= 3
    assert all(whole[name]["finish_reason"] in ("stop", "length") for name in (0, "stones", "chat"))

    # As if the first run had been killed while it wrote its second answer.
    kept = json.dumps(whole["chat"]) + "\n"
    output.write_text(kept + json.dumps(whole[0])[:20])
    again = stille("generate", "--input", prompts, "--output", output, *tiny, *SHORT)
    assert again.returncode == 2
    assert output.read_text().startswith(kept)
    assert read(output) == whole


def test_nothing_to_do_when_all_is_answered(stille_here, tiny, tmp_path):
    prompts, output = tmp_path / "p.txt", tmp_path / "o.jsonl"
    prompts.write_text("one\n\ntwo\n")
    output.write_text('{"id": 0, "text": "x"}\n{"id": 1, "text": "y"}\n')
    run = stille_here("generate", "-i", prompts, "-o", output, *tiny)
    assert run.returncode == 0
    assert "nothing to do" in run.stderr


@pytest.mark.parametrize(
    ("line", "mentions"),
    [
        ("{broken", "line 2"),
        ("[1]", "JSON object"),
        ('{"text": "x"}', "'prompt' or 'messages'"),
        ('{"prompt": ""}', "non-empty"),
        ('{"prompt": "x", "messages": []}', "either"),
        ('{"prompt": "x", "temprature": 1}', "temprature"),
        ('{"prompt": "x", "temperature": -1}', "temperature"),
        ('{"messages": [{"role": "user"}]}', "messages"),
        ('{"prompt": "x", "id": 0}', "used before"),
    ],
)
def test_a_line_that_cannot_be_used_is_located_before_anything_runs(tmp_path, line, mentions):
    from stille.cli.batch import read_jobs
    from stille.errors import InvalidRequestError

    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(InvalidRequestError, match="line 2") as refused:
        read_jobs(path, {"max_tokens": 4}, raw=True, system=None)
    assert mentions in str(refused.value)


def test_a_file_that_is_no_output_of_ours_is_not_touched(tmp_path):
    from stille.cli.batch import finished_ids
    from stille.errors import InvalidRequestError

    path = tmp_path / "thesis.txt"
    path.write_text("Chapter one\n")
    with pytest.raises(InvalidRequestError, match="choose another"):
        finished_ids(path)
    assert path.read_text() == "Chapter one\n"


def test_answers_follow_a_schema_from_a_file_or_from_the_line(stille, tiny, tmp_path):
    schema = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3}
    file, prompts, output = tmp_path / "schema.json", tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    file.write_text(json.dumps(schema))
    lines = [{"prompt": "colours"}, {"prompt": "a year", "grammar": {"regex": "[12][0-9]{3}"}}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = stille("generate", "--raw", "-i", prompts, "-o", output, "--json-schema", file, *tiny, "-n", "60")
    assert run.returncode == 0, run.stderr
    answers = read(output)
    assert set(json.loads(answers[0]["text"])) <= {"red", "green"}
    assert 1000 <= int(answers[1]["text"]) < 3000


@pytest.mark.parametrize(
    ("more", "mentions"),
    [
        (["--json-schema", "nowhere.json"], "nowhere.json cannot be read"),
        (["--regex", "a", "--json-schema", "x.json"], "--json-schema or --regex, not both"),
    ],
)
def test_grammars_that_cannot_be_used(stille_here, tiny, more, mentions):
    run = stille_here("generate", "hello", *tiny, *more)
    assert run.returncode == 2
    assert mentions in run.stderr
    assert "Traceback" not in run.stderr
