"""The selector's loss: what it measures, and that following it finds the mass that selection had missed."""

import dataclasses

import pytest
import torch

from stille.errors import UnsupportedError
from stille.kernels.hsa import HSAConfig
from stille.kernels.hsa import reference as ref
from stille.kernels.hsa.config import TILE
from stille.kernels.hsa.distill import pooled_mass, selector_loss

CONFIG = HSAConfig(budget=256, leaf=16, sinks=16, local=16, tail=0, candidates_from=1 << 30)
HEADS, KV_HEADS, DIM, TOKENS, TOPICS = 4, 2, 32, 1152, 8


def topics():
    """Keys of random topics in runs of 16; a tile's queries seek one or two. Topics show in 8 of 32 dimensions only."""
    random = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=random)

    names = noise(TOPICS, 8)
    names = names / names.norm(dim=-1, keepdim=True)
    k, q = noise(KV_HEADS, TOKENS, DIM), 0.5 * noise(HEADS, TOKENS, DIM)
    run = torch.randint(0, TOPICS, (KV_HEADS, TOKENS // 16), generator=random).repeat_interleave(16, 1)
    sought = torch.randint(0, TOPICS, (HEADS, TOKENS // 64), generator=random).repeat_interleave(64, 1)
    k[..., :8] += 5 * names[run]
    q[..., :8] += 6 * names[sought]
    return q[None], k[None]


def recall(q, k, projection):
    """Share of the mass of exact attention in what the specification selects, by projected queries and keys."""
    heads, n, scale = q.shape[1], q.shape[2], DIM**-0.5
    k_wide = k[0].repeat_interleave(heads // KV_HEADS, 0)
    weight = (q[0] @ k_wide.mT * scale).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)
    each = projection.repeat_interleave(heads // KV_HEADS, 0)
    read = ref.select(q[0] @ each, k[0] @ projection, scale, CONFIG)
    read = read.repeat_interleave(TILE, 1)[:, :n].repeat_interleave(CONFIG.leaf, 2)[..., :n]
    return float((weight * read)[:, TOKENS // 2 :].sum(-1).mean())


def test_minimising_it_raises_recall():
    q, k = topics()
    projection = torch.randn(KV_HEADS, DIM, 8, generator=torch.Generator().manual_seed(2)) / 3
    projection.requires_grad_()
    optimizer = torch.optim.Adam([projection], 0.03)
    draw = torch.Generator().manual_seed(3)
    before, losses = recall(q, k, projection.detach()), []
    for _ in range(80):
        loss = selector_loss(q, k, CONFIG, projection_KDE=projection, tiles=3, generator=draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    after, full = recall(q, k, projection.detach()), recall(q, k, torch.eye(DIM).expand(KV_HEADS, -1, -1))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert before < 0.85 * full
    assert after > 0.95 * full


@pytest.mark.parametrize("unit", [128, 32])
def test_it_is_zero_where_pooling_loses_nothing(unit):
    """Queries of a tile that are all the same have one distribution, that of their mean."""
    random = torch.Generator().manual_seed(4)
    q = torch.randn(2, 4, 5, DIM, generator=random).repeat_interleave(TILE, 2)
    k = torch.randn(2, 2, 5 * TILE, DIM, generator=random)
    config = dataclasses.replace(CONFIG, unit=unit)
    assert abs(float(selector_loss(q, k, config, tiles=None))) < 1e-5
    assert float(selector_loss(q, k, dataclasses.replace(config, codes="sign"), tiles=None)) > 1e-3
    assert float(selector_loss(q.flip(2), k, config, tiles=None)) < 1e-5
    if unit == 128:  # a mean of two kinds of queries, which looks for neither
        assert float(selector_loss(q.roll(64, 2), k, config, tiles=None)) > 1e-3


@pytest.mark.parametrize("codes", ["keys", "sign"])
def test_gradients_are_those_of_the_student(codes):
    q, k = (x[:, :, :400].double().float().requires_grad_() for x in topics())
    config = dataclasses.replace(CONFIG, codes=codes)
    loss = selector_loss(q, k, config, tiles=None)
    dq, dk = torch.autograd.grad(loss, (q, k))
    assert dq[:, :, 128:].any()
    assert not dq[:, :, :128].any(), "the first tile has nothing to choose"
    assert not dk[:, :, 384:].any(), "the teacher is constant: keys in no tile's past get nothing"
    moved = (q.detach() - 1e-3 * dq / dq.norm(), k.detach() - 1e-3 * dk / dk.norm())
    if codes == "keys":  # downhill for the same teacher, approximately for one that moves along
        assert selector_loss(*moved, config, tiles=None) < loss


def test_pooled_mass_is_a_distribution_over_the_past():
    q, k = topics()
    mass = pooled_mass(q[0, :2, 256:300], k[0, 0, :300], 0.2, 16)
    assert mass.shape == (2, 19)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2))
    weight = (q[0, 1, 260] @ k[0, 0, :261].T * 0.2).softmax(-1)
    alone = pooled_mass(q[0, 1:2, 260:261], k[0, 0, :261], 0.2, 16)
    torch.testing.assert_close(alone[0, 3], weight[48:64].sum())


def test_bad_input_is_refused():
    q, k = topics()
    with pytest.raises(ValueError, match="no tile has leaves"):
        selector_loss(q[:, :, :128], k[:, :, :128], CONFIG)
    with pytest.raises(UnsupportedError, match="whole sequences"):
        selector_loss(q[:, :, 500:], k, CONFIG)
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        selector_loss(q[:, :3], k, CONFIG)
    with pytest.raises(ValueError, match="projection_KDE"):
        selector_loss(q, k, CONFIG, projection_KDE=torch.ones(1, DIM, 8))
