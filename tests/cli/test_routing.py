"""`stille doctor --model`: what the gates of a model do."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from stille.cli.routing import bars
from stille.model import StilleConfig, StilleForCausalLM
from stille.model.experts import balance


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    """A model with experts whose thresholds fit random tokens."""
    folder = tmp_path_factory.mktemp("experts")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = StilleForCausalLM(
        StilleConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=256, ffn_kinds=["dense", "experts", "experts"],
            experts={"num_experts": 8, "expert_size": 4, "shared_size": 8, "router_size": 0, "target_k": 3.0,
                     "min_k": 0, "max_k": 8},
        )
    ).train()  # fmt: skip
    model(torch.randint(len(tokenizer), (8, 128)))
    balance(model, memory=0.0)
    model.eval().save_pretrained(folder)
    return folder


def test_the_report_adds_up(stille_here, folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    run = stille_here("doctor", "--model", folder, "--text", text, "--tokens", 600, "--budget", "5", "--json")
    found = json.loads(run.stdout)
    assert run.returncode == 0
    assert (found["tokens"], found["budget"]) == (600, 5)
    assert [layer["layer"] for layer in found["layers"]] == [1, 2]
    for layer in found["layers"]:
        assert sum(layer["histogram"]) == pytest.approx(1)
        assert sum(k * share for k, share in enumerate(layer["histogram"])) == pytest.approx(layer["mean_k"])
        assert sum(layer["load"]) == pytest.approx(layer["mean_k"])
        assert layer["load_percentiles"] == [
            min(layer["load"]),
            pytest.approx(layer["load_percentiles"][1]),
            max(layer["load"]),
        ]
        assert layer["max_violation"] == pytest.approx(max(layer["load"]) / (layer["mean_k"] / 8) - 1)
        assert layer["drift"] == pytest.approx(layer["mean_k"] / 5 - 1)
    assert found["mean_k"] == pytest.approx(sum(layer["mean_k"] for layer in found["layers"]) / 2)


def test_people_get_a_table(stille_here, folder):
    run = stille_here("doctor", "--model", folder, "--tokens", 300)
    assert run.returncode == 0
    assert "MaxVio" in run.stdout
    assert "300 tokens, budget 3" in run.stdout


@pytest.mark.parametrize("budget", ["0.5", "9"])
def test_a_budget_that_cannot_be_run(stille_here, folder, budget):
    run = stille_here("doctor", "--model", folder, "--budget", budget)
    assert run.returncode != 0
    assert "1 to 8" in run.stderr


def test_a_dense_model_has_no_routing(stille_here, tiny_checkpoint):
    run = stille_here("doctor", "--model", tiny_checkpoint)
    assert run.returncode != 0
    assert "no layers with experts" in run.stderr


def test_bars():
    assert bars([0, 0.001, 0.5, 1]) == " ▁▄█"
    assert bars([0.0, 0.0]) == "  "
