"""Who is who, by attention to the past: identities are words that past objects carry, a new one is classified.

In-context identity prediction (R. Gao, J. Qi, L. Wang, "Multiple object tracking as ID prediction", CVPR 2025): what is
seen now attends to remembered objects and their words, and is told which word is its own, or that it is new. Here the
last step also adds up the attention that each word gets, so words need not be learned one by one; and each pair has a
learned bias for where and how long ago the remembered object was, which says much where looks say little.

B cameras, Q objects, J remembered ones that all Q may read, I remembered ones of each single object, C width, h heads,
W words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from stille.video.model import boxes
from stille.video.model.attention import BUCKETS, MLP, SHORTEST, AgeBias, SelfAttention, split
from stille.video.model.config import StilleCamConfig
from stille.video.model.kernels import Leaves, Tokens

NEVER = -torch.inf
PLACE_WIDTH = 32
SMALLEST = 1e-3
"""Of the picture's height: what sides of boxes count as at least."""
NEXT = 0.05
"""Of a box's size: distances below it are nearly the same."""

Near = tuple[Tensor, Tensor | None]


class Context:
    """Remembered objects that attention reads; see the module for shapes.

    Args:
        kv_BJ2C, word_BJ: keys and values, and words; a word of -1 does not count.
        box_BJ4: corners of their boxes.
        age_BQJ: seconds, or [B, 1, J].
        visible_BQJ: bool, what each object may read; None: all.
        each: of so many objects in turn, ages and what may be read are the same: those have 1/each of the sizes.
        own_kv_BQI2C, own_word_BQI, own_box_BQI4, own_age_BQI: of what each object reads alone, or the leaves that it is
            in; None: nothing.
        old: so many of the last of J come out of the long memory, as does what each object reads alone.
        doubt: what is taken off the logits of those.
    """

    def __init__(
        self,
        kv_BJ2C: Tensor,
        word_BJ: Tensor,
        box_BJ4: Tensor,
        age_BQJ: Tensor,
        visible_BQJ: Tensor | None = None,
        own_kv_BQI2C: Tensor | Leaves | None = None,
        own_word_BQI: Tensor | None = None,
        own_box_BQI4: Tensor | None = None,
        own_age_BQI: Tensor | None = None,
        each: int = 1,
        old: int = 0,
        doubt: float = 0.0,
    ):
        self.k_BJC, self.v_BJC = kv_BJ2C.unbind(2)
        self.word_BQJ, self.box_BJ4, self.age_BQJ = word_BJ[:, None], box_BJ4, age_BQJ
        self.own = Tokens(own_kv_BQI2C) if isinstance(own_kv_BQI2C, Tensor) else own_kv_BQI2C
        self.own_word_BQI, self.own_box_BQI4, self.own_age_BQI = own_word_BQI, own_box_BQI4, own_age_BQI
        self.old, self.doubt = old, doubt
        self.each = each
        counts = self.word_BQJ >= 0
        self.counts_BQJ = counts if visible_BQJ is None else counts & _spread(visible_BQJ, each)

    def near(self, box_BQ4: Tensor, place: PlaceBias) -> Near:
        """What `place` says of the objects' boxes and the remembered ones: [B, x, Q, J] and [B, x, Q, I]."""
        age = _spread(self.age_BQJ, self.each)
        shared = place(box_BQ4[:, :, None], self.box_BJ4[:, None], age).permute(0, 3, 1, 2)
        if self.own_box_BQI4 is None or self.own_age_BQI is None:
            return shared, None
        return shared, place(box_BQ4[:, :, None], self.own_box_BQI4, self.own_age_BQI).permute(0, 3, 1, 2)

    def logits(self, q_BQC: Tensor, heads: int, age: AgeBias, near: Near, which: slice) -> Tensor:
        """float32 [B, h, Q, J + I]; -inf for what does not count.

        Args:
            near: of the method of that name; `which` of it belongs to these heads.
        """
        q = split(q_BQC, heads) * (q_BQC.shape[-1] // heads) ** -0.5
        found = (q @ split(self.k_BJC.to(q.dtype), heads).transpose(2, 3)).float()
        found = found + _spread(age(self.age_BQJ).permute(0, 3, 1, 2), self.each) + near[0][:, which]
        if self.old:
            found = torch.cat([found[..., : -self.old], found[..., -self.old :] - self.doubt], -1)
        found = found.masked_fill(~self.counts_BQJ[:, None], NEVER)
        if self.own is None:
            return found
        assert self.own_age_BQI is not None
        assert self.own_word_BQI is not None
        assert near[1] is not None
        mine = self.own.logits(q) + age(self.own_age_BQI).permute(0, 3, 1, 2) + near[1][:, which] - self.doubt
        return torch.cat([found, mine.masked_fill((self.own_word_BQI < 0)[:, None], NEVER)], -1)

    def values(self, weight_BhQX: Tensor) -> Tensor:
        """[B, Q, C], for weights over J + I."""
        heads, j = weight_BhQX.shape[1], self.v_BJC.shape[1]
        v = split(self.v_BJC, heads)
        out = weight_BhQX[..., :j].to(v.dtype) @ v
        if self.own is not None:
            out = out + self.own.values(weight_BhQX[..., j:])
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


class PlaceBias(nn.Module):
    """Learned numbers for a pair of boxes and the time between them: how far, how much larger, how long ago.

    Distances are in sizes of the boxes, so that it is the same near a camera and far from it.

    Args:
        aspect: width of pictures over their height.
    """

    def __init__(self, outside: int, aspect: float):
        super().__init__()
        self.register_buffer("scale_4", torch.tensor([aspect, 1.0] * 2), persistent=False)
        self.scale_4: Tensor
        self.up, self.down = nn.Linear(7, PLACE_WIDTH), nn.Linear(PLACE_WIDTH, outside)
        nn.init.zeros_(self.down.weight)  # a pair says nothing at first
        nn.init.zeros_(self.down.bias)

    def forward(self, now_BQ4: Tensor, past_BJ4: Tensor, age_BQJ: Tensor) -> Tensor:
        """float32 [.., outside], of corners [.., 4] and seconds that broadcast to each other."""
        with torch.autocast(now_BQ4.device.type, enabled=False):
            now, past = now_BQ4.float(), past_BJ4.float()
            overlap = boxes.iou(now, past)[..., None]
            (here, size), (there, was) = (self._in_heights(x).split(2, -1) for x in (now, past))
            side = (size * was).prod(-1, keepdim=True) ** 0.25
            shift = (here - there).abs() / side
            apart = shift.square().sum(-1, keepdim=True).sqrt()
            age = torch.log2(1 + age_BQJ.clamp(min=0) / SHORTEST).float()[..., None] / BUCKETS
            parts = (shift + NEXT).log(), (apart + NEXT).log(), (size / was).log().abs(), overlap, age
            shape = torch.broadcast_shapes(*(x.shape[:-1] for x in parts))
            seen = torch.cat([x.expand(*shape, -1) for x in parts], -1)
            hidden = gelu(linear(seen, self.up.weight.float(), self.up.bias.float()))
            return linear(hidden, self.down.weight.float(), self.down.bias.float())

    def _in_heights(self, box: Tensor) -> Tensor:
        """Centres and sizes in heights of the picture."""
        centre, size = (boxes.to_centred(box) * self.scale_4.float()).split(2, -1)
        return torch.cat([centre, size.clamp(min=SMALLEST)], -1)


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

    def read(self, x: Tensor, position: Tensor, context: Context, near: Near, which: slice) -> Tensor:
        logits = context.logits(self.query(x, position), self.heads, self.age, near, which)
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
        self.place = PlaceBias(config.identity_layers * config.heads + 1, config.width / config.height)
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

    def forward(
        self, x: Tensor, position: Tensor, box_BQ4: Tensor, context: Context, together: Tensor | None = None
    ) -> Tensor:
        """float32 [B, Q, W + 1]; -inf for words that no remembered object has that may be read.

        Args:
            box_BQ4: corners.
            together: bool, broadcasting to [B, 1, Q, Q]: which objects are of one frame; None: all of them.
        """
        layer: Any  # of `_Layer`, which ModuleList does not tell
        near = context.near(box_BQ4, self.place)
        for number, layer in enumerate(self.layers):
            x = layer.read(x, position, context, near, slice(number * self.heads, (number + 1) * self.heads))
            x = layer.meet(x, position, together)
        x = self.last(x)
        alike = context.logits(self.pointer(x), 1, self.pointer_age, near, slice(-1, None))[:, 0]
        mass = _mass_by_word(alike, context.words(x.shape[1]), self.words)
        said = torch.where(mass > NEVER, mass + self.say(x).float(), NEVER)
        return torch.cat([said, self.new(x).float()], -1)


def _mass_by_word(logit_BQX: Tensor, word_BQX: Tensor, words: int) -> Tensor:
    """Log of the summed exponentials of each word, [B, Q, W]; -inf where a word has none."""
    top = logit_BQX.amax(-1, keepdim=True).detach().clamp(min=-1e4)
    mass = logit_BQX.new_zeros(*logit_BQX.shape[:2], words)
    mass = mass.scatter_add(2, word_BQX.clamp(min=0), (logit_BQX - top).exp())
    return torch.where(mass > 0, mass.clamp(min=1e-30).log() + top, NEVER)
