"""Synthetic scenes: truth agrees with pixels, seeds decide, motion is plausible."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.video.scenes import Clips, SceneConfig, Scenes, build_scenes, clip_seeds, make_clips
from stille.video.scenes.layout import SLOTS
from stille.video.scenes.make import build_look
from stille.video.scenes.outline import cut, primitive_boxes
from stille.video.scenes.primitives import HEAD, HELMET, VEST, WALL
from stille.video.scenes.shade import shade
from stille.video.scenes.trace import Traced, trace
from stille.video.scenes.truth import make_clips_of, seen_pixels
from stille.video.types import ATTRIBUTES, KINDS

SIZE = (192, 112)
PLAIN = SceneConfig(outdoor=0.0, difficulty=0.0, gap_chance=0.0, irregular=0.0, crowd=0.5, incident=0.0)
HELMETS, VESTS = ATTRIBUTES.index("helmet"), ATTRIBUTES.index("vest")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def traced(scenes: Scenes) -> tuple[Traced, Clips]:
    box = primitive_boxes(scenes.primitives, scenes.camera)
    found = trace(scenes.primitives, scenes.camera, box, scenes.config.places)
    seen = seen_pixels(found.index_BTHW, scenes.primitives, scenes.config.places)
    picture = torch.zeros(*found.index_BTHW.shape, 3, dtype=torch.uint8)
    return found, make_clips_of(scenes, picture, box, seen, found.own_BTM)


@pytest.fixture(scope="module")
def plain() -> list[tuple[Scenes, Traced, Clips]]:
    torch.set_num_threads(1)
    scenes = [build_scenes(seed, 1, SIZE, PLAIN) for seed in clip_seeds(11, 5).split(1)]
    return [(one, *traced(one)) for one in scenes]


def group_of(scenes: Scenes, found: Traced) -> torch.Tensor:
    return torch.where(found.index_BTHW >= 0, scenes.primitives.group_P[found.index_BTHW.long().clamp(min=0)], -1)


def test_boxes_are_those_of_the_pixels(plain):
    w, h = SIZE
    compared = 0
    for scenes, found, clips in plain:
        group = group_of(scenes, found)[0, 0]
        box = clips.box_BTM4[0, 0] * torch.tensor([w, h, w, h])
        for m in range(scenes.config.places):
            y, x = torch.nonzero(group == m, as_tuple=True)
            seen, own, visible = len(x), int(found.own_BTM[0, 0, m]), float(clips.visible_BTM[0, 0, m])
            if clips.kind_BM[0, m] < 0:
                assert (seen, own, visible) == (0, 0, 0)
                continue
            if not seen:
                assert visible == 0
                continue
            x0, y0, x1, y1 = box[m].tolist()
            pixels = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
            beyond = (box[m] - pixels) * torch.tensor([1, 1, -1, -1])
            assert beyond.max() < 0.51, (m, box[m], pixels)
            inside = min(x0, y0) > 0 and x1 < w and y1 < h
            if inside and seen == own:
                assert visible == pytest.approx(1, abs=1e-5)
                if scenes.config.kinds[m] != 1:  # forks may be thinner than a pixel
                    compared += 1  # tight, too: what is thinner than a pixel may be missed by rays
                    assert beyond.min() > -2.5, (m, box[m], pixels)
            elif inside:
                assert visible == pytest.approx(seen / own, abs=1e-4)
    assert compared >= 10


def test_what_is_covered_keeps_its_box_and_is_not_visible(plain):
    scenes, _, clips = next(one for one in plain if (one[2].visible_BTM[0, 0, :10] > 0.9).any())
    m = int(clips.visible_BTM[0, 0, :10].argmax())
    prims, camera = scenes.primitives, scenes.camera
    wall = prims.count - 1 - next(i for i, g in enumerate(reversed(prims.groups)) if g == scenes.config.places)
    centre, axes, on = prims.centre_BTP3.clone(), prims.axes_BTP33.clone(), prims.on_BTP.clone()
    eye = camera.origin_BT3[0, 0]
    person = scenes.place_BTM3[0, 0, m] + torch.tensor([0, 0, 0.9])
    centre[0, 0, wall] = eye + (person - eye) * 0.7
    axes[0, 0, wall] = torch.diag(torch.tensor([1.0, 1.0, 1.3]))
    on[0, 0, wall] = True
    hidden = replace(scenes, primitives=replace(prims, centre_BTP3=centre, axes_BTP33=axes, on_BTP=on))
    after = traced(hidden)[1]
    assert after.visible_BTM[0, 0, m] == 0
    assert torch.equal(after.box_BTM4[0, 0, m], clips.box_BTM4[0, 0, m])
    assert after.attribute_BTMA[0, 0, m].isnan().all()  # nobody can know them


def test_attributes_can_be_seen(plain):
    helmets, vests = set(), set()
    for scenes, found, clips in plain:
        prims = scenes.primitives
        index = found.index_BTHW.long().clamp(min=0)
        group, hit = prims.group_P[index], found.index_BTHW >= 0
        light, _ = build_look(scenes)
        linear = shade(prims, scenes.camera, found, light)
        for m in range(scenes.config.persons):
            value = clips.attribute_BTMA[0, 0, m]
            mine = hit & (group == m)
            worn = mine & (prims.material_P[index] == HELMET) & (prims.part_P[index] == HEAD)
            vest = mine & (prims.material_P[index] == VEST)
            if not value[HELMETS].isnan():
                assert bool(worn.any()) == bool(value[HELMETS]), m
                helmets.add(bool(value[HELMETS]))
            if not value[VESTS].isnan() and value[VESTS] == 0:
                assert not vest.any()
                vests.add(False)
            elif value[VESTS] == 1 and vest.sum() > 8:
                colour = linear[vest].mean(0)
                paint = prims.colour_BTP3[0, 0, index[vest]].mean(0)
                assert torch.cosine_similarity(colour, paint, dim=0) > 0.97
                vests.add(True)
    assert helmets == vests == {False, True}


def test_occupied_slots_hold_a_pallet(plain):
    occupied = 0
    for _, _, clips in plain:
        pallets = clips.box_BTM4[0, 0, clips.kind_BM[0] == KINDS.index("pallet")]
        for slot, full in zip(clips.slot_BS4[0], clips.occupied_BTS[0, 0], strict=True):
            if full.isnan():
                assert (slot == 0).all()
            elif full == 1 and slot.min() > 0 and slot.max() < 1:
                low, high = torch.maximum(slot[:2], pallets[:, :2]), torch.minimum(slot[2:], pallets[:, 2:])
                covered = (high - low).clamp(min=0).prod(1) / (pallets[:, 2:] - pallets[:, :2]).prod(1).clamp(min=1e-9)
                assert covered.max() > 0.5
                occupied += 1
    assert occupied >= 5


@settings(max_examples=3, deadline=None)
@given(
    seeds=st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=2, unique=True), hard=st.sampled_from([0.2, 1.0])
)
def test_a_clip_depends_on_its_seed_alone(seeds, hard):
    config = SceneConfig(persons=3, forklifts=1, carts=1, pallets=6, difficulty=hard)
    together = make_clips(len(seeds), 2, (40, 24), torch.tensor(seeds), config=config)
    turned = make_clips(len(seeds), 2, (40, 24), torch.tensor(seeds[::-1]), config=config)
    for f in fields(Clips):
        one, other = getattr(together, f.name), getattr(turned, f.name).flip(0)
        assert (
            torch.equal(one.nan_to_num(-7), other.nan_to_num(-7))
            if one.is_floating_point()
            else torch.equal(one, other)
        )
    assert not torch.equal(together.frame_BTHW3[0], together.frame_BTHW3[1])


def test_batches_are_prefixes_and_geometry_does_not_depend_on_the_batch():
    assert torch.equal(clip_seeds(5, 9)[:4], clip_seeds(5, 4))
    assert len(clip_seeds(5, 999).unique()) == 999
    seeds = clip_seeds(2, 6)
    whole, alone = build_scenes(seeds, 3, SIZE, SceneConfig()), build_scenes(seeds[4:5], 3, SIZE, SceneConfig())
    part = whole.clips(slice(4, 5))
    assert torch.allclose(part.primitives.centre_BTP3, alone.primitives.centre_BTP3, atol=1e-3)
    assert torch.allclose(part.camera.rotation_BT33, alone.camera.rotation_BT33, atol=1e-5)


@pytest.fixture(scope="module")
def long() -> Scenes:
    """Two minutes of many halls, once a second; no pictures."""
    config = SceneConfig(rate=(1.0, 1.0), gap_chance=0.0, irregular=0.0, incident=1.0, crowd=1.0, pallets=28)
    return build_scenes(clip_seeds(1, 24), 120, SIZE, config)


def test_speeds_are_plausible_and_nobody_jumps(long):
    for moving, on, limit in (
        (long.story.persons, long.story.person_on_BN, 2.2),
        (long.story.forklifts, long.story.forklift_on_BF, 4.6),
    ):
        step = moving.place_BTN2.diff(dim=1).norm(dim=-1)
        assert step[on[:, None].expand_as(step)].max() < limit
        assert (moving.heading_BTN2.norm(dim=-1) - 1).abs().max() < 1e-4
    moved = long.story.goods.place_BTP3.diff(dim=1).norm(dim=-1)
    assert moved[long.on_BM[:, None, -28:].expand_as(moved)].max() < 5  # pallets ride, they are not beamed


def test_things_happen(long):
    story = long.story
    changed = (story.goods.occupied_BTS[:, 0] != story.goods.occupied_BTS[:, -1]).any(1)
    assert changed.float().mean() > 0.3  # pallets come into slots and leave them
    assert story.loaded_BTF.any(1).any(1).float().mean() > 0.3
    assert (story.fallen_BTN > 0.9).any(1).any(1).float().mean() > 0.4
    assert (story.carrying_BTN.any(1) & ~story.carrying_BTN.all(1)).any(1).float().mean() > 0.5
    assert (story.helmet_BTN[:, 0] != story.helmet_BTN[:, -1]).float().mean() < 0.15
    apart = story.persons.place_BTN2[:, :, :, None] - story.forklifts.place_BTN2[:, :, None]
    both = story.person_on_BN[:, None, :, None] & story.forklift_on_BF[:, None, None]
    near = ((apart.norm(dim=-1) < 3.5) & both).any(1).flatten(1).any(1)
    assert near.float().mean() > 0.3
    # Some leave the hall and come back, after seconds or after a minute.
    outside = long.story.persons.place_BTN2[..., 0].abs() > long.layout.half_x_B[:, None, None] + 0.5
    back = outside & ~torch.cat([outside[:, 1:], outside[:, -1:]], 1)
    assert (back.any(1) & long.story.person_on_BN).any(1).float().mean() > 0.5
    runs = [len(run) for row in outside.transpose(1, 2).flatten(0, 1) for run in
            "".join("x" if v else " " for v in row.tolist()).split()]  # fmt: skip
    assert min(runs) < 15
    assert max(runs) > 60
    assert len({(int(a), int(m)) for a, m in zip(long.layout.arrangement_B, long.layout.mount_B, strict=True)}) > 12
    assert long.layout.slot_BS3.shape[1] == SLOTS


def test_gaps_drops_and_repeats():
    config = SceneConfig(rate=(10, 10), gap_chance=1.0, gap=(30, 60), irregular=1.0, persons=2, pallets=4)
    scenes = build_scenes(clip_seeds(0, 8), 6, SIZE, config)
    step = scenes.time_BT.diff(dim=1)
    assert 30 <= step[:, 2].min() <= step[:, 2].max() <= 60.3
    others = step[:, [0, 1, 3, 4]]
    assert {round(s, 3) for s in others.flatten().tolist()} == {0.1, 0.2}  # with none and with one dropped
    repeated = scenes.moment_BT.diff(dim=1) == 0
    assert repeated.any()
    assert not repeated.all(1).any()
    still = (scenes.primitives.centre_BTP3.diff(dim=1) == 0).all(-1).all(-1)
    assert still[repeated].all()
    assert not still[~repeated].all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), u=st.floats(0.02, 0.98), v=st.floats(0.02, 0.98))
def test_rays_and_projection_are_inverse(seed, u, v):
    camera = SCENES.clips(slice(seed % 12, seed % 12 + 1)).camera
    w, h = camera.size
    x, y = int(u * w), int(v * h)
    ray = camera.rays()[0, y, x] @ camera.rotation_BT33[0, 0]
    point = camera.origin_BT3[0, 0] + ray * 7
    assert (camera.project(point[None, None, None])[0, 0, 0] - torch.tensor([x + 0.5, y + 0.5])).abs().max() < 0.02
    if ray[2] < -0.05:
        floor = camera.origin_BT3[0, 0] - ray * camera.origin_BT3[0, 0, 2] / ray[2]
        flat = camera.floor_homography()[0, 0] @ torch.tensor([floor[0], floor[1], 1.0])
        pixel = camera.to_pixels((flat[:2] / flat[2])[None, None, None])[0, 0, 0]
        assert (pixel - torch.tensor([x + 0.5, y + 0.5])).abs().max() < 0.1


SCENES = build_scenes(clip_seeds(8, 12), 1, SIZE, SceneConfig(persons=1, pallets=4))


def test_cameras_keep_to_their_ranges():
    config = SceneConfig(
        camera_height=(4, 5), field_of_view=(70, 70), layouts=(6, 12), difficulty=0, persons=1, pallets=4
    )
    scenes = build_scenes(clip_seeds(3, 20), 1, SIZE, config)
    height = scenes.camera.origin_BT3[..., 2]
    assert 4 <= height.min() <= height.max() <= 5
    assert (scenes.layout.arrangement_B == 1).all()
    edge = scenes.camera.rays()[:, SIZE[1] // 2, [0, -1], 0]
    assert ((edge[:, 1] - edge[:, 0]) / 2 - 0.7002).abs().max() < 0.02  # the tangent of 35 degrees


def test_boxes_are_cut_at_the_edge():
    box = torch.tensor([[-10.0, 5, 96, 56], [200, 0, 300, 9], [float("nan")] * 4])
    assert torch.allclose(cut(box, SIZE), torch.tensor([[0, 5 / 112, 0.5, 0.5], [0.0] * 4, [0.0] * 4]))


@pytest.mark.parametrize(
    "bad",
    [
        {"persons": 0},
        {"difficulty": 2},
        {"rate": (5, 1)},
        {"layouts": (3, 3)},
        {"pallets": 2},
        {"camera_height": (0, 3)},
    ],
)
def test_configs_that_make_no_sense_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SceneConfig(**bad)


def test_wrong_requests_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        make_clips(0, 1)
    with pytest.raises(ConfigError, match="one for each clip"):
        make_clips(2, 1, (32, 32), torch.tensor([1]))


def test_drivers_are_persons_who_ride():
    """Inside of their forklift's box, above its lower edge, and moving as it does."""
    config = SceneConfig(persons=1, forklifts=3, carts=1, pallets=6, difficulty=0.0, outdoor=0.0, layouts=(0, 18))
    scenes = build_scenes(clip_seeds(4, 5), 1, SIZE, config)
    _, clips = traced(scenes)
    drivers, trucks = slice(1, 4), slice(4, 7)
    on = clips.kind_BM[:, drivers] == KINDS.index("person")
    assert on.any()
    assert (clips.kind_BM[:, trucks][on] == KINDS.index("forklift")).all()
    seen = on[:, None] & (clips.visible_BTM[:, :, drivers] > 0.3)
    assert seen.sum() > 3
    driver, truck = clips.box_BTM4[:, :, drivers][seen], clips.box_BTM4[:, :, trucks][seen]
    foot = (driver[:, 0] + driver[:, 2]) / 2
    assert ((foot > truck[:, 0]) & (foot < truck[:, 2])).all()
    assert (driver[:, 3] < truck[:, 3] - 0.05 * (truck[:, 3] - truck[:, 1])).float().mean() > 0.9
    worn = clips.attribute_BTMA[:, :, drivers, HELMETS]
    assert {0.0, 1.0} >= set(worn[~worn.isnan()].unique().tolist())
    assert torch.equal(scenes.place_BTM3[:, :, drivers], scenes.place_BTM3[:, :, trucks])


def test_open_ground_has_no_walls_and_is_seen_squeezed():
    yard = build_scenes(clip_seeds(6, 40), 1, SIZE, SceneConfig(persons=2, pallets=4, outdoor=1.0))
    assert yard.layout.outdoor_B.all()
    hall = build_scenes(clip_seeds(6, 40), 1, SIZE, SceneConfig(persons=2, pallets=4, outdoor=0.0))
    wide = hall.camera.wide_B
    assert 0.7 < wide.min() < 1.1
    assert ((wide > 1.25) & (wide < 1.5)).float().mean() > 0.15
    walls = hall.primitives.material_P == WALL
    assert hall.primitives.on_BTP[..., walls].any()
    assert not yard.primitives.on_BTP[..., walls].any()
    distance = yard.camera.origin_BT3[:, 0, :2].norm(dim=-1)
    assert 8 < distance.min() < distance.max() < 28
