"""Training of the perception model: what is asked of it, that it learns, and that a run goes on where it stopped."""

import json
import signal
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.video.model import TINY, StilleCam, StilleCamNet
from stille.video.scenes.clips import Clips
from stille.video.training import VideoTrainConfig, judge, train, watch
from stille.video.training.loop import Progress
from stille.video.training.matching import match
from stille.video.training.step import clip_loss, look
from stille.video.training.trajectories import Damage, Luck, damage
from stille.video.types import NOBODY, Seen
from tests.video.painted import awake, painted

SMALL = replace(
    TINY, width=96, height=64, widths=(8, 16, 24, 32, 48), layers=1, identity_layers=1, queries=20, carried=10,
    pooled_side=2, words=14, object_frames=3, long_tokens=256, leaf=4, keep=3,
)  # fmt: skip
SIZE = (96, 64)


def network() -> StilleCamNet:
    torch.manual_seed(0)
    return StilleCamNet(SMALL)


def quick(**changes) -> VideoTrainConfig:
    plain: dict[str, Any] = dict(
        detect_share=0.0, batch=2, frames=3, warmup=5, dtype="fp32", eval_clips=2, ema=0.9, log_every=5, repeats=1
    )
    return VideoTrainConfig(**(plain | changes))


def test_it_learns_two_clips_by_heart(tmp_path):
    """Boxes, kinds, attributes, slots and identities, judged by the streamed model."""
    calm = dict(switch=0.0, occlusion=0.2, gap=0.0)
    result = train(
        network(), lambda seed, n, t: painted(7, n, t, size=SIZE), quick(steps=60, lr=3e-3, ema=0.8, **calm), tmp_path
    )
    assert result.finished
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-2]["loss"] < lines[0]["loss"] / 4
    found = result.evaluation
    assert found["eval_ap50"] > 0.8
    assert found["eval_idf1"] > 0.8
    assert found["eval_attributes"] > 0.9
    assert found["eval_slots"] > 0.9
    other = judge(
        watch(StilleCam(result.network, dtype=torch.float32), painted(8, 2, 3, size=SIZE)),
        painted(8, 2, 3, size=SIZE),
        0.15,
    )
    assert other["ap50"] < found["eval_ap50"]  # by heart, that is


def test_a_stopped_run_goes_on_bit_by_bit(tmp_path):
    """Across the point where identities begin; the second part is another process's, as far as torch can tell."""
    config = quick(steps=4, detect_share=0.5, detect_batch=2, detect_frames=2, frames=2)
    source = partial(painted, size=SIZE)
    whole = train(network(), source, config, tmp_path / "whole")

    def stop(now: Progress) -> None:
        if now.step == 1:
            signal.raise_signal(signal.SIGINT)

    first = train(network(), source, config, tmp_path / "parts", on_step=stop)
    assert (first.finished, first.step, first.evaluation) == (False, 1, {})
    torch.manual_seed(99)
    second = train(StilleCamNet(SMALL), source, config, tmp_path / "parts")
    assert (second.finished, second.step, second.pictures) == (True, 4, whole.pictures)
    for (name, a), b in zip(whole.network.state_dict().items(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert second.evaluation == whole.evaluation
    with pytest.raises(ConfigError, match=r"holds another run: lr was 0.0006, now 0.1"):
        train(network(), source, replace(config, lr=0.1), tmp_path / "parts")


def test_identities_can_be_all_that_is_learned(tmp_path):
    before = network().state_dict()
    config = quick(steps=2, learn="identity", batch=2, frames=3)
    after = train(network(), partial(painted, size=SIZE), config, tmp_path).network.state_dict()
    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert changed
    assert {name.split(".")[0] for name in changed} == {"identity"}


def test_checkpoints_come_by_the_clock(tmp_path):
    steps = []
    config = quick(steps=3, frames=1, micro_batch_frames=1, save_minutes=1e-9, keep=2, eval_clips=1)
    train(network(), partial(painted, size=SIZE), config, tmp_path, on_step=lambda now: steps.append(
        sorted(file.name for file in (tmp_path / "checkpoints").glob("*.pt"))
    ))  # fmt: skip
    assert [len(names) for names in steps] == [1, 2, 2]
    assert steps[-1] == ["step-00000002.pt", "step-00000003.pt"]


@pytest.mark.parametrize("history", [True, False])
def test_clips_at_once_and_streamed_are_the_same(history):
    """Batch norms folded or not, frames through the backbone (without history: all of it) together or one by one."""
    config = replace(SMALL, layers=2, shown=0.0, carry=0.08, history=history)
    net, clips = awake(config, 1), painted(3, 2, 5, size=SIZE)
    with torch.no_grad():
        said, _, _ = look(net, clips, 100)
    assert (int((said.origin_BTQ >= 0).sum()) > 0) == history  # some are carried on
    streamed = watch(StilleCam(net, dtype=torch.float32), clips)
    score, index = said.presence_LBTQ[-1].sigmoid().topk(config.carried)
    box = said.box_LBTQ4[-1].gather(2, index[..., None].expand(-1, -1, -1, 4)).clamp(0, 1)
    for b in range(2):
        for t in range(5):
            np.testing.assert_allclose(streamed[b][t].score_N, score[b, t].numpy(), atol=1e-4)
            np.testing.assert_allclose(streamed[b][t].box_N4 / np.tile(SIZE, 2), box[b, t].numpy(), atol=1e-4)


def test_without_history_each_frame_is_looked_at_alone_and_identities_are_learned():
    net, clips = awake(replace(SMALL, history=False), 1), painted(3, 2, 4, size=SIZE)
    turned = replace(clips, **{f: getattr(clips, f).flip(1) for f in ("frame_BTHW3",)})
    with torch.no_grad():
        a, b = (look(net, one, 100)[0].presence_LBTQ for one in (clips, turned))
    torch.testing.assert_close(a, b.flip(2), atol=1e-4, rtol=1e-4)
    loss = clip_loss(net.train(), clips, quick(steps=1), torch.Generator().manual_seed(0), identities=True)
    loss.total.backward()
    assert loss.facts["identity"] > 0
    parts = dict(net.named_parameters())
    for name in ("identity.word.weight", "decoder.fresh.weight", "backbone.stem.conv.weight"):
        assert float(parts[name].grad.norm()) > 0  # pyright: ignore[reportOptionalMemberAccess]
    assert net.decoder.carry.weight.grad is None or not net.decoder.carry.weight.grad.any()


def test_carried_queries_keep_their_objects():
    cost = torch.tensor([[5.0, 0.0], [0.0, 5.0], [9.0, 9.0]]).expand(1, 4, 3, 2).clone()
    near = torch.ones(1, 4, 3, 2)
    origin = torch.tensor([[-1, -1, -1], [-1, 1, 0], [-1, 1, 2], [-1, 1, 2]])[None]
    present = torch.tensor([[True, True], [True, True], [True, False], [True, True]])[None]
    got = match(cost, near, origin, present)[0].tolist()
    # First the cheapest; then query 2 goes on with object 1 though query 0 is cheaper, waits while it is hidden.
    assert got == [[1, 0], [1, 2], [1, -1], [1, 2]]
    near[0, 3, 2, 1] = 0.0  # it has lost it
    assert match(cost, near, origin, present)[0, 3].tolist() == [1, 0]


def test_more_objects_than_queries():
    crowd = torch.ones(1, 1, 5, dtype=torch.bool)
    got = match(torch.rand(1, 1, 3, 5), torch.ones(1, 1, 3, 5), torch.full((1, 1, 3), -1), crowd)
    assert sorted(got[0, 0].tolist()) == [-1, -1, 0, 1, 2]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 9))
def test_damage_exchanges_objects_of_a_frame_alone(seed, frames, objects):
    random = torch.Generator().manual_seed(seed)
    present = torch.rand(3, frames, objects, generator=random) < 0.7

    def drawn(words: int, **changes: float) -> Damage:
        config = quick(steps=1, **changes)
        return damage(present, words, config, Luck.draw(3, frames, objects, words, config, random))

    how = drawn(14)
    everyone = torch.arange(objects).expand(3, frames, objects)
    torch.testing.assert_close(how.source_BTM.sort(-1).values, everyone)
    moved = how.source_BTM != everyone
    assert bool((present & ~how.hidden_BTM)[moved].all())
    assert bool(present.gather(-1, how.source_BTM)[moved].all())
    assert all(len(set(row.tolist())) == objects for row in how.word_BM)
    few, ever = drawn(5).word_BM, present.any(1)
    assert bool(((few < 5).sum(1) == min(5, objects)).all())
    assert bool((((few < 5) & ever).sum(1) == ever.sum(1).clamp(max=5)).all())  # those that are ever seen come first
    assert bool(((how.cut_B >= 1) & (how.gap_B >= 0) & (how.gap_B <= 120)).all())
    assert not how.mixed_B[how.gap_B > 0].any()
    again = drawn(14, occlusion=0, switch=0, gap=0, mixed=0)
    assert not again.hidden_BTM.any()
    assert not again.mixed_B.any()
    assert drawn(14, gap=0, mixed=1).mixed_B.all()
    assert not again.gap_B.any()
    torch.testing.assert_close(again.source_BTM, everyone)


def emptied(clips: Clips) -> Clips:
    return replace(
        clips,
        kind_BM=torch.full_like(clips.kind_BM, -1), visible_BTM=torch.zeros_like(clips.visible_BTM),
        box_BTM4=torch.zeros_like(clips.box_BTM4), attribute_BTMA=torch.full_like(clips.attribute_BTMA, torch.nan),
        slot_BS4=torch.zeros_like(clips.slot_BS4), occupied_BTS=torch.full_like(clips.occupied_BTS, torch.nan),
    )  # fmt: skip


def test_what_is_not_known_is_not_learned():
    """Nothing there at all; then attributes and slots, one by one, whose truth is not known."""
    net, clips, random = network(), painted(3, 2, 2, size=SIZE), torch.Generator()
    loss = clip_loss(net, emptied(clips), quick(steps=1), random, True)
    loss.total.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
    assert float(loss.facts["attribute"]) == float(loss.facts["slot"]) == float(loss.facts["identity"]) == 0
    net.zero_grad()
    blind = replace(clips, attribute_BTMA=torch.full_like(clips.attribute_BTMA, torch.nan))
    clip_loss(net, blind, quick(steps=1), random, False).total.backward()
    assert all(not p.grad.any() for p in net.decoder.attribute.parameters() if p.grad is not None)
    assert all(p.grad is None for p in net.identity.parameters())


def test_identities_are_judged():
    clips = painted(5, 1, 4, size=SIZE)
    box = clips.box_BTM4[0].numpy() * np.tile(SIZE, 2).astype(np.float32)
    visible = clips.visible_BTM[0].numpy()

    def seen(t: int, names: list[int], shift: float = 0.0) -> Seen:
        there = visible[t] > 0.15
        known = np.nan_to_num(clips.attribute_BTMA[0, t].numpy()) * 2 - 1
        return Seen(
            "c", t, 0.0, SIZE, (box[t] + shift)[there], clips.kind_BM[0].numpy()[there], np.ones(3, np.float32)[there],
            np.array(names)[there], known[there].astype(np.float32), {"0": float(clips.occupied_BTS[0, t, 0])},
        )  # fmt: skip

    assert (visible > 0.15).all()  # else the figures below are others
    perfect = judge([[seen(t, [4, 7, 9]) for t in range(4)]], clips, 0.15)
    assert perfect["ap50"] == perfect["idf1"] == perfect["slots"] == 1
    assert perfect["switches"] == 0
    swapped = judge([[seen(t, [4, 7, 9] if t < 3 else [7, 4, 9]) for t in range(4)]], clips, 0.15)
    assert swapped["ap50"] == 1
    assert swapped["idf1"] == pytest.approx(10 / 12)
    assert swapped["switches"] == pytest.approx(100 * 2 / 12)
    astray = judge([[seen(t, [NOBODY] * 3, 40.0) for t in range(4)]], clips, 0.15)
    assert astray["ap50"] == astray["recall"] == astray["idf1"] == 0


def test_settings_out_of_range_are_told():
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "steps, minutes or both"), ({"steps": 0}, "steps is 0"), ({"steps": 1, "frames": 0}, "frames is 0"),
        ({"steps": 1, "dtype": "fp16"}, "bf16"), ({"steps": 1, "switch": 1.5}, "switch is 1.5"),
        ({"steps": 1, "learn": "kinds"}, "learn is 'kinds'"),
    )  # fmt: skip
    for wrong, told in cases:
        with pytest.raises(ConfigError, match=told):
            VideoTrainConfig(**wrong)
    with pytest.raises(ConfigError, match="no settings speed"):
        VideoTrainConfig.from_dict({"steps": 1, "speed": 3})
