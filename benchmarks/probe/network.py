"""The decoder for training an adapter quickly: frozen weights plus low-rank updates, full attention.

The update is added to the weights once a step (bf16), not to the activations, so training sees exactly the weights
that `export.py` writes. Everything but attention runs on a fixed number of flat tokens and is compiled once for all
context lengths.

LoRA: https://arxiv.org/abs/2106.09685; a higher rate for B than for A: https://arxiv.org/abs/2402.12354.
Shapes: L layers, N tokens of a step, B sequences, T tokens, C width, R rank, S rows whose next token is learnt.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stille.model import StilleConfig, StilleForCausalLM
from stille.model.rope import RotaryEmbedding

PROJECTIONS = {
    "q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
    "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp",
}  # fmt: skip


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    return weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    first, second = x_NHD.chunk(2, dim=-1)
    return x_NHD * cos_ND[:, None] + torch.cat((-second, first), dim=-1) * sin_ND[:, None]


def before_attention(
    x: Tensor, norm: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, eps: float, heads: int, kv_heads: int, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = F.linear(rms_norm(x, norm, eps), qkv).split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
    q, k, v = (part.unflatten(-1, (-1, dim)) for part in (q, k, v))
    return rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous()


def after_attention(
    x: Tensor, o: Tensor, out: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor, eps: float
) -> Tensor:
    x = x + F.linear(o, out)
    gate, up = F.linear(rms_norm(x, norm, eps), gate_up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * up, down)


class ProbeNetwork(nn.Module):
    """A decoder whose only parameters are low-rank updates of all linear layers.

    Args:
        model: the base, in fp32; its weights are copied.
        config: of the network: the base's, with the rotary base and the context that are to be trained.
        rank: R.
        dtype: of the arithmetic.
        device: of everything.
        compiled: compile what lies between the attentions.
    """

    def __init__(
        self, model: StilleForCausalLM, config: StilleConfig, rank: int, dtype: torch.dtype, device: str, compiled: bool
    ):
        super().__init__()
        self.config, self.rank, self.dtype, self.device = config, rank, dtype, device
        layers = list(model.model.layers)
        self.base: dict[str, Tensor] = {}
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        for name, block in PROJECTIONS.items():
            weight = torch.stack([getattr(getattr(layer, block), name).weight.detach() for layer in layers])
            self.base[name] = weight.float().to(device)
            count, rows, columns = weight.shape
            self.A[name] = nn.Parameter(torch.randn(count, rank, columns, device=device) * columns**-0.5)
            self.B[name] = nn.Parameter(torch.zeros(count, rows, rank, device=device))
        norms = ("input_layernorm", "post_attention_layernorm")
        self.norms = [[getattr(layer, n).weight.detach().to(device, dtype) for n in norms] for layer in layers]
        self.final_norm = model.model.norm.weight.detach().to(device, dtype)
        self.embedding = model.model.embed_tokens.weight.detach().to(device, dtype)
        tied = config.tie_word_embeddings
        self.head = self.embedding if tied else model.lm_head.weight.detach().to(device, dtype)
        self._rotary = RotaryEmbedding(config)
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._before: Any = torch.compile(before_attention, dynamic=False) if compiled else before_attention
        self._after: Any = torch.compile(after_attention, dynamic=False) if compiled else after_attention
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = plain_attention

    def weights(self) -> dict[str, tuple[Tensor, ...]]:
        """The updated weights of every layer in `dtype`, differentiable; those that share an input are joined."""
        new = {name: merge(self.base[name], self.A[name], self.B[name], self.dtype) for name in PROJECTIONS}
        qkv = torch.cat([new["q_proj"], new["k_proj"], new["v_proj"]], dim=1)
        gate_up = torch.cat([new["gate_proj"], new["up_proj"]], dim=1)
        # unbind: one stacked gradient each, where indexing would add up L full-size ones
        return {"qkv": qkv.unbind(0), "out": new["o_proj"].unbind(0), "gate_up": gate_up.unbind(0),
                "down": new["down_proj"].unbind(0)}  # fmt: skip

    def _table(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        if (batch, length) not in self._tables:
            cos, sin = self._rotary(torch.arange(length))
            self._tables[batch, length] = (
                cos.to(self.dtype).repeat(batch, 1).to(self.device),
                sin.to(self.dtype).repeat(batch, 1).to(self.device),
            )
        return self._tables[batch, length]

    def forward(self, ids_BT: Tensor, rows_S: Tensor) -> Tensor:
        """Logits of chosen tokens.

        Args:
            ids_BT: int64.
            rows_S: int64, positions in the flattened B * T whose logits are wanted.

        Returns:
            logits_SV in `dtype`.
        """
        config = self.config
        batch, length = ids_BT.shape
        cos, sin = self._table(batch, length)
        # asks for a gradient like every later layer's input, so that the first layer needs no compilation of its own
        x = F.embedding(ids_BT.reshape(-1), self.embedding).requires_grad_()
        weights = self.weights()
        shape = (config.rms_norm_eps, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        for layer, (norm, post_norm) in enumerate(self.norms):
            q, k, v = self._before(x, norm, weights["qkv"][layer], cos, sin, *shape)
            q, k, v = (part.view(batch, length, -1, config.head_dim).transpose(1, 2) for part in (q, k, v))
            o = self.attend(q, k, v).transpose(1, 2).reshape(x.shape[0], -1)
            x = self._after(
                x, o, weights["out"][layer], post_norm, weights["gate_up"][layer], weights["down"][layer], shape[0]
            )
        return F.linear(rms_norm(x[rows_S], self.final_norm, config.rms_norm_eps), self.head)

    def choose_attention(self, batch: int, length: int) -> str:
        """Take the fastest of torch's dense attentions that agree, timed forward and backward at this shape."""
        if self.device == "cpu":
            return "plain"
        config, best = self.config, (float("inf"), "plain")
        make = lambda heads: torch.randn(  # noqa: E731
            batch, length, heads, config.head_dim, device=self.device, dtype=self.dtype
        ).transpose(1, 2).requires_grad_()  # fmt: skip
        q, k, v = make(config.num_attention_heads), make(config.num_key_value_heads), make(config.num_key_value_heads)
        grad = torch.randn_like(q)
        expected: list[Tensor] | None = None
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            for expand in (False, True):
                attend = make_attention(backend, expand)
                try:
                    for trial in range(4):
                        if trial == 1:
                            torch.cuda.synchronize()
                            start = time.perf_counter()
                        out = attend(q, k, v)
                        found = [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]
                    torch.cuda.synchronize()
                    seconds = (time.perf_counter() - start) / 3
                except RuntimeError:
                    continue
                if expected is None:
                    expected = found
                if any((a - b).norm() > 0.02 * b.norm() for a, b in zip(found, expected, strict=True)):
                    continue
                if seconds < best[0]:
                    best = (seconds, f"{backend.name.lower()}{', keys expanded' if expand else ''}")
                    self.attend = attend
        return f"{best[1]} ({best[0] * 1e3:.2f} ms a layer)"

    @torch.no_grad()
    def round_adapter(self) -> None:
        """Round the adapter to 8 bits, as it is stored, so that what is tested is what is kept."""
        for parameter in self.parameters():
            parameter.copy_(whole(*packed(parameter)))


def packed(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
    """int8, and a scale float32[R, 1] for each row."""
    scale_R1 = weight_RC.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return torch.round(weight_RC.float() / scale_R1).to(torch.int8), scale_R1


def whole(packed_RC: Tensor, scale_R1: Tensor) -> Tensor:
    """float32, from `packed`."""
    return packed_RC.float() * scale_R1


def merge(base: Tensor, A: Tensor, B: Tensor, dtype: torch.dtype) -> Tensor:
    """base + B A in fp32, rounded once. base [.., out, in], A [.., R, in], B [.., out, R]."""
    return (base + B @ A).to(dtype)


def plain_attention(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=True, enable_gqa=True)


def make_attention(backend: SDPBackend, expand: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        if expand:
            groups = q_BHTD.shape[1] // k_BKTD.shape[1]
            k_BKTD, v_BKTD = (x.repeat_interleave(groups, dim=1) for x in (k_BKTD, v_BKTD))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=True, enable_gqa=not expand)

    return attend


def probe_config(base: StilleConfig, theta: float, context: int) -> StilleConfig:
    """The base's configuration with another rotary base and context."""
    values = base.to_dict()
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    values["max_position_embeddings"] = context
    return StilleConfig.from_dict(values)


def save_adapter(network: ProbeNetwork, folder: Path) -> Path:
    """Write the adapter in 8 bits as `adapter.safetensors`, under PEFT's names, with a scale for each row."""
    tensors = {}
    for layer in range(network.config.num_hidden_layers):
        for name, block in PROJECTIONS.items():
            for which, weight in (("A", network.A[name][layer]), ("B", network.B[name][layer])):
                key = f"base_model.model.model.layers.{layer}.{block}.{name}.lora_{which}"
                values, scale = packed(weight.detach().cpu())
                tensors[f"{key}.weight"], tensors[f"{key}.scale"] = values.contiguous(), scale.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "adapter.safetensors"
    save_file(tensors, file.with_suffix(".tmp"))
    return file.with_suffix(".tmp").replace(file)


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """All weights of an adapter folder, float32."""
    tensors = load_file(folder / "adapter.safetensors")
    return {
        name: whole(values, tensors[f"{name.removesuffix('weight')}scale"])
        for name, values in tensors.items() if name.endswith(".weight")
    }  # fmt: skip


@torch.no_grad()
def load_adapter(network: ProbeNetwork, folder: Path) -> None:
    """Continue from a saved adapter of the same rank."""
    tensors = read_adapter(folder)
    for layer in range(network.config.num_hidden_layers):
        for name, block in PROJECTIONS.items():
            prefix = f"base_model.model.model.layers.{layer}.{block}.{name}"
            network.A[name][layer].copy_(tensors[f"{prefix}.lora_A.weight"])
            network.B[name][layer].copy_(tensors[f"{prefix}.lora_B.weight"])
