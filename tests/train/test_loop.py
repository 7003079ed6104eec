"""The loop: it learns, stops, goes on exactly, exports what it trained."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from stille.errors import CheckpointError, ConfigError
from stille.model import StilleForCausalLM, load_model
from stille.model.experts import expert_layers
from stille.train import DISTILL, LossWeights, byte_tokenizer, evaluate, train
from stille.train import checkpoint as checkpoints
from stille.train.config import TrainConfig, learning_rate, progress_of, read_json, sequence_targets, target_k
from stille.train.loop import CHECKPOINTS
from stille.train.losses import Objective
from stille.train.watching import METRICS


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_pretraining_learns_and_holds_the_mean_number_of_experts(
    make_model, settings, store, make_store, tmp_path, dtype
):
    config = settings(steps=60, lr=1e-2, dtype=dtype, save_every=100)
    result = train(make_model(), store, config, tmp_path, held_out=make_store(20, seed=1))
    found = lines(tmp_path)
    assert found[0]["next_token"] > 5
    assert result.evaluation["held_out"] < 3.5
    assert [row["target_k"] for row in found[:-1]][:2] == pytest.approx([4, 4 - 2.5 / 24])
    assert found[0]["mean_k"] == 4
    assert result.evaluation["held_out_k"] == pytest.approx(1.5, abs=0.3)
    assert found[-2]["dead_experts"] == 0
    assert (result.finished, result.step, result.tokens) == (True, 60, 60 * 4 * 32)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_stopped_and_resumed_equals_uninterrupted(make_model, settings, store, tmp_path, dtype):
    config = settings(dtype=dtype)
    whole = train(make_model(), store, config, tmp_path / "whole")

    def stop(progress):
        if progress.step in (1, 4):
            os.kill(os.getpid(), signal.SIGINT)

    steps = []
    for seed in range(4):  # what the resumed model starts from is of no matter
        part = train(make_model(seed), store, config, tmp_path / "parts", on_step=stop)
        steps.append((part.step, part.finished))
    assert steps == [(1, False), (4, False), (6, True), (6, True)]
    assert same(weights(whole.model), weights(part.model))
    keys = ("step", "next_token", "grad_norm", "lr", "mean_k", "tokens")
    assert [[row[key] for key in keys] for row in lines(tmp_path / "parts")] == [
        [row[key] for key in keys] for row in lines(tmp_path / "whole")
    ]


def test_micro_batches_add_up_to_the_batch(make_model, settings, store, tmp_path):
    """Without experts, whose quantiles are means over micro-batches."""
    ends = [
        train(make_model(dense=True), store, settings(micro_batch=size), tmp_path / str(size)).model for size in (1, 4)
    ]
    for a, b in zip(*(end.parameters() for end in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_exported_logits_equal_trained_ones(make_model, settings, store, tmp_path, dtype):
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = train(make_model(), store, settings(dtype=dtype), tmp_path).model
    assert model.dtype == kind
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trained = model(ids).logits
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    ours = load_model(tmp_path / "model", dtype=kind, progress=False).model
    theirs = StilleForCausalLM.from_pretrained(tmp_path / "model", dtype=kind)
    for loaded in (ours, theirs.eval()):
        assert same(weights(model), weights(loaded))
        with torch.no_grad():
            assert torch.equal(loaded(ids).logits, trained)


def test_distillation_brings_the_model_to_its_teacher(make_model, settings, store, make_store, tmp_path):
    teacher = train(make_model(dense=True), store, settings(steps=40, lr=1e-2, anneal=0), tmp_path / "teacher").model
    config = settings(steps=40, lr=1e-2, loss=DISTILL, save_every=100)
    held_out = make_store(20, seed=1)
    before = evaluate(Objective(make_model(), DISTILL, teacher), held_out, config, world())
    teacher_before = weights(teacher)
    result = train(make_model(), store, config, tmp_path / "student", teacher=teacher, held_out=held_out)
    assert result.evaluation["held_out_kl"] < 0.5 * before["held_out_kl"]
    found = lines(tmp_path / "student")
    assert found[-2]["layers"] < found[0]["layers"]
    assert same(teacher_before, weights(teacher))


def world():
    from stille.train import World

    return World(0, 1, torch.device("cpu"))


def test_the_budget_loss_reaches_the_gates(make_model, settings, store, tmp_path):
    def gate(budget):
        config = settings(loss=LossWeights(budget=budget), steps=3, anneal=0)
        model = train(make_model(), store, config, tmp_path / str(budget)).model
        return model.model.layers[0].mlp.gate.up.weight, lines(tmp_path / str(budget))[-1]

    (with_it, found), (without, _) = gate(1.0), gate(0.0)
    assert found["budget"] > 0
    assert not torch.equal(with_it, without)


def test_a_run_by_the_clock_ends_with_a_finished_schedule(make_model, settings, store, tmp_path):
    config = settings(steps=None, minutes=2.5 / 60, warmup=1, schedule="wsd")
    result = train(make_model(), store, config, tmp_path)
    assert result.finished
    assert result.step >= 1
    assert result.seconds < 20
    rates = [row["lr"] for row in lines(tmp_path)]
    assert rates[0] == config.lr
    assert rates[-1] < 0.4 * config.lr
    assert train(make_model(), store, config, tmp_path).step == result.step
    longer = train(make_model(), store, settings(steps=None, minutes=4 / 60, warmup=1, schedule="wsd"), tmp_path)
    assert longer.finished
    assert longer.step > result.step


def test_another_run_in_the_same_folder_is_refused(make_model, settings, store, make_store, tmp_path):
    train(make_model(), store, settings(steps=2), tmp_path)
    with pytest.raises(ConfigError, match=r"lr was 0\.003, now 0\.1"):
        train(make_model(), store, settings(steps=2, lr=0.1), tmp_path)
    with pytest.raises(ConfigError, match="data differs"):
        train(make_model(), make_store(seed=9), settings(steps=2), tmp_path)
    with pytest.raises(ConfigError, match="model differs"):
        train(make_model(target_k=2.0), store, settings(steps=2), tmp_path)
    with pytest.raises(ConfigError, match="context of 128"):
        train(make_model(), store, settings(length=256), tmp_path)
    with pytest.raises(ConfigError, match="float32"):
        train(make_model().bfloat16(), store, settings(), tmp_path)


def test_damaged_checkpoints_are_passed_over_and_few_are_kept(tmp_path, caplog):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, {"step": step, "x": torch.ones(1000)}, keep=2)
    first, second = checkpoints.saved(tmp_path)
    assert checkpoints.load_latest(tmp_path)["step"] == 3
    first.write_bytes(first.read_bytes()[:1000])
    (tmp_path / "step-00000004.tmp").write_bytes(b"half")
    assert checkpoints.load_latest(tmp_path)["step"] == 2
    assert "step-00000003" in caplog.text
    second.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2"):
        checkpoints.load_latest(tmp_path)
    assert checkpoints.load_latest(tmp_path / "nothing") is None


def test_a_killed_save_leaves_the_last_checkpoint(make_model, settings, store, tmp_path, monkeypatch):
    def broken(state, file):
        file.write(b"half of it")
        raise OSError("disk full")

    train(make_model(), store, settings(steps=2), tmp_path / "a")
    before = checkpoints.load_latest(tmp_path / "a" / CHECKPOINTS)
    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(tmp_path / "a" / CHECKPOINTS, {"step": 9}, keep=1)
    assert checkpoints.load_latest(tmp_path / "a" / CHECKPOINTS)["step"] == before["step"] == 2


def test_curves():
    cosine = TrainConfig(steps=100, lr=1.0, warmup=10, final_lr=0.1)
    rates = [learning_rate(cosine, step, progress_of(cosine, step, 0)) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == max(rates[8:12])
    assert rates[-1] == pytest.approx(0.1, rel=0.02)
    wsd = TrainConfig(steps=100, lr=1.0, warmup=10, final_lr=0.0, schedule="wsd", decay=0.2)
    assert [learning_rate(wsd, step, step / 100) for step in (10, 79, 90)] == pytest.approx([1, 1, 0.5])
    clock = TrainConfig(steps=100, minutes=1, lr=1.0)
    assert (progress_of(clock, 10, 30), progress_of(clock, 90, 30), progress_of(clock, 1, 90)) == (0.5, 0.9, 1)
    anneal = TrainConfig(steps=10, anneal=0.4)
    assert [target_k(anneal, p, 16, 4) for p in (0, 0.2, 0.4, 1)] == pytest.approx([16, 10, 4, 4])
    assert target_k(TrainConfig(steps=10), 0, 16, 4) == 4


def test_a_share_of_the_sequences_runs_at_other_budgets(make_model, settings, store, tmp_path):
    config = TrainConfig(steps=10, batch=4096, micro_batch=4096, dial=0.25, seed=3)
    drawn = sequence_targets(config, 5, 4.8, 1, 16)
    other = drawn != np.float32(4.8)
    assert np.array_equal(drawn, sequence_targets(config, 5, 4.8, 1, 16))
    assert not np.array_equal(drawn, sequence_targets(config, 6, 4.8, 1, 16))
    assert other.mean() == pytest.approx(0.25, abs=0.03)
    assert (drawn[other].min(), drawn[other].max()) == pytest.approx((2.4, 16), abs=0.1)
    assert sequence_targets(config, 5, 4.8, 4, 16).min() >= 4
    seen = []

    def watch(model):
        for layer in expert_layers(model):
            layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.budget))
        return model

    train(watch(make_model()), store, settings(steps=1, anneal=0, dial=1.0, micro_batch=2), tmp_path)
    asked = sequence_targets(settings(dial=1.0), 0, 1.5, 1, 4)
    layers = 2
    for micro in range(2):
        for budget in seen[layers * micro : layers * (micro + 1)]:
            assert np.array_equal(budget.numpy(), asked[2 * micro : 2 * micro + 2].repeat(32))
    assert lines(tmp_path)[0]["target_k"] == pytest.approx(asked.mean())


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    "ways",
    [
        {"masked": True},
        pytest.param(
            {"masked": True, "compile": True},
            marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")],
        ),
    ],
    ids=lambda ways: "-".join(ways),
)
def test_faster_ways_compute_the_same(make_model, settings, store, tmp_path, ways, rank):
    found = []
    for chosen in ({}, ways):
        config, out = settings(steps=3, loss=DISTILL, dial=0.5, rank=rank, **chosen), tmp_path / str(len(chosen))
        teacher = make_model(seed=1, dense=True)
        found.append((train(make_model(), store, config, out, teacher=teacher), lines(out)))
    (plain, before), (fast, after) = found
    assert not any(layer.masked for layer in expert_layers(fast.model))
    for mine, theirs in zip(after, before, strict=True):
        for name in ("kl", "layers", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3)
    assert all(torch.allclose(fast.model.state_dict()[n], v, atol=1e-4) for n, v in plain.model.state_dict().items())


@pytest.mark.parametrize("gates", ["learned", "frozen"])
def test_frozen_namesstay_and_thresholds_follow(make_model, settings, store, tmp_path, gates):
    start = {name: value.clone() for name, value in make_model().state_dict().items()}
    end = train(make_model(), store, settings(steps=3, anneal=0, gates=gates), tmp_path).model.state_dict()
    moved = {
        name.rpartition("mlp.")[2] for name in start if "gate." in name and not torch.equal(start[name], end[name])
    }
    assert {"gate.scale", "gate.quantiles", "gate.correction"} <= moved
    assert ("gate.up.weight" in moved) == ("gate.up.bias" in moved) == (gates == "learned")


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_namespull_at_no_hidden_state(make_model, frozen):
    gate = expert_layers(make_model(target_k=2.0))[0].gate.train()
    torch.nn.init.ones_(gate.scale)
    if frozen:
        gate.freeze()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gate(x).weight_TK.sum().backward()
    assert (x.grad is None) == (gate.up.weight.grad is None) == frozen
    assert gate.scale.grad.abs().max() > 0  # the weights of experts learn


@pytest.mark.parametrize(
    ("values", "mentions"),
    [
        (dict(dial=1.5), "dial"),
        (dict(gates="open"), "learned, frozen"),
        (dict(steps=None), "end"),
        (dict(steps=0), "steps=0"),
        (dict(minutes=0), "minutes"),
        (dict(batch=6, micro_batch=4), "multiple"),
        (dict(lr=0), "lr"),
        (dict(schedule="linear"), "cosine, wsd"),
        (dict(dtype="fp8"), "fp8"),
        (dict(anneal=2), "anneal"),
        (dict(loss=dict(next_token=0)), "above"),
        (dict(masked=True, loss=dict(budget=0.1)), "masked"),
        (dict(loss=dict(kld=1)), "kld"),
        (dict(stepps=3), "stepps"),
    ],
)
def test_wrong_settings_are_told(values, mentions):
    with pytest.raises(ConfigError, match=mentions):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_configuration_files_that_cannot_be_read_are_told(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_tensorboard_gets_the_metrics(make_model, settings, store, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(make_model(), store, settings(steps=3, log_every=1), tmp_path, tensorboard=True)
    written = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    wanted = {line["step"]: line["next_token"] for line in lines if "next_token" in line}
    assert {event.step: event.value for event in written.Scalars("next_token")} == pytest.approx(wanted)
    assert len(wanted) == 3
