"""The deltas in the package: models by their names, with cards, small enough to be committed, and what they are for."""

import pytest
import torch

from stille import LLM
from stille.engine.tool_grammar import Function
from stille.evals.tool_calls import Asked, ToolCaller
from stille.model import expert_budget, load_model, record_routing
from stille.model.convert.delta import read_delta
from stille.model.experts import expert_layers
from stille.model.store import BUNDLED, known_models, resolve

NAME, TOOLS = "stille-135m-deb", "stille-135m-tools"


@pytest.mark.parametrize(("name", "made_by"), [(NAME, "stille train default"), (TOOLS, "stille train sft")])
def test_they_are_known_by_name_and_have_a_card(name, made_by):
    folder = resolve(name, offline=True)
    assert folder == BUNDLED[name]
    assert name in known_models()
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert made_by in card
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


@pytest.mark.usefixtures("default_model_path")
def test_one_calls_tools_where_one_fits_and_asks_for_what_is_missing():
    """In its own judgement, on sentences and a tool that nothing was trained on."""
    ferry = Function(
        "book_ferry",
        "Books a place on the ferry.",
        {
            "type": "object",
            "properties": {"island": {"type": "string"}, "cars": {"type": "integer", "description": "how many"}},
            "required": ["island", "cars"],
        },
    )
    ask = ToolCaller(LLM(TOOLS, device="cpu"), max_tokens=48)
    said = ask(
        [
            Asked([{"role": "user", "content": text}], [ferry])
            for text in ("Please book the ferry to Samso for 2 cars.", "Good morning, how are you?")
        ]
    )
    assert said[0].calls == (("book_ferry", {"island": "Samso", "cars": 2}),)
    assert not said[1].calls
    assert said[1].text
