"""Layers whose attention is sparse by configuration, beside others that attend in full."""

from stille.model.attention import ATTENTION_KINDS, Attention
from stille.model.config import StilleConfig
from stille.model.hf_hsa import parse_settings


@ATTENTION_KINDS.register("hsa")
class HSAAttention(Attention):
    """`Attention` that reads a budget of keys, chosen by content; `config.hsa` has the fields of `HSAConfig`.

    Raises:
        ConfigError: settings that `HSAConfig` does not know or take.
    """

    def __init__(self, config: StilleConfig, layer: int):
        super().__init__(config, layer)
        self.hsa = parse_settings(config.hsa)
