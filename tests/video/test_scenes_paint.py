"""The painter, the Triton ray-caster and the command against the torch ray-caster."""

import numpy as np
import pytest
import torch

from stille.kernels.triton_support import has_triton, interpreting
from stille.video.scenes import SceneConfig, build_scenes, clip_seeds, make_clips, paint
from stille.video.scenes.__main__ import main
from stille.video.scenes.lens import compress
from stille.video.scenes.outline import primitive_boxes
from stille.video.scenes.trace import trace

cv2 = pytest.importorskip("cv2")
SMALL = SceneConfig(
    outdoor=0.0, persons=3, forklifts=1, carts=1, pallets=4, difficulty=0.0, gap_chance=0.0, irregular=0.0, crowd=1.0
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_painter_tells_the_same_truth_and_looks_alike():
    size = (144, 80)
    painted, cast = (f(2, 3, size, 4, config=SMALL) for f in (paint, make_clips))
    for name in ("time_BT", "kind_BM", "box_BTM4", "place_BTM2", "slot_BS4", "occupied_BTS"):
        assert torch.equal(getattr(painted, name).nan_to_num(-7), getattr(cast, name).nan_to_num(-7)), name
    there = cast.box_BTM4[..., 2] > 0
    apart = (painted.visible_BTM - cast.visible_BTM)[there].abs()
    assert apart.mean() < 0.07
    assert (apart < 0.25).float().mean() > 0.88
    both = ~painted.attribute_BTMA.isnan() & ~cast.attribute_BTMA.isnan()
    assert both.sum() > 10
    assert torch.equal(painted.attribute_BTMA[both], cast.attribute_BTMA[both])
    difference = (painted.frame_BTHW3.float() - cast.frame_BTHW3.float()).abs()
    assert difference.mean() < 10
    moved = (painted.frame_BTHW3[:, 0].float() - painted.frame_BTHW3[:, -1].float()).abs().amax(-1) > 40
    assert moved.any()


def test_painting_again_paints_the_same():
    one, two = (paint(1, 2, (96, 64), 9, config=SMALL.replace(difficulty=1.0)) for _ in range(2))
    assert torch.equal(one.frame_BTHW3, two.frame_BTHW3)
    assert torch.equal(one.visible_BTM, two.visible_BTM)


@pytest.mark.skipif(
    not (has_triton() and (interpreting() or torch.cuda.is_available())), reason="needs a GPU or Triton's interpreter"
)
def test_triton_casts_the_same_rays():
    from stille.video.scenes.trace_triton import trace_triton

    device = "cpu" if interpreting() else "cuda"
    size = (20, 16) if interpreting() else (320, 176)
    config = SMALL if interpreting() else SceneConfig()
    scenes = build_scenes(clip_seeds(5, 1, device), 1, size, config)
    box = primitive_boxes(scenes.primitives, scenes.camera)
    one, two = (f(scenes.primitives, scenes.camera, box, config.places) for f in (trace, trace_triton))
    same = one.index_BTHW == two.index_BTHW
    assert same.float().mean() > 0.995
    assert len(one.index_BTHW.unique()) > 5
    assert torch.allclose(one.depth_BTHW[same], two.depth_BTHW[same], rtol=1e-4)
    assert torch.allclose(one.dark_BTHW, two.dark_BTHW, atol=1e-3)
    assert (one.own_BTM - two.own_BTM).abs().max() <= 2


def test_compression_keeps_the_picture_and_loses_detail():
    image = torch.randint(0, 256, (2, 1, 20, 27, 3), generator=torch.Generator().manual_seed(0)).float()
    image[:, :, :8, :8] = 90.0
    out = compress(image, torch.tensor([0.0, 2.0]))
    assert torch.allclose(out[0], image[0])
    assert torch.equal(out[:, :, 16:], image[:, :, 16:])  # no whole block
    assert (out[1, 0, :8, :8] - 90).abs().max() < 4  # even areas stay
    assert (out[1, 0, 8:16, 8:24] - image[1, 0, 8:16, 8:24]).abs().mean() > 20


def test_the_command_writes_a_film_and_a_sheet(tmp_path, capsys):
    film, sheet = tmp_path / "a.mp4", tmp_path / "a.png"
    asked = "--seed 3 --seconds 0.5 --rate 6 --clips 2 --size 128 80 --truth"
    code = main(["--out", str(film), "--sheet", str(sheet), *asked.split()])
    assert code == 0
    assert "3 frames" in capsys.readouterr().out
    picture = cv2.imread(str(sheet))
    assert picture.shape == (40, 192, 3)
    video = cv2.VideoCapture(str(film))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert np.stack(frames).shape == (3, 80, 128, 3)
    assert np.stack(frames).std() > 10
