"""Halves of a training step: that nothing in them waits for a value, and that each way to run them gives the same."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stille.kernels.triton_support import has_triton, interpreting
from stille.video.scenes.clips import Clips
from stille.video.training import VideoTrainConfig, train
from stille.video.training.feed import tensors
from stille.video.training.matching import match
from stille.video.training.passes import Passes, widened
from stille.video.training.step import draw, judged, looked_at
from tests.video.painted import painted
from tests.video.test_training import SIZE, network, quick


def test_no_half_asks_for_a_value():
    """Nor do their gradients: on a GPU each such operation waits, and ends the capture of a graph."""
    config, net, clips = quick(steps=1, dtype="bf16", truncate=2), network().train(), painted(3, 2, 3, size=SIZE)
    luck = draw(net, clips, config, torch.Generator())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        looked = looked_at(net, clips, config, luck)
        query = looked.pairing[3].long() - 1  # the first one has each object that is there
        loss = judged(net, clips, looked, query, config, luck)
        found = torch.autograd.grad(loss.total, list(net.parameters()), allow_unused=True)
    assert all(x is not None for x in found)
    names = {event.name for event in seen.events() or ()}
    assert "aten::gather" in names
    assert names.isdisjoint(f"aten::{name}" for name in ("_local_scalar_dense", "item", "nonzero", "masked_select"))


def test_empty_places_change_nothing():
    config, clips, net = quick(steps=1), painted(3, 2, 3, size=SIZE), network().train()
    wide = widened(clips, 8, 5)
    assert (wide.kind_BM.shape, wide.slot_BS4.shape) == ((2, 8), (2, 5, 4))
    one, two = (Passes(net, config, torch.device("cpu"))(x, False, torch.Generator()) for x in (clips, wide))
    torch.testing.assert_close(one[0], two[0])
    for a, b in zip(one[1], two[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def gradients(config: VideoTrainConfig, clips: Clips, device: torch.device, times: int = 1) -> list[Tensor]:
    passes = Passes(network().to(device).train(), config, device)
    for _ in range(times):
        facts, found = passes(clips, True, torch.Generator().manual_seed(1))
    return [facts, *(x for x in found if x is not None)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_graphs_give_the_same(dtype):
    device = torch.device("cuda")
    config, clips = quick(steps=1, dtype=dtype), painted(3, 2, 3, size=SIZE)
    clips = widened(Clips(*(x.to(device) for x in tensors(clips))), 16, clips.slot_BS4.shape[1])
    plain = gradients(replace(config, graphs=False), clips, device)
    for times in (1, 3):
        for a, b in zip(plain, gradients(config, clips, device, times), strict=True):
            assert float((a - b).norm()) <= (1e-3 if dtype == "fp32" else 0.05) * float(a.norm()) + 1e-5


@pytest.mark.skipif(
    not (has_triton() and (interpreting() or torch.cuda.is_available())), reason="needs a GPU or Triton's interpreter"
)
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 9), st.integers(1, 9))
def test_the_kernel_matches_as_the_cpu_does(seed, frames, queries, objects):
    """More objects than queries, objects that hide and come back, queries that lose theirs, a cost that is nan."""
    from stille.video.training.matching_triton import match_triton

    random = torch.Generator().manual_seed(seed)
    shape = 2, frames, queries, objects
    cost, near = 5 * torch.randn(shape, generator=random), torch.rand(shape, generator=random)
    if seed % 4 == 0:
        cost[0, 0, 0, 0] = torch.nan
    present = torch.rand(2, frames, objects, generator=random) < 0.7
    origin = torch.full((2, frames, queries), -1)
    for later in origin[:, 1:].flatten(0, 1):
        later[queries // 2 :] = torch.randperm(queries, generator=random)[: queries - queries // 2]
    device = "cpu" if interpreting() else "cuda"
    found = match_triton(*(x.to(device) for x in (cost, near, origin, present)))
    assert torch.equal(found.cpu(), match(cost, near, origin, present))


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path, caplog):
    """Weights and moments stay; the log tells."""

    def source(seed: int, n: int, t: int) -> Clips:
        clips = painted(seed, n, t, size=SIZE)
        return replace(clips, time_BT=torch.full_like(clips.time_BT, torch.nan))

    was = network()
    result = train(was, source, quick(steps=1, eval_clips=1, frames=2), tmp_path)
    assert "the gradient was not finite" in caplog.text
    for (name, a), b in zip(network().named_parameters(), result.network.parameters(), strict=True):
        assert torch.equal(a, b), name
