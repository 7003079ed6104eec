from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.video.zones import Floor, area, closest_approach, crosses, distance_to_line, inside, polygon_problem

unit = st.floats(0, 1)
small = st.floats(-5, 5)
SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


@settings(max_examples=30, deadline=None)
@given(st.tuples(unit, unit), st.lists(st.floats(0.05, 0.4), min_size=3, max_size=9))
def test_a_star_shaped_polygon_and_its_inside(point, radii):
    """Against polar coordinates: the radius of the edge in the point's direction."""
    n = len(radii)
    corners = [
        (0.5 + r * math.cos(2 * math.pi * i / n), 0.5 + r * math.sin(2 * math.pi * i / n)) for i, r in enumerate(radii)
    ]
    assert polygon_problem(corners) is None
    x, y = point[0] - 0.5, point[1] - 0.5
    sector = int((math.atan2(y, x) % (2 * math.pi)) / (2 * math.pi / n)) % n
    a, b = corners[sector], corners[(sector + 1) % n]
    toward = distance_to_line(point, a, b)
    centre = distance_to_line((0.5, 0.5), a, b)
    if abs(toward) > 1e-6:
        assert inside(point, corners) == (toward * centre > 0)
        assert inside(point, corners[::-1]) == inside(point, corners)


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        (SQUARE[:2], "at least 3"),
        ((SQUARE[0], SQUARE[2], SQUARE[1], SQUARE[3]), "crosses"),
        (((0, 0), (0.5, 0.5), (1, 1)), "one line"),
        ((*SQUARE, (0.0, 0.0)), "twice"),
    ],
)
def test_what_is_no_polygon(points, problem):
    assert problem in polygon_problem(points)


def test_sides_and_crossings():
    top, bottom = (0.5, 0.0), (0.5, 1.0)
    assert distance_to_line((0.2, 0.5), top, bottom) == pytest.approx(0.3)  # looking down, the picture's left is right
    assert distance_to_line((0.9, 0.5), top, bottom) == pytest.approx(-0.4)
    assert crosses((0, 0.5), (1, 0.5), top, bottom)
    assert not crosses((0, 0.5), (0.4, 0.5), top, bottom)
    assert not crosses((0.5, 1.1), (0.5, 1.2), top, bottom)
    assert area(SQUARE) == 1


@settings(max_examples=30, deadline=None)
@given(
    st.floats(0.3, 1.2), st.floats(2, 8), st.floats(-0.3, 0.3), st.tuples(st.floats(-3, 3), st.floats(4, 12)),
    st.floats(0, 0.002),
)  # fmt: skip
def test_floor_inverts_a_camera(tilt, height, roll, place, noise):
    """A pinhole camera at a height, tilted down: floor points come back from their pictures."""

    def picture(x, y):
        depth = y * math.cos(tilt) + height * math.sin(tilt)
        down = height * math.cos(tilt) - y * math.sin(tilt)
        u, v = x / depth, down / depth
        return 0.5 + u * math.cos(roll) - v * math.sin(roll), 0.5 + u * math.sin(roll) + v * math.cos(roll)

    metres = [(-3, 4), (3, 4), (3, 12), (-3, 12), (0, 8), (-2, 9)]
    shaken = [(x + noise * (-1) ** i, y) for i, (x, y) in enumerate(picture(*m) for m in metres)]
    floor = Floor(shaken, metres)
    found = floor.at(picture(*place))
    assert found is not None
    assert math.dist(found, place) < 1e-6 + 700 * noise
    above = picture(0, 1e7)
    horizon = (above[0] + math.sin(roll), above[1] - math.cos(roll))
    assert Floor([picture(*m) for m in metres], metres).at(horizon) is None


@pytest.mark.parametrize(
    ("picture", "metres", "problem"),
    [
        (SQUARE[:3], SQUARE[:3], "at least four"),
        (SQUARE, SQUARE[:3], "pairs"),
        (((0, 0), (0.5, 0.5), (1, 1), (0, 1)), SQUARE, "line"),
        (((0, 0), (0.1, 0.1), (0.2, 0.2), (0.3, 0.3)), SQUARE, "line"),
        (SQUARE, ((0, 0), (5, 5), (5, 0), (0, 5)), "order"),
        (SQUARE, ((1, 1), (1, 1), (1, 1), (1, 1)), "same"),
        ((*SQUARE, (0.5, 0.5)), ((0, 0), (9, 0), (9, 9), (0, 9), (9, 1)), "contradict"),
    ],
)
def test_what_is_no_floor(picture, metres, problem):
    with pytest.raises(ValueError, match=problem):
        Floor(picture, metres)


@settings(max_examples=30, deadline=None)
@given(st.tuples(small, small), st.tuples(small, small), st.tuples(small, small), st.tuples(small, small))
def test_closest_approach_is_the_smallest_distance_on_the_way(p, v, q, w):
    when, apart = closest_approach(p, v, q, w, 2.0)
    assert 0 <= when <= 2
    for i in range(41):
        t = i / 20
        assert math.dist((p[0] + t * v[0], p[1] + t * v[1]), (q[0] + t * w[0], q[1] + t * w[1])) >= apart - 1e-6
