"""The configuration of the decoder: one class for every dense or sparse variant that it can run."""

from typing import Any

from transformers import PreTrainedConfig

from stille.errors import ConfigError
from stille.model.routing import ExpertsConfig

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


class StilleConfig(PreTrainedConfig):
    """Architecture of a Stille model, saved as `config.json` with `"model_type": "stille"`.

    Llama, Mistral, Qwen2, Qwen3 and SmolLM2 are the dense, full-attention case; what they differ in is a flag here.

    Args:
        vocab_size: number of token ids (V).
        hidden_size: width of the residual stream (C).
        intermediate_size: inner width of a dense FFN (I).
        num_hidden_layers: number of decoder layers (L).
        num_attention_heads: query heads (H).
        num_key_value_heads: key/value heads (K); H is a multiple of it. None: H.
        head_dim: width of a head (D), even; need not be C / H. None: C / H.
        max_position_embeddings: longest context in tokens.
        rms_norm_eps: epsilon of every RMSNorm.
        rope_parameters: transformers' dictionary: `rope_type` (one of `ROPE_KINDS`), `rope_theta`, and what the type
            needs. The older `rope_theta=` and `rope_scaling=` arguments are understood too.
        rope_freq_factors: optional divisors of the D/2 rotary frequencies, as GGUF files carry them
            (`rope_freqs.weight`).
        attention_bias: q, k and v projections have a bias.
        attention_output_bias: the o projection has a bias.
        qk_norm: RMSNorm on every q and k head before RoPE (Qwen3).
        tie_word_embeddings: the output head is the embedding table.
        attention_kinds: kind of each layer's attention: "full" or a registered one. None: all "full".
        ffn_kinds: kind of each layer's FFN: "dense" or a registered one. None: all "dense".
        experts: settings of the layers whose FFN is "experts": the fields of `routing.ExpertsConfig`.
        hsa: settings of the layers whose attention is "hsa".
        draft: settings of the draft head; `draft["kind"]` names a registered kind.
        sliding_window: accepted only where it changes nothing (not shorter than the context), and then forgotten.
        attention_dropout: dropout of attention weights in training.
        initializer_range: standard deviation of fresh weights.

    Raises:
        ConfigError: a contradictory or unsupported combination; the message names the field.
    """

    model_type = "stille"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 49152
    hidden_size: int = 576
    intermediate_size: int = 1536
    num_hidden_layers: int = 30
    num_attention_heads: int = 9
    # None stands for "derive it"; after construction these always have a value, so their type leaves None out.
    num_key_value_heads: int = None  # pyright: ignore[reportAssignmentType]
    head_dim: int = None  # pyright: ignore[reportAssignmentType]
    attention_kinds: list[str] = None  # pyright: ignore[reportAssignmentType]
    ffn_kinds: list[str] = None  # pyright: ignore[reportAssignmentType]
    rope_parameters: dict[str, Any] = None  # pyright: ignore[reportAssignmentType]
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_freq_factors: list[float] | None = None
    attention_bias: bool = False
    attention_output_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    experts: dict[str, Any] | None = None
    hsa: dict[str, Any] | None = None
    draft: dict[str, Any] | None = None
    attention_dropout: float = 0.0
    sliding_window: int | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_sizes()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.attention_kinds is None:
            self.attention_kinds = ["full"] * self.num_hidden_layers
        if self.ffn_kinds is None:
            self.ffn_kinds = ["dense"] * self.num_hidden_layers
        window, self.sliding_window = self.sliding_window, None
        if window is not None and window < self.max_position_embeddings:
            raise ConfigError(
                f"sliding_window={window} is shorter than max_position_embeddings={self.max_position_embeddings}: "
                f"windowed attention is not supported. Set max_position_embeddings to at most {window} to use the "
                "model within its window, where it is full attention."
            )
        # transformers edits the dictionary in place; the caller's must not change under its hands.
        for source in (self.rope_parameters, kwargs.get("rope_scaling")):
            if source is not None and not isinstance(source, dict):
                raise ConfigError(f"rope parameters are {source!r}, expected a dictionary.")
        self.rope_parameters = dict(self.rope_parameters or {})
        if kwargs.get("rope_scaling"):
            kwargs["rope_scaling"] = dict(kwargs["rope_scaling"])
        super().__post_init__(**kwargs)
        self._check_heads()
        self._check_rope()
        self._check_kinds()

    @property
    def rope_kind(self) -> str:
        """The `rope_type` in `rope_parameters`."""
        return self.rope_parameters.get("rope_type", "default")

    def _check_sizes(self) -> None:
        sizes = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
        sizes += ["max_position_embeddings"]
        sizes += [name for name in ("num_key_value_heads", "head_dim") if getattr(self, name) is not None]
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name}={value!r}, expected a positive integer.")
        if self.hidden_act not in ("silu", "swish"):
            raise ConfigError(f"hidden_act={self.hidden_act!r}; the FFN is SwiGLU, so only 'silu' is supported.")

    def _check_heads(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} is odd; RoPE rotates pairs, so it must be even.")

    def _check_rope(self) -> None:
        if self.rope_kind not in ROPE_KINDS:
            raise ConfigError(f"rope_type={self.rope_kind!r} is not supported (supported: {', '.join(ROPE_KINDS)}).")
        parameters = self.rope_parameters
        theta = parameters.get("rope_theta")
        if not isinstance(theta, int | float) or theta <= 0:
            raise ConfigError(f"rope_theta={theta!r}, expected a positive number.")
        if self.rope_kind != "default" and not parameters.get("factor"):
            raise ConfigError(f"rope_type={self.rope_kind!r} needs 'factor' in rope_parameters, given {parameters}.")
        if parameters.get("partial_rotary_factor", 1.0) != 1.0:
            raise ConfigError(
                f"partial_rotary_factor={parameters['partial_rotary_factor']} is not supported; heads rotate whole."
            )
        if self.rope_freq_factors is not None and len(self.rope_freq_factors) != self.head_dim // 2:
            raise ConfigError(
                f"rope_freq_factors has {len(self.rope_freq_factors)} entries, expected head_dim / 2 = "
                f"{self.head_dim // 2}."
            )

    def _check_kinds(self) -> None:
        for name in ("attention_kinds", "ffn_kinds"):
            kinds = getattr(self, name)
            if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
                raise ConfigError(f"{name}={kinds!r}, expected a list of names, one for each layer.")
            if len(kinds) != self.num_hidden_layers:
                raise ConfigError(
                    f"{name} has {len(kinds)} entries, expected one for each of the {self.num_hidden_layers} layers."
                )
        for kind, kinds, field in (("experts", self.ffn_kinds, "experts"), ("hsa", self.attention_kinds, "hsa")):
            settings = getattr(self, field)
            if kind in kinds and settings is None:
                raise ConfigError(f"a layer is of kind {kind!r}, but the {field!r} settings are missing.")
            if settings is not None and kind not in kinds:
                raise ConfigError(f"{field!r} settings are given, but no layer is of kind {kind!r}.")
        if self.experts is not None:
            ExpertsConfig.from_dict(self.experts)
        if self.draft is not None and not isinstance(self.draft.get("kind"), str):
            raise ConfigError(f"draft={self.draft!r} needs a 'kind'.")
