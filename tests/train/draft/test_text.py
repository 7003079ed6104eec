"""Prompts from files, and the text that a model writes in answer to them: in shards, resumable, in parts."""

import json

import numpy as np
import pytest

from stille import LLM
from stille.errors import ConfigError, UnsupportedError
from stille.train.draft import TextSettings, make_text, open_text, read_prompts
from stille.train.draft.prompts import encode_all
from stille.train.draft.text import cut_loop

SETTINGS = dict(tokens=1500, answer_tokens=16, shard=12)


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def llm(tiny_checkpoint):
    return LLM(str(tiny_checkpoint), device="cpu", dtype="fp32", threads=1, max_model_len=256, max_num_seqs=8)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    chats = [{"messages": [{"role": "user", "content": f"fox number {n}"}], "domain": "chat"} for n in range(30)]
    texts = [{"text": f"{n} the quick brown fox and the old grey stones " * 4} for n in range(10)]
    return read_prompts([lines(tmp_path_factory.mktemp("prompts") / "prose.jsonl", [*chats, *texts])], held_out=0.2)


def fill(folder, prompts, llm, **changes):
    told = []
    tokens = make_text(
        folder, prompts, TextSettings(**{**SETTINGS, **changes}), lambda: llm, lambda *each: told.append(each)
    )
    return tokens, told


def contents(folder):
    return {file.name: {k: v.tolist() for k, v in np.load(file).items()} for file in sorted(folder.glob("*.npz"))}


# Prompts


def test_prompts_of_every_kind(tmp_path):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    rows = [{"messages": talk, "domain": "talk"}, {"prompt": "Hi", "held_out": True}, {"text": "Once upon a time"}]
    file = lines(tmp_path / "mixed.jsonl", [*rows, rows[0]])
    (tmp_path / "book.txt").write_text(("A paragraph of a book. " * 20 + "\n\n") * 8)
    found = read_prompts([file, tmp_path / "book.txt"], held_out=0)
    assert [p.domain for p in found[:3]] == ["talk", "mixed", "mixed"]  # each once
    assert [p.held_out for p in found[:3]] == [False, True, False]
    assert found[0].messages == tuple(talk)
    assert found[1].messages == ({"role": "user", "content": "Hi"},)
    assert (found[2].messages, found[2].text) == ((), "Once upon a time")
    assert {p.domain for p in found[3:]} == {"book"}
    assert all(p.text.strip() for p in found[3:])


def test_what_is_held_out_follows_from_what_is_said(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"prompt": f"question {n}"} for n in range(2000)])
    other = lines(tmp_path / "b.jsonl", [{"prompt": f"question {n}"} for n in reversed(range(2000))])
    a, b = ({p.key for p in read_prompts([each], held_out=0.1) if p.held_out} for each in (file, other))
    assert a == b
    assert 140 < len(a) < 260


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1: no JSON"),
        ("[1]", "expected an object"),
        ("{}", 'expected "messages", "prompt" or "text"'),
        ('{"text": " "}', 'expected "messages"'),
        ('{"messages": []}', "ends with a user"),
        ('{"messages": [{"role": "user"}]}', "ends with a user"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "ends with a user"),
        ("", "there is no prompt"),
    ],
)
def test_lines_that_are_no_prompts(tmp_path, line, told):
    file = tmp_path / "bad.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ConfigError, match=told):
        read_prompts([file])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts([tmp_path / "absent.jsonl"])


def test_chats_need_a_chat_format(llm, prompts, monkeypatch):
    monkeypatch.setattr(llm.tokenizer, "chat_template", None)
    with pytest.raises(UnsupportedError, match="chat template"):
        encode_all(llm.prompts, prompts, 100)


# Text


def test_documents_are_prompts_and_what_the_model_says(llm, prompts, tmp_path):
    from stille import SamplingParams

    tokens, told = fill(tmp_path, prompts, llm)
    text = open_text(tmp_path)
    assert tokens == len(text.tokens) == told[-1][0] or tokens >= SETTINGS["tokens"]
    assert text.domains == ["chat", "prose"]
    assert 0 < text.held_out.sum() < len(text.length)
    chats = greedy = 0
    known = {}
    for prompt, each in encode_all(llm.prompts, prompts, 240):
        known[tuple(each.ids)] = (prompt, each)
    for number in range(len(text.length)):
        ids = text.tokens[text.begin[number] :][: text.length[number]].tolist()
        size = int(text.prompt[number])
        prompt, each = known[tuple(ids[:size])]
        assert text.domains[text.domain[number]] == prompt.domain
        assert text.held_out[number] == prompt.held_out
        assert text.start[number] == (size - 1 if each.chat else 0)
        chats += each.chat
        if text.greedy[number]:
            greedy += 1
            answer = llm.generate([ids[:size]], SamplingParams(max_tokens=16, temperature=0), progress=False)
            assert cut_loop(answer[0].outputs[0].token_ids) == ids[size:]
    assert 0 < chats < len(text.length)
    assert 0.15 < greedy / len(text.length) < 0.55


def test_a_killed_text_goes_on_to_the_same_text(llm, prompts, tmp_path):
    fill(tmp_path / "whole", prompts, llm)

    def kill(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_text(tmp_path / "cut", prompts, TextSettings(**SETTINGS), lambda: llm, kill)
    assert len(contents(tmp_path / "cut")) == 1
    fill(tmp_path / "cut", prompts, llm)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) > 2

    def start():
        raise AssertionError("nothing is missing")

    make_text(tmp_path / "whole", prompts, TextSettings(**SETTINGS), start, lambda *_: None)


def test_parts_share_a_folder_and_no_prompt(llm, prompts, tmp_path):
    for part in (0, 1):
        fill(tmp_path, prompts, llm, tokens=600, shard=8, part=part, parts=2)
    text = open_text(tmp_path)
    names = {file.name[:8] for file in tmp_path.glob("*.npz")}
    assert names == {"shard-00", "shard-01"}
    asked = [tuple(text.tokens[b : b + n]) for b, n in zip(text.begin[:16], text.prompt[:16], strict=True)]
    assert len(set(asked)) == len(asked)


def test_a_prompt_is_answered_greedily_once_at_most(prompts):
    from stille.train.draft.text import _params

    settings = TextSettings(greedy=1 / 3)
    counts = [sum(_params(prompt, turn, settings).temperature == 0 for turn in range(9)) for prompt in prompts]
    assert counts == [1] * len(prompts)
    none, all_ = TextSettings(greedy=0), TextSettings(greedy=1)
    assert all(_params(prompt, 0, none).temperature == 1 for prompt in prompts)
    assert all(_params(prompt, 0, all_).temperature == 0 for prompt in prompts)
    assert all(_params(prompt, 1, all_).temperature == 1 for prompt in prompts)


def test_other_prompts_or_settings_in_a_folder_are_refused(llm, prompts, tmp_path):
    fill(tmp_path, prompts, llm, tokens=100)
    with pytest.raises(ConfigError, match="settings differ"):
        fill(tmp_path, prompts, llm, tokens=2000, seed=1)
    with pytest.raises(ConfigError, match="prompts, prompt_keys differ"):
        fill(tmp_path, prompts[:-3], llm, tokens=2000)


def test_damaged_text_is_told(llm, prompts, tmp_path):
    with pytest.raises(ConfigError, match="holds no text"):
        open_text(tmp_path)
    fill(tmp_path, prompts, llm, tokens=100)
    shard = next(tmp_path.glob("*.npz"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ConfigError, match="damaged"):
        open_text(tmp_path)
    shard.unlink()
    with pytest.raises(ConfigError, match="no shard"):
        open_text(tmp_path)


@pytest.mark.parametrize(
    "change", [dict(tokens=0), dict(part=2, parts=2), dict(part=-1), dict(greedy=2), dict(shard=0)]
)
def test_text_settings_out_of_range(change):
    with pytest.raises(ConfigError):
        TextSettings(**change)


@pytest.mark.parametrize("period", [1, 2, 7, 20])
def test_loops_end_at_their_third_round(period):
    before, loop = list(range(100, 150)), list(range(period))
    ids = before + loop * (200 // period)
    found = cut_loop(ids)
    assert found == ids[: len(found)]
    rounds = (len(found) - len(before)) / period
    assert rounds >= 3
    assert len(found) <= len(before) + period + max(24, 2 * period) + period


def test_text_without_loops_is_left_whole():
    ids = np.random.default_rng(0).integers(0, 50, 400).tolist()
    assert cut_loop(ids) == ids
    assert cut_loop([]) == []
    assert cut_loop([1, 1, 1, 2, 3]) == [1, 1, 1, 2, 3]
