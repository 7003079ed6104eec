"""Causal attention that reads a budget of keys: on Triton where it runs, elsewhere in plain torch."""

from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stille.errors import UnsupportedError
from stille.kernels.hsa import autograd, cpu, reference
from stille.kernels.hsa.config import TILE, HSAConfig, HSAOutput
from stille.kernels.triton_support import IN_TRITON, interpreting, require_triton, runs_triton

if TYPE_CHECKING:
    from stille.kernels.hsa.triton_residual import Residual
    from stille.kernels.hsa.triton_select import Selection

MAX_GROUP = 64
MAX_DIM = 256


@overload
def hsa_attention(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    config: HSAConfig | None = None,
    *,
    scale: float | None = None,
    lengths_B: Tensor | None = None,
    return_details: Literal[False] = False,
) -> Tensor: ...
@overload
def hsa_attention(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    config: HSAConfig | None = None,
    *,
    scale: float | None = None,
    lengths_B: Tensor | None = None,
    return_details: Literal[True],
) -> HSAOutput: ...
def hsa_attention(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    config: HSAConfig | None = None,
    *,
    scale: float | None = None,
    lengths_B: Tensor | None = None,
    return_details: bool = False,
) -> Tensor | HSAOutput:
    """Causal sparse attention; the queries are the last positions of the keys (chunked prefill).

    Differentiable once, through what was read and through the residual; the selection is a constant. Missed mass is not
    differentiated. Equal inputs give equal gradients, bit by bit.

    Sequences shorter than `config.dense_limit` go to torch's scaled_dot_product_attention. Nothing waits for the GPU,
    and launches depend on shapes only, so the call can be captured in a CUDA graph after one call outside of it.

    NaN and infinities are not looked for: as in dense attention they spread to the rows that read them, and here also
    to other rows of the same tile of 128 queries; never to other heads of keys or to earlier tiles.

    Args:
        q_BHTD: queries, any strides. Head width D: a multiple of 16 up to 256.
        k_BKTD, v_BKTD: keys and values of at least as many tokens; K divides H, by at most 64. Copied only if a batch
            is strided, or, on Hopper, if they are not contiguous or end inside a leaf.
        config: sizes; None: `HSAConfig()`.
        scale: factor of the scores; None: D ** -0.5.
        lengths_B: int32 or int64 on the inputs' device: how many tokens of each row of the batch are real, from the
            first on (right padding; as many queries as keys). Results of the rest are zeros. None: all.
        return_details: return an `HSAOutput` with log-sum-exp and missed mass.

    Returns:
        o_BHTD in the inputs' dtype, or an `HSAOutput`.

    Raises:
        ValueError: shapes or devices do not fit.
        UnsupportedError: a dtype, head width or group that the kernels do not take; CUDA tensors without Triton.
    """
    config = HSAConfig() if config is None else config
    _check(q_BHTD, k_BKTD, v_BKTD)
    batch, heads, m, dim = q_BHTD.shape
    n = k_BKTD.shape[2]
    factor = dim**-0.5 if scale is None else scale
    if q_BHTD.numel() == 0:
        out = torch.empty_like(q_BHTD)
        empty = torch.empty(batch, heads, m, device=out.device)
        return HSAOutput(out, empty, empty if config.residual else None) if return_details else out
    padding_BT = None
    if lengths_B is not None:
        _check_lengths(lengths_B, q_BHTD, n)
        padding_BT = torch.arange(m, device=lengths_B.device) >= lengths_B[:, None]
        # What padding holds must not reach mean queries. The tile that it shares with real rows chooses row by row.
        q_BHTD = q_BHTD.masked_fill(padding_BT[:, None, :, None], 0)
        config = config if config.tail else replace(config, tail=1)
    if n < config.dense_limit and not return_details:
        out = _dense(q_BHTD, k_BKTD, v_BKTD, factor)
        return out if padding_BT is None else out.masked_fill(padding_BT[:, None, :, None], 0)
    if n < config.dense_limit:
        config = _covering(config, n)
    q_HMD, k_KND, v_KND = (x.flatten(0, 1) for x in (q_BHTD, k_BKTD, v_BKTD))
    q_HMD, k_KND, v_KND = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_HMD, k_KND, v_KND))
    graded = autograd.wanted(q_HMD, k_KND, v_KND)
    if runs_triton(q_BHTD) and graded:
        out, lse, missed = autograd.by_kernels(_triton, q_HMD, k_KND, v_KND, factor, config, lengths_B)
    elif runs_triton(q_BHTD):
        out, lse, missed, _, _ = _triton(q_HMD, k_KND, v_KND, factor, config, lengths_B)
    else:
        out, lse, missed = _plain(q_HMD, k_KND, v_KND, factor, config, lengths_B, return_details)
    out, lse = out.view(q_BHTD.shape), lse.view(batch, heads, m)
    missed = missed.view(batch, heads, m) if config.residual and missed is not None else None
    if padding_BT is not None:
        out = out.masked_fill(padding_BT[:, None, :, None], 0)
        lse = lse.masked_fill(padding_BT[:, None], 0)
        missed = None if missed is None else missed.masked_fill(padding_BT[:, None], 0)
    return HSAOutput(out, lse, missed) if return_details else out


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected q [batch, heads, tokens, head_dim] "
            "and k, v of one shape [batch, kv_heads, tokens, head_dim]."
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} differ in batch or head_dim.")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} key/value heads.")
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"{q.shape[2]} queries cannot be the last of {k.shape[2]} keys; give all keys up to them.")
    if not q.device == k.device == v.device:
        raise ValueError(f"q is on {q.device}, k on {k.device}, v on {v.device}: expected one device.")
    if q.is_cuda:
        require_triton("HSA on a GPU")
    dtypes = [d for d in IN_TRITON if not (q.is_cuda and d == torch.float32)]
    if q.dtype not in dtypes or q.dtype != k.dtype or q.dtype != v.dtype:
        raise UnsupportedError(
            f"q is {q.dtype}, k is {k.dtype}, v is {v.dtype}: expected one of {', '.join(map(str, dtypes))} for all."
        )
    if q.shape[3] % 16 or not 16 <= q.shape[3] <= MAX_DIM:
        raise UnsupportedError(f"head_dim is {q.shape[3]}: expected a multiple of 16 up to {MAX_DIM}.")
    if q.shape[1] > MAX_GROUP * k.shape[1]:
        raise UnsupportedError(
            f"{q.shape[1]} query heads on {k.shape[1]} key/value heads: at most {MAX_GROUP} to one are supported."
        )


def _check_lengths(lengths: Tensor, q: Tensor, keys: int) -> None:
    if lengths.shape != q.shape[:1] or lengths.dtype not in (torch.int32, torch.int64) or lengths.device != q.device:
        raise ValueError(
            f"lengths_B is {lengths.dtype} {tuple(lengths.shape)} on {lengths.device}: expected int32 or int64 "
            f"({q.shape[0]},) on {q.device}."
        )
    if q.shape[2] != keys:
        raise ValueError(f"lengths_B needs as many queries as keys, got {q.shape[2]} and {keys}.")


def _dense(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float) -> Tensor:
    """Full causal attention of the last positions by torch."""
    m, n = q_BHTD.shape[2], k_BKTD.shape[2]
    gqa = q_BHTD.shape[1] != k_BKTD.shape[1]
    if m == n or m == 1:
        return scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=m > 1, scale=scale, enable_gqa=gqa)
    if q_BHTD.is_cuda:
        from torch.nn.attention.bias import causal_lower_right  # imports torch's compiler: seconds

        mask = causal_lower_right(m, n)  # flash attention; a tensor as the mask would rule it out
    else:
        mask = torch.ones(m, n, dtype=torch.bool, device=q_BHTD.device).tril(n - m)
    return scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, attn_mask=mask, scale=scale, enable_gqa=gqa)


def _covering(config: HSAConfig, n: int) -> HSAConfig:
    """The same with a budget for everything: dense attention by our kernels, which also give its log-sum-exp."""
    most = -(-(n + TILE) // config.leaf) * config.leaf
    return replace(config, budget=max(config.budget, most), candidates_from=n + 1, tail=0, coverage=None)


def _plain(
    q_HMD: Tensor,
    k_KND: Tensor,
    v_KND: Tensor,
    scale: float,
    config: HSAConfig,
    lengths_B: Tensor | None,
    want_lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if autograd.wanted(q_HMD, k_KND, v_KND):
        attend = autograd.by_reference
    elif q_HMD.device.type == "cpu":
        attend = partial(cpu.hsa_attention, want_lse=want_lse)
    else:
        attend = reference.hsa_attention
    if lengths_B is None:
        out, lse, missed = attend(q_HMD, k_KND, v_KND, config, scale)
        return out.to(q_HMD.dtype), lse, missed
    # With padding, a row of the batch at a time.
    out, lse = torch.zeros_like(q_HMD), torch.zeros(q_HMD.shape[:2], device=q_HMD.device)
    missed, batch = torch.zeros_like(lse), lengths_B.shape[0]
    heads, kv_heads = q_HMD.shape[0] // batch, k_KND.shape[0] // batch
    for row, length in enumerate(min(n, q_HMD.shape[1]) for n in lengths_B.tolist()):
        if length > 0:
            q, k = slice(row * heads, (row + 1) * heads), slice(row * kv_heads, (row + 1) * kv_heads)
            parts = attend(q_HMD[q, :length], k_KND[k, :length], v_KND[k, :length], config, scale)
            out[q, :length], lse[q, :length], missed[q, :length] = parts
    return out, lse, missed


def _triton(
    q_HMD: Tensor, k_KND: Tensor, v_KND: Tensor, scale: float, config: HSAConfig, lengths_B: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, "Selection", "Residual | None"]:
    """Output, log-sum-exp, missed mass; then what the backward pass needs."""
    from stille.kernels.hsa import triton_prefill, triton_residual, triton_select

    chosen = triton_select.select(q_HMD, k_KND, scale, config, lengths_B=lengths_B, want_map=config.residual)
    out = torch.empty(q_HMD.shape, device=q_HMD.device, dtype=q_HMD.dtype)
    if uses_gluon(q_HMD, config):
        from stille.kernels.hsa import triton_gluon

        return *triton_gluon.prefill(q_HMD, k_KND, v_KND, chosen, scale, config.leaf, out=out), None, chosen, None
    rest = None
    if config.residual:
        groups = q_HMD.shape[0] // k_KND.shape[0]
        rest = triton_residual.residual(k_KND, v_KND, chosen, q_HMD.shape[1], groups, scale, config)
    exact = triton_prefill.prefill(
        q_HMD, k_KND, v_KND, chosen, scale, config.leaf, config.unit, residual=rest, out=out
    )  # fmt: skip
    return *exact, chosen, rest


def uses_gluon(q_HMD: Tensor, config: HSAConfig) -> bool:
    """Whether the kernel written for Hopper takes this: head width 128, bfloat16, leaves of 64, no residual."""
    return (
        q_HMD.is_cuda
        and not interpreting()
        and torch.cuda.get_device_capability(q_HMD.device) == (9, 0)
        and (q_HMD.shape[2], q_HMD.dtype, config.leaf) == (128, torch.bfloat16, 64)
        and not config.residual
        and _has_gluon()
    )


@lru_cache
def _has_gluon() -> bool:
    """Gluon is experimental and changes between releases; the kernel is written for Triton 3.6 and later."""
    import triton

    if tuple(int(x) for x in triton.__version__.split(".")[:2]) < (3, 6):
        return False
    try:
        import_module("stille.kernels.hsa.triton_gluon")
    except ImportError:
        return False
    return True
