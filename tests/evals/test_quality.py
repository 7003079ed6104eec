"""Tasks by likelihood: what files say, what models make of it, what is retained."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from stille.errors import ConfigError
from stille.evals import quality
from stille.evals.protocol import Answer, AnswerStore
from stille.evals.quality import TASKS, Item, Subject, compare, load_items, load_windows, metrics, run, texts
from stille.evals.quality.score import Request, encode, likelihoods
from stille.evals.quality.tasks import task_of
from stille.model import StilleConfig, StilleForCausalLM, load_model

PLAIN = {"question": "Why?", "choices": ["so", "thus"], "answer": "B"}
ARC = {
    "question": {"stem": "Why?", "choices": [{"text": "so", "label": "1"}, {"text": "thus", "label": "2"}]},
    "answerKey": "2",
}
ASKED = "Please choose the correct answer to the question: Why?\n\nAnswer1: so Answer2: thus\n\nAnswer format: answer1"
BLANK = "Please fill the blank in the given sentence: A _ b.\n\nOption1: x Option2: y Answer format: option1"
HELLA = {
    "activity_label": "Sumo", "ctx_a": "Two men bow. [header]", "ctx_b": "they", "label": 1,
    "endings": ["eat [step] fish.", "fight."],
}  # fmt: skip
QUESTION = "Question: Why?\nAnswer:"


@pytest.mark.parametrize(
    ("task", "row", "pairs", "gold"),
    [
        ("arc_easy", PLAIN, ((QUESTION, " so"), (QUESTION, " thus")), 1),
        ("arc_challenge", ARC, ((QUESTION, " so"), (QUESTION, " thus")), 1),
        ("arc_easy", {"instruction": ASKED, "answer": "answer2"}, ((QUESTION, " so"), (QUESTION, " thus")), 1),
        ("openbookqa", ARC, (("Why?", " so"), ("Why?", " thus")), 1),
        ("arc_easy", {"question": "Why?", "choices": {"text": ["so", "thus"], "label": ["A", "B"]}, "answerKey": "A"},
         ((QUESTION, " so"), (QUESTION, " thus")), 0),
        ("piqa", {"goal": "Why?", "sol1": "so", "sol2": "thus", "label": 0},
         ((QUESTION, " so"), (QUESTION, " thus")), 0),
        ("mmlu_stem", {**PLAIN, "answer": 0},
         (("Why?\nA. so\nB. thus\nAnswer:", " A"), ("Why?\nA. so\nB. thus\nAnswer:", " B")), 0),
        ("winogrande", {"sentence": "A _ b.", "option1": "x", "option2": "y", "answer": "2"},
         (("A x", " b."), ("A y", " b.")), 1),
        ("winogrande", {"instruction": BLANK, "answer": "option1"}, (("A x", " b."), ("A y", " b.")), 0),
        ("lambada", {"text": "He said\nto her. Go home \n"}, (("He said\nto her. Go", " home"),), 0),
        ("hellaswag", HELLA, (("Sumo: Two men bow. They", " eat fish."), ("Sumo: Two men bow. They", " fight.")), 1),
        ("mine", {"context": "It is", "choices": ["so", "thus"], "answer": "thus"},
         (("It is", " so"), ("It is", " thus")), 1),
        ("mine", PLAIN, ((QUESTION, " so"), (QUESTION, " thus")), 1),
    ],
)  # fmt: skip
def test_rows_of_every_form_are_read(tmp_path, task, row, pairs, gold):
    (tmp_path / f"{task}.jsonl").write_text(json.dumps(row) + "\n\n")
    assert load_items(task_of(task), tmp_path) == [Item(task, 0, pairs, gold)]


def test_lists_and_lines_are_read_too(tmp_path):
    (tmp_path / "ARC-Easy").mkdir()
    (tmp_path / "ARC-Easy" / "test.json").write_text(json.dumps([PLAIN, {**PLAIN, "answer": 0}]))
    assert [item.gold for item in load_items(TASKS["arc_easy"], tmp_path)] == [1, 0]
    (tmp_path / "hellaswag_val_full.txt").write_text("Sumo: they\n2\na\nb\nc\nd\n" * 2)
    items = load_items(TASKS["hellaswag"], tmp_path)
    assert items == [Item("hellaswag", i, tuple(("Sumo: they", f" {c}") for c in "abcd"), 2) for i in range(2)]
    (tmp_path / "lambada.txt").write_text("one two three\nfour five\n")
    assert [item.pairs[0][1] for item in load_items(TASKS["lambada"], tmp_path)] == [" three", " five"]
    assert [task.name for task in quality.select_tasks(["all"], tmp_path)] == ["lambada", "hellaswag", "arc_easy"]


@pytest.mark.parametrize(
    ("task", "content", "mentions"),
    [
        ("arc_easy", "not json\n", "line 1"),
        ("arc_easy", json.dumps(PLAIN) + "\n[1]\n", "line 2"),
        ("arc_easy", "", "empty"),
        ("arc_easy", json.dumps({**PLAIN, "answer": 2}), "none of the 2 choices"),
        ("arc_easy", json.dumps({**PLAIN, "answer": True}), "none of the 2 choices"),
        ("arc_easy", json.dumps({**PLAIN, "choices": ["so"]}), "line 1"),
        ("arc_easy", json.dumps({"instruction": "Why?", "answer": "answer1"}), "instruction"),
        ("hellaswag", json.dumps({"endings": ["a", "b"]}), "ctx_a"),
        ("lambada", json.dumps({"text": "word"}), "one word"),
        ("winogrande", json.dumps({"sentence": "no", "option1": "a", "option2": "b", "answer": 1}), "blank"),
    ],
)
def test_malformed_data_name_the_file_what_is_expected_and_where_it_is(tmp_path, task, content, mentions):
    (tmp_path / f"{task}.jsonl").write_text(content)
    with pytest.raises(ConfigError) as error:
        load_items(TASKS[task], tmp_path)
    assert mentions in str(error.value)
    assert f"{task}.jsonl" in str(error.value)
    assert TASKS[task].source in str(error.value)


def test_missing_data_say_what_to_place_where(tmp_path):
    for ask in (lambda: load_items(TASKS["piqa"], tmp_path), lambda: quality.select_tasks(["piqa"], tmp_path)):
        with pytest.raises(ConfigError, match=r"piqa\.jsonl or piqa/test\.json.*AGI-Edgerunners/LLM-Adapters"):
            ask()
    with pytest.raises(ConfigError, match="none of lambada"):
        quality.select_tasks(["all"], tmp_path)
    with pytest.raises(ConfigError, match="of your own"):
        quality.select_tasks(["../etc"], tmp_path)
    (tmp_path / "hellaswag.txt").write_text("a\n1\nb\n")
    with pytest.raises(ConfigError, match="has 3 lines"):
        load_items(TASKS["hellaswag"], tmp_path)


def test_a_limit_draws_at_random_and_fewer_are_among_more(tmp_path):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({**PLAIN, "question": str(i)}) + "\n" for i in range(40)))
    few, more = (load_items(task_of("mine"), tmp_path, limit) for limit in (5, 20))
    assert (len(few), len(more)) == (5, 20)
    assert {item.index for item in few} < {item.index for item in more}
    assert [item.index for item in more] == sorted(item.index for item in more) != list(range(20))
    assert few == load_items(task_of("mine"), tmp_path, 5)
    assert few != load_items(task_of("mine"), tmp_path, 5, seed=1)
    assert len(load_items(task_of("mine"), tmp_path, 99)) == 40


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return load_model(tiny_checkpoint, progress=False)


def plainly(model, request):
    """One pair, one forward."""
    ids = torch.tensor([request.context + request.continuation])
    with torch.no_grad():
        log_p = F.log_softmax(model(ids, use_cache=False).logits[0, len(request.context) - 1 : -1], -1)
    target = ids[0, len(request.context) :]
    return float(log_p.gather(1, target[:, None]).sum()), bool((log_p.argmax(-1) == target).all())


def test_likelihoods_are_those_of_single_forwards_in_any_batch(tiny):
    generator, vocabulary = torch.Generator().manual_seed(0), tiny.config.vocab_size
    requests = []
    for n in range(12):
        ids = torch.randint(vocabulary, (n * 3 + 4,), generator=generator).tolist()
        requests += [Request(ids[: n + 2], ids[n + 2 :]), Request(ids, [5]), Request(ids, [6])]
    best = int(tiny.model(torch.tensor([[9, 8, 7]])).logits[0, -1].argmax())
    requests += [Request([9, 8, 7], [best]), Request([1], [])]
    for tokens in (1, 64, 4096):
        found = likelihoods(tiny.model, requests, tokens)
        for request, one in zip(requests[:-1], found, strict=False):
            value, greedy = plainly(tiny.model, request)
            assert one.log_probability == pytest.approx(value, abs=2e-4)
            assert one.greedy == greedy
        assert found[-1] == (0.0, True)
        assert found[-2].greedy


def test_what_is_too_long_loses_its_beginning():
    torch.manual_seed(0)
    shape = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = StilleForCausalLM(StilleConfig(max_position_embeddings=8, initializer_range=0.5, **shape)).eval()
    ids = torch.randint(32, (20,)).tolist()
    (cut,), (short,) = (
        likelihoods(model, [Request(ids[:17], ids[17:])]),
        likelihoods(model, [Request(ids[11:17], ids[17:])]),
    )
    assert cut == short


def test_tokens_are_those_of_the_whole_text(tiny):
    text = tiny.tokenizer
    (one, empty) = encode(text, [("the quick  ", "brown fox"), ("", "the")])
    assert one.context == text("the quick").input_ids
    assert text.decode(one.context + one.continuation) == "the quick  brown fox"
    assert (empty.context, text.decode(empty.continuation)) == ([text.eos_token_id], "the")


def items(count, task="arc_challenge", choices=4):
    pairs = [tuple((f"the fox {i}", f" dog {i + j}" * (j + 1)) for j in range(choices)) for i in range(count)]
    return [Item(task, i, pairs[i], i % choices) for i in range(count)]


def test_answers_follow_the_metric_of_the_task(tiny):
    asked = items(6) + items(6, "arc_easy")
    answers = Subject(tiny.model, tiny.tokenizer).answer(asked)
    table = metrics(asked, answers)
    assert table["arc_challenge"].keys() == {"samples", "acc", "acc_norm"}
    for item, answer in zip(asked, answers, strict=True):
        values = json.loads(answer.text)["ll"]
        lengths = [len(choice) - 1 if item.task == "arc_challenge" else 1 for _, choice in item.pairs]
        best = max(range(4), key=lambda i: values[i] / lengths[i])
        assert answer.score == float(best == item.gold)
    word = [Item("lambada", 0, (("the quick", " brown"),), 0)]
    (said,) = Subject(tiny.model, tiny.tokenizer).answer(word)
    (value,) = json.loads(said.text)["ll"]
    assert metrics(word, [said])["lambada"]["perplexity"] == pytest.approx(math.exp(-value))


def test_budgets_of_experts_are_used():
    torch.manual_seed(0)
    shape = dict(vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    experts = dict(num_experts=4, expert_size=8, shared_size=32, router_size=0, target_k=2, max_k=4)
    model = StilleForCausalLM(
        StilleConfig(ffn_kinds=["experts"] * 2, experts=experts, initializer_range=0.3, **shape)
    ).eval()
    window = quality.Window("text:a", 0, tuple(range(5, 60)))
    losses = {}
    for budget in (None, 1.0, 2.0, 4.0):
        (answer,) = Subject(model, None, budget).answer([window])
        losses[budget] = json.loads(answer.text)["loss"]
    assert losses[None] == losses[2.0]
    assert len(set(losses.values())) == 3


def test_texts_give_perplexity_and_divergence(tiny, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 30)
    windows = load_windows(tiny.tokenizer, file, 200, 64)
    assert [len(window.ids) for window in windows] == [64, 64, 64]
    torch.manual_seed(1)
    other = StilleForCausalLM(tiny.config).eval()
    same = texts(windows, Subject(tiny.model, None, base=tiny.model).answer(windows))["a.txt"]
    apart = texts(windows, Subject(other, None, base=tiny.model).answer(windows))["a.txt"]
    ids = torch.tensor([window.ids for window in windows])
    with torch.no_grad():
        p, q = (F.log_softmax(m(ids, use_cache=False).logits[:, :-1], -1) for m in (tiny.model, other))
        loss = float(tiny.model(ids, labels=ids).loss)
    assert same.tokens == 3 * 63
    assert same.kl == pytest.approx(0, abs=1e-6)
    assert same.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert apart.kl == pytest.approx(float(F.kl_div(q, p, log_target=True, reduction="sum")) / 189, rel=1e-3)
    alone = texts(windows, Subject(tiny.model, None).answer(windows))["a.txt"]
    assert (alone.kl, alone.perplexity) == (None, same.perplexity)
    wider = StilleForCausalLM(StilleConfig(**{**tiny.config.to_dict(), "vocab_size": 400}))
    with pytest.raises(ConfigError, match="vocabularies of 400 and"):
        Subject(wider, None, base=tiny.model).answer(windows)
    with pytest.raises(ConfigError, match="at least one piece of 999"):
        load_windows(tiny.tokenizer, file, 200, 999)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_windows(tiny.tokenizer, tmp_path / "no.txt", 200, 64)


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(tiny, tmp_path):
    asked = [*items(10), *items(4, "piqa", 2), quality.Window("text:a", 0, tuple(range(20)))]
    subject, store = Subject(tiny.model, tiny.tokenizer), tmp_path / "answers.jsonl"
    calls = []

    def interrupted(some):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(some))
        return subject.answer(some)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, asked, setting="a", store=AnswerStore(store), batch=4)
    told: list[int] = []
    rest = run(subject.answer, asked, setting="a", store=AnswerStore(store), batch=4, on_answers=told.append)
    assert told == [8, 4, 3]
    whole = run(subject.answer, asked)
    assert [(a.task, a.index, a.score) for a in rest] == [(a.task, a.index, a.score) for a in whole]
    assert metrics(asked, rest) == metrics(asked, whole)

    def never(some):
        raise AssertionError("asked again")

    assert run(never, asked, setting="a", store=AnswerStore(store)) == rest
    with pytest.raises(AssertionError):
        run(never, asked, setting="b", store=AnswerStore(store))


def answered(asked, right):
    return [Answer(item.task, 0, item.index, "", float(is_right)) for item, is_right in zip(asked, right, strict=True)]


def test_retention_leaves_out_what_the_base_guesses():
    asked = items(40, "arc_easy") + items(40, "piqa", 2) + items(40, "lambada", 1)
    base = answered(asked, [1] * 30 + [0] * 10 + [1, 0] * 20 + [1] * 20 + [0] * 20)
    model = answered(asked, [1] * 24 + [0] * 16 + [0] * 40 + [1] * 20 + [0] * 20)
    found = compare(asked, base, model, resamples=500)
    arc, piqa, lambada = found.tasks
    assert [task.counted for task in found.tasks] == [True, False, True]
    assert (arc.chance, piqa.chance, lambada.chance) == (0.25, 0.5, 0.0)
    assert arc.retention is not None
    assert arc.retention.value == pytest.approx(0.8)
    assert (arc.worse, arc.better, piqa.worse) == (6, 0, 20)
    assert arc.above_chance == pytest.approx((0.6 - 0.25) / 0.5)
    assert found.retention is not None
    assert found.retention.value == pytest.approx((0.6 + 0.5) / (0.75 + 0.5))
    assert found.retention.low < found.retention.value < found.retention.high <= 1
    assert found.above_chance == pytest.approx((0.7 + 1.0) / 2)
    text = quality.report.describe("k", found)
    assert "retention 88.00 %" in text
    assert "lowest arc_easy 80.0 %" in text
    assert "at chance: piqa" in text
    guessed = compare(asked[40:80], base[40:80], model[40:80], resamples=100)
    assert guessed.retention is None
    with pytest.raises(ConfigError, match="the same questions"):
        compare(asked, base, model[1:])
