"""What is remembered of cameras: one row of each tensor is a camera, so that cameras join, leave, and are saved alone.

R rows, B rows of a call, K objects of a frame, F frames, L leaves of the long memory, E tokens of a leaf, C width, W
words, A attributes, Q objects that look for something.

The long memory holds objects at a few per second in leaves of one identity each. A full leaf is followed by another;
where none is free, the one that was written to longest ago is taken. Which leaves an object reads is HSA's choice: the
shares of leaf means in the eyes of its query, averaged over heads (`stille.kernels.hsa.reference`, step 3, one query to
a tile). The last leaf of the tensors takes what is not to be kept: writing needs no branches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from stille.kernels.hsa.reference import shares
from stille.video.errors import VideoError
from stille.video.model import kernels
from stille.video.model.attention import split
from stille.video.model.config import StilleCamConfig
from stille.video.model.decoder import Recent, vars_of
from stille.video.model.kernels import Leaves
from stille.video.types import ATTRIBUTES

NEVER = -math.inf
FREE = -1
RECENT = tuple(field.name.replace("_B", "_R", 1) for field in fields(Recent))
"""Fields of `Memory` that hold a `Recent`, in its order."""


@dataclass(slots=True)
class Memory:
    """
    Attributes:
        token_RKC .. object_time_RF: see `Recent`.
        seen_RFK2C, seen_word_RFK, seen_box_RFK4, seen_time_RF: identity keys and values of the last frames, their words
            (-1: none), and boxes (corners).
        long_RLE2C, long_box_RLE4, long_time_RLE: the long memory, where its tokens were seen, and when.
        count_RL, leaf_word_RL, written_RL: tokens of a leaf, its word (-1: empty), when it was last written to.
        sum_RLC: sums of a leaf's keys.
        stored_R: when the long memory was last written to.
        identity_RW: whom a word stands for, -1 while it is free; last_RW: when that was last seen.
        evidence_RWA, weight_RWA: of attributes, see `stille.video.model.words`.
        next_R: the next identity.
    """

    token_RKC: Tensor
    box_RK4: Tensor
    score_RK: Tensor
    index_RK: Tensor
    pooled_RFP2C: Tensor
    pooled_time_RF: Tensor
    object_RFK2C: Tensor
    object_score_RFK: Tensor
    object_time_RF: Tensor
    seen_RFK2C: Tensor
    seen_word_RFK: Tensor
    seen_box_RFK4: Tensor
    seen_time_RF: Tensor
    long_RLE2C: Tensor
    long_box_RLE4: Tensor
    long_time_RLE: Tensor
    count_RL: Tensor
    leaf_word_RL: Tensor
    written_RL: Tensor
    sum_RLC: Tensor
    stored_R: Tensor
    identity_RW: Tensor
    last_RW: Tensor
    evidence_RWA: Tensor
    weight_RWA: Tensor
    next_R: Tensor

    @classmethod
    def empty(cls, config: StilleCamConfig, rows: int, device: torch.device, dtype: torch.dtype) -> Memory:
        """Of cameras that have seen nothing."""
        k, c, f, w, a = config.carried, config.dim, config.object_frames, config.words, len(ATTRIBUTES)
        leaves = (0 if config.long_memory == "none" else config.leaves) + 1

        def full(value: float, kind: torch.dtype, *shape: int) -> Tensor:
            return torch.full((rows, *shape), value, device=device, dtype=kind)

        f64, i64, f32 = torch.float64, torch.int64, torch.float32
        return cls(
            **dict(zip(RECENT, vars_of(Recent.empty(config, rows, device, dtype)), strict=True)),
            seen_RFK2C=full(0, dtype, f, k, 2, c),
            seen_word_RFK=full(FREE, i64, f, k),
            seen_box_RFK4=full(0, f32, f, k, 4),
            seen_time_RF=full(NEVER, f64, f),
            long_RLE2C=full(0, dtype, leaves, config.leaf, 2, c),
            long_box_RLE4=full(0, f32, leaves, config.leaf, 4),
            long_time_RLE=full(NEVER, f64, leaves, config.leaf),
            count_RL=full(0, i64, leaves),
            leaf_word_RL=full(FREE, i64, leaves),
            written_RL=full(NEVER, f64, leaves),
            sum_RLC=full(0, f32, leaves, c),
            stored_R=full(NEVER, f64),
            identity_RW=full(FREE, i64, w),
            last_RW=full(NEVER, f64, w),
            evidence_RWA=full(0, f32, w, a),
            weight_RWA=full(0, f32, w, a),
            next_R=full(0, i64),
        )

    @property
    def rows(self) -> int:
        return len(self.next_R)

    @property
    def bytes_per_camera(self) -> int:
        return sum(x.nbytes for x in self.tensors().values()) // max(1, self.rows)

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def row(self, row: int) -> dict[str, Tensor]:
        """A camera's state, on the CPU."""
        return {name: x[row].detach().cpu().clone() for name, x in self.tensors().items()}

    def check(self, state: dict[str, Tensor]) -> None:
        """
        Raises:
            VideoError: a state of another model.
        """
        own = self.tensors()

        def fits(name: str) -> bool:
            return name in state and (state[name].shape, state[name].dtype) == (own[name].shape[1:], own[name].dtype)

        wrong = [name for name in own if not fits(name)]
        if wrong or len(state) != len(own):
            raise VideoError(
                f"a camera's state does not fit this model: {', '.join(wrong) or 'unknown tensors'}. Restore it with "
                "the model, the dtype and the kind of long memory that it was saved with."
            )

    def set_row(self, row: int, state: dict[str, Tensor]) -> None:
        """Put a state in the place of a camera's."""
        for name, x in self.tensors().items():
            x[row] = state[name].to(x.device)

    def reset(self, row: int, config: StilleCamConfig) -> None:
        """Forget a camera."""
        self.set_row(row, Memory.empty(config, 1, torch.device("cpu"), self.token_RKC.dtype).row(0))

    def grown(self, config: StilleCamConfig, rows: int) -> Memory:
        """With so many rows more."""
        more = Memory.empty(config, rows, self.token_RKC.device, self.token_RKC.dtype)
        return Memory(*(torch.cat([x, getattr(more, name)]) for name, x in self.tensors().items()))

    def recent(self, rows_B: Tensor) -> Recent:
        """What the decoder reads."""
        return Recent(*(getattr(self, name)[rows_B] for name in RECENT))

    def set_recent(self, rows_B: Tensor, recent: Recent) -> None:
        for name, value in zip(RECENT, vars_of(recent), strict=True):
            getattr(self, name)[rows_B] = value

    def forget_words(self, rows_B: Tensor, gone_BW: Tensor) -> None:
        """Drop what was remembered of words that stand for somebody else from now on."""
        for name in ("seen_word_RFK", "leaf_word_RL"):
            word = getattr(self, name)[rows_B]
            hit = gone_BW.gather(1, word.flatten(1).clamp(min=0)).view_as(word) & (word >= 0)
            getattr(self, name)[rows_B] = word.masked_fill(hit, FREE)
        empty = self.leaf_word_RL[rows_B] < 0
        self.count_RL[rows_B] = self.count_RL[rows_B].masked_fill(empty, 0)
        self.written_RL[rows_B] = self.written_RL[rows_B].masked_fill(empty, NEVER)

    def add_seen(self, rows_B: Tensor, kv_BK2C: Tensor, word_BK: Tensor, box_BK4: Tensor, time_B: Tensor) -> None:
        """A frame's objects; the oldest frame's go."""
        given = {"seen_RFK2C": kv_BK2C, "seen_word_RFK": word_BK, "seen_box_RFK4": box_BK4, "seen_time_RF": time_B}
        for name, new in given.items():
            held = getattr(self, name)
            held[rows_B] = torch.cat([held[rows_B][:, 1:], new[:, None]], 1)

    def add_long(
        self, rows_B: Tensor, kv_BK2C: Tensor, word_BK: Tensor, box_BK4: Tensor, time_B: Tensor, step: float
    ) -> None:
        """The same into long memory, for the cameras where the last time was `step` seconds ago."""
        trash = self.count_RL.shape[1] - 1
        if trash == 0:
            return
        due = time_B - self.stored_R[rows_B] >= step
        self.stored_R[rows_B] = torch.where(due, time_B, self.stored_R[rows_B])
        want = due[:, None] & (word_BK >= 0)
        count, owner, written = (x[rows_B, :trash] for x in (self.count_RL, self.leaf_word_RL, self.written_RL))
        is_open = (owner[:, None] == word_BK[..., None]) & (count < self.long_RLE2C.shape[2])[:, None] & want[..., None]
        has = is_open.any(-1)
        # Leaves in use are not up for grabs, however long ago they were written to.
        order = written.masked_fill(is_open.any(1), math.inf).argsort(1)
        rank = ((want & ~has).cumsum(1) - 1).clamp(min=0)
        leaf = torch.where(has, is_open.int().argmax(-1), order.gather(1, rank))
        slot = torch.where(has, count.gather(1, leaf), 0)
        leaf = torch.where(want, leaf, trash)
        at, key = (rows_B[:, None], leaf), kv_BK2C[:, :, 0].float()
        self.long_RLE2C[(*at, slot)] = kv_BK2C
        self.long_box_RLE4[(*at, slot)] = box_BK4
        self.long_time_RLE[(*at, slot)] = time_B[:, None].expand_as(leaf)
        self.sum_RLC[at] = torch.where(has[..., None], self.sum_RLC[at], 0) + key
        self.count_RL[at] = torch.where(want, slot + 1, 0)
        self.leaf_word_RL[at] = torch.where(want, word_BK, FREE)
        self.written_RL[at] = torch.where(want, time_B[:, None], NEVER)


@dataclass(slots=True)
class Old:
    """Tokens out of the long memory: [B, X, 2, C], [B, X], [B, X, 4] and [B, X], or [B, Q, X ..] where each object has
    its own; on a GPU those are left where they are."""

    kv: Tensor | Leaves
    word: Tensor
    box: Tensor
    age: Tensor


def recall(
    memory: Memory, rows_B: Tensor, query_BQC: Tensor, time_B: Tensor, config: StilleCamConfig
) -> tuple[Old | None, bool]:
    """What objects read of the long memory, and whether each has its own: tokens of those who are away.

    Whom the last frames hold is known from there, as in training. Many more tokens of them would outweigh what speaks
    for others, or for somebody new.
    """
    if config.long_memory == "none":
        return None, False
    count, written = memory.count_RL[rows_B, :-1], memory.written_RL[rows_B, :-1]
    lately = _seen_lately(memory, rows_B, config.words)
    count, written = count.masked_fill(lately, 0), written.masked_fill(lately, NEVER)
    if config.long_memory == "hsa":
        leaf = choose(query_BQC, memory.sum_RLC[rows_B, :-1], count, config.heads, config.keep)
        return _leaves(memory, rows_B[:, None, None], leaf, count, time_B[:, None, None]), True
    keep = config.keep if config.long_memory == "window" else count.shape[1]
    leaf = written.argsort(1, descending=True)[:, :keep]
    return _leaves(memory, rows_B[:, None], leaf, count, time_B[:, None]), False


def _seen_lately(memory: Memory, rows_B: Tensor, words: int) -> Tensor:
    """bool [B, L], leaves of those whom the last frames hold."""
    word, seen = memory.leaf_word_RL[rows_B, :-1], memory.seen_word_RFK[rows_B].flatten(1)
    marks = torch.zeros(len(seen), words + 1, dtype=torch.bool, device=seen.device)
    marks = marks.scatter(1, torch.where(seen >= 0, seen, words), True)
    return marks[:, :words].gather(1, word.clamp(min=0)) & (word >= 0)


def choose(query_BQC: Tensor, sum_BLC: Tensor, count_BL: Tensor, heads: int, keep: int) -> Tensor:
    """[B, Q, keep] leaves of the largest shares; empty ones come last."""
    mean = sum_BLC / count_BL.clamp(min=1)[..., None]
    q = split(query_BQC.float(), heads)
    log_mass = q @ split(mean, heads).transpose(2, 3) * q.shape[-1] ** -0.5
    log_mass = log_mass + count_BL.clamp(min=1).log()[:, None, None]
    allowed = (count_BL > 0)[:, None, None]
    score = shares(log_mass, allowed).mean(1)
    return score.masked_fill(~allowed[:, 0], -1.0).topk(keep, -1).indices


def _leaves(memory: Memory, rows: Tensor, leaf: Tensor, count_BL: Tensor, time: Tensor) -> Old:
    at = rows, leaf
    size = memory.long_RLE2C.shape[2]
    count = count_BL.gather(1, leaf.flatten(1)).view_as(leaf)
    there = torch.arange(size, device=leaf.device) < count[..., None]
    word = torch.where(there, memory.leaf_word_RL[at][..., None], FREE)
    age = torch.where(there, time[..., None] - memory.long_time_RLE[at], 0.0)
    box = memory.long_box_RLE4[at].flatten(-3, -2)
    kv: Tensor | Leaves
    if leaf.ndim == 3 and kernels.usable(memory.long_RLE2C):
        kv = Leaves(memory.long_RLE2C, rows.flatten(), leaf, count)
    else:
        kv = memory.long_RLE2C[at].flatten(-4, -3)
    return Old(kv, word.flatten(-2), box, age.flatten(-2))


def with_long_memory(config: StilleCamConfig, kind: str) -> StilleCamConfig:
    """The same model with another long memory; weights do not depend on it."""
    return replace(config, long_memory=kind)  # pyright: ignore[reportArgumentType]
