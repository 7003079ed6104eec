import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.evals.tracking import Tracks, combined, compare, iou, read_mot, score_tracking

corners = st.lists(st.integers(0, 50), min_size=4, max_size=4).map(
    lambda v: [v[0], v[1], v[0] + v[2] + 1, v[1] + v[3] + 1]
)


@given(st.lists(corners, min_size=1, max_size=5), st.lists(corners, min_size=1, max_size=5))
def test_overlaps_are_shares_of_pixels(first, second):
    def pixels(box):
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    found = iou(np.array(first, float), np.array(second, float))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            assert found[i, j] == pytest.approx(len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)))


def test_a_file_in_motchallenges_form(tmp_path):
    file = tmp_path / "gt.txt"
    file.write_text("1,7,10,20,30,40,1,-1,-1,-1\n3,7,11,20,30,40,1,-1,-1,-1\n3,9,0,0,5,5,0,-1,-1,-1\n")
    first, second, third = read_mot(str(file), 3)
    assert first.box_N4.tolist() == [[10, 20, 40, 60]]
    assert (len(second.identity_N), third.identity_N.tolist()) == (0, [7])


def two(frames: int) -> list[Tracks]:
    """Two objects that stay where they are."""
    box_N4 = np.array([[0, 0, 10, 10], [50, 0, 60, 10]], float)
    return [Tracks(box_N4, np.array([3, 8])) for _ in range(frames)]


class TestScores:
    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("trackeval", reason="TrackEval is not installed: pip install trackeval")

    def test_the_truth_scores_all(self):
        score = score_tracking(two(20), two(20))
        assert (score.hota, score.idf1, score.mota) == (100, 100, 100)
        assert (score.switches, score.false_positives, score.missed, score.truths) == (0, 0, 0, 40)

    def test_what_goes_wrong_is_counted(self):
        truth, found = two(20), two(20)
        found[10:] = [Tracks(each.box_N4, np.array([3, 11])) for each in found[10:]]  # one switch
        found[5] = Tracks(np.concatenate((found[5].box_N4, [[200, 200, 210, 210]])), np.array([3, 8, 9]))
        found[6] = Tracks(found[6].box_N4[:1], found[6].identity_N[:1])
        score = score_tracking(truth, found)
        assert (score.switches, score.false_positives, score.missed) == (1, 1, 1)
        assert score.mota == pytest.approx(100 * (1 - 3 / 40))
        assert (score.identities, score.found_identities) == (2, 4)
        assert score.idf1 < 80 < score.det_a

    def test_sequences_are_added_up_and_identities_are_theirs_alone(self):
        nothing = [Tracks(np.zeros((0, 4)), np.zeros(0, np.int64))] * 4
        one, other, none = compare(two(20), two(20)), compare(two(4), nothing), compare(nothing, two(4))
        score = combined([one, other, none])
        assert (score.truths, score.missed, score.false_positives, score.identities) == (48, 8, 8, 4)
        assert score.idf1 == pytest.approx(100 * 2 * 40 / (48 + 48))
        assert combined([one, one]) == dataclasses.replace(combined([one]), truths=80, identities=4, found_identities=4)

    def test_nothing_found(self):
        nothing = [Tracks(np.zeros((0, 4)), np.zeros(0, np.int64))] * 4
        assert score_tracking(two(4), nothing).missed == 8

    @pytest.mark.parametrize(
        ("truth", "found", "told"),
        [
            (two(3), two(2), "3 frames of truth and 2"),
            ([Tracks(np.zeros((0, 4)), np.zeros(0, np.int64))], two(1), "no object in any frame"),
            (two(1), [Tracks(two(1)[0].box_N4, np.array([4, 4]))], "identity twice"),
        ],
    )
    def test_what_cannot_be_scored(self, truth, found, told):
        with pytest.raises(ConfigError, match=told):
            score_tracking(truth, found)
