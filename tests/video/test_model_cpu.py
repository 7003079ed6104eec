"""What is done for CPUs: eight bits, and parts that move fewer numbers, against the plain network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.video.errors import VideoError
from stille.video.model import TINY, StilleCam, StilleCamConfig, StilleCamNet, load, save
from stille.video.model.attention import BoxAttention, MemoryAttention
from stille.video.model.backbone import peaks
from stille.video.model.decoder import Recent
from stille.video.model.network import MEAN, SPREAD
from stille.video.model.on_cpu import Map, RowAttention, Rows, SharedAttention, SharedMemory, adapt
from stille.video.model.quantized import Int8Backbone, measure, supported
from stille.video.types import Frame
from tests.video.painted import awake, painted
from tests.video.test_model_pictures import SMALL, noise

SIZE = SMALL.width, SMALL.height
needs_int8 = pytest.mark.skipif(not supported(), reason="no AVX512-VNNI here")


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 1 << 30), st.integers(1, 3), st.lists(st.tuples(*[st.integers(1, 9)] * 2), min_size=3, max_size=3)
)
def test_rows_are_sampled_as_grids_are(seed, batch, shapes):
    torch.manual_seed(seed)
    plain = BoxAttention(32, 4, 3, 4)
    torch.nn.init.normal_(plain.offset.weight)
    torch.nn.init.normal_(plain.weight.weight)
    x, box = torch.randn(batch, 6, 32), torch.rand(batch, 6, 4) * 1.4 - 0.2
    maps = [torch.randn(batch, 32, *shape) for shape in shapes]
    rows = [one.contiguous(memory_format=torch.channels_last).as_subclass(Map) for one in maps]
    with torch.inference_mode():
        torch.testing.assert_close(RowAttention(plain, Rows())(x, box, rows), plain(x, box, maps), atol=1e-5, rtol=1e-4)


def test_shared_memory_is_read_as_it_was():
    torch.manual_seed(0)
    x, kv, bias = torch.randn(2, 5, 32), torch.randn(2, 9, 2, 32), torch.randn(2, 4, 9)
    bias[1] = -torch.inf
    memory = SharedMemory()
    with torch.inference_mode():
        for _ in range(2):  # two layers on one memory, then another memory
            plain = MemoryAttention(32, 4)
            torch.nn.init.normal_(plain.nothing)
            shared = SharedAttention(plain, memory)
            torch.testing.assert_close(shared(x, kv, bias), plain(x, kv, bias))
        torch.testing.assert_close(shared(x, kv + 1, bias), plain(x, kv + 1, bias))


def test_an_adapted_network_finds_the_same():
    plain, quick = awake(SMALL, 3), awake(SMALL, 3)
    adapt(quick)
    assert plain.state_dict().keys() == quick.state_dict().keys()
    frames, time = torch.from_numpy(np.stack([noise(i, *SIZE) for i in range(2)])), torch.zeros(2, dtype=torch.float64)
    recents = [Recent.empty(SMALL, 2, torch.device("cpu"), torch.float32)] * 2
    with torch.inference_mode():
        for step in range(3):
            maps = plain.maps(frames.roll(3 * step, 2))
            assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
            found = [
                net.look(given, recent, time + step)
                for net, given, recent in zip(
                    (plain, quick), (maps, [x.as_subclass(Map) for x in maps]), recents, strict=True
                )
            ]
            recents = [one[2] for one in found]
            for name in ("box_BK4", "presence_BK", "token_BKC"):
                a, b = (getattr(one[3], name) for one in found)
                assert type(b) is torch.Tensor
                torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


class _All(StilleCam):
    """Gives no object up before its identity is looked for."""

    def _worth_knowing(self, objects):
        return objects


def test_objects_that_get_no_identity_are_not_missed():
    config = replace(SMALL, shown=0.3, born=0.35)
    few, all_ = StilleCam(awake(config, 3), dtype=torch.float32), _All(awake(config, 3), dtype=torch.float32)
    most = []
    for i in range(8):
        frames = [Frame(name, i, i / 2, 0.0, np.roll(noise(k, *SIZE), 3 * i, 1)) for k, name in enumerate("ab")]
        seen = few.see(frames)
        for a, b in zip(seen, all_.see(frames), strict=True):
            np.testing.assert_array_equal(a.identity_N, b.identity_N)
            np.testing.assert_allclose(a.box_N4, b.box_N4, atol=1e-2)
        most.append(max(map(len, seen)))
    assert 0 < min(most) < config.carried


# Eight bits


def calm() -> StilleCamNet:
    """A network that does not make much of small differences, as trained ones do not."""
    torch.manual_seed(1)
    net = StilleCamNet(SMALL).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.5)  # pyright: ignore[reportOptionalMemberAccess]
    return net


def with_ranges(net: StilleCamNet | None = None) -> StilleCamNet:
    net = net or awake(SMALL, 3)
    net.config = replace(SMALL, ranges=measure(net, [painted(9, 1, 6, size=SIZE).frame_BTHW3[0]]))
    return net


def as_coco(config: StilleCamConfig) -> StilleCamConfig:
    return replace(config, backbone="coco", ranges={})


def folded(net: StilleCamNet) -> StilleCamNet:
    net.backbone.fold()
    return net


@needs_int8
@torch.inference_mode()
def test_maps_of_eight_bits_are_near_those_of_floats():
    net = folded(with_ranges(calm()))
    quick = Int8Backbone(net.backbone, dict(net.config.ranges), SIZE, torch.float32)
    for batch in (1, 3):
        frames = painted(5, 1, batch, size=SIZE).frame_BTHW3[0]
        for a, b in zip(net.maps(frames), quick(frames), strict=True):
            assert (a.shape, b.dtype) == (b.shape, torch.float32)
            assert ((a - b).square().mean() / a.square().mean()) < 0.01
    # Pictures that the ranges know nothing of are cut off, not wrapped around.
    wild = torch.from_numpy(noise(0, *SIZE))[None]
    wild = torch.where(wild > 127, 255, 0).to(torch.uint8)
    low = {name: value / 3 for name, value in net.config.ranges.items()}
    for a, b in zip(net.maps(wild), Int8Backbone(net.backbone, low, SIZE, torch.float32)(wild), strict=True):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.87


@needs_int8
@torch.inference_mode()
def test_a_detectors_backbone_computes_in_eight_bits_too():
    torch.manual_seed(2)
    net = StilleCamNet(as_coco(SMALL)).eval()
    for module in net.backbone.modules():
        if isinstance(module, torch.nn.Conv2d):  # without batch norms, numbers would fade from layer to layer
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    ranges = measure(net, [painted(9, 1, 6, size=SIZE).frame_BTHW3[0]])
    convolutions = [name for name, x in net.backbone.in_bytes.named_modules() if isinstance(x, torch.nn.Conv2d)]
    assert sorted(ranges) == sorted(name.removesuffix(".conv") for name in convolutions)
    quick = Int8Backbone(net.backbone, ranges, SIZE, torch.float32)
    frames = painted(5, 1, 3, size=SIZE).frame_BTHW3[0]
    strides = zip((8, 16, 32), net.maps(frames), quick(frames), strict=True)
    for stride, a, b in strides:
        assert a.shape == b.shape == (3, SMALL.dim, SIZE[1] // stride, SIZE[0] // stride)
        assert ((a - b).square().mean() / a.square().mean()) < 0.02


@pytest.mark.parametrize("size", [(6, 10), (2, 4)])
def test_pooling_of_bytes_is_pooling(size):
    x = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert torch.equal(peaks(x).float(), torch.nn.functional.max_pool2d(x.float(), 3, 2, 1))


@torch.inference_mode()
def test_ranges_are_what_the_convolutions_gave():
    net = awake(SMALL, 3)
    frames = painted(9, 1, 6, size=SIZE).frame_BTHW3[0]
    before = {name: x.clone() for name, x in net.state_dict().items()}
    ranges = measure(net, frames.split(2))
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    folded(net)
    stem = net.backbone.get_submodule("stem")((frames.permute(0, 3, 1, 2).float() - MEAN) / SPREAD)
    assert ranges["stem"] == pytest.approx(float(stem.max()), rel=1e-4)
    stage = "stages.1.1"  # what is added or concatenated has one range, at least that of the sums
    assert ranges[f"{stage}.inside"] == ranges[f"{stage}.blocks.0.1"] != ranges[f"{stage}.blocks.0.0"]
    with pytest.raises(ConfigError, match="no pictures"):
        measure(net, [])
    with pytest.raises(ConfigError, match=r"do not fit the backbone \(stem\)"):
        Int8Backbone(net.backbone, {k: v for k, v in ranges.items() if k != "stem"}, SIZE, torch.float32)
    with pytest.raises(VideoError, match="no 8 bits on cpu"):
        StilleCam(net, int8=True)


@needs_int8
def test_a_camera_with_ranges_sees_in_eight_bits():
    nets = []
    for _ in range(2):
        nets.append(with_ranges(calm()))
        torch.nn.init.zeros_(nets[-1].decoder.trust)  # the cells know nothing
    plain, quick = StilleCam(nets[0], dtype=torch.float32), StilleCam(nets[1], dtype=torch.float32, int8=True)
    frame = Frame("gate", 0, 0.0, 0.0, painted(5, 1, 1, size=SIZE).frame_BTHW3[0, 0].numpy())
    a, b = plain.see([frame])[0], quick.see([frame])[0]
    assert len(a) == len(b) == SMALL.carried
    assert (np.abs(a.box_N4[:, None] - b.box_N4).max(-1).min(1) < 1).mean() >= 0.5
    assert not np.array_equal(a.score_N, b.score_N)


def test_a_small_file_holds_nearly_the_same_network(tmp_path):
    net = with_ranges()
    save(net, tmp_path / "full", "# card")
    save(net, tmp_path / "small", "# card", torch.int8)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "full")]
    assert sizes[0] < 0.5 * sizes[1]  # of so small a network, much is scales and what stays in floats
    again = load(tmp_path / "small")
    assert again.config == net.config
    assert again.config.ranges
    for name, x in net.state_dict().items():
        y = again.state_dict()[name]
        step = x.abs().amax(tuple(range(1, x.ndim)), keepdim=True) / 127 if x.ndim > 1 and x.is_floating_point() else 0
        assert ((x - y).abs() <= step / 2 + 1e-7).all() if x.is_floating_point() else torch.equal(x, y), name
    save(again, tmp_path / "again", "# card", torch.int8)
    for name, x in load(tmp_path / "again").state_dict().items():
        torch.testing.assert_close(x, again.state_dict()[name], rtol=1e-6, atol=0)
    TINY.to_dict()["ranges"]["stem"] = 1.0
    assert TINY.ranges == {}
