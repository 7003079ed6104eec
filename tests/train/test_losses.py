"""Losses against torch's own, written out; packed text against documents one by one."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stille.errors import ConfigError, UnsupportedError
from stille.model.routing import Routing
from stille.train import DISTILL, LossWeights, TokenStore
from stille.train import losses as module
from stille.train.data import IGNORED, make_batch
from stille.train.losses import Objective, Scales, budget_loss, head_loss, layer_error, run_model
from stille.train.packed import Packed


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize(("next_token", "kl"), [(0.7, 0.0), (0.0, 1.3), (0.5, 0.25)])
def test_head_loss_and_gradients_equal_torchs(monkeypatch, chunk, next_token, kl):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", chunk * 19)
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 8, dtype=torch.float64), torch.randn(19, 8, dtype=torch.float64)
    theirs, head = torch.randn(50, 5), torch.randn(19, 5)
    label = torch.randint(0, 19, (50,))
    label[::7] = IGNORED
    inputs = [x.float().requires_grad_() for x in (hidden, weight)]
    loss, sums = head_loss(*inputs, label, next_token=next_token, kl=kl, teacher_NC=theirs, teacher_VC=head)
    (3 * loss).backward()

    wide = [x.requires_grad_() for x in (hidden, weight)]
    logits = F.linear(*wide)
    token_sum = F.cross_entropy(logits, label, ignore_index=IGNORED, reduction="sum")
    goal = F.linear(theirs, head).double().softmax(-1)
    kl_sum = F.kl_div(logits.log_softmax(-1), goal, reduction="sum")
    (3 * (next_token * token_sum + kl * kl_sum)).backward()
    torch.testing.assert_close(sums.next_token.double(), token_sum.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.kl.double(), kl_sum.detach(), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(inputs, wide, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize(("next_token", "kl"), [(0.7, 0.0), (0.5, 0.25)])
def test_a_compiled_head_loss_is_the_same(next_token, kl):
    torch.manual_seed(0)
    hidden, weight, theirs = torch.randn(40, 8), torch.randn(19, 8), torch.randn(40, 8)
    label = torch.randint(0, 19, (40,))
    label[::7] = IGNORED
    found = []
    for compiled in (False, True):
        inputs = [x.clone().requires_grad_() for x in (hidden, weight)]
        teacher = dict(teacher_NC=theirs, teacher_VC=weight) if kl else {}
        loss, sums = head_loss(*inputs, label, next_token=next_token, kl=kl, compiled=compiled, **teacher)
        loss.backward()
        found.append([loss.detach(), *sums, *(x.grad for x in inputs)])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_a_teacher_equal_to_the_model_costs_nothing():
    hidden, weight = torch.randn(6, 8), torch.randn(11, 8, requires_grad=True)
    label = torch.zeros(6, dtype=torch.long)
    loss, sums = head_loss(hidden, weight, label, next_token=0, kl=1, teacher_NC=hidden, teacher_VC=weight.detach())
    loss.backward()
    assert abs(float(sums.kl)) < 1e-5
    assert float(weight.grad.abs().max()) < 1e-5


def test_layer_error_is_relative_for_each_token():
    teacher = torch.randn(2, 5, 8)
    sizes = torch.tensor([1.0, 1000.0, 1e-2, 1.0, 1.0])[:, None]
    assert float(layer_error((teacher * sizes * 1.1,), (teacher * sizes,))) == pytest.approx(10 * 0.01, rel=1e-3)
    assert float(layer_error((teacher, teacher), (teacher, teacher * 0 + teacher))) == 0


def test_budget_loss_is_one_for_even_loads_and_more_for_uneven_ones():
    def routing(rows):
        mask = torch.tensor(rows, dtype=torch.bool)
        order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)
        used = mask.gather(1, order)
        return Routing(torch.where(used, order, mask.shape[1]), used.float(), mask)

    even, uneven = routing([[1, 0], [0, 1]]), routing([[1, 0], [1, 0]])
    assert float(budget_loss(even, 1)) == pytest.approx(1)
    assert float(budget_loss(uneven, 1)) == pytest.approx(2)


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "experts"])
def test_packed_loss_equals_the_loss_of_documents_one_by_one(make_model, dense):
    """Loss and gradients of sequences full of documents are the sums over what each sequence holds of each document."""
    random = np.random.default_rng(0)
    rows = [random.integers(0, 256, size) for size in (5, 1, 40, 17, 3, 70, 20, 9)]
    store = TokenStore.from_documents(rows)
    model = make_model(dense=dense)
    objective = Objective(model, LossWeights())

    def total(stores) -> torch.Tensor:
        model.zero_grad()
        sums = 0
        for one, length in stores:
            batch = make_batch(one, np.arange(one.sequences(length)), length)
            loss, _ = objective(batch, Scales(1.0, 1.0))
            loss.backward()
            sums += loss.detach()
        return sums

    model.eval()  # thresholds stay; gradients flow all the same
    packed = total([(store, 32)])
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    pieces, begin = [], 0
    for row in rows:
        cuts = sorted({begin, begin + len(row)} | {at for at in range(0, 160, 32) if begin < at < begin + len(row)})
        for first, last in pairwise(cuts):
            if first < 160:  # the last, incomplete sequence is not read
                piece = row[first - begin : last - begin + 1]  # with the token that the piece's last one predicts
                pieces.append(piece[: 160 - first + 1])
        begin += len(row)
    separate = total([(TokenStore.from_documents([piece]), len(piece) - 1) for piece in pieces if len(piece) > 1])
    assert float(packed) == pytest.approx(float(separate), rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention of unequal lengths needs a CUDA device")
def test_flash_attention_of_documents_is_attention_under_the_mask():
    random = np.random.default_rng(0)
    store = TokenStore.from_documents([random.integers(0, 256, int(size)) for size in random.integers(5, 300, 40)])
    packed = Packed(make_batch(store, np.arange(4), 256).to(torch.device("cuda")))
    found = []
    for attend in (packed._by_document, packed._by_mask):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1024, heads, 64, device="cuda").bfloat16().requires_grad_() for heads in (6, 2, 2))
        o = attend(q, k, v, 0.125)
        o.backward(torch.randn_like(o))
        found.append([o.detach(), q.grad, k.grad, v.grad])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=3e-2, atol=3e-2)


def test_without_the_mask_packed_documents_would_be_told_apart(make_model):
    """The test above can fail: hidden states differ if attention crosses documents."""
    store = TokenStore.from_documents([np.arange(10), np.arange(50, 90)])
    batch = make_batch(store, np.arange(1), 32)
    model = make_model(dense=True).eval()
    apart = run_model(model, batch)[0][None]
    across = model.model(batch.ids_BT).last_hidden_state
    torch.testing.assert_close(apart[:, :10], across[:, :10], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(apart[:, 11:], across[:, 11:], atol=1e-3)


def test_teachers_that_do_not_fit_are_refused(make_model):
    with pytest.raises(ConfigError, match="teacher"):
        Objective(make_model(), DISTILL)
    other = make_model(dense=True)
    other.config.vocab_size = 300
    with pytest.raises(ConfigError, match="300"):
        Objective(make_model(), DISTILL, other)
    shallow = make_model(dense=True)
    shallow.config.num_hidden_layers = 1
    with pytest.raises(ConfigError, match="layers=0"):
        Objective(make_model(), DISTILL, shallow)


def test_sparse_attention_over_several_documents_is_refused(make_model):
    model = make_model(dense=True)
    model.config.attention_kinds = ["hsa", "full"]
    batch = make_batch(TokenStore.from_documents([np.arange(10), np.arange(50, 90)]), np.arange(1), 32)
    with pytest.raises(UnsupportedError, match="documents"):
        run_model(model, batch)
