"""Kernels for GPUs against plain torch; without a GPU, through Triton's interpreter."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from stille.kernels.triton_support import has_triton, interpreting
from stille.video.model import StilleCam, camera, kernels, on_gpu
from stille.video.model.attention import BoxAttention
from stille.video.model.compiled import Compiled
from stille.video.model.kernels import BoxSampling, Leaves, Tokens, sampled_boxes, sampled_plainly
from stille.video.model.pictures import GREY, fitted, letterboxed
from stille.video.types import Frame
from tests.video.painted import awake
from tests.video.test_model_pictures import SMALL, noise

pytestmark = pytest.mark.skipif(
    not (has_triton() and (interpreting() or torch.cuda.is_available())), reason="needs a GPU or Triton's interpreter"
)
DEVICE = torch.device("cpu" if interpreting() else "cuda")
COCO = replace(SMALL, backbone="coco", depths=(1, 2, 2, 3), widths=(8, 8, 16, 24, 32), history=False)


@pytest.fixture
def everywhere(monkeypatch):
    """Kernels and what goes with them, also where there is no GPU."""
    monkeypatch.setattr(kernels, "usable", lambda x: True)
    monkeypatch.setattr(camera.on_cpu, "adapt", on_gpu.adapt)
    monkeypatch.setattr(camera.on_cpu, "Map", torch.Tensor)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 1 << 30), st.integers(1, 2), st.sampled_from([(4, 8, 4), (3, 5, 3), (1, 16, 1)]),
    st.lists(st.tuples(*[st.integers(1, 9)] * 2), min_size=3, max_size=3),
)  # fmt: skip
def test_boxes_are_sampled_as_grids_are(seed, batch, sizes, shapes):
    heads, width, points = sizes
    torch.manual_seed(seed)
    plain = BoxAttention(heads * width, heads, 3, points).to(DEVICE).requires_grad_(False)
    torch.nn.init.normal_(plain.offset.weight)
    torch.nn.init.normal_(plain.weight.weight)
    x, box = torch.randn(batch, 5, heads * width, device=DEVICE), torch.rand(batch, 5, 4, device=DEVICE) * 1.4 - 0.2
    maps = [torch.randn(batch, heads * width, *shape, device=DEVICE) for shape in shapes]
    lying = [one.contiguous(memory_format=torch.channels_last) for one in maps]
    torch.testing.assert_close(BoxSampling(plain)(x, box, lying), plain(x, box, maps), atol=1e-4, rtol=1e-4)
    said = torch.randn(batch, 5, heads * points * 9, device=DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        lying, said = [one.to(dtype) for one in lying], said.to(dtype)
        found = sampled_boxes(*lying, box, said, heads, points)
        assert found.dtype == dtype
        close: Any = {} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
        torch.testing.assert_close(found, sampled_plainly(lying, box, said, heads, points), **close)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([(2, 16, 4), (3, 5, 3), (1, 32, 2)]), st.booleans())
def test_leaves_are_read_where_they_are(seed, sizes, half):
    heads, width, tokens = sizes
    random = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(DEVICE)

    dtype = torch.bfloat16 if half else torch.float32
    long = rand(4, 6, tokens, 2, heads * width).to(dtype)
    rows = torch.tensor([3, 0], device=DEVICE)
    leaf, count = (torch.randint(0, n, (2, 5, 3), generator=random).to(DEVICE) for n in (6, tokens + 1))
    leaves = Leaves(long, rows, leaf, count)
    plain = Tokens(leaves.gathered())
    q = rand(2, 5, heads, width).to(dtype).transpose(1, 2)
    there = (torch.arange(tokens, device=DEVICE) < count[..., None]).flatten(2)[:, None]
    close: Any = {"atol": 5e-2, "rtol": 2e-2} if half else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(leaves.logits(q), torch.where(there, plain.logits(q), 0.0), **close)
    weight = (rand(2, heads, 5, 7 + 3 * tokens).softmax(-1)[..., 7:] * there).float()
    torch.testing.assert_close(leaves.values(weight), plain.values(weight), **close)


@settings(max_examples=6, deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 2), st.sampled_from([(32, 16), (16, 32)]), st.integers(0, 99))
def test_pictures_are_scaled_as_torch_scales_them(size, whole, seed):
    images = [noise(seed, *size), noise(seed, *whole), noise(seed + 1, *size)]
    fits = [fitted((image.shape[1], image.shape[0]), whole) for image in images]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "usable", lambda x: True)
        found = letterboxed(images, fits, DEVICE).cpu()
    assert torch.equal(found[1], torch.from_numpy(images[1]))
    for i in (0, 2):
        fit, picture = fits[i], torch.from_numpy(images[i]).permute(2, 0, 1)[None].float()
        exact = interpolate(picture, (fit.high, fit.wide), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        rows, columns = slice(fit.top, fit.top + fit.high), slice(fit.left, fit.left + fit.wide)
        assert (found[i, rows, columns] - exact).abs().max() < 0.51
        found[i, rows, columns] = GREY
        assert (found[i] == GREY).all()


@pytest.mark.parametrize("config", [SMALL, COCO])
def test_a_camera_with_kernels_sees_the_same(config, everywhere, monkeypatch):
    quick = [StilleCam(awake(config, 3), DEVICE, torch.float32, graphs=graphs) for graphs in (False, True)]
    monkeypatch.undo()
    plain = StilleCam(awake(config, 3), "cpu", torch.float32)
    some = 0
    for t in range(3):
        shown = [Frame(f"c{i}", t, 1.7e9 + t / 5, 0.0, np.roll(noise(i, 96, 64), 3 * t, 1)) for i in range(2)]
        expected = plain.see(shown)
        for cam in quick:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kernels, "usable", lambda x: True)
                patch.setattr(camera.on_cpu, "Map", torch.Tensor)
                for a, b in zip(expected, cam.see(shown), strict=True):
                    np.testing.assert_array_equal(a.identity_N, b.identity_N)
                    np.testing.assert_allclose(a.box_N4, b.box_N4, atol=2e-2)
                    np.testing.assert_allclose(a.score_N, b.score_N, atol=2e-3)
                    some += len(a)
    assert some > 10


def test_compilation_is_of_all_batches_at_once_and_may_fail(monkeypatch, caplog):
    made = []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend=backend, fullgraph=True))

    def plain(maps: list[torch.Tensor], more: torch.Tensor) -> torch.Tensor:
        return torch.cat([*maps, more]).sum(1)

    def compare(count: int) -> None:
        given = [torch.randn(count, 4), torch.randn(count, 4)], torch.randn(count, 4)
        torch.testing.assert_close(found(*given), plain(*given))

    found = Compiled(plain)
    for count in (9, 8, 11, 3):
        compare(count)
    assert len(made) == 1
    assert "going on without" not in caplog.text
    found._compiled = lambda *_: 1 / 0
    compare(3)
    assert "going on without" not in caplog.text  # small batches are not compiled
    compare(9)
    assert "going on without" in caplog.text
