"""The draft head: its arithmetic, what is stored of it, and which models it fits."""

import json

import pytest
import torch
import torch.nn.functional as F

from stille.errors import CheckpointError, ConfigError, ModelNotFoundError
from stille.model import StilleConfig, StilleForCausalLM
from stille.model.draft import DraftConfig, DraftHead, fingerprint

C, V, D, INNER = 16, 61, 24, 40


def make_model(seed: int = 0, **changes) -> StilleForCausalLM:
    torch.manual_seed(seed)
    sizes = dict(
        vocab_size=V, hidden_size=C, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return StilleForCausalLM(StilleConfig(**{**sizes, **changes})).eval()


def make_head(model: StilleForCausalLM, **changes) -> DraftHead:
    """Attached, every weight at random."""
    torch.manual_seed(1)
    config = DraftConfig.of(model.config, **{"draft_vocab": D, "inner_size": INNER, **changes})
    head = DraftHead(config, torch.arange(0, 2 * config.draft_vocab, 2)).attach(model, "the target").eval()
    with torch.no_grad():
        for value in head.parameters():
            value.copy_(torch.randn_like(value) * 0.3 + (value.dim() == 1))
    return head


@pytest.fixture
def model():
    return make_model()


def norm(x, weight=1.0):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def reference(head, model, states, tokens):
    """Logits of each step, written out from the module's text; states [N, C] each, tokens [steps, N]."""
    x = torch.cat([norm(h) for h in states], -1) @ head.feature_proj.weight.T
    found = []
    for token_N in tokens:
        x = x + model.model.embed_tokens.weight[token_N] @ head.token_proj.weight.T
        for layer in head.layers:
            gate, up = layer.gate_up_2IC[:INNER], layer.gate_up_2IC[INNER:]
            n = norm(x, layer.norm_C)
            x = x + (F.silu(n @ gate.T) * (n @ up.T)) @ layer.down_CI.T
        found.append(norm(x, head.final_norm_C) @ model.lm_head.weight[head.draft_tokens_D].T)
    return found


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_steps_are_what_the_module_says(model, layers):
    head = make_head(model, layers=layers)
    states = [3 * torch.randn(5, C) for _ in head.config.feature_layers]
    tokens = torch.randint(0, V, (3, 5))
    x = head.begin(head.features(states))
    for token_N, expected in zip(tokens, reference(head, model, states, tokens), strict=True):
        x, logits = head.advance(x, token_N)
        assert logits.shape == (5, D)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_features_are_taken_in_the_middle_late_and_last():
    assert DraftConfig.of(StilleConfig(num_hidden_layers=30)).feature_layers == (14, 24, 29)
    assert DraftConfig.of(StilleConfig(num_hidden_layers=1)).feature_layers == (0,)
    assert DraftConfig.of(StilleConfig(vocab_size=100)).draft_vocab == 100


@torch.no_grad()
def test_a_fresh_head_guesses_the_last_state_alone(model):
    """Layers add nothing, and what is not of the last layer is small: training starts from the target's own view."""
    head = make_head(model).initialize(model)
    states = [torch.randn(7, C) for _ in head.config.feature_layers]
    x = head.begin(head.features(states))
    assert F.cosine_similarity(x, states[-1]).min() > 0.95
    assert torch.equal(head.final_norm_C, model.model.norm.weight)
    assert all(not layer.down_CI.any() for layer in head.layers)


@pytest.mark.parametrize(("precision", "off"), [("bf16", 0.02), ("int8", 0.03)])
@torch.no_grad()
def test_what_is_loaded_is_what_was_saved(model, tmp_path, precision, off):
    head = make_head(model)
    head.about = {"steps": 5}
    head.save(tmp_path / "head", precision, {"README.md": "a card"})
    found = DraftHead.load(tmp_path / "head", model)
    assert (found.config, found.target, found.about) == (head.config, head.target, {"steps": 5})
    assert torch.equal(found.draft_tokens_D, head.draft_tokens_D)
    assert (tmp_path / "head" / "README.md").read_text() == "a card"
    assert not any(p.requires_grad for p in found.parameters())
    for name, value in head.named_parameters():
        stored = found.get_parameter(name)
        if value.dim() == 1:
            assert torch.equal(stored, value)
        else:  # of a row's largest value
            assert (
                (stored - value).abs().amax(-1) <= value.abs().amax(-1) / (254 if precision == "int8" else 256)
            ).all()
    states, token = [torch.randn(5, C) for _ in head.config.feature_layers], torch.arange(5)
    a, b = (each.advance(each.begin(each.features(states)), token)[1] for each in (head, found))
    assert (a - b).norm() < off * a.norm()


def test_int8_is_half_of_bf16(model, tmp_path):
    head = make_head(model, inner_size=512)
    for precision in ("int8", "bf16"):
        head.save(tmp_path / precision, precision)
    small, large = (next((tmp_path / p).glob("*.safetensors")).stat().st_size for p in ("int8", "bf16"))
    assert small < 0.65 * large


def test_a_head_is_replaced_as_a_whole(model, tmp_path):
    head = make_head(model)
    head.save(tmp_path / "head")
    with torch.no_grad():
        head.feature_proj.weight.mul_(2)
    head.save(tmp_path / "head")
    assert len(list((tmp_path / "head").glob("*.safetensors"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


def test_a_target_in_bf16_is_the_same_target(tmp_path):
    model = make_model()
    make_head(model).save(tmp_path / "head")
    marks = fingerprint(model)
    model.bfloat16()
    assert fingerprint(model) == marks
    head = DraftHead.load(tmp_path / "head", model)
    assert {p.dtype for p in head.parameters()} == {torch.bfloat16}
    states = [torch.randn(2, C, dtype=torch.bfloat16) for _ in head.config.feature_layers]
    with torch.no_grad():
        assert head.advance(head.begin(head.features(states)), torch.tensor([1, 2]))[1].dtype == torch.bfloat16


def test_a_target_with_other_layers_is_accepted(model, tmp_path):
    make_head(model).save(tmp_path / "head")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.add_(0.1)
    DraftHead.load(tmp_path / "head", model)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (dict(hidden_size=32), "hidden_size is 32, the head wants 16"),
        (dict(num_hidden_layers=5), "layers is 5, the head wants 6"),
        (dict(vocab_size=62), "vocab_size is 62"),
        (dict(seed=1), "embeddings differ"),
    ],
)
def test_another_model_is_refused(model, tmp_path, other, told):
    make_head(model).save(tmp_path / "head")
    with pytest.raises(CheckpointError, match=told):
        DraftHead.load(tmp_path / "head", make_model(**{"seed": 0, **other}))


def test_damage_is_told(model, tmp_path):
    folder = tmp_path / "head"
    make_head(model).save(folder)
    weights, told = next(folder.glob("*.safetensors")), (folder / "draft.json").read_text()

    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"missing, truncated or damaged"):
        DraftHead.load(folder, model)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"missing, truncated or damaged"):
        DraftHead.load(folder, model)
    for change, match in (
        ({"format": 99}, "format 99, readable is 1"),
        ({"config": {}}, "damaged"),
        ({"target": {"colour": 1}}, "damaged"),
        ({"file": {}}, "damaged"),
    ):
        (folder / "draft.json").write_text(json.dumps(json.loads(told) | change))
        with pytest.raises(CheckpointError, match=match):
            DraftHead.load(folder, model)
    (folder / "draft.json").write_text(told[:50])
    with pytest.raises(CheckpointError, match="damaged"):
        DraftHead.load(folder, model)


def test_sizes_that_are_not_those_of_the_tensors_are_told(model, tmp_path):
    folder = tmp_path / "head"
    make_head(model).save(folder)
    values = json.loads((folder / "draft.json").read_text())
    for change in ({"inner_size": 41}, {"draft_vocab": D - 1}, {"layers": 3}):
        (folder / "draft.json").write_text(json.dumps(values | {"config": values["config"] | change}))
        with pytest.raises(CheckpointError, match="do not fit its configuration"):
            DraftHead.load(folder, model)


def test_what_is_no_head_is_told(model, tmp_path):
    with pytest.raises(ModelNotFoundError, match="stille train draft"):
        DraftHead.load("no-such-model", model)
    with pytest.raises(ModelNotFoundError, match=r"holds no draft\.json"):
        DraftHead.load(tmp_path, model)
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no draft head"):
        make_head(model).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(ConfigError, match="int8 or bf16"):
        make_head(model).save(tmp_path / "new", "int3")  # pyright: ignore


@pytest.mark.parametrize(
    "change",
    [
        dict(layers=0), dict(inner_size=1.5), dict(draft_vocab=V + 1), dict(feature_layers=(6,)), dict(steps=True),
        dict(feature_layers=(2, 1)), dict(feature_layers=()), dict(feature_layers=(1, 1)),
    ],
)  # fmt: skip
def test_sizes_out_of_range(model, change):
    with pytest.raises(ConfigError, match="draft head"):
        DraftConfig.of(model.config, **change)


@pytest.mark.parametrize("tokens", [[3, 2, 1], [1, 2], [1, 2, 2], [1, 2, V], [-1, 2, 3]])
def test_a_vocabulary_that_is_none(model, tokens):
    with pytest.raises(ConfigError, match="ascending"):
        DraftHead(DraftConfig.of(model.config, draft_vocab=3), torch.tensor(tokens))
