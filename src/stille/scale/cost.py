"""What a camera costs a month, from what was measured and from prices that are given. Nothing is assumed of speed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stille.ledger import Record

HOURS = 730.0
"""Of a month."""


@dataclass(frozen=True)
class Prices:
    """Euro an hour; what they are is for the buyer to say.

    Attributes:
        gpu: of a machine with one GPU and the cores that the figures were measured with.
        core: of one processor core.
    """

    gpu: float = 3.0
    core: float = 0.04


@dataclass(frozen=True)
class Line:
    """
    Attributes:
        what: that is bought; cameras: that it carries; price: euro an hour.
        by: ids of the figures that say so.
    """

    what: str
    cameras: float
    price: float
    by: tuple[str, ...]
    machine: str

    @property
    def month(self) -> float:
        """Euro for a camera and month; infinite if it carries none."""
        return self.price * HOURS / self.cameras if self.cameras else float("inf")


WHOLE = {  # figures of whole machines, decoding and events included
    "video.cameras.360p.cuda": "a GPU machine, 640x360 at 30 FPS",
    "video.cameras.1080p.cuda": "a GPU machine, 1920x1080 at 30 FPS decoded by its cores",
}
_FPS = 5


def lines(records: Iterable[Record], prices: Prices) -> tuple[list[Line], list[str]]:
    """What can be said, and ids of the figures that are missing to say more."""
    known = {record.id: record for record in records}
    found = [
        Line(what, known[id].value, prices.gpu, (id,), known[id].machine) for id, what in WHOLE.items() if id in known
    ]
    missing = [id for id in WHOLE if id not in known]
    for gpu, batch in (("cuda", 64), ("cuda", 200)):
        if (record := known.get(f"video.model.{gpu}.b{batch}")) is not None:
            what = f"a GPU's model alone in batches of {batch}, 30 FPS, without decoding"
            found.append(Line(what, record.value / 30, prices.gpu, (record.id,), record.machine))
    found += _cores(known, prices, missing)
    return found, missing


def _cores(known: Mapping[str, Record], prices: Prices, missing: list[str]) -> list[Line]:
    """Cameras of a core: it decodes and it sees, one after the other."""
    found = []
    for size, words in (("360p", "640x360"), ("1080p", "1920x1080")):
        model, decode = "video.model.cpu.b4", f"video.sources.rtsp.{size}.fps{_FPS}"
        absent = [id for id in (model, decode) if id not in known]
        if absent:
            missing += absent
            continue
        share = _FPS / known[model].value + 1 / known[decode].value  # of a core, for one camera
        what = f"a core, {words} over RTSP, {_FPS} FPS seen"
        found.append(Line(what, 1 / share, prices.core, (model, decode), known[model].machine))
    return found
