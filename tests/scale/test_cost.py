"""What a camera costs: from records alone, and what is missing is named."""

import pytest

from stille.ledger import measure
from stille.scale.cost import HOURS, Prices, lines


def record(id: str, value: float):
    return measure(id, value, "x", command="c", notes="n", machine="m", commit="0", date="2026-01-01T00:00Z")


def test_a_core_decodes_and_sees_one_after_the_other() -> None:
    records = [record("video.model.cpu.b4", 10.0), record("video.sources.rtsp.360p.fps5", 20.0)]
    (line,), missing = lines(records, Prices(core=0.05))
    assert line.cameras == pytest.approx(1 / (5 / 10 + 1 / 20))
    assert line.month == pytest.approx(0.05 * HOURS / line.cameras)
    assert "video.sources.rtsp.1080p.fps5" in missing
    assert "video.cameras.360p.cuda" in missing


def test_whole_machines_and_one_that_carries_nothing() -> None:
    found, _ = lines([record("video.cameras.360p.cuda", 200), record("video.cameras.1080p.cuda", 0)], Prices(gpu=4.0))
    assert [line.month for line in found] == [4.0 * HOURS / 200, float("inf")]
    assert lines([], Prices())[0] == []
