"""Checkpoints of every family give the logits of transformers' own implementation."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from stille.errors import CheckpointError, ConfigError
from stille.model.checkpoint import SafetensorsFolder, build_model
from stille.model.load import folder_config


def load(folder, **options):
    return build_model(folder_config(folder), SafetensorsFolder(folder), **options)


@torch.no_grad()
def test_logits_equal_transformers(checkpoint, ids, tmp_path):
    checkpoint.save_pretrained(tmp_path)
    ours = load(tmp_path)
    torch.testing.assert_close(ours(ids).logits, checkpoint(ids).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cached_steps_equal_transformers(checkpoint, ids, tmp_path):
    checkpoint.save_pretrained(tmp_path)
    ours = load(tmp_path)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0  # the second row is padded on the left
    for end in (40, 41, 70):
        options = {"attention_mask": mask[:, :end], "use_cache": True}
        if end == 40:
            a, b = ours(ids[:, :end], **options), checkpoint(ids[:, :end], **options)
        else:
            start = a.past_key_values.get_seq_length()
            a = ours(ids[:, start:end], past_key_values=a.past_key_values, **options)
            b = checkpoint(ids[:, start:end], past_key_values=b.past_key_values, **options)
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_shards_load_like_one_file(make_checkpoint, ids, tmp_path):
    model = make_checkpoint("qwen3")
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    torch.testing.assert_close(load(tmp_path)(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_half_precision_checkpoint_loads_in_any_dtype(make_checkpoint, ids, tmp_path):
    model = make_checkpoint("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    wide, same = load(tmp_path), load(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert torch.equal(wide.lm_head.weight, model.lm_head.weight.float())
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)  # .to() would round its frequencies
    torch.testing.assert_close(same(ids).logits, theirs(ids).logits)


@torch.no_grad()
def test_older_config_spelling(make_checkpoint, ids, tmp_path):
    """`rope_theta` and `rope_scaling` at the top, `torch_dtype`, and rotary buffers among the weights."""
    model = make_checkpoint("llama-llama3-rope")
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    rope = raw.pop("rope_parameters")
    raw |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": raw.pop("dtype")}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load(tmp_path)(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tied_checkpoint_that_stores_its_head(make_checkpoint, ids, tmp_path):
    model = make_checkpoint("smollm2")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    same = load(tmp_path)
    assert same.lm_head.weight is same.model.embed_tokens.weight
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file, {"format": "pt"})
    other = load(tmp_path)
    assert not other.config.tie_word_embeddings
    assert torch.equal(other.lm_head.weight, tensors["model.embed_tokens.weight"] + 1)
    assert torch.equal(other.model.embed_tokens.weight, tensors["model.embed_tokens.weight"])


class TestRefusals:
    """What cannot be loaded is refused with an error that names it."""

    @pytest.fixture
    def folder(self, make_checkpoint, tmp_path):
        make_checkpoint("llama").save_pretrained(tmp_path)
        return tmp_path

    def edit(self, folder, **changes):
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | changes))

    def test_unknown_architecture(self, folder):
        self.edit(folder, model_type="gpt_neox")
        with pytest.raises(CheckpointError, match=r"'gpt_neox'.*llama, mistral, qwen2, qwen3"):
            load(folder)

    def test_missing_extra_and_misshapen_tensors_are_all_named(self, folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.mlp.router.weight"] = torch.ones(3)
        tensors["model.norm.weight"] = torch.ones(5)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError) as caught:
            load(folder)
        message = str(caught.value)
        assert "missing: model.layers.1.mlp.up_proj.weight" in message
        assert "not part of the architecture: model.layers.0.mlp.router.weight" in message
        assert "model.norm.weight is [5], expected [48]" in message

    def test_untied_checkpoint_without_head(self, folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
            load(folder)

    @pytest.mark.parametrize("keep", [0, 4, 500, -1])
    def test_truncated_file(self, folder, keep):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged"):
            load(folder)

    def test_missing_shard(self, make_checkpoint, tmp_path):
        make_checkpoint("llama").save_pretrained(tmp_path, max_shard_size="30KB")
        shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(CheckpointError, match=shard.name):
            load(tmp_path)

    def test_damaged_index(self, make_checkpoint, tmp_path):
        make_checkpoint("llama").save_pretrained(tmp_path, max_shard_size="30KB")
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ')
        with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
            load(tmp_path)

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
        with pytest.raises(CheckpointError, match=r"found pytorch_model\.bin"):
            load(folder)

    def test_no_config(self, folder):
        (folder / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            load(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"hidden_size": 3}'])
    def test_damaged_config(self, folder, text):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
            load(folder)

    def test_quantised_checkpoint(self, folder):
        self.edit(folder, quantization_config={"quant_method": "awq", "bits": 4})
        with pytest.raises(CheckpointError, match="awq"):
            load(folder)

    def test_integer_weights(self, folder):
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = torch.ones(48, dtype=torch.int8)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*int8"):
            load(folder)

    def test_sliding_window(self, folder):
        self.edit(folder, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=64)
        with pytest.raises(ConfigError, match="sliding_window=64"):
            load(folder)

    def test_qwen2_window_counts_only_where_a_layer_uses_it(self, make_checkpoint, ids, tmp_path):
        model = make_checkpoint("qwen2")
        model.save_pretrained(tmp_path)
        self.edit(tmp_path, use_sliding_window=True, sliding_window=16, max_window_layers=3, layer_types=None)
        torch.testing.assert_close(load(tmp_path)(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
        self.edit(tmp_path, max_window_layers=1)
        with pytest.raises(ConfigError, match="sliding_window=16"):
            load(tmp_path)

    def test_unsupported_rope(self, folder):
        rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
        self.edit(folder, rope_parameters=rope | {"original_max_position_embeddings": 32})
        with pytest.raises(ConfigError, match="'longrope' is not supported"):
            load(folder)

    def test_ffn_with_biases(self, tmp_path):
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=9,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                mlp_bias=True,
                num_attention_heads=2,
            )
        ).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match="mlp_bias"):
            load(tmp_path)
