"""`attn_implementation="hsa"` in transformers' own models and ours: prefill, decoding, padding, training, settings."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

from stille.errors import ConfigError, UnsupportedError
from stille.kernels.hsa import HSAConfig, hsa_attention
from stille.model import StilleConfig, StilleForCausalLM, hf_hsa, register_hsa

SIZES = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "eos_token_id": None,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "stille": lambda: StilleForCausalLM(StilleConfig(**SIZES)),
}
SPARSE = {"budget": 176, "leaf": 16, "sinks": 16, "local": 16, "candidates": 1024, "dense_below": 0}
ALL = {**SPARSE, "budget": 1024}  # sparse in form, but the budget holds everything
T = 300


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are small
    yield
    torch.set_num_threads(threads)
    register_hsa()


def build(name, hsa=None, implementation="hsa"):
    """A random model; peaked heads, so that what is left out shows."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    model.set_attn_implementation(implementation)
    if name == "stille":  # its own `hsa` field is for layers of that kind
        register_hsa(None if hsa is None else HSAConfig(**hsa))
    else:
        model.config.hsa = hsa
    return model


@pytest.fixture
def ids():
    return torch.randint(3, 101, (2, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def left():
    mask = torch.ones(2, T, dtype=torch.long)
    mask[1, :77] = 0
    return mask


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_budget_for_everything_is_full_attention(name, ids, left):
    full = build(name, implementation="sdpa")
    want, text = full(ids).logits, full.generate(ids, attention_mask=left, max_new_tokens=8, do_sample=False)
    model = build(name, ALL)
    torch.testing.assert_close(model(ids).logits, want, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(ids, attention_mask=left, max_new_tokens=8, do_sample=False), text)
    assert torch.equal(build(name)(ids).logits, want)  # the defaults attend in full below 8K


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "stille"])
def test_each_layer_is_hsa_attention(name, ids, monkeypatch):
    """The tensors that reach the layers, given to the public function, give what the layers return."""
    seen = []

    def record(module, query, key, value, *rest, **options):
        out, weights = forward(module, query, key, value, *rest, **options)
        seen.append((query, key, value, options["scaling"], out))
        return out, weights

    forward = hf_hsa.hsa_forward
    model = build(name, SPARSE)
    monkeypatch.setitem(hf_hsa.AttentionInterface._global_mapping, "hsa", record)
    logits = model(ids).logits
    assert len(seen) == 2
    for query, key, value, scale, out in seen:
        assert key.shape[1] == 2
        want = hsa_attention(query, key, value, HSAConfig(**SPARSE), scale=scale).transpose(1, 2)
        assert torch.equal(out.view(want.shape), want)
    monkeypatch.undo()
    assert (logits - build(name, implementation="sdpa")(ids).logits).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("hsa", [SPARSE, None], ids=["sparse", "full"])
@pytest.mark.parametrize("name", ["qwen3", "stille"])
def test_padded_rows_equal_each_alone(name, hsa, ids, left):
    model = build(name, hsa)
    right = left.flip(1)
    alone = model(ids[1:, 77:]).logits
    torch.testing.assert_close(model(ids, attention_mask=left).logits[1:, 77:], alone, rtol=1e-4, atol=1e-4)
    rolled = ids.roll(-77, 1)
    torch.testing.assert_close(model(rolled, attention_mask=right).logits[1:, :-77], alone, rtol=1e-4, atol=1e-4)
    both = model.generate(ids, attention_mask=left, max_new_tokens=6, do_sample=False)
    one = model.generate(ids[1:, 77:], max_new_tokens=6, do_sample=False)
    assert torch.equal(both[1, T:], one[0, -6:])
    static = model.generate(ids, attention_mask=left, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(static, both)


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_chunks_over_a_cache(static, ids, left):
    """Full attention in pieces of many and of few tokens, with padding, and with a cache that ends beyond them."""
    want = build("llama", implementation="sdpa")(ids, attention_mask=left).logits
    for hsa in (None, ALL):
        model = build("llama", hsa)
        cache = StaticCache(config=model.config, max_cache_len=T + 30) if static else None
        parts, start = [], 0
        for end in (200, 260, 270, 271, T):
            out = model(
                ids[:, start:end], attention_mask=left[:, :end], past_key_values=cache, use_cache=True,
                position_ids=torch.arange(start, end)[None],
            )  # fmt: skip
            parts.append(out.logits)
            cache, start = out.past_key_values, end
        real = left.bool()
        torch.testing.assert_close(torch.cat(parts, 1)[real], want[real], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_masks_never_have_two_long_axes(ids, left):
    mask = hf_hsa.hsa_mask
    assert mask(2, T, T) is None
    assert mask(2, T, T, attention_mask=torch.ones(2, T, dtype=torch.bool)) is None  # nothing is padded
    assert mask(2, 1, T, q_offset=T - 1) is None
    assert mask(2, T, T, attention_mask=left.bool()).shape == (2, 1, 1, T)
    assert mask(2, T, 512, attention_mask=left.bool()).shape == (2, 1, 1, T)  # the part of a static cache in use
    assert mask(2, T, 512).shape == (2, 1, 0, T)
    later = mask(2, 1, 512, q_offset=torch.tensor(T - 1), attention_mask=left.bool())
    assert later.shape == (2, 1, 1, 512)
    assert later[1, 0, 0, :77].sum() == 0
    assert later[:, 0, 0, T:].sum() == 0
    assert later[:, 0, 0, T - 1].tolist() == [3, 3]


@pytest.mark.parametrize("padded", [False, True])
def test_compiled_model_equals_eager(padded, ids, left):
    model = build("llama", SPARSE)
    mask = left if padded else None
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        want, got = (f(ids, attention_mask=mask, use_cache=False).logits for f in (model, compiled))
    real = left.bool() if padded else slice(None)
    torch.testing.assert_close(got[real], want[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hsa", [ALL, SPARSE], ids=["all", "sparse"])
def test_gradients(hsa, ids, left):
    labels = ids.masked_fill(left == 0, -100)
    grads = []
    for settings, implementation in ((None, "sdpa"), (hsa, "hsa")):
        model = build("llama", settings, implementation).train()
        model(ids, attention_mask=left, labels=labels).loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    full, ours = grads
    for name, grad in ours.items():
        assert grad is not None, name
        assert grad.abs().max() > 0, name
        if hsa is ALL:
            torch.testing.assert_close(grad, full[name], rtol=1e-3, atol=1e-5, msg=name)
    if hsa is SPARSE:
        key = "model.layers.0.self_attn.k_proj.weight"
        assert (ours[key] - full[key]).abs().max() > 1e-4


class TestSettings:
    def test_are_saved_with_the_model(self, ids, tmp_path):
        model = build("llama", {**SPARSE, "full_layers": [1]})
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["hsa"]["full_layers"] == [1]
        again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="hsa")
        with torch.no_grad():
            assert torch.equal(again(ids).logits, model(ids).logits)
            again.config.hsa = SPARSE
            assert not torch.equal(again(ids).logits, model(ids).logits)

    def test_default_is_what_was_registered_last(self, ids):
        model = build("qwen2")
        with torch.no_grad():
            full = model(ids).logits
            register_hsa(HSAConfig(**SPARSE))
            assert (model(ids).logits - full).abs().max() > 0.1
            model.config.hsa = SPARSE
            sparse = model(ids).logits
            register_hsa()
            assert torch.equal(model(ids).logits, sparse)

    @pytest.mark.parametrize(
        ("hsa", "match"),
        [
            ({"buget": 4096}, r"'buget': expected full_layers or fields of HSAConfig .*budget"),
            ({"budget": 100}, "budget is 100"),
            (4096, "config.hsa is 4096: expected a dictionary"),
        ],
    )
    def test_bad_ones_are_refused(self, hsa, match, ids):
        model = build("llama", hsa)
        with pytest.raises(ConfigError, match=match):
            model(ids)

    @torch.no_grad()
    def test_layers_of_our_decoder_by_kind(self, ids, left, tmp_path):
        torch.manual_seed(0)
        config = StilleConfig(**SIZES, attention_kinds=["full", "hsa"], hsa=SPARSE, initializer_range=0.25)
        StilleForCausalLM(config).save_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert model.config._attn_implementation == "hsa"
        twin = build("llama", {**SPARSE, "full_layers": [0]})
        twin.load_state_dict(model.state_dict())
        real = left.bool()
        for mask in (None, left):
            got, want = (m(ids, attention_mask=mask).logits[real] for m in (model, twin))
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        twin.config.hsa = SPARSE
        assert (twin(ids).logits - model(ids).logits).abs().max() > 1e-2
        with pytest.raises(UnsupportedError, match="has layers of kind 'hsa'"):
            AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
        with pytest.raises(ConfigError, match="'sings'"):
            StilleForCausalLM(StilleConfig(**SIZES, attention_kinds=["hsa", "hsa"], hsa={"sings": 1}))


class TestRefusals:
    """What HSA cannot do is refused with what to do instead, never computed wrongly."""

    def refused(self, match, model, *args, **options):
        model.set_attn_implementation("hsa")
        with pytest.raises(UnsupportedError, match=match):
            model(*args, **options)

    def test_sliding_window(self, ids):
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=128))
        self.refused("window of 128 tokens.*sliding_window = None", model, ids)

    @torch.no_grad()
    def test_a_window_of_the_whole_context_is_none(self, ids):
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=1024)).eval()
        want = model(ids).logits
        model.set_attn_implementation("hsa")
        torch.testing.assert_close(model(ids).logits, want, rtol=1e-4, atol=1e-5)

    def test_dropout(self, ids):
        model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.1))
        self.refused("no dropout, given 0.1", model.train(), ids)

    @pytest.mark.parametrize("name", ["llama", "stille"])
    def test_attention_weights(self, name, ids):
        self.refused("keeps no attention weights", build(name), ids, output_attentions=True)

    def test_head_width(self, ids):
        self.refused("head_dim is 20", LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=20)), ids)

    def test_packed_sequences(self, ids):
        positions = torch.cat([torch.arange(100), torch.arange(T - 100)])[None].expand(2, -1)
        self.refused("packed sequences", build("llama"), ids, position_ids=positions, use_cache=False)

    def test_masks_of_four_axes(self, ids):
        mask = torch.ones(2, 1, T, T, dtype=torch.bool).tril()
        self.refused("give attention_mask as", build("llama"), ids, attention_mask=mask)

    def test_soft_capping(self, ids):
        from transformers import Gemma2Config, Gemma2ForCausalLM

        sizes = {**SIZES, "head_dim": 16, "layer_types": ["full_attention"] * 2}
        self.refused("soft capping", Gemma2ForCausalLM(Gemma2Config(**sizes)), ids)
