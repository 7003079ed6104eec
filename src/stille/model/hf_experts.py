"""Our experts as an experts implementation of transformers, named "stille", for its mixture-of-experts models.

>>> import stille.model  # registers it
>>> model = AutoModelForCausalLM.from_pretrained(name, experts_implementation="stille")

Experts are SwiGLU without biases in transformers' concatenated layout (Mixtral, Qwen3-MoE, DeepSeek-V3 and many more);
others are refused when they run. Routing tables may hold the number of experts for 'not used', at no cost.
"""

from typing import Any

from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from stille.errors import UnsupportedError
from stille.kernels.experts import moe_forward

NAME = "stille"

_FLAGS = (  # attribute of transformers' module, the value that we compute, what it is for a reader
    ("has_gate", True, "experts without a gate"),
    ("has_bias", False, "biases"),
    ("is_transposed", False, "transposed weights"),
    ("is_concatenated", True, "interleaved gate and up rows"),
    ("has_post_expert_norm", False, "a norm after each expert"),
)


def register_experts() -> None:
    """Register "stille" with transformers; importing this module has done it."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def experts_forward(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """transformers' experts function.

    Args:
        module: has `gate_up_proj` [E, 2I, C] and `down_proj` [E, C, I].
        hidden_states: [T, C].
        top_k_index: [T, K]; E where a column is not used.
        top_k_weights: [T, K].

    Returns:
        [T, C] in the dtype of `hidden_states`.

    Raises:
        UnsupportedError: experts of another form than SwiGLU without biases.
    """
    _refuse(module)
    experts: Any = module
    out = moe_forward(
        hidden_states.to(experts.gate_up_proj.dtype),  # float32 norms below autocast
        top_k_index,
        top_k_weights,
        experts.gate_up_proj,
        experts.down_proj,
    )
    return out.to(hidden_states.dtype)


def _refuse(module: nn.Module) -> None:
    instead = "load the model with experts_implementation='eager'"
    for name, value, what in _FLAGS:
        if getattr(module, name, value) != value:
            raise UnsupportedError(f"experts 'stille' do not have {what} ({type(module).__name__}): {instead}.")
    gate = getattr(type(module), "_apply_gate", None)
    if gate is not None and gate.__module__ != ALL_EXPERTS_FUNCTIONS.__module__:
        raise UnsupportedError(
            f"{type(module).__name__} has a gate of its own, which 'stille' does not know: {instead}."
        )
    act = getattr(module, "act_fn", None)
    if not isinstance(act, nn.SiLU) and type(act).__name__ != "SiLUActivation":
        raise UnsupportedError(f"experts 'stille' use SiLU, {type(module).__name__} has {act!r}: {instead}.")


register_experts()
