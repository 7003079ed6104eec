"""The site: three halls with a camera each, painted as films, with the truth of every frame and every incident.

    python -m examples.warehouse.site --rules     # writes rules.yaml anew, from where zones and slots are

The halls are those of `stille.evals.warehouse`, which perception has not learned from. Shapes: T frames of a film, N
objects of a frame.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stille.evals.warehouse import FrameTruth, Incident, incidents, warehouse
from stille.evals.warehouse.geometry import inside_N
from stille.evals.warehouse.layout import layout
from stille.evals.warehouse.rules_file import rules_yaml
from stille.evals.warehouse.shown import SEEN, shown
from stille.evals.warehouse.story import story
from stille.video.film import Film
from stille.video.types import KINDS

RULES = Path(__file__).with_name("rules.yaml")
RATE = 5.0
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Hall:
    """
    Attributes:
        name: of its camera. seed: that it is made from. start: seconds into its hour at which the film begins.
    """

    name: str
    seed: int
    start: float

    @property
    def prefix(self) -> str:
        """Of its zones and slots in the rules file."""
        return self.name.removeprefix("hall-") + "-"


HALLS = (Hall("hall-a", 11, 2178.0), Hall("hall-b", 4, 3190.0), Hall("hall-c", 1, 2720.0))
"""The third after its shift has ended."""


@dataclass(frozen=True)
class Recording:
    """A film and all that is known of it.

    Attributes:
        film: path of the MP4. time_T: seconds since 1970.
        frames: of each the arrays of `FrameTruth`, without the picture of numbers.
        incidents: with times since 1970, cut to what the film shows.
    """

    hall: Hall
    film: Path
    time_T: np.ndarray
    frames: list[dict[str, Any]]
    incidents: list[Incident]

    @property
    def source(self) -> str:
        """For a pipeline."""
        return f"{self.film}#name={self.hall.name},start={self.time_T[0]:.3f}"

    def at(self, time: float) -> dict[str, Any]:
        """The truth of the frame of this time."""
        return self.frames[int(np.abs(self.time_T - time).argmin())]


def record(
    hall: Hall, folder: Path, seconds: float, size: Size = (640, 352), on_frame: Callable[[], None] = lambda: None
) -> Recording:
    """Paint a hall's film and keep its truth; what is there already is not painted again.

    Args:
        on_frame: called after each frame.
    """
    frames = round(seconds * RATE)
    film, kept = folder / f"{hall.name}.mp4", folder / f"{hall.name}.json"
    what = {**asdict(hall), "frames": frames, "rate": RATE, "size": list(size)}
    if film.exists() and kept.exists() and (known := json.loads(kept.read_text()))["what"] == what:
        for _ in range(frames):
            on_frame()
        return _recording(hall, film, known)
    folder.mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)
    writer = Film(film, size)
    truths: list[FrameTruth] = []
    for image, truth in warehouse(hall.seed, frames, RATE, size, hall.start, coded=False):
        writer.write(image, truth.index / RATE)
        truths.append(truth)
        on_frame()
    writer.close()
    known = {
        "what": what,
        "time": [truth.time for truth in truths],
        "frames": [_kept(truth) for truth in truths],
        "incidents": [asdict(one) for one in _incidents(hall, size, truths)],
    }
    kept.write_text(json.dumps(known) + "\n")
    return _recording(hall, film, known)


def _kept(truth: FrameTruth) -> dict[str, Any]:
    arrays = ("box_N4", "visible_N", "kind_N", "identity_N", "attribute_NA")
    found: dict[str, Any] = {name: np.round(getattr(truth, name), 3).tolist() for name in arrays}
    return found | {"size": list(truth.size), "slots": dict(truth.slots)}


def _recording(hall: Hall, film: Path, known: dict[str, Any]) -> Recording:
    happened = [Incident(**{**one, "identities": tuple(one["identities"])}) for one in known["incidents"]]
    return Recording(hall, film, np.array(known["time"]), known["frames"], happened)


def _incidents(hall: Hall, size: Size, truths: list[FrameTruth]) -> list[Incident]:
    """Those of the hour, as far as the film shows them."""
    second_T = np.array([truth.second for truth in truths])
    everybody = {int(i) for truth in truths for i in truth.identity_N}
    visible = {i: np.zeros(len(truths)) for i in everybody}
    queued_T = np.zeros(len(truths))
    queue = layout(hall.seed, size).zones["queue"]
    for t, truth in enumerate(truths):
        for identity, share in zip(truth.identity_N.tolist(), truth.visible_N.tolist(), strict=True):
            visible[identity][t] = share
        person_N = (truth.kind_N == KINDS.index("person")) & (truth.visible_N >= SEEN)
        queued_T[t] = inside_N(truth.place_N2[person_N], queue).sum()
    begins = story(hall.seed, size).begins
    found = shown(incidents(hall.seed, size), second_T, visible, queued_T)
    return [replace(one, began=begins + one.began, ended=begins + one.ended) for one in found]


# The rules file ---------------------------------------------------------------------------------------------------


def rules_text() -> str:
    """The rules of all halls as one file: zones of each hall have its prefix, rules hold everywhere."""
    files = {hall: yaml.safe_load(rules_yaml(hall.seed)) for hall in HALLS}
    lines = [_HEAD, "cameras:"]
    for hall, file in files.items():
        floor = file["cameras"][0]["floor"]
        lines += [f"  - name: {hall.name}", "    size: [640, 352]", "    floor:"]
        lines += [f"      {key}: {_flow(floor[key])}" for key in ("picture", "metres")]
    for key in ("zones", "slots"):
        lines += ["", f"{key}:"]
        for hall, file in files.items():
            for one in file[key]:
                more = f"holds: {one['holds']}, " if key == "slots" else ""
                name = hall.prefix + one["name"]
                lines.append(f"  - {{name: {name}, camera: {hall.name}, {more}points: {_flow(one['points'])}}}")
    lines += ["", "rules:", *_rules(files), *_EXTRA]
    return "\n".join(lines) + "\n"


def _rules(files: dict[Hall, Any]) -> Iterator[str]:
    """One for each type, with the zones of every hall."""
    for number, rule in enumerate(next(iter(files.values()))["rules"]):
        same = [file["rules"][number] for file in files.values()]
        fields = {key: value for key, value in rule.items() if key not in ("zones", "cameras")}
        zones = [hall.prefix + zone for hall, one in zip(files, same, strict=True) for zone in one.get("zones", ())]
        fields |= {"zones": zones} if zones else {"cameras": [hall.name for hall in files]}
        fields |= _KEPT.get(rule["type"], {})
        yield f"  # {_WHY[rule['type']]}"
        yield "  - {" + ", ".join(f"{key}: {_flow(value)}" for key, value in fields.items()) + "}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    if isinstance(value, str) and ":" in value:
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


_HEAD = """# Three halls of one site. Written by `python -m examples.warehouse.site --rules` from where zones and slots
# are in the painted halls; for real cameras, draw them (docs/video-rules.md).
version: 1
timezone: UTC
"""
_KEPT: dict[str, dict[str, Any]] = {"lying": {"keep_days": 90}, "near_miss": {"keep_days": 90}}
_WHY = {
    "no_helmet": "Helmets and vests are needed where people work.",
    "no_vest": "The same for vests.",
    "person_in_lane": "Nobody on foot where forklifts drive.",
    "near_miss": "A forklift that moves and somebody who will be, or is, too close to it.",
    "speeding": "Forklifts, m/s.",
    "blocked": "The way out stays free.",
    "lying": "Somebody lies on the floor.",
    "intrusion": "Nobody in the halls outside of the shifts.",
    "pallet_missing": "Slots that should hold a pallet and do not, for longer than it takes to change it.",
    "pallet_extra": "The other way round.",
    "pallet_misplaced": "No pallet where people walk.",
    "queue": "Too many before the counter.",
}
_EXTRA = [
    "  # The cameras themselves.",
    "  - {id: camera, type: camera_trouble, dwell: 5, cameras: [hall-a, hall-b, hall-c]}",
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.warehouse.site", description=__doc__)
    parser.add_argument("--rules", action="store_true", help="write rules.yaml anew")
    if parser.parse_args().rules:
        RULES.write_text(rules_text())
        print(f"{RULES}: {len(HALLS)} cameras")
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
