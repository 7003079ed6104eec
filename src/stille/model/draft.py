"""The recurrent draft head of speculative decoding: guesses the next tokens from hidden states of its target.

It has no attention and so no cache of its own: what it knows of the context are features of one position, hidden states
of a few of the target's layers (EAGLE-3, 2503.01840); what it carries from step to step is one vector (a recurrent
drafter as ReDrafter's, 2403.09919). It predicts the D most frequent tokens only (FR-Spec, 2502.14856), by the target's
own rows of the output head; embeddings are the target's too, so neither is stored.

    features = concat of rms_norm(hidden state after layer l), l in feature_layers           [N, F], F = layers x C
    begin:    x = W_f features                      at a position whose row has predicted the token t
    advance:  x = x + W_e embed(t); for each layer x = x + down(silu(gate(n)) * up(n)), n = rms_norm(x)
              logits = head[draft_tokens] rms_norm(x);  x is carried on, with the next t

Kinds of `StilleConfig.draft` register at `DRAFT_KINDS`; this head needs no entry there: it is a folder of its own.
Shapes: N rows, C hidden size, F features, I inner width, D draft vocabulary, V vocabulary.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stille.errors import CheckpointError, ConfigError
from stille.kernels.experts import swiglu
from stille.model import draft_store
from stille.model.config import StilleConfig
from stille.model.draft_store import Target, fingerprint, is_draft, resolve_draft
from stille.model.norm import RMSNorm
from stille.model.registry import DRAFT_KINDS

if TYPE_CHECKING:
    from stille.model.decoder import StilleForCausalLM

__all__ = [
    "DRAFT_KINDS",
    "DraftConfig",
    "DraftHead",
    "Target",
    "build_draft",
    "fingerprint",
    "is_draft",
    "resolve_draft",
]

logger = logging.getLogger(__name__)

TOKENS = "draft_tokens"


def build_draft(config: StilleConfig) -> Any:
    """The draft module that the configuration asks for, or None.

    Raises:
        ConfigError: its kind is not registered.
    """
    return None if config.draft is None else DRAFT_KINDS.build(config.draft["kind"], config)


@dataclass(frozen=True)
class DraftConfig:
    """Sizes of a draft head, and what of the target they must fit.

    Attributes:
        hidden_size: C of the target.
        vocab_size: V of the target.
        target_layers: how many decoder layers the target has.
        feature_layers: indices of those after which hidden states are read, ascending; the last one's output is taken
            before the final norm.
        draft_vocab: D, how many tokens can be drafted.
        layers: FFN layers of a step; every step runs the same.
        inner_size: I of each.
        rms_norm_eps: epsilon of every norm, that of the features included.
        steps: draft steps that it was trained for; more are allowed, and guess worse.

    Raises:
        ConfigError: a value out of range.
    """

    hidden_size: int
    vocab_size: int
    target_layers: int
    feature_layers: tuple[int, ...]
    draft_vocab: int = 8192
    layers: int = 2
    inner_size: int = 1536
    rms_norm_eps: float = 1e-5
    steps: int = 7

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "vocab_size", "target_layers", "draft_vocab", "layers", "inner_size", "steps")
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"draft head: {name}={value!r}, expected a positive integer.")
        layers = self.feature_layers
        fine = isinstance(layers, tuple) and all(isinstance(at, int) and 0 <= at < self.target_layers for at in layers)
        if not fine or not layers or list(layers) != sorted(set(layers)):
            raise ConfigError(
                f"draft head: feature_layers={layers!r}, expected ascending layer numbers below {self.target_layers}."
            )
        if self.draft_vocab > self.vocab_size:
            raise ConfigError(
                f"draft head: draft_vocab={self.draft_vocab} exceeds the target's vocabulary of {self.vocab_size}."
            )

    @property
    def features(self) -> int:
        """F."""
        return len(self.feature_layers) * self.hidden_size

    @classmethod
    def of(cls, target: StilleConfig, **changes: Any) -> "DraftConfig":
        """For a target, with features after about 1/2, 5/6 and all of its layers unless said otherwise.

        Raises:
            ConfigError: a value out of range.
        """
        depth = target.num_hidden_layers
        values: dict[str, Any] = dict(
            hidden_size=target.hidden_size, vocab_size=target.vocab_size, target_layers=depth,
            feature_layers=tuple(sorted({max(0, depth // 2 - 1), max(0, -(-5 * depth // 6) - 1), depth - 1})),
            rms_norm_eps=target.rms_norm_eps,
        )  # fmt: skip
        return cls(**{**values, "draft_vocab": min(cls.draft_vocab, target.vocab_size), **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DraftConfig":
        """From JSON's types.

        Raises:
            ConfigError: a name is unknown or missing, or a value out of range.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"draft head: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        try:
            return cls(**{**values, "feature_layers": tuple(values["feature_layers"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"draft head: the configuration is incomplete ({error}).") from error


class DraftLayer(nn.Module):
    """A pre-norm SwiGLU around the carried state; the rows of gate come first in `gate_up`, then those of up."""

    def __init__(self, config: DraftConfig):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.inner_size, bias=False)
        self.down = nn.Linear(config.inner_size, config.hidden_size, bias=False)

    @property
    def norm_C(self) -> Tensor:
        return self.norm.weight

    @property
    def gate_up_2IC(self) -> Tensor:
        return self.gate_up.weight

    @property
    def down_CI(self) -> Tensor:
        return self.down.weight

    def forward(self, x_NC: Tensor) -> Tensor:
        """[N, C] to [N, C], the residual included."""
        return x_NC + self.down(swiglu(self.gate_up(self.norm(x_NC))))


class DraftHead(nn.Module):
    """The head; its target's embeddings and head rows are borrowed by `attach`, never stored or trained.

    Args:
        config: sizes.
        draft_tokens_D: int64 [D], ids of the tokens that can be drafted, ascending; None: the first D.

    Attributes:
        layers: `DraftLayer`s, in order, with `norm_C`, `gate_up_2IC` and `down_CI`.
        draft_tokens_D: int64 [D]; logit d is that of this token.
        embed_VC, head_DC: of the target, once attached.
        target: which model it was trained for.
        about: how it was made.

    Example:
        >>> head = DraftHead.load("draft", model)
        >>> x_NC = head.begin(head.features(states))  # states: one [N, C] for each of config.feature_layers
        >>> x_NC, logits_ND = head.advance(x_NC, token_N)
        >>> token_N = head.draft_tokens_D[logits_ND.argmax(-1)]
    """

    draft_tokens_D: Tensor
    embed_VC: Tensor | None
    head_DC: Tensor | None

    def __init__(self, config: DraftConfig, draft_tokens_D: Tensor | None = None):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.feature_proj = nn.Linear(config.features, width, bias=False)
        self.token_proj = nn.Linear(width, width, bias=False)
        self.layers = nn.ModuleList(DraftLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(width, config.rms_norm_eps)
        tokens = torch.arange(config.draft_vocab) if draft_tokens_D is None else draft_tokens_D.long()
        _check_tokens(tokens, config, "draft_tokens")
        self.register_buffer("draft_tokens_D", tokens, persistent=False)
        self.register_buffer("embed_VC", None, persistent=False)
        self.register_buffer("head_DC", None, persistent=False)
        self.target, self.about = Target(), {}

    @property
    def final_norm_C(self) -> Tensor:
        return self.norm.weight

    def attach(self, model: "StilleForCausalLM", name: str | None = None) -> "DraftHead":
        """Borrow the target's embeddings and head rows, in the target's dtype; moves the head to its device.

        Args:
            model: the target.
            name: given when the head is to be trained for it: notes it in `target`.

        Raises:
            CheckpointError: other sizes than the head's.
        """
        _check_sizes(self.config, model.config)
        embed_VC = model.model.embed_tokens.weight.detach()
        self.to(embed_VC.device)
        self.embed_VC = embed_VC
        self.head_DC = model.lm_head.weight.detach()[self.draft_tokens_D].contiguous()
        if name is not None:
            self.target = Target(name, *fingerprint(model))
        return self

    @torch.no_grad()
    def initialize(self, model: "StilleForCausalLM", seed: int = 0) -> "DraftHead":
        """Fresh weights for an attached head: layers add nothing yet, and the state is the target's last one.

        Features of the last layer pass as they are, those of others and the token at unit scale of all; the final norm
        is the target's. Needs `attach` before.
        """
        generator = torch.Generator().manual_seed(seed)
        width, parts = self.config.hidden_size, len(self.config.feature_layers)

        def normal(rows: int, columns: int, scale: float) -> Tensor:
            return torch.randn(rows, columns, generator=generator) * scale

        features = normal(width, parts * width, 0.1 / math.sqrt(parts * width))
        features[:, -width:] += torch.eye(width)
        self.feature_proj.weight.copy_(features)
        assert self.embed_VC is not None, "attach first"
        size = float(self.embed_VC.float().pow(2).mean().sqrt().clamp(min=1e-6))
        self.token_proj.weight.copy_(normal(width, width, 1 / (math.sqrt(width) * size)))
        for layer in self.layers:
            layer.norm.weight.fill_(1.0)  # pyright: ignore
            layer.gate_up.weight.copy_(normal(2 * self.config.inner_size, width, 1 / math.sqrt(width)))  # pyright: ignore
            layer.down.weight.zero_()  # pyright: ignore
        self.norm.weight.copy_(model.model.norm.weight)
        return self

    def features(self, states: Sequence[Tensor]) -> Tensor:
        """features_NF out of [.., C] hidden states after each of `config.feature_layers`, in their dtype."""
        eps = self.config.rms_norm_eps
        return torch.cat([F.rms_norm(h.float(), h.shape[-1:], eps=eps).to(h.dtype) for h in states], dim=-1)

    def begin(self, features_NF: Tensor) -> Tensor:
        """The state x_NC at positions whose target rows have been computed."""
        return self.feature_proj(features_NF)

    def advance(self, x_NC: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
        """A draft step.

        Args:
            x_NC: from `begin`, or from the step before.
            token_N: int64 token ids that follow; in the first step the ones that the target has sampled.

        Returns:
            x_NC to carry on, and logits_ND of the token after `token_N`; column d is token `draft_tokens_D[d]`.
        """
        x_NC = self.step(x_NC, token_N)
        return x_NC, self.logits(x_NC)

    def step(self, x_NC: Tensor, token_N: Tensor) -> Tensor:
        """`advance` without logits."""
        assert self.embed_VC is not None, "attach first"
        x_NC = x_NC + self.token_proj(F.embedding(token_N, self.embed_VC).to(x_NC.dtype))
        for layer in self.layers:
            x_NC = layer(x_NC)
        return x_NC

    def logits(self, x_NC: Tensor) -> Tensor:
        """logits_ND of states."""
        assert self.head_DC is not None, "attach first"
        return F.linear(self.norm(x_NC), self.head_DC.to(x_NC.dtype))

    def save(
        self,
        folder: str | Path,
        precision: Literal["int8", "bf16"] = "int8",
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Write a folder, whole or not at all; it takes the place of an older head.

        Args:
            folder: must not exist, be empty, or hold a head.
            precision: of matrices: int8 with a factor for each row (symmetric), or bf16. Norms are float32.
            extra: other files of the folder (a card), by name.

        Raises:
            ConfigError: the folder holds something else, or an unknown precision.
        """
        folder = Path(folder)
        if precision not in ("int8", "bf16"):
            raise ConfigError(f"precision={precision!r}, expected int8 or bf16.")
        draft_store.check_place(folder)
        tensors = {TOKENS: self.draft_tokens_D.to(torch.int32).cpu()}
        tensors |= draft_store.packed(self.state_dict(), precision)
        values = {
            "target": dataclasses.asdict(self.target),
            "config": dataclasses.asdict(self.config),
            "about": self.about,
        }
        draft_store.write(folder, values, tensors, extra)

    @classmethod
    def load(cls, source: str | Path, model: "StilleForCausalLM", *, dtype: torch.dtype | None = None) -> "DraftHead":
        """Read a head for a target, attached to it and in evaluation mode.

        A target whose layers differ from those that it was trained on (fine-tuned, or split into experts) is accepted
        (the log tells): guesses are checked anyway, only fewer of them may be right.

        Args:
            source: folder, or the name of a model with a head of its own.
            model: the target, on its device.
            dtype: of the weights; None: the target's.

        Raises:
            ModelNotFoundError: the source leads nowhere.
            CheckpointError: damaged, of a newer format, or made for a target of other sizes or embeddings.
        """
        folder = resolve_draft(source)
        values = draft_store.read(folder)
        try:
            config, target = DraftConfig.from_dict(values["config"]), Target(**values["target"])
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the draft head {folder} is damaged ({error}); make or fetch it again.") from error
        _check_target(folder, config, target, model)
        tensors = draft_store.read_tensors(folder, values)
        tokens = tensors.pop(TOKENS, torch.zeros(0)).long()
        try:
            head = cls(config, tokens)
            head.load_state_dict(tensors)
        except (RuntimeError, ConfigError) as error:
            raise CheckpointError(f"the tensors of {folder} do not fit its configuration: {error}") from error
        head.target, head.about = target, dict(values.get("about") or {})
        return head.to(dtype or model.lm_head.weight.dtype).attach(model).eval().requires_grad_(False)


def _check_tokens(tokens_D: Tensor, config: DraftConfig, what: str) -> None:
    ids = tokens_D.tolist()
    if len(ids) != config.draft_vocab or ids != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < config.vocab_size:
        raise ConfigError(
            f"{what} are {len(ids)} ids, expected {config.draft_vocab} ascending ones below {config.vocab_size}."
        )


def _check_sizes(config: DraftConfig, target: StilleConfig) -> None:
    pairs = {
        "hidden_size": (config.hidden_size, target.hidden_size),
        "vocab_size": (config.vocab_size, target.vocab_size),
        "layers": (config.target_layers, target.num_hidden_layers),
    }
    if told := [
        f"{name} is {theirs}, the head wants {ours}" for name, (ours, theirs) in pairs.items() if ours != theirs
    ]:
        raise CheckpointError(
            f"the draft head does not fit the model: {'; '.join(told)}. Make one for it with `stille train draft`."
        )


def _check_target(folder: Path, config: DraftConfig, target: Target, model: "StilleForCausalLM") -> None:
    _check_sizes(config, model.config)
    embeddings, weights = fingerprint(model)
    if target.embeddings and target.embeddings != embeddings:
        raise CheckpointError(
            f"the draft head {folder} was made for {target.name!r}, whose embeddings differ from this model's. Make "
            "one for it with `stille train draft`."
        )
    if target.weights and target.weights != weights:
        logger.info("the draft head %s was made for %r; this model's layers differ.", folder, target.name)
