"""A model under a setting: every sample asked once, answers kept, interruptions survived; reports of it."""

import json

import pytest
import torch

from stille.errors import ConfigError, UnsupportedError
from stille.evals import report
from stille.evals.backends import engine_generate, load_for_transformers, transformers_generate
from stille.evals.protocol import Answer, AnswerStore, deferred, describe, evaluate, run
from stille.evals.ruler import Sample
from stille.evals.settings import Setting, fingerprint, parse_settings
from stille.evals.statistics import compare


def test_an_oracle_scores_everything(tokenizer, oracle):
    answers = evaluate(oracle(), tokenizer, ["vt", "qa", "fwe"], [1024, 2048], 2)
    assert len(answers) == 16
    assert {answer.score for answer in answers} == {1.0}


def test_what_a_setting_forgets_is_what_retention_misses(tokenizer, samples, oracle):
    """Whoever forgets every second chain keeps half of vt and all of the rest."""
    chosen = [s for s in samples if s.length == 2048 and s.task in ("vt", "niah_multiquery", "cwe")]
    (forgotten,) = (tokenizer.decode(s.prompt_ids) for s in chosen if (s.task, s.index) == ("vt", 1))
    full = run(oracle(), chosen)
    sparse = run(oracle(lambda prompt: prompt == forgotten), chosen)
    (one,) = compare(full, sparse)
    assert one.retention.value == pytest.approx((1 + 1 + 0.5) / 3)
    assert {task.task: task.retention for task in one.tasks} == {"niah_multiquery": 1, "vt": 0.5, "cwe": 1}
    text = report.to_markdown({"model": "oracle"}, {"full": full, "half": sparse}, {"half": [one]})
    assert "| vt | 100.0 | 50.0 |" in text
    assert "half: retention 83.33 % (95 % interval" in text
    assert "lowest vt 50.0 %" in text
    data = json.loads(json.dumps(report.to_json({"seed": 42}, {"full": full, "half": sparse}, {"half": [one]})))
    assert data["scores"]["half"]["2048"] == {"niah_multiquery": 1, "vt": 0.5, "cwe": 1}
    assert data["comparisons"]["half"][0]["retention"]["value"] == one.retention.value


def test_an_interrupted_run_goes_on(tmp_path, samples, oracle):
    file = tmp_path / "folder" / "answers.jsonl"
    chosen = samples[:10]
    model = oracle()
    calls = 0

    def interrupted(prompts, most):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return model(prompts, most)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, chosen, setting="a", store=AnswerStore(file), batch=4)
    with open(file, "a") as torn:  # as a power cut would leave it
        torn.write('{"key": "äöü')
    told: list[int] = []
    rest = oracle()
    answers = run(rest, chosen, setting="a", store=AnswerStore(file), batch=4, on_answers=told.append)
    assert rest.asked == [2]
    assert told == [8, 2]
    assert answers == run(oracle(), chosen)

    def built():
        raise AssertionError("there is nothing left to ask")

    assert run(deferred(built), chosen, setting="a", store=AnswerStore(file)) == answers
    assert len(file.read_text().splitlines()) == 10


def test_another_setting_or_prompt_is_asked_anew(tmp_path, samples, oracle):
    file = tmp_path / "answers.jsonl"
    one = samples[0]
    changed = Sample(one.task, one.length, one.index, [*one.prompt_ids[:-1], 5], one.references, one.max_new_tokens)
    run(oracle(), [one], setting="a", store=AnswerStore(file))
    for setting, sample in (("b", one), ("a", changed)):
        model = oracle(lambda prompt: True)
        run(model, [sample], setting=setting, store=AnswerStore(file))
        assert model.asked == [1]
    assert {key: len(given) for key, given in AnswerStore(file).by_setting().items()} == {"a": 2, "b": 1}


@pytest.mark.parametrize("content", ["not json\n", '{"key": "a"}\n', "[1]\n", '{"key": 1, "setting": "", "x": 2}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    file = tmp_path / "other.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match="line 1"):
        AnswerStore(file)
    assert file.read_text() == content


def test_settings_describe_themselves_the_same_way_in_any_order():
    assert describe(a=1, b=[2]) == describe(b=[2], a=1)
    assert describe(a=1) != describe(a=2)


def test_settings_are_read():
    full, plain, small = parse_settings(["full", "hsa", "hsa:1024:dense_below=0:residual=true:coverage=0.5"])
    assert (full.attention, full.hsa) == ("full", None)
    assert (plain.attention, plain.hsa.budget) == ("hsa", type(plain.hsa)().budget)
    assert (small.hsa.budget, small.hsa.dense_below, small.hsa.residual, small.hsa.coverage) == (1024, 0, True, 0.5)
    assert Setting.parse("hsa:dense_below=none").hsa.dense_below is None
    assert full.reads(4096) == ""
    assert "read in full" in Setting.parse("hsa:2048:dense_below=8192").reads(8192)
    assert "question and decode are sparse" in small.reads(8192)
    assert len(parse_settings(["full", "full"])) == 1


@pytest.mark.parametrize(
    "text", ["", "dense", "full:3", "hsa:", "hsa:x", "hsa:100", "hsa:bogus=1", "hsa:residual=2", "hsa:1024:leaf=4.5"]
)
def test_settings_that_mean_nothing_are_refused(text):
    with pytest.raises(ConfigError):
        Setting.parse(text)
    with pytest.raises(ConfigError):
        parse_settings([])


def test_a_fingerprint_knows_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a" * 3_000_000)
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("no part of it")
    assert before == fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"a" * 2_999_999 + b"b")
    assert before != fingerprint(tmp_path)


PROMPTS = [[5, 9, 20, 7] * 40, [30, 8, 77] * 50]


def test_engine_and_transformers_give_the_same_answers(tiny_checkpoint):
    """Also under HSA with a budget that covers the prompt."""
    from stille import LLM
    from stille.model import load_tokenizer

    threads = torch.get_num_threads()
    tokenizer = load_tokenizer(tiny_checkpoint)
    texts = []
    for setting in parse_settings(["full", "hsa:1024"]):
        extra = {} if setting.hsa is None else {"hsa": setting.hsa}
        llm = LLM(
            str(tiny_checkpoint), dtype="fp32", device="cpu", threads=1, kv_cache_tokens=1024,
            attention=setting.attention, **extra,
        )  # fmt: skip
        texts.append(engine_generate(llm)(PROMPTS, [6, 9]))
        model = load_for_transformers(tiny_checkpoint, setting, "fp32")
        assert model.config._attn_implementation == ("sdpa" if setting.hsa is None else "hsa")
        texts.append(transformers_generate(model, tokenizer)(PROMPTS, [6, 9]))
    torch.set_num_threads(threads)
    assert texts == [texts[0]] * 4
    assert texts[0] != ["", ""]


def test_transformers_does_not_run_packed_weights(tiny_checkpoint):
    with pytest.raises(UnsupportedError, match="int4"):
        load_for_transformers(tiny_checkpoint, Setting.parse("full"), "int4")


def test_answers_keep_their_order_whatever_is_known(tmp_path, samples, oracle):
    store = AnswerStore(tmp_path / "a.jsonl")
    run(oracle(), samples[3:5], setting="x", store=store)
    answers = run(oracle(), samples[:8], setting="x", store=store, batch=3)
    assert [(a.task, a.length, a.index) for a in answers] == [(s.task, s.length, s.index) for s in samples[:8]]
    assert all(isinstance(answer, Answer) for answer in answers)
