"""Who is who, by attention to the past: identities are words that past objects carry, a new one is classified.

In-context identity prediction (R. Gao, J. Qi, L. Wang, "Multiple object tracking as ID prediction", CVPR 2025): what is
seen now attends to remembered objects and their words, and is told which word is its own, or that it is new. Here the
last step also adds up the attention that each word gets, so words need not be learned one by one.

B cameras, Q objects, J remembered ones that all Q may read, I remembered ones of each single object, C width, h heads,
W words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stille.video.model import boxes
from stille.video.model.attention import MLP, AgeBias, SelfAttention, split
from stille.video.model.config import StilleCamConfig

NEVER = -torch.inf


class Context:
    """Remembered objects that attention reads; see the module for shapes.

    Args:
        kv_BJ2C, word_BJ: keys and values, and words; a word of -1 does not count.
        age_BQJ: seconds, or [B, 1, J].
        visible_BQJ: bool, what each object may read; None: all.
        each: of so many objects in turn, ages and what may be read are the same: those have 1/each of the sizes.
        own_kv_BQI2C, own_word_BQI, own_age_BQI: of what each object reads alone; None: nothing.
    """

    def __init__(
        self,
        kv_BJ2C: Tensor,
        word_BJ: Tensor,
        age_BQJ: Tensor,
        visible_BQJ: Tensor | None = None,
        own_kv_BQI2C: Tensor | None = None,
        own_word_BQI: Tensor | None = None,
        own_age_BQI: Tensor | None = None,
        each: int = 1,
    ):
        self.k_BJC, self.v_BJC = kv_BJ2C.unbind(2)
        self.word_BQJ, self.age_BQJ = word_BJ[:, None], age_BQJ
        self.own, self.own_word_BQI, self.own_age_BQI = own_kv_BQI2C, own_word_BQI, own_age_BQI
        self.each = each
        counts = self.word_BQJ >= 0
        self.counts_BQJ = counts if visible_BQJ is None else counts & _spread(visible_BQJ, each)

    def logits(self, q_BQC: Tensor, heads: int, age: AgeBias) -> Tensor:
        """float32 [B, h, Q, J + I]; -inf for what does not count."""
        q = split(q_BQC, heads) * (q_BQC.shape[-1] // heads) ** -0.5
        found = (q @ split(self.k_BJC.to(q.dtype), heads).transpose(2, 3)).float()
        found = found + _spread(age(self.age_BQJ).permute(0, 3, 1, 2), self.each)
        found = found.masked_fill(~self.counts_BQJ[:, None], NEVER)
        if self.own is None:
            return found
        assert self.own_age_BQI is not None
        assert self.own_word_BQI is not None
        k = self.own[:, :, :, 0].to(q.dtype).unflatten(-1, (heads, -1))
        mine = torch.einsum("bhqd,bqihd->bhqi", q, k).float() + age(self.own_age_BQI).permute(0, 3, 1, 2)
        return torch.cat([found, mine.masked_fill((self.own_word_BQI < 0)[:, None], NEVER)], -1)

    def values(self, weight_BhQX: Tensor) -> Tensor:
        """[B, Q, C], for weights over J + I."""
        heads, j = weight_BhQX.shape[1], self.v_BJC.shape[1]
        v = split(self.v_BJC, heads)
        out = weight_BhQX[..., :j].to(v.dtype) @ v
        if self.own is not None:
            mine = self.own[:, :, :, 1].unflatten(-1, (heads, -1))
            out = out + torch.einsum("bhqi,bqihd->bhqd", weight_BhQX[..., j:].to(v.dtype), mine)
        return out.transpose(1, 2).flatten(2)

    def words(self, q: int) -> Tensor:
        """[B, Q, J + I]"""
        shared = self.word_BQJ.expand(-1, q, -1)
        return shared if self.own_word_BQI is None else torch.cat([shared, self.own_word_BQI], -1)


def _spread(x: Tensor, each: int) -> Tensor:
    """Every number of the last two axes `each` times along both."""
    if each == 1:
        return x
    *front, q, j = x.shape
    wide = x[..., :, None, :, None].expand(*front, q, each, j, each)
    return wide.reshape(*front, q * each, j * each)


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.q, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.age = AgeBias(heads)
        self.objects, self.think = SelfAttention(dim, heads), MLP(dim, 2 * dim, dim)

    def query(self, x: Tensor, position: Tensor) -> Tensor:
        return self.q(self.norms[0](x) + position)

    def read(self, x: Tensor, position: Tensor, context: Context) -> Tensor:
        logits = context.logits(self.query(x, position), self.heads, self.age)
        nothing = logits.new_zeros(*logits.shape[:-1], 1)  # so that a row without anything to read is a row of zeros
        weight = torch.cat([nothing, logits], -1).softmax(-1)[..., 1:]
        return x + self.out(context.values(weight).to(x.dtype))

    def meet(self, x: Tensor, position: Tensor, together: Tensor | None) -> Tensor:
        x = x + self.objects(self.norms[1](x), position, together)
        return x + self.think(self.norms[2](x))


class IdentityDecoder(nn.Module):
    """Logits over words and "new" (the last) for the objects of a frame."""

    def __init__(self, config: StilleCamConfig):
        super().__init__()
        c, self.words, self.heads = config.dim, config.words, config.heads
        self.adapt, self.norm, self.position = MLP(c, 2 * c, c), nn.LayerNorm(c), MLP(c, c, c)
        self.key, self.value = nn.Linear(c, c), nn.Linear(c, c)
        self.word = nn.Embedding(config.words, c)
        self.layers = nn.ModuleList(_Layer(c, config.heads) for _ in range(config.identity_layers))
        self.last, self.pointer, self.pointer_age = nn.LayerNorm(c), nn.Linear(c, c), AgeBias(1)
        self.say, self.new = nn.Linear(c, config.words), nn.Linear(c, 1)
        nn.init.normal_(self.word.weight, std=c**-0.5)
        nn.init.zeros_(self.say.weight)
        nn.init.zeros_(self.say.bias)

    def describe(self, token_BQC: Tensor, box_BQ4: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for objects here, and where they are, both [B, Q, C]; boxes are corners."""
        x = self.norm(token_BQC + self.adapt(token_BQC))
        wave = boxes.waves(boxes.to_centred(box_BQ4), x.shape[-1])
        return x, self.position(wave.to(x.dtype))

    def remember(self, x: Tensor, position: Tensor, word: Tensor) -> Tensor:
        """Keys and values [B, Q, 2, C] of described objects and their words; what a word of -1 gives does not count."""
        return torch.stack([self.key(x + position), self.value(x) + self.word(word.clamp(min=0))], 2)

    def query(self, x: Tensor, position: Tensor) -> Tensor:
        """What long memory is searched with, [B, Q, C]."""
        layer: Any = self.layers[0]
        return layer.query(x, position)

    def forward(self, x: Tensor, position: Tensor, context: Context, together: Tensor | None = None) -> Tensor:
        """float32 [B, Q, W + 1]; -inf for words that no remembered object has that may be read.

        Args:
            together: bool, broadcasting to [B, 1, Q, Q]: which objects are of one frame; None: all of them.
        """
        layer: Any  # of `_Layer`, which ModuleList does not tell
        for layer in self.layers:
            x = layer.read(x, position, context)
            x = layer.meet(x, position, together)
        x = self.last(x)
        near = context.logits(self.pointer(x), 1, self.pointer_age)[:, 0]
        mass = _mass_by_word(near, context.words(x.shape[1]), self.words)
        said = torch.where(mass > NEVER, mass + self.say(x).float(), NEVER)
        return torch.cat([said, self.new(x).float()], -1)


def _mass_by_word(logit_BQX: Tensor, word_BQX: Tensor, words: int) -> Tensor:
    """Log of the summed exponentials of each word, [B, Q, W]; -inf where a word has none."""
    top = logit_BQX.amax(-1, keepdim=True).detach().clamp(min=-1e4)
    mass = logit_BQX.new_zeros(*logit_BQX.shape[:2], words)
    mass = mass.scatter_add(2, word_BQX.clamp(min=0), (logit_BQX - top).exp())
    return torch.where(mass > 0, mass.clamp(min=1e-30).log() + top, NEVER)
