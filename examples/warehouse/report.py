"""Events against what really happened, rule by rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from examples.warehouse.site import Recording
from examples.warehouse.truth import Names
from stille.evals.events import Happening, tally
from stille.video.types import Event

SLOTS = ("pallet_missing", "pallet_extra")


@dataclass(frozen=True, slots=True)
class Row:
    """One rule, of all cameras.

    Attributes:
        incidents: that the films show and that are long enough to be sure of. found, missed: of these.
        false: events about nothing; again: further events about an incident that was found.
        withheld: by the verifier. late: median of the seconds from an incident's beginning to its event's.
    """

    rule: str
    incidents: int
    found: int
    missed: int
    false: int
    again: int
    withheld: int
    late: float | None


def happened(recordings: Iterable[Recording]) -> list[Happening]:
    """All incidents, in the rules file's names."""
    return [
        Happening(
            one.hall.name, incident.kind, one.hall.prefix + incident.zone if incident.zone else None,
            frozenset(incident.identities), incident.began, incident.ended, doubtful=incident.doubtful,
        )
        for one in recordings
        for incident in one.incidents
    ]  # fmt: skip


def told(events: Iterable[Event], names: Names) -> list[Happening]:
    """Events, in the truth's numbers."""
    return [
        Happening(
            one.camera, one.kind, str(one.facts["slot"]) if one.kind in SLOTS else one.zone,
            names.of(one.camera, one.identities), one.began, one.ended if one.ended is not None else one.changed,
            one.confidence,
        )
        for one in events
    ]  # fmt: skip


def rows(recordings: Sequence[Recording], events: Sequence[Event], names: Names) -> list[Row]:
    """By rule type; rules without truth (a camera's own troubles) are left out."""
    incidents = happened(recordings)
    sent = [one for one in events if not one.withheld and one.kind != "camera_trouble"]
    withheld = Counter(one.kind for one in events if one.withheld)
    tallies = tally(incidents, told(sent, names))
    found = []
    for rule in sorted({rule for _, rule in tallies} | set(withheld)):
        mine = [one for (_, kind), one in tallies.items() if kind == rule]
        count, hit = sum(len(one.found) for one in mine), sum(c > 0 for one in mine for c in one.found)
        again, late = sum(one.again for one in mine), [s for one in mine for s in one.late]
        false = sum(len(one.false) for one in mine) - again
        median = round(float(np.median(late)), 1) if late else None
        found.append(Row(rule, count, hit, count - hit, false, again, withheld[rule], median))
    return found


def total(found: Sequence[Row]) -> Row:
    """Of all rules."""
    names = ("incidents", "found", "missed", "false", "again", "withheld")
    return Row("all", late=None, **{name: sum(getattr(row, name) for row in found) for name in names})


def table(found: Sequence[Row]) -> Table:
    """For a terminal."""
    shown = Table(box=SIMPLE, pad_edge=False)
    for column in ("rule", "incidents", "found", "missed", "false", "again", "withheld", "late"):
        shown.add_column(column, justify="left" if column == "rule" else "right")
    for row in [*found, total(found)]:
        values = list(asdict(row).values())
        late = "" if row.late is None else f"{row.late:+.1f} s"
        shown.add_row(*map(str, values[:-1]), late, style="bold" if row.rule == "all" else None)
    return shown
