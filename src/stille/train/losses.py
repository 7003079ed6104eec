"""What is minimised: next token, divergence from a teacher, layer outputs, budget.

Shapes: B sequences, T tokens, N = B * T, C hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stille.errors import ConfigError, UnsupportedError
from stille.model.decoder import StilleForCausalLM
from stille.model.experts import expert_layers
from stille.model.routing import Gate, Routing
from stille.train.config import LossWeights
from stille.train.data import IGNORED, Batch
from stille.train.packed import Packed

LOGITS_AT_ONCE = 1 << 26
"""Logits of a chunk of tokens: 256 MiB in float32. Compiled losses keep none in float32 and take four times as many."""


class HeadSums(NamedTuple):
    """Sums over tokens, float32 scalars: cross-entropy and divergence from the teacher."""

    next_token: Tensor
    kl: Tensor


def head_chunk(
    logits_NV: Tensor, label_N: Tensor, goal_NV: Tensor | None, by_token: Tensor | None, by_kl: Tensor, graded: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses of a chunk of logits, in float32, and their gradient.

    Args:
        logits_NV, label_N, goal_NV: logits, tokens to predict (or `IGNORED`), and the teacher's logits.
        by_token, by_kl: what the sums are multiplied by in the loss; None: not in it.
        graded: whether the gradient is wanted.

    Returns:
        The sums of cross-entropy and KL, and the gradient of the loss [N, V] in the dtype of the logits.
    """
    log_p = logits_NV.float().log_softmax(-1)
    token_sum = F.nll_loss(log_p, label_N, ignore_index=IGNORED, reduction="sum")
    kl_sum, q = torch.zeros_like(token_sum), None
    if goal_NV is not None:
        log_q = goal_NV.float().log_softmax(-1)
        q = log_q.exp()
        kl_sum = (q * (log_q - log_p)).sum()
    if not graded:
        return token_sum, kl_sum, None
    p = log_p.exp()
    grad = torch.zeros_like(p) if q is None else (p - q) * by_kl
    if by_token is not None:
        hit_NV = torch.arange(p.shape[1], device=p.device) == label_N[:, None]
        grad = grad + (p - hit_NV.to(p.dtype)) * ((label_N != IGNORED).to(p.dtype) * by_token)[:, None]
    return token_sum, kl_sum, grad.to(logits_NV.dtype)


class _HeadLoss(torch.autograd.Function):
    """Head and losses for a chunk of tokens at a time; gradients are computed on the way, so logits are never kept."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        label_N: Tensor,
        teacher_NC: Tensor | None,
        teacher_VC: Tensor | None,
        scales: tuple[float, float],
        compiled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_token, by_kl = (torch.full((), scale, device=hidden_NC.device) for scale in scales)
        by_hidden, by_weight = ctx.needs_input_grad[:2]  # a frozen head costs no gradient
        hidden_grad = torch.empty_like(hidden_NC) if by_hidden else None
        weight_grad = torch.zeros_like(weight_VC, dtype=torch.float32) if by_weight else None
        token_sum, kl_sum = hidden_NC.new_zeros((2,), dtype=torch.float32).unbind()
        losses, graded = _compiled_chunk() if compiled else head_chunk, by_hidden or by_weight
        most = LOGITS_AT_ONCE * (4 if compiled else 1) // weight_VC.shape[0]
        chunk = max(16, 1 << max(0, most.bit_length() - 1))  # of equal sizes wherever possible: each is compiled
        for begin in range(0, hidden_NC.shape[0], chunk):
            rows = slice(begin, begin + chunk)
            h, goal = hidden_NC[rows], None
            if teacher_NC is not None and teacher_VC is not None:
                goal = F.linear(teacher_NC[rows], teacher_VC)
            logits = F.linear(h, weight_VC)
            tokens, kl, grad = losses(logits, label_N[rows], goal, by_token if scales[0] else None, by_kl, graded)
            token_sum, kl_sum = token_sum + tokens, kl_sum + kl
            if hidden_grad is not None and grad is not None:
                hidden_grad[rows] = grad @ weight_VC
            if weight_grad is not None and grad is not None:
                weight_grad += grad.T @ h
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtype = weight_VC.dtype
        ctx.mark_non_differentiable(token_sum, kl_sum)
        return token_sum * by_token + kl_sum * by_kl, token_sum, kl_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden_grad, weight_grad = ctx.saved_tensors
        grad = grads[0]
        return (
            None if hidden_grad is None else hidden_grad * grad.to(hidden_grad.dtype),
            None if weight_grad is None else (weight_grad * grad).to(ctx.dtype),
            *(None,) * 5,
        )


@lru_cache(maxsize=1)
def _compiled_chunk() -> Any:
    return torch.compile(head_chunk, dynamic=False)


def head_loss(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    label_N: Tensor,
    *,
    next_token: float = 1.0,
    kl: float = 0.0,
    teacher_NC: Tensor | None = None,
    teacher_VC: Tensor | None = None,
    compiled: bool = False,
) -> tuple[Tensor, HeadSums]:
    """Cross-entropy of the next token and KL(teacher || model), in float32, with memory for a chunk of logits only.

    Args:
        hidden_NC: hidden states after the final norm, any float dtype; gradients flow to it and to the head.
        weight_VC: the output head.
        label_N: int64, `IGNORED` where a token predicts nothing.
        next_token, kl: what the sums over tokens are multiplied by in the loss.
        teacher_NC, teacher_VC: the teacher's hidden states and head; its width may differ. Both or none.
        compiled: by a compiled kernel (torch.compile).

    Returns:
        The loss, and the plain sums (without gradients).

    Raises:
        ConfigError: kl without a teacher.
    """
    if kl and (teacher_NC is None or teacher_VC is None):
        raise ConfigError("a loss with kl needs a teacher.")
    loss, *sums = _HeadLoss.apply(hidden_NC, weight_VC, label_N, teacher_NC, teacher_VC, (next_token, kl), compiled)  # pyright: ignore[reportGeneralTypeIssues]
    return loss, HeadSums(*sums)


def layer_error(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], error: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """Squared error of layer outputs relative to the teacher's, summed over tokens, mean over layers: float32 scalar.

    Relative for each token: a few tokens have activations a thousand times larger, which would be all that counts.

    Args:
        student, teacher: hidden states [..., C] of every layer.
        error: of one layer; None: `relative_error`.
    """
    error = error or relative_error
    total = torch.zeros((), device=student[0].device)
    for mine, theirs in zip(student, teacher, strict=True):
        total = total + error(mine, theirs)
    return total / len(student)


def relative_error(mine: Tensor, theirs: Tensor) -> Tensor:
    """Squared error [..., C] relative to the square of `theirs`, summed over tokens: float32 scalar."""
    goal = theirs.float()
    return ((mine.float() - goal).square().sum(-1) / goal.square().sum(-1).clamp(min=1e-6)).sum()


def budget_loss(routing: Routing, target: float) -> Tensor:
    """Routing weights times the load of their expert relative to an even one at the target, mean over tokens: ReMoE."""
    experts = routing.mask_TE.shape[1]
    load_E = routing.mask_TE.float().mean(0) * (experts / target)
    padded = torch.cat([load_E, load_E.new_zeros(1)])
    return (routing.weight_TK.float() * padded[routing.expert_TK]).sum(-1).mean() / target


@dataclass
class Scales:
    """What sums over a micro-batch are multiplied by, so that micro-batches of all processes add up to a mean.

    Attributes:
        label: one over the tokens of the step that predict one.
        token: one over the tokens of the step.
        factor: of everything; the number of processes where gradients are averaged instead of added.
    """

    label: float
    token: float
    factor: float = 1.0


class Objective(nn.Module):
    """A model and its loss as one module, so that whatever wraps modules (FSDP2) sees all use of the parameters.

    Args:
        model: what learns.
        weights: of the terms.
        teacher: a dense model with the same vocabulary; never trained.
        compiled: the losses by compiled kernels.

    Raises:
        ConfigError: a term needs a teacher and there is none, or the teacher does not fit.
    """

    def __init__(
        self,
        model: StilleForCausalLM,
        weights: LossWeights,
        teacher: StilleForCausalLM | None = None,
        *,
        compiled: bool = False,
    ):
        super().__init__()
        self.compiled = compiled
        self._error = torch.compile(relative_error, dynamic=False) if compiled else relative_error
        if weights.needs_teacher and teacher is None:
            raise ConfigError("loss weights ask for a teacher: give one, or set kl and layers to 0.")
        if teacher is not None and teacher.config.vocab_size != model.config.vocab_size:
            raise ConfigError(
                f"the teacher has {teacher.config.vocab_size} tokens, the model {model.config.vocab_size}: they need "
                "the same vocabulary."
            )
        if teacher is not None and weights.layers:
            mine, theirs = ((c.num_hidden_layers, c.hidden_size) for c in (model.config, teacher.config))
            if mine != theirs:
                raise ConfigError(f"layer outputs of {mine} and {theirs} (layers, width) cannot be compared: layers=0.")
        self.model = model
        self.weights = weights
        self._teacher = [] if teacher is None else [teacher.eval().requires_grad_(False)]  # no part of this module
        self._budgets: list[Tensor] = []
        self.target = 1.0
        if weights.budget:
            for layer in expert_layers(model):
                layer.gate.register_forward_hook(self._on_gate)

    @property
    def teacher(self) -> StilleForCausalLM | None:
        return self._teacher[0] if self._teacher else None

    def _on_gate(self, gate: Gate, _: Any, routing: Routing) -> None:
        if gate.training:
            self._budgets.append(budget_loss(routing, self.target))

    def forward(self, batch: Batch, scales: Scales) -> tuple[Tensor, Tensor]:
        """Loss of a micro-batch, and float32 [4] of plain sums: next token, KL, layer error, budget."""
        weights, model, teacher = self.weights, self.model, self.teacher
        self._budgets.clear()
        deep = weights.layers > 0 and teacher is not None
        hidden, states = run_model(model, batch, deep)
        theirs, their_states = None, ()
        if teacher is not None and (weights.kl or deep):
            with torch.no_grad():
                theirs, their_states = run_model(teacher, batch, deep)
        loss, sums = head_loss(
            hidden,
            model.lm_head.weight,
            batch.label_BT.flatten(),
            next_token=weights.next_token * scales.label * scales.factor,
            kl=weights.kl * scales.token * scales.factor if teacher is not None else 0.0,
            teacher_NC=theirs,
            teacher_VC=None if teacher is None or theirs is None else teacher.lm_head.weight,
            compiled=self.compiled,
        )
        zero = torch.zeros((), device=hidden.device)
        error = layer_error(states, their_states, self._error) if deep else zero
        budget = torch.stack(self._budgets).mean() * batch.ids_BT.numel() if self._budgets else zero
        if deep or self._budgets:
            extra = weights.layers * error + weights.budget * budget
            loss = loss + extra * (scales.token * scales.factor)
        return loss, torch.stack([sums.next_token, sums.kl, error.detach(), budget.detach()])


def run_model(model: StilleForCausalLM, batch: Batch, deep: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Hidden states [N, C] after the final norm, and with `deep` those after each layer.

    Raises:
        UnsupportedError: sequences of several documents, and attention that cannot keep them apart.
    """
    if all(kind == "full" for kind in model.config.attention_kinds):
        states: list[Tensor] = []
        ids, positions = batch.ids_BT.flatten(), batch.position_BT.flatten()
        hidden = model.model.forward_tokens(ids, positions, Packed(batch), states if deep else None)
        return hidden, (*states[1:], hidden) if deep else ()
    if not batch.whole:
        raise UnsupportedError("layers whose attention is not 'full' cannot keep the documents of a sequence apart.")
    out = model.model(input_ids=batch.ids_BT, use_cache=False, output_hidden_states=deep, return_dict=True)
    states_BTC = out.hidden_states[1:] if deep else ()
    return out.last_hidden_state.flatten(0, 1), tuple(x.flatten(0, 1) for x in states_BTC)
