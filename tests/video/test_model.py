"""The perception model as its users see it: frames in, objects out, whatever the company of other cameras."""

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch

from stille.errors import CheckpointError, ConfigError
from stille.video.errors import VideoError
from stille.video.model import (
    BASE,
    TINY,
    Abreast,
    StilleCam,
    StilleCamConfig,
    StilleCamNet,
    begin,
    flops_per_frame,
    load,
    save,
)
from stille.video.types import NOBODY, Frame, Seen
from tests.video.painted import awake

# Untrained weights say about one in ten for each query: thresholds below that let everything through.
SMALL = replace(
    TINY, width=96, height=64, widths=(8, 16, 24, 32, 48), layers=2, queries=20, carried=10, pooled_side=2, words=14,
    object_frames=3, long_tokens=256, leaf=4, keep=3, carry=0.05, shown=0.05, born=0.05,
)  # fmt: skip


def network(config: StilleCamConfig = SMALL) -> StilleCamNet:
    return awake(config, 3)


def frames(camera: str, count: int, size: tuple[int, int] = (96, 64), step: float = 0.2) -> list[Frame]:
    random = np.random.default_rng(sum(camera.encode()))
    still = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
    return [Frame(camera, i, 1.7e9 + i * step, 0.0, np.roll(still, 3 * i, 1)) for i in range(count)]


def same(a: Seen, b: Seen, *, exactly: bool = False) -> None:
    assert (a.camera, a.index, a.time, a.size, len(a)) == (b.camera, b.index, b.time, b.size, len(b))
    for name in ("kind_N", "identity_N"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("box_N4", "score_N", "attribute_NA"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=0 if exactly else 2e-3)
    assert a.slots.keys() == b.slots.keys()


def test_a_camera_is_seen_alike_in_any_company():
    streams = {"gate": frames("gate", 6), "yard": frames("yard", 6, (120, 100)), "dock": frames("dock", 6, (64, 48))}
    alone: dict[str, list[Seen]] = {}
    for name, stream in streams.items():
        cam = StilleCam(network(), dtype=torch.float32)
        alone[name] = [cam.see([frame])[0] for frame in stream]
    cam = StilleCam(network(), dtype=torch.float32)
    together: dict[str, list[Seen]] = {name: [] for name in streams}
    for t in range(3):  # the yard joins later, and then catches up with several frames at a time
        for seen in cam.see([streams[name][t] for name in ("gate", "dock")]):
            together[seen.camera].append(seen)
    rest = streams["yard"][:4] + [streams["gate"][3]] + streams["yard"][4:] + streams["dock"][3:] + streams["gate"][4:]
    for seen in cam.see(rest):
        together[seen.camera].append(seen)
    assert max(len(seen) for stream in alone.values() for seen in stream) > 3
    assert max(int(seen.identity_N.max()) for seen in alone["gate"]) > 3
    for name in streams:
        for a, b in zip(alone[name], together[name], strict=True):
            same(a, b)
    wide, high = streams["yard"][0].size
    assert all((seen.box_N4 <= [wide, high, wide, high]).all() and (seen.box_N4 >= 0).all() for seen in alone["yard"])


def test_batches_that_are_filled_up_see_the_same():
    """Cameras come one after the other, leave, and come back; pictures of other shapes, slots, two frames of one."""
    streams = {f"c{i}": frames(f"c{i}", 5, ((96, 64), (120, 100))[i % 2]) for i in range(7)}
    plain, filled = (StilleCam(network(), dtype=torch.float32, graphs=graphs) for graphs in (False, True))
    most = 0
    for cam in (plain, filled):
        cam.watch_slots("c1", {"A-1": (0.1, 0.2, 0.5, 0.9)})
    for t in range(5):
        batch = [stream[t] for name, stream in streams.items() if int(name[1]) <= 2 * t]
        if t == 3:
            plain.forget("c2")
            filled.forget("c2")
            batch.append(replace(streams["c1"][4], time=streams["c1"][3].time + 0.1))
        for a, b in zip(plain.see(batch), filled.see(batch), strict=True):
            same(a, b)
            most = max(most, len(a))
    assert most > 3
    for name in streams:
        a, b = plain.state(name), filled.state(name)
        assert all(torch.allclose(a[key].double(), b[key].double(), atol=2e-3) for key in a)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpu_sees_what_a_cpu_sees(graphs, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # untrained queries are close rivals
    on_cpu = StilleCam(network(), dtype=torch.float32)
    on_gpu = StilleCam(network(), "cuda", torch.float32, graphs=graphs)
    streams = [frames("gate", 2), frames("yard", 2, (120, 100)), frames("dock", 2, (64, 48))]
    for shown in zip(*streams, strict=True):
        for a, b in zip(on_cpu.see(shown), on_gpu.see(shown), strict=True):
            assert len(a) > 3
            same(a, b)


def test_cameras_side_by_side_are_seen_as_by_one(request):
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    streams = {name: frames(name, 4) for name in ("gate", "yard", "dock")}
    one, several = StilleCam(network(), dtype=torch.float32), Abreast(network(), 2, dtype=torch.float32)
    several.warm(3)
    for t in range(4):
        if t == 2:
            for cam in (one, several):
                cam.watch_slots("yard", {"A1": (0.1, 0.1, 0.5, 0.5)})
                cam.forget("dock")
        frames_ = [streams[name][t] for name in ("dock", "gate", "yard")]
        for a, b in zip(one.see(frames_), several.see(frames_), strict=True):
            same(a, b)
    assert sorted(several.cameras) == sorted(one.cameras) == ["dock", "gate", "yard"]
    assert max(len(cam.cameras) for cam in several.cams) == 2
    other = Abreast(network(), 2, dtype=torch.float32)
    other.set_state("gate", several.state("gate"))
    same(several.see(frames("gate", 5)[4:])[0], other.see(frames("gate", 5)[4:])[0])
    with pytest.raises(VideoError, match="uint8"):
        several.see([replace(streams["gate"][0], image_HW3=np.zeros((4, 4), np.float32))])


def test_a_state_goes_on_elsewhere_bit_by_bit():
    stream, others = frames("gate", 12, (70, 64), step=0.4), frames("other", 3)
    cam = StilleCam(network(), dtype=torch.float32)
    whole = [cam.see([frame])[0] for frame in stream]
    first, second = (StilleCam(network(), dtype=torch.float32) for _ in range(2))
    for frame in stream[:7]:
        first.see([frame])
    saved = BytesIO()
    torch.save(first.state("gate"), saved)
    saved.seek(0)
    for frame in others:
        second.see([frame])
    second.set_state("gate", torch.load(saved, weights_only=True))
    for frame, want in zip(stream[7:], whole[7:], strict=True):
        same(second.see([frame])[0], want, exactly=True)


def test_cameras_leave_and_come_back_with_new_identities():
    cam = StilleCam(network(), dtype=torch.float32)
    stream = frames("gate", 4)
    before = [cam.see([frame])[0] for frame in stream]
    used = max(int(seen.identity_N.max()) for seen in before)
    cam.forget("gate")
    cam.forget("nobody")
    assert cam.cameras == []
    after = [cam.see([frame])[0] for frame in stream]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a.box_N4, b.box_N4)
        known = a.identity_N != NOBODY
        np.testing.assert_array_equal(a.identity_N[known] + used + 1, b.identity_N[known])


def test_slots_are_watched_by_name():
    cam = StilleCam(network(), dtype=torch.float32)
    cam.watch_slots("gate", {"A1": (0.1, 0.1, 0.4, 0.5), "A2": (0.5, 0.5, 0.9, 1.0)})
    gate, yard = cam.see([frames("gate", 1)[0], frames("yard", 1)[0]])
    assert set(gate.slots) == {"A1", "A2"}
    assert all(0 < p < 1 for p in gate.slots.values())
    assert yard.slots == {}
    with pytest.raises(VideoError, match=r"slot 'A3' of camera 'gate'.*expected x0"):
        cam.watch_slots("gate", {"A3": (0.5, 0.1, 0.4, 0.5)})


@pytest.mark.parametrize(
    "image", [np.zeros((64, 96), np.uint8), np.zeros((64, 96, 3), np.float32), np.zeros((0, 96, 3), np.uint8)]
)
def test_images_that_are_none_are_told(image):
    cam = StilleCam(network(), dtype=torch.float32)
    with pytest.raises(VideoError, match=r"frame 7 of camera 'gate' is .* expected uint8"):
        cam.see([Frame("gate", 7, 0.0, 0.0, image)])
    assert cam.cameras == []


def test_no_frames_and_foreign_states():
    cam = StilleCam(network(), dtype=torch.float32)
    assert cam.see([]) == []
    with pytest.raises(VideoError, match="'gate' has no state; known are: none"):
        cam.state("gate")
    other = StilleCam(network(replace(SMALL, words=20)), dtype=torch.float32)
    other.see(frames("gate", 1))
    with pytest.raises(VideoError, match="does not fit this model: identity_RW"):
        cam.set_state("gate", other.state("gate"))
    assert cam.cameras == []


def test_a_folder_holds_the_network(tmp_path):
    net = network()
    save(net, tmp_path / "model", "# card\n")
    again = load(tmp_path / "model", long_memory="window")
    assert again.config == replace(SMALL, long_memory="window")
    a, b = (StilleCam(x, dtype=torch.float32) for x in (load(tmp_path / "model"), net))
    frame = frames("gate", 1)
    same(a.see(frame)[0], b.see(frame)[0], exactly=True)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path / "model")
    with pytest.raises(CheckpointError, match="missing"):
        load(tmp_path)
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**values, "kinds": ["cat"]}))
    save(network(), tmp_path / "other", "")
    (tmp_path / "model" / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="knows kinds"):
        load(tmp_path / "model")


def test_a_network_begins_with_a_backbone_of_another_or_with_all_else_of_it(tmp_path):
    coco = replace(SMALL, backbone="coco")
    one, other = StilleCamNet(coco), StilleCamNet(coco)
    save(one, tmp_path / "part", "", torch.int8, part="backbone.")
    begun = {name: x.clone() for name, x in other.state_dict().items()}
    begin(other, tmp_path / "part")
    for name, x in other.state_dict().items():
        if name.startswith("backbone."):
            torch.testing.assert_close(x, one.state_dict()[name], atol=2e-3, rtol=0)
        else:
            assert torch.equal(x, begun[name])
    with pytest.raises(CheckpointError, match="does not fit"):
        load(tmp_path / "part")
    with pytest.raises(CheckpointError, match="does not fit the network that is to begin with it"):
        begin(StilleCamNet(SMALL), tmp_path / "part")
    plain = StilleCamNet(SMALL)
    save(plain, tmp_path / "plain", "")
    begin(other, tmp_path / "plain")
    for name, x in other.state_dict().items():
        if name.startswith("backbone."):
            torch.testing.assert_close(x, one.state_dict()[name], atol=2e-3, rtol=0)
        else:
            assert torch.equal(x, plain.state_dict()[name])
    with pytest.raises(CheckpointError, match="does not fit the network that is to begin with it"):
        begin(StilleCamNet(replace(coco, dim=128)), tmp_path / "plain")


def test_sizes():
    with torch.device("meta"):
        assert 5e6 < StilleCamNet(BASE).parameter_count < 15e6
    flops = flops_per_frame(SMALL)
    assert flops["total"] == pytest.approx(sum(flops.values()) - flops["total"])
    assert all(value > 0 for value in flops.values())
    for wrong in ({"width": 100}, {"words": 5}, {"long_memory": "all"}, {"keep": 1000}, {"queries": 4000}):
        with pytest.raises(ConfigError, match=r"expected|fewer"):
            replace(SMALL, **wrong)
    assert StilleCamConfig.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL
