"""RULER's tasks: reproducible, as long as asked for, solvable from the prompt, and scored as RULER scores."""

import hashlib
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError, UnsupportedError
from stille.evals import ruler
from stille.evals.ruler import TASKS, Encoder, Sample, make_sample, make_samples, score
from stille.evals.ruler.counts import zeta
from stille.evals.ruler.words import all_words, draw_words, word_list

# Of the prompts of all tasks from fixed seeds. If it changes on purpose, raise samples.VERSION too.
DIGEST = "85a9f2c5216abdf8"


def texts(samples, tokenizer, task):
    return [(s, tokenizer.decode(s.prompt_ids)) for s in samples if s.task == task]


def test_the_prompts_are_those_of_this_version():
    digest = hashlib.sha256()
    for name, task in TASKS.items():
        draft = task.maker.draft(random.Random(f"digest {name}"), 4096)
        digest.update(repr((name, draft.prompt(draft.smallest + 30), draft.answer_prefix, draft.references)).encode())
    assert digest.hexdigest()[:16] == DIGEST


def test_the_parameters_are_rulers():
    assert list(TASKS) == [
        "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
        "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
    ]  # fmt: skip
    assert [task.tokens_out for task in TASKS.values()] == [128] * 8 + [30, 120, 50, 32, 32]


def test_the_same_seed_gives_the_same_samples_in_any_number_of_processes(tokenizer, samples):
    again = make_samples(tokenizer, list(TASKS), [2048], 2, workers=2)
    assert again == [sample for sample in samples if sample.length == 2048]
    other = make_sample("niah_single_1", 2048, 0, Encoder(tokenizer), seed=43)
    assert other.references != again[0].references


def test_a_sample_does_not_depend_on_the_others(tokenizer, samples):
    alone = make_sample("vt", 5000, 1, Encoder(tokenizer))
    assert alone in samples


def test_prompts_fill_the_length_and_never_exceed_it(samples):
    for sample in samples:
        total = len(sample.prompt_ids) + sample.max_new_tokens
        assert total <= sample.length, sample.task
        assert total >= 0.9 * sample.length, sample.task


def test_every_task_can_be_solved_from_its_prompt(tokenizer, samples, solve):
    for sample in samples:
        assert score(sample, solve(tokenizer.decode(sample.prompt_ids))) == 1, sample.task


def test_prompts_end_where_the_answer_begins(tokenizer, samples):
    ends = {"niah": r" mentioned in the provided text (is|are)", "vt": "they are:", "cwe": "in the list are:"}
    ends |= {"fwe": "appeared words are:", "qa": r"\? Answer:"}
    for sample in samples:
        assert re.search(ends[sample.task.split("_")[0]] + "$", tokenizer.decode(sample.prompt_ids)), sample.task


@pytest.mark.parametrize("task", [name for name in TASKS if name.startswith(("niah", "qa"))])
def test_an_answer_is_said_once(samples, tokenizer, task):
    for sample, text in texts(samples, tokenizer, task):
        assert [text.count(reference) for reference in sample.references] == [1] * len(sample.references)


@pytest.mark.parametrize(
    ("task", "references", "needles"),
    [("niah_single_3", 1, 1), ("niah_multikey_1", 1, 4), ("niah_multivalue", 4, 4), ("niah_multiquery", 4, 4)],
)
def test_as_many_needles_as_rulers(samples, tokenizer, task, references, needles):
    for sample, text in texts(samples, tokenizer, task):
        assert len(set(sample.references)) == references
        assert text.count("One of the special magic") == needles


@pytest.mark.parametrize("task", ["niah_multikey_2", "niah_multikey_3"])
def test_the_haystack_of_needles_has_no_key_twice(samples, tokenizer, task):
    for _, text in texts(samples, tokenizer, task):
        keys = re.findall(r"One of the special magic \w+ for (\S+) is:", text)
        assert len(keys) == len(set(keys)) > 15


def test_needles_are_all_over_the_text(tokenizer):
    """Not only at one end: the mean place of 40 needles is near the middle, and both ends are reached."""
    places = []
    for index in range(40):
        text = tokenizer.decode(make_sample("niah_single_2", 1024, index, Encoder(tokenizer)).prompt_ids)
        places.append(text.index("One of the special") / len(text))
    assert 0.3 < sum(places) / 40 < 0.7
    assert min(places) < 0.2
    assert max(places) > 0.7


def test_a_chain_has_four_hops_in_order(samples, tokenizer):
    for sample, text in texts(samples, tokenizer, "vt"):
        own = text[text.rindex("Memorize and track") :]
        found = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", own)
        assert [name for name, _ in found] == sample.references
        assert [value for _, value in found][1:] == sample.references[:-1]
        example = text[: text.rindex("Memorize and track")]
        assert not any(name in example for name in sample.references)
        assert len(re.findall(r"VAR \w+ = ", example)) == 5


def test_common_words_are_ten_times_as_common(samples, tokenizer):
    for sample, text in texts(samples, tokenizer, "cwe"):
        own = text[text.rindex("Below is a numbered") : text.rindex("\nQuestion")]
        counts = Counter(re.findall(r"\d+\. (\S+)", own))
        often, seldom = (30, 3) if sample.length >= 4096 else (6, 1)
        assert {counts.pop(word) for word in sample.references} == {often}
        assert len(sample.references) == 10
        assert set(counts.values()) == {seldom}


def test_coded_words_fall_off_as_the_square_of_their_rank(samples, tokenizer):
    for sample, text in texts(samples, tokenizer, "fwe"):
        counts = Counter(text.split("coded words. ")[1].split("\nQuestion")[0].split())
        dots = counts.pop("...")
        ranked = counts.most_common(4)
        assert [word for word, _ in ranked[:3]] == sample.references
        assert [dots / count for _, count in ranked] == pytest.approx([4, 9, 16, 25], rel=0.25)
        assert ranked[2][1] > ranked[3][1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["qa_1", "qa_2"]), st.integers(3, 120))
def test_every_question_has_one_answer(solve, seed, task, size):
    draft = TASKS[task].maker.draft(random.Random(seed), 4096)
    text = draft.prompt(size)
    assert text.count("\nDocument ") == size
    assert text.count(draft.references[0]) == 1
    assert solve(text + draft.answer_prefix) == draft.references[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(list(TASKS)), st.integers(0, 60), st.integers(1, 60))
def test_a_larger_haystack_is_longer_and_holds_the_same_evidence(seed, task, size, more):
    draft = TASKS[task].maker.draft(random.Random(seed), 4096)
    small, large = (draft.prompt(draft.smallest + extra) for extra in (size, size + more))
    assert small == draft.prompt(draft.smallest + size)
    if task != "fwe":  # where a word more or less is rounded away
        assert len(large) > len(small)
    assert all(reference in small and reference in large for reference in draft.references)


def test_scores_are_the_share_of_references_and_for_questions_any():
    niah = Sample("niah_multivalue", 4096, 0, [1], ["12", "34", "56", "78"], 128)
    assert score(niah, "They are 12, 56 and 7.") == 0.5
    assert score(niah, "") == 0
    words = Sample("cwe", 4096, 0, [1], ["Oak", "elm"], 120)
    assert score(words, "1. OAK 2. Elm") == 1
    question = Sample("qa_1", 4096, 0, [1], ["Ada Lovell", "Lovell"], 32)
    assert score(question, " it was lovell.") == 1
    assert score(question, "nobody") == 0


def test_words_never_run_out_and_never_repeat():
    stream = draw_words(random.Random(0))
    drawn = [next(stream) for _ in range(len(all_words()) + 500)]
    assert len(set(drawn)) == len(drawn)
    assert len(all_words()) > 1400
    assert len(word_list("given")) > 90


def test_zeta():
    assert zeta(2.0) == pytest.approx(1.6449340668482264, rel=1e-12)


def test_the_chat_format_wraps_the_prompt(tokenizer):
    sample = make_sample("qa_1", 2048, 0, Encoder(tokenizer, chat=True))
    text = tokenizer.decode(sample.prompt_ids)
    assert re.search(
        r"<\|im_start\|>user\nAnswer the question .*<\|im_end\|>\n<\|im_start\|>assistant\nAnswer:$", text, re.S
    )
    assert len(sample.prompt_ids) + 32 <= 2048


def test_chat_without_a_template_is_refused(tokenizer):
    class Plain:
        chat_template = None

    with pytest.raises(UnsupportedError, match="chat template"):
        Encoder(Plain(), chat=True)


def test_a_length_that_is_too_short_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"cwe at 300 tokens.*greater length"):
        make_sample("cwe", 300, 0, Encoder(tokenizer))


def test_tasks_are_chosen_by_name_or_beginning():
    assert ruler.select_tasks(["all"]) == list(TASKS)
    assert ruler.select_tasks(["vt", "niah_single"]) == ["niah_single_1", "niah_single_2", "niah_single_3", "vt"]
    for bad in (["niah_x"], [""], []):
        with pytest.raises(ConfigError):
            ruler.select_tasks(bad)


def test_samples_survive_a_file(tmp_path, samples):
    path = tmp_path / "folder" / "samples.gz"
    ruler.save_samples(path, samples[:5], {"seed": 42})
    assert ruler.load_samples(path) == (samples[:5], {"seed": 42})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="make them again"):
        ruler.load_samples(path)
    with pytest.raises(ConfigError):
        ruler.load_samples(tmp_path / "absent.gz")
