"""The model: configuration, decoder, checkpoints in and out.

Importing this package registers the architecture with transformers: `AutoConfig`, `AutoModel` and
`AutoModelForCausalLM` then load saved Stille folders, any model takes `attn_implementation="hsa"`, and those with
experts `experts_implementation="stille"`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from stille.model.config import StilleConfig
from stille.model.decoder import StilleForCausalLM, StilleModel
from stille.model.experts import ExpertsFFN, expert_budget, record_routing
from stille.model.hf_experts import register_experts
from stille.model.hf_hsa import register_hsa
from stille.model.hsa import HSAAttention
from stille.model.load import LoadedModel, load_config, load_model, load_tokenizer
from stille.model.routing import ExpertsConfig

AutoConfig.register(StilleConfig.model_type, StilleConfig, exist_ok=True)
AutoModel.register(StilleConfig, StilleModel, exist_ok=True)
AutoModelForCausalLM.register(StilleConfig, StilleForCausalLM, exist_ok=True)

__all__ = [
    "ExpertsConfig",
    "ExpertsFFN",
    "HSAAttention",
    "LoadedModel",
    "StilleConfig",
    "StilleForCausalLM",
    "StilleModel",
    "expert_budget",
    "load_config",
    "load_model",
    "load_tokenizer",
    "record_routing",
    "register_experts",
    "register_hsa",
]
