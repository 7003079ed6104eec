"""`hsa_attention` as an operator of torch, so that torch.compile does not look into the launching of kernels."""

import ast
from dataclasses import fields
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stille.kernels.hsa.api import hsa_attention
from stille.kernels.hsa.config import HSAConfig

_FIELDS = tuple(field.name for field in fields(HSAConfig))


def encode(config: HSAConfig) -> str:
    """A configuration as text, since an operator takes no objects."""
    return ";".join([f"{name}={getattr(config, name)!r}" for name in _FIELDS])


@lru_cache(maxsize=256)
def decode(text: str) -> HSAConfig:
    """The configuration that `encode` wrote down."""
    parts = (part.split("=", 1) for part in text.split(";"))
    return HSAConfig(**{name: ast.literal_eval(value) for name, value in parts})


def compiled_attention(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, config: HSAConfig, scale: float, lengths_B: Tensor | None = None
) -> Tensor:
    """`hsa_attention`, in a form for code that torch.compile traces; elsewhere a plain call of it.

    Compiled, the backward pass runs the forward pass again instead of keeping what it chose.
    """
    m, n = q_BHTD.shape[2], k_BKTD.shape[2]
    if not torch.compiler.is_compiling():
        return hsa_attention(q_BHTD, k_BKTD, v_BKTD, config, scale=scale, lengths_B=lengths_B)
    if lengths_B is None and m == n and n < config.dense_limit:  # full attention: the compiler's business
        gqa = q_BHTD.shape[1] != k_BKTD.shape[1]
        return scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=True, scale=scale, enable_gqa=gqa)
    return torch.ops.stille.hsa_attention(q_BHTD, k_BKTD, v_BKTD, lengths_B, scale, encode(config))


@torch.library.custom_op(
    "stille::hsa_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? lengths, float scale, str config) -> Tensor",
)
def _forward(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float, config: str) -> Tensor:
    return hsa_attention(q, k, v, decode(config), scale=scale, lengths_B=lengths).contiguous()


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float, config: str) -> Tensor:
    return q.new_empty(q.shape)


@torch.library.custom_op(
    "stille::hsa_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? lengths, float scale, str config) "
    "-> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float, config: str
) -> tuple[Tensor, Tensor, Tensor]:
    # Operators run below autograd; here it has to record once more.
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        out = hsa_attention(q, k, v, decode(config), scale=scale, lengths_B=lengths)
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), grad)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, scale: float, config: str
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output) -> None:
    q, k, v, lengths, ctx.scale, ctx.config = inputs
    ctx.save_for_backward(q, k, v, lengths)


def _differentiate(ctx, grad: Tensor):
    q, k, v, lengths = ctx.saved_tensors
    dq, dk, dv = torch.ops.stille.hsa_attention_backward(grad, q, k, v, lengths, ctx.scale, ctx.config)
    return dq, dk, dv, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
