"""Generator B: the same seed gives the same frames, truth agrees with pixels, incidents agree with the truth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from stille.errors import ConfigError
from stille.evals.warehouse import incidents, meshes, paint, warehouse
from stille.evals.warehouse.codec import still
from stille.evals.warehouse.gaps import gaps
from stille.evals.warehouse.geometry import Camera, inside, seen_polygon
from stille.evals.warehouse.incidents import DWELL, NEAR_M
from stille.evals.warehouse.layout import layout
from stille.evals.warehouse.rules_file import CAMERA, floor_points, rules_yaml
from stille.evals.warehouse.sealed import DEVELOPMENT, LOWEST, sealed
from stille.evals.warehouse.story import story
from stille.evals.warehouse.stream import ATTRIBUTES, FrameTruth, Painter
from stille.video import types
from stille.video.model.store import WEIGHTS
from stille.video.rules import load_rules

SEED = 3
SIZE = (320, 176)


@pytest.fixture(scope="module")
def found():
    return incidents(SEED, SIZE)


def at(second: float) -> FrameTruth:
    return next(warehouse(SEED, 1, 5.0, SIZE, start=second, coded=False))[1]


def test_frames_are_the_same_again_and_differ_by_seed() -> None:
    first, again = (list(warehouse(SEED, 4, 5.0, SIZE, start=30.0)) for _ in range(2))
    assert len(first) == 4
    for (image, truth), (image2, truth2) in zip(first, again, strict=True):
        assert image.shape == (176, 320, 3)
        assert np.array_equal(image, image2)
        assert np.array_equal(truth.box_N4, truth2.box_N4)
        assert np.array_equal(truth.number_HW, truth2.number_HW)
    # A later start shows the same moment, coded or not, with the same truth.
    image, truth = next(warehouse(SEED, 1, 5.0, SIZE, start=30.4, coded=False))
    assert np.array_equal(truth.box_N4, first[2][1].box_N4)
    assert 0 < np.abs(image.astype(int) - first[2][0]).mean() < 12
    other = next(warehouse(SEED + 1, 1, 5.0, SIZE, start=30.0))[0]
    assert np.abs(other.astype(int) - first[0][0]).mean() > 5


def test_truth_agrees_with_pixels() -> None:
    partly = 0
    for image, truth in warehouse(SEED, 12, 0.2, SIZE, start=100.0, coded=False):
        assert truth.attribute_NA.shape == (len(truth.kind_N), len(types.ATTRIBUTES))
        assert ATTRIBUTES == types.ATTRIBUTES
        for k, (box, seen) in enumerate(zip(truth.box_N4, truth.visible_N, strict=True)):
            y, x = np.nonzero(truth.number_HW == k + 1)
            assert (len(x) == 0) == (seen == 0)
            partly += 0 < seen < 0.8
            if len(x):
                slack = 3  # a pixel of the half picture and its rounding
                assert (box[:2] - slack <= (2 * x.min(), 2 * y.min())).all()
                assert (box[2:] + slack >= (2 * x.max(), 2 * y.max())).all()
            whole = box[:2].min() > 1 and box[2] < SIZE[0] - 1 and box[3] < SIZE[1] - 1
            if whole and seen > 0.97 and len(x) > 30:  # the mask fills its box
                assert 2 * (x.max() - x.min()) > 0.75 * (box[2] - box[0]) - 3
                assert 2 * (y.max() - y.min()) > 0.75 * (box[3] - box[1]) - 3
        person = truth.kind_N == types.KINDS.index("person")
        assert np.isfinite(truth.attribute_NA[person][:, [0, 1, 2, 4]]).all()
        assert np.isnan(truth.attribute_NA[person][:, 3]).all()
        assert np.isnan(truth.attribute_NA[truth.kind_N == types.KINDS.index("pallet")]).all()
        assert image.std() > 10
    assert partly


def test_who_is_hidden_is_not_seen_and_who_is_cut_keeps_their_extent() -> None:
    camera = Camera((0.0, 0.0, 2.0), 0.0, 0.15, 0.0, 0.6, 0.2, SIZE)
    lit = paint.light(np.random.default_rng(0))
    man = meshes.person(meshes.looks(np.random.default_rng(0)), helmet=True)
    wall = meshes.box((-1, 5, 0), (1, 5.2, 3), (90, 90, 90))
    half = meshes.box((-1, 5, 0), (0, 5.2, 3), (90, 90, 90))

    def seen(man_at: tuple[float, float], *others: meshes.Mesh) -> tuple[float, float]:
        picture, number = np.zeros((SIZE[1], SIZE[0], 3), np.uint8), np.zeros((SIZE[1] // 2, SIZE[0] // 2), np.uint8)
        them = paint.shapes([man.moved(*man_at), *others], camera, lit)
        paint.draw(picture, number, [(k + 1, shape.faces) for k, shape in enumerate(them)])
        area = paint.extent(them[0].faces)
        return float((number == 1).sum()) / area, area

    alone, area = seen((0.0, 8.0))
    assert 0.97 < alone < 1.03
    assert seen((0.0, 8.0), wall)[0] == 0
    assert 0.3 < seen((0.0, 8.0), half)[0] < 0.7
    assert seen((0.0, 4.0), wall)[0] > 0.97, "who stands before the wall is seen"
    x = next(x for x in np.arange(4.0, 12.0, 0.02) if camera.project(np.array([[x, 8.0, 1.0]]))[0][0, 0] > SIZE[0])
    cut, beyond = seen((x, 8.0))
    assert 0.2 < cut < 0.8
    assert 0.5 < beyond / area < 1.5


def test_incidents_agree_with_the_truth_of_frames(found) -> None:
    zones = layout(SEED, SIZE).zones
    kinds = {one.kind for one in found if not one.doubtful}
    assert kinds == set(DWELL), "every rule has an incident in this hour"
    checked = 0
    for kind in sorted(kinds):
        one = next(i for i in found if i.kind == kind and not i.doubtful)
        assert 0 <= one.began < one.ended <= 3600
        truth = at(one.began + 0.05)
        rows = {int(i): k for k, i in enumerate(truth.identity_N)}
        here = [i for i in one.identities if i in rows]
        assert len(here) == len(one.identities) or (kind == "blocked" and here), one  # a second thing may come later
        places = [truth.place_N2[rows[i]].tolist() for i in here]
        if one.zone in zones:
            assert [inside(p, zones[one.zone]) for p in places].count(True) >= (1 if kind == "blocked" else len(places))
        attribute = {"no_helmet": ("helmet", 0), "no_vest": ("vest", 0), "lying": ("lying", 1)}.get(kind)
        if attribute:
            assert truth.attribute_NA[rows[one.identities[0]], ATTRIBUTES.index(attribute[0])] == attribute[1]
        if kind in ("pallet_missing", "pallet_extra"):
            assert truth.slots[one.zone or ""] == (kind == "pallet_extra")
            assert at(one.ended + 0.15).slots[one.zone or ""] != (kind == "pallet_extra")
        if kind == "near_miss":
            middle = [at(t) for t in np.linspace(one.began, one.ended, 6)]
            gaps = [math.dist(*(t.place_N2[t.identity_N == i][0] for i in one.identities)) for t in middle]
            assert min(gaps) < NEAR_M + 3.5  # it comes at up to 4 m/s and one second is looked ahead
        if kind == "speeding":
            a, b = at(one.began + 0.1), at(one.began + 0.3)
            p, q = (t.place_N2[t.identity_N == one.identities[0]][0] for t in (a, b))
            assert math.dist(p, q) / 0.2 > 2.6
        if kind == "intrusion":
            assert truth.time % 86400 >= 22 * 3600
        checked += 1
    assert checked == len(DWELL)


def test_who_bares_their_head_in_the_zone_is_found_in_every_frame(found) -> None:
    """The other way round: whatever the frames show for long is an incident."""
    work = layout(SEED, SIZE).zones["work"]
    bare = [one for one in found if one.kind == "no_helmet"]
    for second in np.arange(20.0, 900.0, 60.0).tolist():
        truth = at(second)
        for k in np.flatnonzero(truth.attribute_NA[:, 0] == 0):
            if inside(tuple(truth.place_N2[k].tolist()), work):  # type: ignore[arg-type]
                who = int(truth.identity_N[k])
                assert any(who in o.identities and o.began - 1.5 <= second <= o.ended + 1.5 for o in bare)


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_rules_file_loads_and_its_zones_are_where_the_floor_is(seed: int, tmp_path) -> None:
    (tmp_path / "rules.yaml").write_text(rules_yaml(seed, SIZE))
    rules = load_rules(tmp_path / "rules.yaml")
    assert {rule.type for rule in rules.rules} == set(DWELL)
    place = layout(seed, SIZE)
    for name, polygon in place.zones.items():
        middle = np.mean(polygon, 0)
        pixel, _ = place.camera.project(np.array([[*middle, 0.0]]))
        assert inside(tuple(pixel[0] / np.array(SIZE)), seen_polygon(place.camera, polygon)), name
    floor = rules.floor(CAMERA)
    assert floor is not None
    for picture, metres in zip(*floor_points(place), strict=True):
        assert math.dist(floor.at(picture) or (99, 99), metres) < 0.05


def test_lens_is_inverted() -> None:
    camera = Camera((1.0, 0.1, 5.0), 0.2, 0.4, 0.02, 0.55, 0.2, SIZE)
    floor_HW2 = camera.floor()
    y, x = np.nonzero(np.isfinite(floor_HW2[..., 0]))
    point = np.concatenate([floor_HW2[y, x], np.zeros((len(x), 1))], 1)
    pixel, depth = camera.project(point)
    assert (depth > 0).all()
    assert np.abs(pixel - np.stack([x + 0.5, y + 0.5], 1)).max() < 0.05


def test_sealed_seeds_follow_from_the_weights(tmp_path: Path) -> None:
    for name, content in (("a", b"weights"), ("b", b"weightS")):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).write_bytes(content)
    seeds = sealed(tmp_path / "a", 60)
    assert len(set(seeds)) == 60
    assert min(seeds) >= LOWEST > max(DEVELOPMENT)
    assert seeds == sealed(tmp_path / "a", 60)
    assert seeds[:5] == sealed(tmp_path / "a", 5)
    assert not set(seeds) & set(sealed(tmp_path / "b", 60))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="within one hour"):
        warehouse(0, 10, 1.0, start=3595.0)
    with pytest.raises(ConfigError, match="even"):
        warehouse(0, 10, 1.0, (321, 176))


def test_truth_without_a_picture_is_the_same_and_order_does_not_matter() -> None:
    told = story(SEED, SIZE)
    one, other = Painter(told, SIZE), Painter(told, SIZE)
    later, earlier = one.frame(1, 31.0), one.frame(0, 30.8)
    for (image, truth), index, second in ((earlier, 0, 30.8), (later, 1, 31.0)):
        again, alone = other.frame(index, second), other.truth(index, second)
        assert np.array_equal(image, again[0])
        for found in (again[1], alone):
            for name in ("box_N4", "visible_N", "identity_N", "attribute_NA", "place_N2", "number_HW"):
                assert np.array_equal(getattr(truth, name), getattr(found, name), equal_nan=True), name
            assert truth.slots == found.slots
    coarse = still(later[0], 0.35)
    assert coarse.shape == later[0].shape
    assert 0 < np.abs(coarse.astype(int) - later[0]).mean() < 12


def test_who_leaves_for_a_minute_comes_back_as_the_same_among_others() -> None:
    told, away = gaps(SEED, SIZE)
    assert len(away) == 3
    painter = Painter(told, SIZE)
    for gap in away:
        assert 60 <= gap.back - gap.left <= 90
        before, during, after = (painter.truth(0, s) for s in (gap.left - 4, gap.left + 30, gap.back + 6))
        assert gap.identity not in during.identity_N
        for truth in (before, after):
            assert gap.identity in truth.identity_N
        assert (during.kind_N == 0).sum() >= 8
