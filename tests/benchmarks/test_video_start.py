"""What the perception's backbone begins with: factors change what it says by themselves alone."""

from pathlib import Path

import torch

from benchmarks import video_start
from stille.video.model import PRESETS, StilleCamNet, begin
from stille.video.model.backbone import CocoBackbone

START = Path(__file__).parents[2] / "benchmarks" / "data" / "video_start"


@torch.inference_mode()
def test_evened_maps_are_the_same_but_for_factors():
    torch.manual_seed(0)
    net, picture = CocoBackbone(PRESETS["coco"]), torch.randn(1, 3, 64, 96)
    before = net(picture)
    video_start.even(net)
    for a, b in zip(before, net(picture), strict=True):
        half = a.shape[1] // 2
        torch.testing.assert_close(b[:, :half], video_start.FUSED * a[:, :half], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(b[:, half:], video_start.HEAD * a[:, half:], rtol=1e-4, atol=1e-5)


def test_the_kept_backbone_fits():
    net = StilleCamNet(PRESETS["coco"])
    before = net.backbone.get_submodule("body.stem.conv").state_dict()["weight"].clone()
    begin(net, START)
    assert not torch.equal(before, net.backbone.get_submodule("body.stem.conv").state_dict()["weight"])
