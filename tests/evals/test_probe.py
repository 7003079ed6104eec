"""The probe model's training data, network and export."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from probe import data, network  # noqa: E402
from probe.corpus import build_world  # noqa: E402
from probe.draft import Kit  # noqa: E402
from probe.export import merged_model  # noqa: E402
from probe.tracing import ranks  # noqa: E402
from stille.model import load_model  # noqa: E402
from stille.model.tokenizer import load_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def maker(default_model_path: Path) -> data.Maker:
    tokenizer = load_tokenizer(default_model_path)
    return data.Maker(tokenizer, build_world(tokenizer.get_vocab(), ["harbour", "window"], characters=60_000))


@pytest.mark.parametrize("task", data.TASKS)
def test_samples_fill_their_length_and_answers_stand_in_the_text_before(maker: data.Maker, task: str) -> None:
    for seed in range(3):
        ids, answer, weight = maker.sample(seed, task, 1024)
        assert ids.shape == answer.shape == weight.shape == (1024,)
        again = maker.sample(seed, task, 1024)
        assert all(np.array_equal(a, b) for a, b in zip((ids, answer, weight), again, strict=True))
        end = int(np.flatnonzero(weight)[-1])
        assert ids[end] == maker.end
        assert end > 480  # short ones would waste most of a step
        assert ((weight > 0) == (answer > 0))[:end].all()
        assert answer.max() >= 1
        for number in range(1, answer.max() + 1):
            before = maker.tokenizer.decode(ids[: int(np.flatnonzero(answer == number)[0])])
            text = maker.tokenizer.decode(ids[answer == number]).replace(" and ", " ").replace(",", " ")
            for word in text.split():
                if word[:-1].isdigit() and word.endswith("."):
                    continue  # the number of an entry
                assert word in before, (task, seed, word)


def test_pieces_give_the_tokens_of_the_whole_text(maker: data.Maker) -> None:
    checked = 0
    for task in data.TASKS:
        for seed in range(4):
            ids, _, weight = maker.sample(seed, task, 512)
            text = maker.tokenizer.decode(ids[: int(np.flatnonzero(weight)[-1])])
            if "<|im_start|>" in text:
                continue
            whole = maker.tokenizer(text, add_special_tokens=False).input_ids
            # a sample whose question ends in a space differs on purpose, and only there
            if len(whole) == int(np.flatnonzero(weight)[-1]):
                checked += whole == ids[: len(whole)].tolist()
    assert checked >= 30


def test_ranks_are_those_of_the_stream(maker: data.Maker) -> None:
    kit = Kit(maker.world, random.Random(3), random.Random(5), 900, maker.sizes)
    draft = ranks(kit)
    words = [piece.strip() for piece in draft.needles]
    ranked = [word for word in draft.asks[0].answer.replace(",", " ").split() if word in words]
    counts = [words.count(word) for word in ranked]
    assert counts == sorted(counts, reverse=True)
    others = [words.count(word) for word in set(words) - set(ranked) if word[0].isalpha()]
    assert counts[-1] >= max(others)


def test_words_can_be_kept_out(maker: data.Maker) -> None:
    assert not {"harbour", "window"} & set(maker.world.words)


def test_trained_weights_are_the_exported_ones(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = load_model(tiny_checkpoint, progress=False)
    config = network.probe_config(base.config, 3e5, 2048)
    torch.manual_seed(0)
    net = network.ProbeNetwork(base.model, config, 4, torch.bfloat16, "cpu", compiled=False)
    with torch.no_grad():
        for parameter in net.B.values():
            parameter.normal_(std=0.05)
    net.round_adapter()
    network.save_adapter(net, tmp_path)
    (tmp_path / "adapter.json").write_text(json.dumps({"rope_theta": 3e5, "context": 2048}))
    probe = merged_model(str(tiny_checkpoint), tmp_path).model
    probe.save_pretrained(tmp_path / "model")
    base.tokenizer.save_pretrained(tmp_path / "model")
    probe = load_model(tmp_path / "model", dtype=torch.bfloat16, progress=False).model
    assert probe.config.max_position_embeddings == 2048
    assert torch.equal(probe.model.layers[1].self_attn.o_proj.weight, net.weights()["out"][1])
    ids = torch.randint(0, probe.config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = probe(ids).logits.flatten(0, 1).float()
        found = net(ids, torch.arange(80)).float()
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
    torch.testing.assert_close(found, expected, atol=0.02 * expected.abs().max().item(), rtol=0)
    with torch.no_grad():
        net.A["q_proj"].zero_()
    network.load_adapter(net, tmp_path)
    assert torch.equal(net(ids, torch.arange(80)).float(), found)
