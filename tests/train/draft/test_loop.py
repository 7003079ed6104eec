"""Training of a draft head: it learns, stops, goes on exactly; what it is told and what it measures are right."""

import copy
import json
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stille.errors import ConfigError
from stille.train.draft import DraftTrainConfig, evaluate, train_draft
from stille.train.draft.data import by_length, frequent_tokens, make_batch, plan_epoch
from stille.train.draft.losses import draft_loss
from stille.train.draft.target import probabilities, run_target
from stille.train.draft.unroll import look_up, unroll
from stille.train.losses import LOGITS_AT_ONCE

STEPS = 4


def weights(head) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}


def document(text, number) -> list[int]:
    return [int(t) for t in text.tokens[text.begin[number] : text.begin[number] + text.length[number]]]


# What is learned


def test_training_makes_guesses_right(target, write, make_head, settings, tmp_path):
    text = write(target, 300, 40, seed=1)
    before = evaluate(target, make_head(target), text, steps=STEPS)
    result = train_draft(target, make_head(target), text, settings(steps=150, batch_tokens=1024), tmp_path)
    after = evaluate(target, result.head, text, steps=STEPS)
    assert result.finished
    for kind in ("greedy", "sampled"):
        assert after["all"][kind]["tau"] > before["all"][kind]["tau"] + 0.15, (before, after)
        assert after["all"][kind]["accepted"][0] > before["all"][kind]["accepted"][0] + 0.1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_target_is_left_as_it_is(target, text, make_head, settings, tmp_path):
    before = {name: value.clone() for name, value in target.state_dict().items()}
    train_draft(target, make_head(target), text, settings(steps=2), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert all(p.grad is None for p in target.parameters())


def test_bf16_keeps_weights_in_float32(target, text, make_head, settings, tmp_path):
    exact = train_draft(target, make_head(target), text, settings(), tmp_path / "fp32").head
    model = copy.deepcopy(target).bfloat16()
    head = train_draft(model, make_head(model), text, settings(dtype="bf16"), tmp_path / "bf16").head
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    for (name, a), b in zip(exact.named_parameters(), head.parameters(), strict=True):
        moved = (a - make_head(target).get_parameter(name)).abs().max()
        assert 0 < (a - b).abs().max() < 1.5 * moved


# Going on


@pytest.mark.parametrize("stop", ["interrupt", "kill"])
def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(target, text, make_head, settings, tmp_path, stop):
    whole = train_draft(target, make_head(target), text, settings(), tmp_path / "whole")

    def interrupt(step, share, facts):
        if step == 3:
            if stop == "kill":
                raise RuntimeError("killed")
            os.kill(os.getpid(), signal.SIGINT)

    def begin():
        return train_draft(target, make_head(target), text, settings(), tmp_path / "cut", on_step=interrupt)

    if stop == "kill":
        with pytest.raises(RuntimeError, match="killed"):
            begin()
    else:
        first = begin()
        assert (first.finished, first.step) == (False, 3)
    rest = train_draft(target, make_head(target), text, settings(), tmp_path / "cut")
    assert (rest.finished, rest.step, rest.positions) == (True, 6, whole.positions)
    a, b = weights(whole.head), weights(rest.head)
    assert all(torch.equal(a[name], b[name]) for name in a)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_not_trained_again(target, text, make_head, settings, tmp_path):
    once = train_draft(target, make_head(target), text, settings(), tmp_path)
    again = train_draft(target, make_head(target), text, settings(), tmp_path)
    assert again.finished
    assert again.step == once.step
    a, b = weights(once.head), weights(again.head)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("other", "told"), [("settings", "its settings"), ("text", "its text"), ("head", "its sizes"), ("target", "target")]
)
def test_another_run_in_the_folder_is_refused(
    target, make_target, text, write, make_head, settings, tmp_path, other, told
):
    train_draft(target, make_head(target), text, settings(steps=2), tmp_path)
    changed = settings(steps=2, lr=1e-4) if other == "settings" else settings(steps=2)
    model = make_target(3) if other == "target" else target
    head = make_head(model, **({"layers": 1} if other == "head" else {}))
    data = write(target, 12, 30, seed=5) if other == "text" else text
    with pytest.raises(ConfigError, match=told):
        train_draft(model, head, data, changed, tmp_path)


def test_nothing_to_learn_from_is_told(target, text, make_head, settings, tmp_path):
    with pytest.raises(ConfigError, match="all of it is held out"):
        train_draft(target, make_head(target), text.select(text.held_out == 1), settings(), tmp_path)
    with pytest.raises(ConfigError, match="float32"):
        train_draft(target, make_head(target).bfloat16(), text, settings(), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        dict(steps=None), dict(steps=0), dict(unroll=0), dict(lr=0), dict(positions=0), dict(positions=2), dict(ce=-1),
        dict(ce=0, tv=0), dict(dtype="fp8"), dict(minutes=0), dict(batch_tokens=True),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings, change):
    with pytest.raises(ConfigError):
        settings(**change)


def test_rates_and_terms_follow_the_run():
    config = DraftTrainConfig(steps=100, warmup=10, lr=1.0, final_lr=0.1, ce_only=0.2)
    assert config.rate(0, 0.0) == pytest.approx(0.1)
    assert config.rate(50, 0.5) == pytest.approx(0.55)
    assert config.rate(99, 1.0) == pytest.approx(0.1)
    assert config.terms(0.1) == (1.0, 0.0)
    assert config.terms(0.2) == (0.1, 0.9)
    assert DraftTrainConfig(minutes=1, steps=100).progress(10, 30) == 0.5


# What is fed


def test_a_batch_drafts_from_every_position_that_it_can(text):
    documents = np.array([4, 11, 7])
    batch = make_batch(text, documents, STEPS)
    width, found = batch.ids_BT.shape[1], []
    for row, number in enumerate(documents):
        ids, start = document(text, number), int(text.start[number])
        assert batch.ids_BT[row, : len(ids) - 1].tolist() == ids[:-1]
        assert batch.next_BT[row, : len(ids) - 1].tolist() == ids[1:]
        for p in range(start, len(ids) - 2):  # its first guess is the token at p + 2
            found.append((row * width + p, min(STEPS, len(ids) - 2 - p), number))
    assert found == list(zip(batch.row_M.tolist(), batch.steps_M.tolist(), batch.document_M.tolist(), strict=True))
    wanted = {row + 1 + step for row, steps, _ in found for step in range(steps)}
    assert batch.want_R.tolist() == sorted(wanted)
    assert all(batch.want_R[batch.found_P[place]] == place for place in wanted)


def test_drawn_positions_are_some_of_all_and_follow_the_seed(text):
    documents = np.arange(6)
    whole = make_batch(text, documents, STEPS)
    some, same, other = (make_batch(text, documents, STEPS, 20, (seed, 1)) for seed in (0, 0, 1))
    assert len(some.row_M) == 20
    assert set(some.row_M.tolist()) < set(whole.row_M.tolist())
    assert torch.equal(some.row_M, same.row_M)
    assert not torch.equal(some.row_M, other.row_M)


def test_an_epoch_has_every_document_once_in_batches_that_fit(text):
    plan = plan_epoch(text, 120, seed=0, epoch=0)
    assert sorted(np.concatenate(plan)) == list(range(len(text.length)))
    assert all(len(batch) * (text.length[batch].max() - 1) <= 120 for batch in plan)
    other = plan_epoch(text, 120, seed=0, epoch=1)
    assert [batch.tolist() for batch in plan] != [batch.tolist() for batch in other]
    assert len(by_length(text, np.array([0]), 8)) == 1  # longer than a batch: one of its own


def test_the_most_frequent_tokens_that_are_guessed_are_drafted(text):
    counts = np.zeros(97, int)
    for number in range(len(text.length)):
        for token in document(text, number)[int(text.start[number]) + 1 :]:
            counts[token] += 1
    found = frequent_tokens(text, 10, 97)
    assert found.tolist() == sorted(found)
    assert counts[found].min() >= np.delete(counts, found).max()


@torch.no_grad()
def test_states_and_probabilities_are_those_of_the_model(target, text, make_head):
    """In padded rows, as the model gives them for each document alone."""
    head = make_head(target)
    documents = np.array([4, 11, 7])
    batch = make_batch(text, documents, STEPS)
    states, last = run_target(target, batch.ids_BT, (0, 2))
    p = probabilities(target, last.flatten(0, 1), head.head_DC)
    for row, number in enumerate(documents):
        size = int(text.length[number]) - 1
        alone = target(batch.ids_BT[row : row + 1, :size], output_hidden_states=True, use_cache=False)
        torch.testing.assert_close(states[0][row, :size], alone.hidden_states[1][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(last[row, :size], alone.hidden_states[-1][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(target.model.norm(states[1])[row, :size], last[row, :size])
        expected = alone.logits[0].softmax(-1)[:, head.draft_tokens_D]
        torch.testing.assert_close(p.view(3, -1, p.shape[-1])[row, :size], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_steps_get_the_tokens_and_rows_of_their_position(target, text, make_head):
    head = make_head(target)
    documents = np.array([3, 9])
    batch = make_batch(text, documents, STEPS)
    features, _ = look_up(target, head, batch)
    width = batch.ids_BT.shape[1]
    steps = list(unroll(head, features, batch, STEPS))
    for at in range(0, len(batch.row_M), 5):
        row, p = divmod(int(batch.row_M[at]), width)
        ids = document(text, documents[row])
        x = head.begin(features[at : at + 1])
        for step in range(int(batch.steps_M[at])):
            x, logits = head.advance(x, torch.tensor([ids[p + 1 + step]]))
            torch.testing.assert_close(F.linear(steps[step].h_MC[at], head.head_DC), logits[0], rtol=1e-4, atol=1e-4)
            assert steps[step].next_M[at] == ids[p + 2 + step]
            assert batch.want_R[steps[step].row_M[at]] == row * width + p + 1 + step
            assert steps[step].open_M[at]
        assert not any(step.open_M[at] for step in steps[int(batch.steps_M[at]) :])


# What is minimised and measured


@pytest.mark.parametrize("terms", [(1.0, 0.0), (0.0, 1.0), (0.1, 0.9)])
def test_the_loss_and_its_gradient(terms, monkeypatch):
    torch.manual_seed(0)
    h = torch.randn(40, 8, requires_grad=True)
    head, weight = torch.randn(12, 8), torch.rand(40) * (torch.arange(40) % 3 > 0)
    p = torch.softmax(torch.randn(50, 15), -1)[:, :12]
    rows = torch.randint(0, 50, (40,))
    monkeypatch.setattr("stille.train.draft.losses.LOGITS_AT_ONCE", 12 * 16)  # several chunks

    q = (h @ head.T).softmax(-1)
    ce = (-(p[rows] * q.log()).sum(-1) * weight).sum()
    accepted = (torch.minimum(p[rows], q).sum(-1) * weight).sum()
    expected = terms[0] * ce + terms[1] * (weight.sum() - accepted)
    (goal,) = torch.autograd.grad(expected * 3, h)
    loss, ce_sum, accepted_sum = draft_loss(h, head, p, rows, weight, terms)
    (loss * 3).backward()
    for found, wanted in ((loss, expected), (ce_sum, ce), (accepted_sum, accepted), (h.grad, goal)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert LOGITS_AT_ONCE > 12 * 16


@torch.no_grad()
def simulate(model, head, ids, start, steps) -> tuple[int, int]:
    """Rounds and tokens of greedy speculative decoding along a greedy text; the last round that has room for all."""
    hidden = model(torch.tensor([ids[:-1]]), output_hidden_states=True, use_cache=False).hidden_states
    assert head.config.feature_layers == (0, 2)
    model.model.layers[2].register_forward_hook(lambda m, a, out: last.append(out))
    last: list = []
    model(torch.tensor([ids[:-1]]), use_cache=False)
    model.model.layers[2]._forward_hooks.clear()
    states = [hidden[1][0], last[0][0]]
    rounds = tokens = 0
    p = start
    while len(ids) - 2 - p >= steps:
        x = head.begin(head.features([state[p : p + 1] for state in states]))
        token, taken = ids[p + 1], 0
        for step in range(steps):  # with its own guesses
            x, logits = head.advance(x, torch.tensor([token]))
            token = int(head.draft_tokens_D[logits[0].argmax()])
            if token != ids[p + 2 + step]:
                break
            taken += 1
        rounds, tokens, p = rounds + 1, tokens + taken + 1, p + taken + 1
    return rounds, tokens


def test_tokens_of_a_round_are_those_of_decoding(target, text, make_head, settings, tmp_path):
    head = train_draft(target, make_head(target, feature_layers=(0, 2)), text, settings(steps=60), tmp_path).head
    found = evaluate(target, head, text, steps=STEPS)
    rounds = tokens = 0
    for number in np.flatnonzero((text.held_out == 1) & (text.greedy == 1)):
        each = simulate(target, head, document(text, number), int(text.prompt[number]) - 1, STEPS)
        rounds, tokens = rounds + each[0], tokens + each[1]
    assert found["all"]["greedy"]["rounds"] == rounds > 20
    assert found["all"]["greedy"]["tau"] == pytest.approx(tokens / rounds, abs=1e-3)
    assert found["all"]["greedy"]["tau"] > 1.05
    assert set(found) == {"all", "chat", "prose"}


@torch.no_grad()
def test_sampled_acceptance_is_one_minus_total_variation(target, write, make_head, settings):
    """Of first guesses, over enough text, against the sum of min(p, q) over the same positions."""
    text, head = write(target, 120, 60, seed=2), make_head(target)
    own = text.select((text.greedy == 0) & (text.held_out == 1))
    own.start[:] = own.prompt - 1
    batch = make_batch(own, np.arange(len(own.length)), STEPS)
    features, p = look_up(target, head, batch)
    step = next(unroll(head, features, batch, STEPS))
    q = F.linear(step.h_MC, head.head_DC).softmax(-1)
    expected = float(torch.minimum(p[step.row_M], q).sum(-1).mean())
    found = evaluate(target, head, text, steps=STEPS)["all"]["sampled"]
    spread = (expected * (1 - expected) / len(batch.row_M)) ** 0.5
    assert len(batch.row_M) > 500
    assert abs(found["accepted"][0] - expected) < 4 * spread


def test_evaluation_reads_only_what_is_held_out(target, text, make_head):
    head = make_head(target)
    found = evaluate(target, head, text, steps=STEPS)
    documents = sum(kinds["documents"] for kinds in found["all"].values())
    assert documents == int(text.held_out.sum())
    assert evaluate(target, head, text.select(text.held_out == 0), steps=STEPS) == {"all": {}}
