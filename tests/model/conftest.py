"""Tiny random checkpoints of the families that transformers defines, and what tests do with them."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stille.model import StilleConfig, StilleForCausalLM

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}

CHECKPOINTS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama-bias": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)),
    "llama-wide-heads": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=20)),
    "llama-llama3-rope": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "llama-linear-rope": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LINEAR)),
    "llama-dynamic-rope": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=DYNAMIC)),
    "llama-yarn-rope": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, rope_parameters={**YARN, "beta_fast": 16, "attention_factor": 0.9})
    ),
    "llama-no-gqa": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 6})),
    "smollm2": lambda: LlamaForCausalLM(
        LlamaConfig(
            **{**SIZES, "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            rms_norm_eps=1e-5,
        )
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "mistral-wide-heads": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None, head_dim=16)),
    "mistral-idle-window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=128)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, rope_parameters={"rope_theta": 1e6, "rope_type": "default"})
    ),
    "qwen2-tied-yarn": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True, rope_parameters=YARN)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "qwen3-bias-tied": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, head_dim=8, attention_bias=True, tie_word_embeddings=True)
    ),
}


def randomise(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Give every parameter, norms and biases too, values that a mistake would show in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.25 * noise)
    return model.eval()


@pytest.fixture
def make_checkpoint() -> Callable[[str], PreTrainedModel]:
    """A fresh random model of transformers' own, by its name in CHECKPOINTS."""
    return lambda name: randomise(CHECKPOINTS[name]())


@pytest.fixture(params=list(CHECKPOINTS))
def checkpoint(request) -> PreTrainedModel:
    """Every one of CHECKPOINTS in turn."""
    return randomise(CHECKPOINTS[request.param]())


@pytest.fixture
def tiny_model() -> StilleForCausalLM:
    """A random Stille model with every option on: GQA, q/k norm, all biases, wide heads, tied, YaRN."""
    config = StilleConfig(
        **SIZES,
        head_dim=16,
        qk_norm=True,
        attention_bias=True,
        attention_output_bias=True,
        tie_word_embeddings=True,
        rope_parameters=YARN,
    )
    return randomise(StilleForCausalLM(config))


@pytest.fixture
def ids() -> torch.Tensor:
    """Two rows of token ids, long enough to leave the original context of the scaled RoPE kinds."""
    return torch.randint(3, SIZES["vocab_size"], (2, 70), generator=torch.Generator().manual_seed(1))
