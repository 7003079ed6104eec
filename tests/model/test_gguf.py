"""GGUF files: every block type, the llama layout, and what is refused."""

import contextlib
import struct

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from stille.errors import CheckpointError, ConfigError
from stille.model.checkpoint import build_model
from stille.model.gguf_file import GGUFFile
from stille.model.gguf_model import open_gguf

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Q4_0, Q8_0, F32 = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F32
QUANTISABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def gguf_name(name: str) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, leaf = name.rpartition(".")
    if module in top:
        return f"{top[module]}.{leaf}"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.{leaf}"


def interleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Row i + j * D/2 of each head becomes row 2i + j: the layout that llama's GGUF files use for q and k."""
    out = np.empty_like(rows)
    for row in range(len(rows)):
        head, within = divmod(row, head_dim)
        j, i = divmod(within, head_dim // 2)
        out[head * head_dim + 2 * i + j] = rows[row]
    return out


def deinterleave(rows: np.ndarray, head_dim: int) -> np.ndarray:
    order = interleave(np.arange(len(rows)), head_dim)
    out = np.empty_like(rows)
    out[order] = rows
    return out


def write_gguf(path, model, kind=F32, *, arch="llama", extra=None, drop=(), metadata=None):
    """Write a transformers model as a GGUF file; its weights become what the file's precision leaves of them."""
    config = model.config
    head_dim = (
        config.head_dim if getattr(config, "head_dim", None) else config.hidden_size // config.num_attention_heads
    )
    writer = GGUFWriter(path, arch)
    fields = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "rope.dimension_count": head_dim,
    } | (metadata or {})
    for key, value in fields.items():
        if isinstance(value, str):
            writer.add_string(f"{arch}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{arch}.{key}", value)
        else:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    if "rope.freq_base" not in fields:
        writer.add_float32(f"{arch}.rope.freq_base", config.rope_parameters["rope_theta"])
    state = dict(model.state_dict())
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    for name, tensor in state.items():
        permuted = arch == "llama" and any(part in name for part in ("q_proj", "k_proj"))
        values = tensor.numpy()
        own = kind if values.ndim == 2 else F32
        packed = quantize(interleave(values, head_dim) if permuted else values, own)
        if gguf_name(name) not in drop:
            writer.add_tensor(gguf_name(name), packed, raw_dtype=own)
        kept = dequantize(packed, own).reshape(values.shape)
        tensor.copy_(torch.from_numpy(deinterleave(kept, head_dim) if permuted else kept.copy()))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path):
    config, source, _ = open_gguf(path)
    return build_model(config, source)


@pytest.fixture
def tokens():
    return torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(3))


def llama(**changes):
    return randomised(LlamaForCausalLM(LlamaConfig(**(SIZES | changes))))


def randomised(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.25 * noise)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", QUANTISABLE)
def test_logits_equal_transformers_with_the_same_weights(tmp_path, tokens, kind):
    theirs = llama()
    ours = load(write_gguf(tmp_path / "m.gguf", theirs, GGMLQuantizationType[kind]))
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{"tie_word_embeddings": True}, {"attention_bias": True}, {"head_dim": 32}, {"num_key_value_heads": 4}],
    ids=lambda changes: next(iter(changes)),
)
def test_variants_of_llama(tmp_path, tokens, changes):
    theirs = llama(**changes)
    ours = load(write_gguf(tmp_path / "m.gguf", theirs, Q8_0))
    assert ours.config.tie_word_embeddings == theirs.config.tie_word_embeddings
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_qwen_architectures(tmp_path, tokens):
    for arch, theirs in (
        ("qwen2", randomised(Qwen2ForCausalLM(Qwen2Config(**SIZES)))),
        ("qwen3", randomised(Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)))),
    ):
        ours = load(write_gguf(tmp_path / f"{arch}.gguf", theirs, Q4_0, arch=arch))
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_llama3_frequency_factors(tmp_path, tokens):
    """llama.cpp stores Llama-3's RoPE scaling as divisors of the frequencies."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    theirs = llama(rope_parameters=rope)
    plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = (plain / theirs.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    assert factors.max() > 2
    path = write_gguf(tmp_path / "m.gguf", theirs, extra={"rope_freqs.weight": factors})
    ours = load(path)
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    ours.save_pretrained(tmp_path / "saved")
    again = type(ours).from_pretrained(tmp_path / "saved")
    assert torch.equal(again(tokens).logits, ours(tokens).logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_rope_scaling_keys(tmp_path, tokens, kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = 16
    theirs = llama(rope_parameters=rope)
    keys = {"rope.scaling.type": kind, "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
    ours = load(write_gguf(tmp_path / "m.gguf", theirs, metadata=keys))
    torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-5)


DEQUANTISABLE = sorted(
    kind.name for kind in GGMLQuantizationType if kind.name in ("F32", "F16") or kind in gguf.quants._type_traits
)


@pytest.mark.parametrize("kind", DEQUANTISABLE)
def test_every_block_type_reads_as_the_gguf_package_reads_it(tmp_path, kind):
    kind = GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    row = block * max(1, 256 // block)
    generator = np.random.default_rng(int(kind))
    raw = generator.integers(0, 256, (6, row // block * block_bytes), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("before", np.ones(3, np.float32))
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = next(tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors if tensor.name == "w")
    with np.errstate(all="ignore"):
        expected = dequantize(theirs.data, kind)
        got = GGUFFile(tmp_path / "m.gguf").read("w")
    assert got.dtype == np.float32
    assert got.shape == (6, row)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("value", [7, -3, 1.5, True, "text", "ünïcödé", [1, 2, 3], ["a", "b"], [0.5, 0.25], []])
def test_metadata_values(tmp_path, value):
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    if isinstance(value, list) and value:
        writer.add_array("key", value)
    elif not isinstance(value, list):
        writer.add_key_value("key", value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert GGUFFile(tmp_path / "m.gguf").metadata.get("key", []) == value


class TestRefusals:
    @pytest.fixture
    def path(self, tmp_path):
        return write_gguf(tmp_path / "m.gguf", llama(), Q8_0)

    def test_other_architecture(self, tmp_path):
        with pytest.raises(CheckpointError, match="'gemma3'; readable are llama, qwen2, qwen3"):
            load(write_gguf(tmp_path / "m.gguf", llama(), arch="gemma3"))

    def test_missing_tensor(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
            load(write_gguf(tmp_path / "m.gguf", llama(), drop=["blk.1.ffn_up.weight"]))

    def test_missing_embeddings(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"token_embd\.weight"):
            load(write_gguf(tmp_path / "m.gguf", llama(), drop=["token_embd.weight"]))

    def test_extra_tensor(self, tmp_path):
        extra = {"blk.0.ffn_gate_inp.weight": np.ones((4, 64), np.float32)}
        with pytest.raises(CheckpointError, match=r"not part of the architecture: blk\.0\.ffn_gate_inp\.weight"):
            load(write_gguf(tmp_path / "m.gguf", llama(), extra=extra))

    def test_misshapen_tensor(self, tmp_path):
        extra = {"blk.0.attn_norm.weight": np.ones(32, np.float32)}
        with pytest.raises(CheckpointError, match=r"input_layernorm\.weight is \[32\], expected \[64\]"):
            load(write_gguf(tmp_path / "m.gguf", llama(), drop=["blk.0.attn_norm.weight"], extra=extra))

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"rope.scaling.type": "longrope"}, "RoPE scaling 'longrope'"),
            ({"rope.dimension_count": 8}, "rotates part of a head"),
        ],
    )
    def test_unsupported_rope(self, tmp_path, keys, message):
        with pytest.raises(CheckpointError, match=message):
            load(write_gguf(tmp_path / "m.gguf", llama(), metadata=keys))

    def test_sliding_window(self, tmp_path):
        with pytest.raises(ConfigError, match="sliding_window=64"):
            load(write_gguf(tmp_path / "m.gguf", llama(), metadata={"attention.sliding_window": 64}))

    def test_block_type_without_dequantisation(self, tmp_path):
        path = write_gguf(tmp_path / "m.gguf", llama(), extra={"whole": np.ones((2, 3), np.int32)})
        with pytest.raises(CheckpointError, match=r"'whole'.*type I32"):
            GGUFFile(path).read("whole")

    def test_not_gguf(self, path):
        path.write_bytes(b"PK\x03\x04" + path.read_bytes()[4:])
        with pytest.raises(CheckpointError, match="not a GGUF file"):
            load(path)

    @pytest.mark.parametrize("version", [1, 99, 3 << 24])
    def test_unknown_version(self, path, version):
        data = bytearray(path.read_bytes())
        data[4:8] = struct.pack("<I", version)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"version {version}"):
            load(path)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_cut_anywhere(self, path, share):
        whole = path.read_bytes()
        cut = path.with_name("cut.gguf")
        cut.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            GGUFFile(cut)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_flipped_bytes_in_the_header_never_crash(self, path, data):
        """A damaged header is refused, or it happens to describe something else that is valid; nothing else."""
        whole = bytearray(path.read_bytes())
        end = min(tensor.offset for tensor in GGUFFile(path).tensors.values())
        for _ in range(data.draw(st.integers(1, 4))):
            whole[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
        bad = path.with_name("bad.gguf")
        bad.write_bytes(whole)
        with contextlib.suppress(CheckpointError):
            GGUFFile(bad)
