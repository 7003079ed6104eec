"""Fine-tuning on conversations: what is rendered, packed and learned; it stops, goes on, and is served."""

import itertools
import json
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import typer
from hypothesis import given
from hypothesis import strategies as st

from stille.engine.prompts import Prompts
from stille.engine.tool_grammar import Function, as_text
from stille.errors import ConfigError
from stille.model import load_model
from stille.train import TrainConfig
from stille.train.config import LossWeights
from stille.train.data import IGNORED
from stille.train.losses import Scales
from stille.train.sft import (
    Rendered,
    Renderer,
    conversation,
    fine_tune,
    judge,
    make_sft,
    own,
    pack,
    prepare_conversations,
    read_conversations,
    render_all,
    steps_of,
)
from stille.train.sft.conversations import learned
from stille.train.sft.data import AnswerBatches, learned_batch, turns
from stille.train.sft.loop import AnswerObjective
from stille.train.weights import World

HERE = World(0, 1, torch.device("cpu"))
TOOL = {
    "type": "function",
    "function": {
        "name": "jump",
        "description": "jumps",
        "parameters": {"type": "object", "properties": {"over": {"type": "string"}}, "required": ["over"]},
    },
}


def call(name: str, arguments: dict, number: int = 0) -> dict:
    return {
        "id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}
    }  # fmt: skip


def with_tools(word: str = "dog") -> dict:
    return {
        "messages": [
            {"role": "user", "content": f"over the {word}"},
            {"role": "assistant", "content": None, "tool_calls": [call("jump", {"over": word})]},
            {"role": "tool", "tool_call_id": "call_0", "content": '{"done": true}'},
            {"role": "assistant", "content": f"the fox jumps over the {word}"},
        ],
        "tools": [TOOL],
    }


def chat(number: int) -> dict:
    return {
        "messages": [
            {"role": "user", "content": f"number {number}"},
            {"role": "assistant", "content": f"the {number} quick foxes"},
            {"role": "user", "content": "and the dog"},
            {"role": "assistant", "content": "lazy " * (number % 5 + 1)},
        ]
    }


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    return load_model(tiny_checkpoint, progress=False)


@pytest.fixture(scope="module")
def renderer(tiny):
    return Renderer(tiny.tokenizer, tiny.eos_token_ids)


@pytest.fixture(scope="module")
def rendered(renderer):
    return renderer.documents([conversation(chat(n)) for n in range(40)] + [conversation(with_tools())])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    for name, rows in (("a", [chat(n) for n in range(60)]), ("b", [with_tools(w) for w in ("dog", "fox", "harbour")])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [folder / "a.jsonl", folder / "b.jsonl"]


def settings(**changes) -> TrainConfig:
    base = dict(
        steps=6, batch=2, micro_batch=1, length=768, lr=3e-3, warmup=2, log_every=1, save_every=2, eval_sequences=4
    )
    return TrainConfig(**{**base, **changes})


def fresh(tiny_checkpoint):
    return load_model(tiny_checkpoint, progress=False).model


def same(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestRendering:
    def test_it_is_what_the_server_gives_the_model_and_what_it_would_write(self, tiny, renderer):
        row = with_tools()
        each = renderer.documents([conversation(row)])[0]
        prompts, tools = Prompts(tiny.tokenizer), [Function(**TOOL["function"])]
        plain = [
            row["messages"][0],
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "call_0", "type": "function", "function": {"name": "jump", "arguments": {"over": "dog"}}}
            ]},
            {"role": "tool", "content": '{"done": true}'},
        ]  # fmt: skip
        ids, marks = each.ids.tolist(), each.learned.tolist()
        written = (
            '<tool_call>\n{"name": "jump", "arguments": {"over": "dog"}}\n</tool_call><|im_end|>',
            "the fox jumps over the dog<|im_end|>",
        )
        for count, kind, answer in ((1, 2, written[0]), (3, 1, written[1])):
            prompt = prompts.render_chat(as_text([dict(message) for message in plain[:count]], tools))
            assert ids[: len(prompt)] == prompt
            size = marks[len(prompt) :].index(0) if 0 in marks[len(prompt) :] else len(marks) - len(prompt)
            assert tiny.tokenizer.decode(ids[len(prompt) : len(prompt) + size]) == answer
            assert set(marks[len(prompt) : len(prompt) + size]) == {kind}
            assert marks[len(prompt) - 1] == 0
        assert sum(mark > 0 for mark in marks) == sum(
            len(prompts.encode(answer, add_special_tokens=False)) for answer in written
        )
        assert each.answers == 2

    def test_a_message_without_weight_is_context(self, renderer):
        row = chat(1)
        row["messages"][1]["weight"] = 0
        whole, part = (renderer.documents([conversation(each)])[0] for each in (chat(1), row))
        assert whole.ids.tolist() == part.ids.tolist()
        assert 0 < np.count_nonzero(part.learned) < np.count_nonzero(whole.learned)
        assert part.answers == 1

    def test_a_template_that_changes_earlier_answers_makes_a_document_of_each(self, tiny):
        import copy

        tokenizer = copy.deepcopy(tiny.tokenizer)
        tokenizer.chat_template = (
            "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
            "{% if loop.last or message['role'] != 'assistant' %}{{ message['content'] }}{% else %}{{ 'gone' }}"
            "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        )
        found = Renderer(tokenizer, tiny.eos_token_ids).documents([conversation(chat(3))])
        texts = [tokenizer.decode(each.ids[each.learned > 0]) for each in found]
        assert texts == ["the 3 quick foxes<|im_end|>", "lazy lazy lazy lazy <|im_end|>"]
        assert "gone" in tokenizer.decode(found[1].ids)
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n' }}{% endif", "model\n' }}{% endif")
        with pytest.raises(ConfigError, match="otherwise than it asks"):
            Renderer(tokenizer, tiny.eos_token_ids).documents([conversation(chat(3))])

    @pytest.mark.slow
    def test_processes_render_the_same(self, renderer):
        each = [conversation(chat(n)) for n in range(300)]
        one, two = (list(render_all(each, renderer, workers)) for workers in (1, 2))
        assert [r.ids.tolist() for r in one] == [r.ids.tolist() for r in two]


class TestReading:
    @pytest.mark.parametrize(
        ("row", "told"),
        [
            ({"text": "hi"}, 'expected "messages"'),
            ({"messages": [{"role": "user", "content": "hi"}]}, "no message of the assistant"),
            ({"messages": [{"role": "robot", "content": "hi"}]}, "message 0: expected an object whose role"),
            ({"messages": [{"role": "assistant"}]}, "content must be text"),
            ({"messages": [{"role": "tool", "tool_call_id": "x", "content": ""}]}, "no call before it has the id 'x'"),
            ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
             "arguments are no JSON"),
            ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}]},
             "must be a JSON object"),
            ({"messages": [{"role": "assistant", "content": "x"}], "tools": [{"name": "f"}]}, '"tools" must be a list'),
        ],
    )  # fmt: skip
    def test_what_is_no_conversation_is_told(self, tmp_path, row, told):
        (tmp_path / "a.jsonl").write_text("\n" + json.dumps(row) + "\n")
        with pytest.raises(ConfigError, match=r"a\.jsonl, line 2") as error:
            list(read_conversations([tmp_path / "a.jsonl"]))
        assert told in str(error.value)

    def test_unreadable_files(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            list(read_conversations([tmp_path / "none.jsonl"]))
        (tmp_path / "a.jsonl").write_text("{")
        with pytest.raises(ConfigError, match="line 1: no JSON"):
            list(read_conversations([tmp_path / "a.jsonl"]))

    def test_held_out_and_equal_ones(self, tiny, files):
        data = prepare_conversations([*files, *files], tiny, 768, held_out=0.3)
        assert data.train.conversations + data.held_out.conversations == 63
        assert 5 < data.held_out.conversations < 35
        named = prepare_conversations(files, tiny, 768, validation=[files[1]])
        assert (named.train.conversations, named.held_out.conversations) == (60, 3)
        assert steps_of(named, 2, 3.0) == -(-3 * named.train.rows // 2)
        with pytest.raises(ConfigError, match="none is left"):
            prepare_conversations(files, tiny, 768, validation=files)
        with pytest.raises(ConfigError, match="fits into 8 tokens"):
            prepare_conversations(files, tiny, 8)

    def test_rows_are_kept_and_taken_while_nothing_changed(self, tiny, files, tmp_path):
        kept = tmp_path / "rows"

        def prepared(**options):
            return prepare_conversations(files, tiny, 768, held_out=0.3, kept=kept, **options)

        first = prepared()
        (file,) = kept.iterdir()
        before = file.stat().st_mtime_ns
        again = prepared()
        assert again.told() == first.told()
        assert (again.train.tokens == first.train.tokens).all()
        assert (again.train.learned == first.train.learned).all()
        assert file.stat().st_mtime_ns == before
        file.write_bytes(file.read_bytes()[:-100])  # damaged: made again
        assert prepared().told() == first.told()
        assert file.stat().st_mtime_ns != before
        assert prepared(seed=1).told() != first.told()
        assert len(list(kept.iterdir())) == 2
        files[0].write_text(files[0].read_text() + json.dumps(with_tools("another dog")) + "\n")
        assert prepared().told() != first.told()


class TestPacking:
    @given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(20, 50), st.integers(0, 3))
    def test_every_conversation_is_whole_and_apart(self, lengths, length, seed):
        made = [
            Rendered(
                np.full(size, number + 1, np.uint32), np.asarray([0] + [1] * (size - 1), np.uint8), 1
            ) for number, size in enumerate(lengths)
        ]  # fmt: skip
        fitting = [size for size in lengths if size <= length]
        if not fitting:
            with pytest.raises(ConfigError, match="fits into"):
                pack(made, length, seed)
            return
        rows = pack(made, length, seed)
        assert (rows.conversations, rows.dropped) == (len(fitting), len(lengths) - len(fitting))
        assert len(rows.tokens) == rows.rows * length + 1
        bounds = [*rows.starts.tolist(), len(rows.tokens)]
        learned = [
            rows.tokens[a:b].tolist()
            for a, b in itertools.pairwise(bounds)
            if rows.learned[a:b].any() or (b - a == 1 and a % length)
        ]
        whole = [[n + 1] * size for n, size in enumerate(lengths) if 1 < size <= length]
        assert sorted(row for row in learned if len(row) > 1) == sorted(whole)
        assert all(a // length == (b - 1) // length for a, b in itertools.pairwise(bounds))
        batches = AnswerBatches(rows, length=length, batch=rows.rows, micro_batch=rows.rows)
        assert batches.labels(0) == sum(size - 1 for size in fitting) == rows.learned_tokens
        assert int((batches.step(0)[0].label_BT != IGNORED).sum()) == batches.labels(0)

    def test_packed_loss_and_gradients_equal_separate_ones(self, tiny, rendered):
        model = tiny.model
        rows = pack(rendered, 768)
        assert 1 < rows.rows < len(rendered) / 3
        batch = learned_batch(rows, np.arange(rows.rows), 768)
        count = int((batch.label_BT != IGNORED).sum())
        model.zero_grad()
        loss, sums = AnswerObjective(model, LossWeights())(batch, Scales(1 / count, 1.0))
        loss.backward()
        packed = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        alone = 0.0
        for each in rendered:  # by transformers' own interface
            ids = torch.from_numpy(each.ids.astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(each.learned)[None] > 0, ids, IGNORED)
            logits = model(ids, use_cache=False).logits[0, :-1]
            part = F.cross_entropy(logits, labels[0, 1:], reduction="sum")
            (part / count).backward()
            alone += float(part)
        assert float(sums[0]) == pytest.approx(alone, rel=1e-5)
        for name, p in model.named_parameters():
            torch.testing.assert_close(packed[name], p.grad, rtol=1e-3, atol=1e-6)
        model.zero_grad()

    def test_judging_is_teacher_forced_greedy_decoding(self, tiny, rendered):
        rows = pack(rendered, 768)
        found = judge(tiny.model, rows, settings(eval_sequences=99), HERE)
        loss, right, answers, labels = 0.0, {1: [], 2: []}, 0, 0
        for each in rendered:
            logits = tiny.model(torch.from_numpy(each.ids.astype(np.int64))[None], use_cache=False).logits[0]
            hit, run = [], []
            for at in range(1, len(each.ids)):
                if each.learned[at]:
                    loss -= float(logits[at - 1].detach().log_softmax(-1)[each.ids[at]])
                    hit.append(int(logits[at - 1].argmax()) == each.ids[at])
                    run.append(hit[-1])
                if run and (at + 1 == len(each.ids) or not each.learned[at + 1]):
                    right[int(each.learned[at])].append(all(run))
                    run = []
            answers += sum(hit)
            labels += len(hit)
        assert found["held_out"] == pytest.approx(loss / labels, rel=1e-4)
        assert found["held_out_tokens"] == pytest.approx(answers / labels)
        assert found["held_out_calls"] == pytest.approx(np.mean(right[2]))
        assert found["held_out_texts"] == pytest.approx(np.mean(right[1]))
        number_BT, calls = turns(rows, np.arange(rows.rows), 768)
        assert number_BT.max() == len(calls) == rows.answers == 82
        assert calls.sum() == 1


class TestRuns:
    @pytest.mark.parametrize("rank", [0, 4])
    def test_stopped_and_resumed_equals_uninterrupted(self, tiny_checkpoint, rendered, tmp_path, rank):
        rows, config = pack(rendered, 768), settings(rank=rank)
        whole = fine_tune(fresh(tiny_checkpoint), rows, config, tmp_path / "whole")

        def stop(progress):
            if progress.step in (1, 4):
                os.kill(os.getpid(), signal.SIGINT)

        steps = []
        for _ in range(3):
            part = fine_tune(fresh(tiny_checkpoint), rows, config, tmp_path / "parts", on_step=stop)
            steps.append((part.step, part.finished))
        assert steps == [(1, False), (4, False), (6, True)]
        assert same(whole.model, part.model)
        with pytest.raises(ConfigError, match="data differs"):
            fine_tune(fresh(tiny_checkpoint), pack(rendered[:20], 768), config, tmp_path / "parts")

    @pytest.mark.parametrize("rank", [0, 4])
    def test_what_is_served_is_what_was_trained(self, tiny_checkpoint, files, tmp_path, rank):
        loaded = load_model(tiny_checkpoint, progress=False)
        data = prepare_conversations(files, loaded, 768, held_out=0.2)
        config = settings(rank=rank, lr=1e-2, steps=8)
        result = make_sft(str(tiny_checkpoint), loaded, data, config, tmp_path)
        served = load_model(tmp_path / "model", progress=False)
        assert (tmp_path / "model" / "delta.json").exists() == bool(rank)
        assert same(result.model, served.model)
        ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.equal(served.model(ids).logits, result.model(ids).logits)
            assert not torch.equal(served.model(ids).logits, fresh(tiny_checkpoint)(ids).logits)
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["files"] == {}
        assert report["after"]["held_out"] < report["before"]["held_out"]
        assert report["data"]["train"]["conversations"] == data.train.conversations
        assert "stille eval quality" in report["quality"]
        again = make_sft(str(tiny_checkpoint), load_model(tiny_checkpoint, progress=False), data, config, tmp_path)
        assert same(result.model, again.model)

    def test_pairs_on_a_delta_stay_a_delta_and_can_be_whole(self, tiny_checkpoint, files, tmp_path):
        source, start = str(tiny_checkpoint), None
        for name in ("a", "b"):
            loaded = load_model(source, progress=False)
            data = prepare_conversations(files, loaded, 768)
            start = make_sft(source, loaded, data, settings(rank=2, steps=2), tmp_path / name)
            source = str(tmp_path / name / "model")
        loaded = load_model(source, progress=False).model
        for name, value in start.model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-5, atol=1e-6)
        again = load_model(tmp_path / "a" / "model", progress=False)
        make_sft(str(tmp_path / "a" / "model"), again, data, settings(rank=2, steps=2), tmp_path / "c", whole=True)
        assert (tmp_path / "c" / "model" / "model.safetensors").exists()

    def test_each_file_that_judges_is_told_apart(self, tiny_checkpoint, files, tmp_path):
        loaded = load_model(tiny_checkpoint, progress=False)
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(chat(n)) + "\n" for n in range(100, 104)))
        data = prepare_conversations(files[:1], loaded, 768, validation=[files[1], tmp_path / "c.jsonl"])
        make_sft(str(tiny_checkpoint), loaded, data, settings(steps=2), tmp_path / "run")
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert {name: sorted(found) for name, found in report["files"].items()} == {
            "b.jsonl": ["held_out", "held_out_calls", "held_out_texts", "held_out_tokens"],
            "c.jsonl": ["held_out", "held_out_texts", "held_out_tokens"],
        }

    def test_experts_learn_too(self, make_model, renderer, tmp_path):
        model = make_model()  # bytes for tokens: 257 of them
        documents = [
            Rendered(np.frombuffer(b"ask: what? answer: jumps", np.uint8).astype(np.uint32), marks, 1)
            for marks in [np.asarray([0] * 12 + [1] * 12, np.uint8)] * 30
        ]
        rows = pack(documents, 64)
        config = settings(length=64, steps=40, lr=2e-2, gates="frozen", save_every=100)
        result = fine_tune(model, rows, config, tmp_path, held_out=rows)
        assert result.evaluation["held_out"] < 0.5
        assert result.evaluation["held_out_texts"] == 1

    def test_contradictions(self, tiny_checkpoint, rendered, tmp_path):
        rows = pack(rendered, 768)
        with pytest.raises(ConfigError, match="rows have 768"):
            fine_tune(fresh(tiny_checkpoint), rows, settings(length=512), tmp_path)
        for changes in ({"loss": LossWeights(kl=1.0)}, {"parallel": "fsdp"}):
            with pytest.raises(ConfigError, match="one loss"):
                fine_tune(fresh(tiny_checkpoint), rows, settings(**changes), tmp_path)


def test_a_models_own_answers_are_conversations_to_learn_from(tiny_checkpoint, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "own.jsonl"
    asked = [[{"role": "user", "content": f"number {n}"}] for n in range(24)]
    asked.append([*asked[0], {"role": "assistant", "content": "one"}, {"role": "user", "content": "and?"}])
    prompts.write_text("".join(json.dumps({"messages": each}) + "\n" for each in asked))
    options = dict(prompts=[prompts], out=out, model=str(tiny_checkpoint), most=64, temperature=5.0, device="cpu")
    own.main(**options, count=None, batch=8, seed=3)
    text = out.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert 0 < len(rows) < len(asked)  # some ended, the others were cut
    for row, each in zip(rows, read_conversations([out]), strict=True):
        assert row["messages"][-1]["content"].strip()
        assert [learned(message) for message in each.messages] == [False] * (len(each.messages) - 1) + [True]
    own.main(**options, count=None, batch=3, seed=3)
    assert out.read_text() == text
    prompts.write_text("")
    with pytest.raises(typer.BadParameter, match="no prompt"):
        own.main(**options, count=None, batch=3, seed=3)
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-written
