"""The delta in the package: a model by its name, with a card, small enough to be committed, near its base."""

import pytest
import torch

from stille.model import expert_budget, load_model, record_routing
from stille.model.convert.delta import read_delta
from stille.model.experts import expert_layers
from stille.model.store import BUNDLED, known_models, resolve

NAME = "stille-135m-deb"


def test_it_is_known_by_name_and_has_a_card():
    folder = resolve(NAME, offline=True)
    assert folder == BUNDLED[NAME]
    assert NAME in known_models()
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "stille train default" in card
    assert all(file.stat().st_size < 20_000_000 for file in folder.iterdir())
    assert read_delta(folder).base == "stille-135m"  # and the file's sha256 is right


@pytest.mark.usefixtures("default_model_path")
def test_it_reads_like_its_base():
    """Text that nothing was trained on: near the base with all experts, further with fewer, no expert layer idle."""
    loaded = load_model(NAME, progress=False)
    text = (
        "My neighbour keeps eleven bees' nests behind the old railway shed. Every spring she paints them yellow and "
        "blue, and every autumn the children of the village ask her whether bees can see colours at all. She always "
        "gives the same answer: that nobody has ever asked the bees."
    )
    ids = torch.tensor([loaded.tokenizer(text).input_ids])
    base = load_model("stille-135m", progress=False).model
    kl = []
    with torch.inference_mode():
        log_p = base(ids).logits.log_softmax(-1)
        for budget in (16.0, 4.8, 2.0):
            with expert_budget(loaded.model, budget), record_routing(loaded.model) as layers:
                log_q = loaded.model(ids).logits.log_softmax(-1)
            kl.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
            assert all(layer.load_E.sum() > 0 for layer in layers)
    assert 0 < kl[0] < kl[1] < kl[2] < 1
    assert kl[0] < 0.2
    shares = torch.stack([layer.gate.layer_share for layer in expert_layers(loaded.model)])
    assert float(shares.mean()) == pytest.approx(1, abs=1e-4)
