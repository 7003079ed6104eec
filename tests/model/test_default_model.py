"""The real default model: the same logits as transformers' Llama with weights read in another way."""

import json

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stille.model import load_config, load_model

PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TEXTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n" * 3,
    "Größe 12345 — 日本語 🎉",
]


@pytest.fixture(scope="module")
def theirs(default_model_path):
    """transformers' Llama, its weights through the gguf package's own reader and rows put in order one by one."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(default_model_path).tensors}
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {}
    for name, tensor in tensors.items():
        values = dequantize(tensor.data, tensor.tensor_type)
        if name.startswith("blk."):
            _, layer, part, leaf = name.split(".")
            own = f"model.layers.{layer}.{PARTS[part]}.{leaf}"
        else:
            own = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
        if ".attn_q." in name or ".attn_k." in name:
            rows = np.arange(len(values))
            head, j, i = rows // 64, rows % 64 // 32, rows % 32
            values = values[head * 64 + 2 * i + j]
        state[own] = torch.from_numpy(np.array(values, dtype=np.float32))
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    # Frequencies were made without storage above.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("text", TEXTS)
def test_logits_equal_transformers(default_model, theirs, text):
    ids = default_model.tokenizer(text, return_tensors="pt").input_ids
    torch.testing.assert_close(default_model.model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_greedy_chat_equals_transformers_and_is_right(default_model, theirs):
    tokenizer = default_model.tokenizer
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ours = default_model.model.generate(**inputs, max_new_tokens=16, do_sample=False)
    options = {"eos_token_id": [2, 0], "pad_token_id": 2, "max_new_tokens": 16, "do_sample": False}
    assert torch.equal(ours, theirs.generate(**inputs, **options))
    answer = tokenizer.decode(ours[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_what_the_metadata_says(default_model, default_model_path):
    config = load_config(default_model_path, progress=False)
    assert config.to_dict() == default_model.config.to_dict() | {"architectures": config.architectures}
    assert (config.num_hidden_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert config.tie_word_embeddings
    assert config.rms_norm_eps == 1e-5
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100000.0}
    assert sum(p.numel() for p in default_model.model.parameters()) == 134_515_008


def test_saved_folder_is_the_same_model(default_model, tmp_path):
    """Saved with its tokenizer, it loads bit for bit, and transformers finds the tokenizer too."""
    default_model.model.save_pretrained(tmp_path)
    default_model.tokenizer.save_pretrained(tmp_path)
    again = load_model(tmp_path, progress=False)
    before, after = default_model.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.eos_token_ids == default_model.eos_token_ids
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    messages = [{"role": "user", "content": "Hi, what's 2+2?"}]
    for tokenizer in (again.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert (
            rendered == default_model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        )
