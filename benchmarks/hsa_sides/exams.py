"""Adversarial questions for sparse attention: rows that ask, and keys planted so that dense attention answers them.

A question is a direction that is added to the queries that ask; a needle is a key that gets so much of it that the
needles together hold most of every asking row's attention. Each head asks its own question. B batch, H query heads, K
key heads, M queries, which are the last of N positions, P needles of a head, D head width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stille.kernels.hsa.config import TILE, HSAConfig


@dataclass
class Field:
    """Queries, keys and values to hide needles in."""

    name: str
    q_BHND: Tensor
    k_BKND: Tensor
    v_BKND: Tensor
    scale: float

    @property
    def length(self) -> int:
        return self.k_BKND.shape[2]


@dataclass
class Exam:
    """A field with needles, cut to what the asking rows need.

    Attributes:
        rows: which of the M queries ask.
        needles_BHP: positions; None where nothing is planted.
    """

    q_BHMD: Tensor
    k_BKND: Tensor
    v_BKND: Tensor
    scale: float
    rows: slice
    needles_BHP: Tensor | None = None

    def dense(self) -> tuple[Tensor, Tensor]:
        """Exact attention of the asking rows in fp32: output [B, H, R, D] and the needles' weights [B, H, R, P]."""
        groups, n = self.q_BHMD.shape[1] // self.k_BKND.shape[1], self.k_BKND.shape[2]
        position = n - self.q_BHMD.shape[2] + torch.arange(self.q_BHMD.shape[2], device=self.k_BKND.device)[self.rows]
        hidden = torch.arange(n, device=position.device) > position[:, None]
        out, weights = [], []
        for b in range(self.q_BHMD.shape[0]):  # one at a time, for memory
            k, v = (x[b].float().repeat_interleave(groups, 0) for x in (self.k_BKND, self.v_BKND))
            logits = (self.q_BHMD[b, :, self.rows].float() @ k.transpose(1, 2) * self.scale).masked_fill(
                hidden, -math.inf
            )
            weight = torch.softmax(logits, -1)
            out.append(weight @ v)
            if self.needles_BHP is not None:
                at = self.needles_BHP[b][:, None].expand(-1, weight.shape[1], -1)
                weights.append(weight.gather(-1, at))
        return torch.stack(out), torch.stack(weights) if weights else torch.empty(0)


def synthetic(length: int, device: str, dtype: torch.dtype) -> Field:
    """Independent Gaussian queries, keys and values, head width 128: nothing to go by but the needles."""
    random = torch.Generator(device).manual_seed(0)

    def draw(heads: int) -> Tensor:
        return torch.randn(4, heads, length, 128, generator=random, device=device).to(dtype)

    return Field("synthetic", draw(8), draw(2), draw(2), 128**-0.5)


def cut(field: Field, end: int, after: int, first: int, count: int) -> Exam:
    """The tile that ends at `end` and `after` tiles behind it; `count` of the tile's rows ask, from `first` on."""
    last, start = end + after * TILE, end - TILE
    return Exam(
        field.q_BHND[:, :, start:last].clone(), field.k_BKND[:, :, :last].clone(), field.v_BKND[:, :, :last].clone(),
        field.scale, slice(first, first + count),
    )  # fmt: skip


def plant(
    exam: Exam, config: HSAConfig, count: int, *, seed: int, weight: float = 0.9, crowded: bool = False,
    apart: bool = True,
) -> Exam:  # fmt: skip
    """Hide `count` needles for each head where nothing is always read; in place.

    Args:
        weight: of all needles together, for the asking row that gives them least (about: needles of other heads of the
            group move it a little).
        crowded: the other keys of a needle's leaf are pushed the other way, so that their mean hides it.
        apart: at most one needle in a leaf.
    """
    batch, heads, m, dim = exam.q_BHMD.shape
    k_heads, n = exam.k_BKND.shape[1:3]
    groups, leaf, random = heads // k_heads, config.leaf, torch.Generator().manual_seed(seed)
    first, last = config.sinks // leaf, (n - m - config.local) // leaf  # leaves that may be left out
    exam.needles_BHP = torch.empty(batch, heads, count, dtype=torch.long, device=exam.k_BKND.device)
    position = n - m + torch.arange(m, device=exam.k_BKND.device)[exam.rows]
    hidden = torch.arange(n, device=position.device) > position[:, None]
    for b in range(batch):
        plain = exam.k_BKND[b].float()
        for h in range(heads):
            at = hide(first, last, leaf, count, apart, random).to(plain.device)
            exam.needles_BHP[b, h] = at
            u = direction(dim, random, plain)
            q = exam.q_BHMD[b, h, exam.rows].float()
            q = q + q.norm(dim=-1).mean() * u
            exam.q_BHMD[b, h, exam.rows] = q.to(exam.q_BHMD.dtype)
            k = plain[h // groups]
            logits = q @ k.T * exam.scale
            rest = logits.masked_fill(hidden, -math.inf).logsumexp(-1)
            lack = rest[:, None] + math.log(weight / (1 - weight) / count) - logits[:, at]
            push = (lack / (q @ u * exam.scale)[:, None]).amax(0)[:, None] * u
            if crowded:
                others = (at[:, None] // leaf * leaf + torch.arange(leaf, device=at.device)).flatten()
                move = push.repeat_interleave(leaf, 0)
                exam.k_BKND[b, h // groups, others] -= move.to(exam.k_BKND.dtype)
                push = 2 * push
            exam.k_BKND[b, h // groups, at] += push.to(exam.k_BKND.dtype)
    return exam


def direction(dim: int, random: torch.Generator, like: Tensor) -> Tensor:
    """A unit vector [D]."""
    return normalize(torch.randn(dim, generator=random), dim=0).to(like)


def hide(first: int, last: int, leaf: int, count: int, apart: bool, random: torch.Generator) -> Tensor:
    """`count` positions in the leaves from `first` to before `last`."""
    if count > (last - first if apart else (last - first) * leaf):
        raise ValueError(f"{count} needles do not fit into {last - first} leaves of {leaf}")
    if not apart:
        return first * leaf + torch.randperm((last - first) * leaf, generator=random)[:count]
    leaves = first + torch.randperm(last - first, generator=random)[:count]
    return leaves * leaf + torch.randint(leaf, (count,), generator=random)


@dataclass(frozen=True)
class Case:
    """A kind of question.

    Attributes:
        what: in words, for records.
        make: an exam from a field, a configuration and a seed.
        found: judged by the share of the needles' weight that is read; otherwise by the output error.
        decode: the asking row is decoded instead of prefilled.
    """

    name: str
    what: str
    make: Callable[[Field, HSAConfig, int], Exam]
    found: bool = True
    decode: bool = False


def _whole(field: Field, after: int = 1) -> Exam:
    return cut(field, field.length - after * TILE, after, 0, TILE)


def _crowded(field: Field, config: HSAConfig, seed: int) -> Exam:
    return plant(_whole(field), config, 1, seed=seed, crowded=True)


def _scattered(field: Field, config: HSAConfig, seed: int) -> Exam:
    return plant(_whole(field), config, 2 * config.budget // config.leaf, seed=seed)


def _uniform(field: Field, config: HSAConfig, seed: int) -> Exam:
    exam = _whole(field)
    exam.q_BHMD[:, :, exam.rows] = 0
    return exam


def _aggregate(field: Field, config: HSAConfig, seed: int) -> Exam:
    exam = plant(_whole(field), config, field.length // 8, seed=seed, apart=False)
    assert exam.needles_BHP is not None
    groups = exam.q_BHMD.shape[1] // exam.k_BKND.shape[1]
    answer = direction(exam.v_BKND.shape[-1], torch.Generator().manual_seed(seed), exam.v_BKND.float())
    answer = (answer * exam.v_BKND.float().norm(dim=-1).mean()).to(exam.v_BKND.dtype)
    for b, needles_HP in enumerate(exam.needles_BHP):
        for h, at in enumerate(needles_HP):
            exam.v_BKND[b, h // groups, at] += answer
    return exam


def _row(field: Field, config: HSAConfig, seed: int) -> Exam:
    return plant(cut(field, field.length - TILE, 1, TILE // 2, 1), config, 1, seed=seed)


def _last_row(field: Field, config: HSAConfig, seed: int) -> Exam:
    return plant(cut(field, field.length, 0, TILE - 1, 1), config, 1, seed=seed)


CASES = (
    Case("crowded", "one needle, its leaf full of keys that point away, sought by a whole tile", _crowded),
    Case("scattered", "needles in twice as many leaves as the budget holds, sought by a whole tile", _scattered),
    Case("uniform", "queries of zero, whose answer is the mean of all values", _uniform, found=False),
    Case("aggregate", "an eighth of the keys, each attended weakly, hold most of the mass", _aggregate, found=False),
    Case("row_mid", "one needle, sought by one row of a tile in the middle of a prompt", _row),
    Case("row_last", "one needle, sought by the last row of a prompt", _last_row),
    Case("row_decode", "one needle, sought by the row that is decoded", _last_row, decode=True),
)
