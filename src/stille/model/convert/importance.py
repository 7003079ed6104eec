"""Gates fitted on text while it runs through the dense model: on far more tokens than could be kept on disk.

What an expert is worth to a token has two parts: its size, and how much the model's prediction depends on it,

    importance = log ||e|| + fisher * log |<g, e>|,

e the expert's output, g the gradient, with respect to the layer's output, of the log-likelihood of tokens drawn from
the model's own prediction. The mean of <g, e>^2 over draws is e'Fe with the Fisher information F: to second order twice
the KL that leaving out e alone costs (as in Fisher pruning, Theis et al., 1801.05787). One draw for each token is
noisy; a regression over many tokens averages that out. Sizes steady it, since an expert is no small change.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stille.model.convert.router import Router, log_norms
from stille.model.convert.split import Layout, split_ffn
from stille.model.decoder import StilleForCausalLM

LEAST = 1e-2  # of the root mean square of <g, e>: one draw can be as good as nothing, and its logarithm anything
JUDGED = 16  # the last 1/16 of the tokens judge before they are learned from
HELD = {"cuda": 16_384, "cpu": 1_024}
"""Tokens whose activations and gradients are held at a time."""
LOGITS = {"cuda": 4_096, "cpu": 256}
"""Tokens whose logits are."""


def fit_routers(
    model: StilleForCausalLM,
    ids_ST: Tensor,
    orders_LI: Tensor,
    routers: Sequence[Router],
    layout: Layout,
    *,
    fisher: float,
    batch: int = 1024,
    rate: float = 2e-3,
    seed: int = 0,
    advance: Callable[[int], Any] = lambda count: None,
) -> list[Router]:
    """Fit the gates of all layers to the importance of their experts; each token is looked at once.

    Args:
        model: the dense model. On a GPU it runs in bfloat16.
        ids_ST: int64 [S, T].
        orders_LI: see `split.neuron_order`.
        routers: gates to begin with, all of one shape.
        layout: sizes of the split.
        fisher: weight of the second part of importance; 0: sizes alone, and no gradients are taken.
        batch, rate: tokens of a step of Adam, and its rate, which falls to 0 along a cosine.
        seed: of the drawn tokens and of the order in which the held ones are learned from.
        advance: told the number of sequences after each part.

    Returns:
        Gates as of `router.fit_router`; `r2` is of the last tokens, and noise of draws, which nothing could explain,
        lowers it.
    """
    device = model.device
    heldable = HELD["cpu" if device.type == "cpu" else "cuda"]
    parts = ids_ST.split(max(1, heldable // ids_ST.shape[1]))
    source = _Importance(model, orders_LI, layout, fisher, seed)
    learner: _Learner | None = None
    judged = len(parts) - max(1, len(parts) // JUDGED)
    steps = sum(-(-part.numel() // batch) for part in parts)
    for number, part in enumerate(parts):
        x_LNC, target_LNE = source.of(part.to(device))
        if learner is None:
            learner = _Learner(routers, x_LNC, target_LNE, steps, batch, rate, seed)
        if number >= judged:
            learner.judge(x_LNC, target_LNE)
        learner.learn(x_LNC, target_LNE)
        advance(len(part))
    assert learner is not None
    return learner.routers()


class _Importance:
    """Inputs of every FFN and the importance of its experts, for the tokens that it is given."""

    def __init__(self, model: StilleForCausalLM, orders_LI: Tensor, layout: Layout, fisher: float, seed: int):
        self.model, self.fisher, self.size = model, fisher, layout.size
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.weights: list[tuple[Tensor, Tensor, Tensor]] = []  # gate and up of all experts' neurons, down
        self.layers: list[Any] = list(model.model.layers)
        for layer, order in zip(self.layers, orders_LI, strict=True):
            parts = [getattr(layer.mlp, name).weight.detach().float() for name in ("gate_proj", "up_proj", "down_proj")]
            split = split_ffn(parts[0], parts[1], parts[2], order, layout)
            gate_RC, up_RC = (part.flatten(0, 1) for part in split["gate_up_proj"].split(self.size, dim=1))
            self.weights.append((gate_RC, up_RC, split["down_proj"]))

    def of(self, ids_ST: Tensor) -> tuple[Tensor, Tensor]:
        """[L, N, C] in the model's precision, float32 [L, N, E], N = S * T."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []

        def keep(module: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
            inputs.append(args[0].detach().flatten(0, -2))
            outputs.append(out)

        hooks = [layer.mlp.register_forward_hook(keep) for layer in self.layers]
        wanted, device = self.fisher != 0, ids_ST.device.type
        try:
            with torch.set_grad_enabled(wanted), torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                x = self.model.model.embed_tokens(ids_ST).detach().requires_grad_(wanted)
                hidden = self.model.model(inputs_embeds=x, use_cache=False).last_hidden_state
                gradients = torch.autograd.grad(hidden, outputs, self._pull(hidden)) if wanted else None
        finally:
            for hook in hooks:
                hook.remove()
        with torch.no_grad():
            target = [
                self._importance(index, x.float(), None if gradients is None else gradients[index].flatten(0, -2))
                for index, x in enumerate(inputs)
            ]
            return torch.stack(inputs), torch.stack(target)

    def _pull(self, hidden: Tensor) -> Tensor:
        """Gradient, with respect to the last hidden states, of the log-likelihood of tokens drawn from the model."""
        pull = torch.empty_like(hidden)
        rows = LOGITS["cpu" if hidden.device.type == "cpu" else "cuda"]
        for h, out in zip(hidden.detach().flatten(0, -2).split(rows), pull.flatten(0, -2).split(rows), strict=True):
            h = h.requires_grad_()
            log_p = F.log_softmax(self.model.compute_logits(h).float(), -1)
            with torch.no_grad():  # the largest p / exponential is a draw from p
                noise = torch.empty_like(log_p).exponential_(generator=self.generator).log_()
                drawn = (log_p - noise).argmax(-1, keepdim=True)
            out.copy_(torch.autograd.grad(log_p.gather(-1, drawn).sum(), h)[0])
        return pull

    def _importance(self, index: int, x_NC: Tensor, g_NC: Tensor | None) -> Tensor:
        gate_RC, up_RC, down_ECI = self.weights[index]
        h_NR = F.silu(F.linear(x_NC, gate_RC)) * F.linear(x_NC, up_RC)
        found_NE = log_norms(h_NR, down_ECI)
        if g_NC is not None:
            experts = down_ECI.shape[0]
            pulled_NR = g_NC.float() @ down_ECI.transpose(0, 1).flatten(1)  # [C, E * I']
            along_NE = (pulled_NR * h_NR).view(-1, experts, self.size).sum(-1).abs()
            floor = LEAST * along_NE.square().mean().sqrt().clamp(min=1e-30)
            found_NE = found_NE + self.fisher * along_NE.clamp(min=floor).log()
        return found_NE


class _Learner:
    """The gates of all layers side by side, and Adam."""

    def __init__(
        self, routers: Sequence[Router], x_LNC: Tensor, target_LNE: Tensor, steps: int, batch: int, rate: float,
        seed: int,
    ):  # fmt: skip
        device = x_LNC.device
        self.batch, self.generator = batch, torch.Generator().manual_seed(seed)
        # Hidden dimensions differ by magnitudes; the first tokens say how scores and inputs are scaled from now on.
        self.spread_LC = x_LNC.float().std(1, correction=0).clamp(min=1e-4)
        self.mean = target_LNE.mean((1, 2), keepdim=True)
        self.deviation = target_LNE.std((1, 2), keepdim=True).clamp(min=1e-6)
        self.linear = routers[0].down is None
        maps = [[router.up] if router.down is None else [router.down, router.up] for router in routers]
        self.maps = [torch.stack([m[i] for m in maps]).to(device).transpose(1, 2) for i in range(len(maps[0]))]
        self.maps[0] = self.maps[0] * self.spread_LC.unsqueeze(2)
        self.bias = torch.stack([router.bias for router in routers]).to(device).unsqueeze(1)
        parameters = [value.clone().requires_grad_() for value in (*self.maps, self.bias)]
        *self.maps, self.bias = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        layers, experts = len(routers), target_LNE.shape[2]
        self.error = torch.zeros(layers, device=device, dtype=torch.float64)
        self.sums = torch.zeros(2, layers, experts, device=device, dtype=torch.float64)
        self.judged = 0

    def _score(self, x_LNC: Tensor) -> Tensor:
        x = x_LNC.float() / self.spread_LC.unsqueeze(1)
        for weight in self.maps[:-1]:
            x = F.silu(x @ weight)
        return x @ self.maps[-1] + self.bias

    def _goal(self, target_LNE: Tensor) -> Tensor:
        return (target_LNE - self.mean) / self.deviation

    @torch.no_grad()
    def judge(self, x_LNC: Tensor, target_LNE: Tensor) -> None:
        for x, target in zip(x_LNC.split(self.batch, 1), target_LNE.split(self.batch, 1), strict=True):
            goal = self._goal(target)
            self.error += (self._score(x) - goal).square().sum((1, 2))
            self.sums += torch.stack([goal.sum(1), goal.square().sum(1)])
            self.judged += goal.shape[1]

    def learn(self, x_LNC: Tensor, target_LNE: Tensor) -> None:
        order = torch.randperm(x_LNC.shape[1], generator=self.generator).to(x_LNC.device)
        with torch.enable_grad():
            for pick in order.split(self.batch):
                error = (self._score(x_LNC[:, pick]) - self._goal(target_LNE[:, pick])).square()
                self.optimizer.zero_grad()
                error.mean((1, 2)).sum().backward()
                self.optimizer.step()
                self.schedule.step()

    @torch.no_grad()
    def routers(self) -> list[Router]:
        maps = [weight.transpose(1, 2) for weight in self.maps]
        maps[0] = maps[0] / self.spread_LC.unsqueeze(1)
        kept = [value.bfloat16().float().cpu() for value in (*maps, self.bias.squeeze(1))]
        total, squares = self.sums
        spread = (squares - total.square() / max(1, self.judged)).sum(1).clamp(min=1e-12)
        r2 = (1 - self.error / spread).tolist()
        return [
            Router(None if self.linear else kept[0][layer], kept[-2][layer], kept[-1][layer], value)
            for layer, value in enumerate(r2)
        ]
