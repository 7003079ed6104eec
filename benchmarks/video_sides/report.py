"""Figures of generator B as records of the ledger."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from stille import ledger
from stille.evals.events import false_event_ratio, score_events
from stille.evals.warehouse.incidents import DWELL
from stille.ledger import Record
from stille.video.types import KINDS
from video_sides.gap import Return, share
from video_sides.measure import RECALL, SEQUENCE_S, Judged, Settings, accuracy, tallies, tracking_score, windows

STRONG = "the same network frame by frame, ByteTrack 2.6.1, medians over tracks, the same rules"


def command(options: argparse.Namespace) -> str:
    """What to type, without the places of things."""
    words = [
        "python benchmarks/video_b.py --model MODEL --cache CACHE",
        *(["--sealed"] if options.sealed else []),
    ]
    words += [f"--cameras {options.cameras} --seconds {options.seconds:g} --clips {options.clips}"]
    return " ".join([*words, *(["--change", *options.change] if options.change else [])])


def where(options: argparse.Namespace, cameras: int, hours: float) -> str:
    seeds = "sealed seeds, which follow from the weights" if options.sealed else "open seeds"
    return (
        f"Synthetic: generator B, which the model was not trained on, {seeds}; {cameras} cameras, {hours:.1f} "
        f"camera-hours at {options.rate:g} frames a second, 640x352, each frame through JPEG (no H.264)."
    )


def track_records(
    sides: Mapping[str, Sequence[Judged]], settings: Mapping[str, Settings], hours: float, options: argparse.Namespace
) -> list[Record]:
    about = where(options, len(sides["ours"]), hours)
    scores = {side: tracking_score(judged) for side, judged in sides.items()}
    ours, strong = scores["ours"], scores["strong"]
    tuning = f"Settings {'searched on other, open seeds' if options.searched else 'of both by default'}: "
    tuning += f"{_settings(settings)}."
    how = (
        f"All kinds, in sequences of {SEQUENCE_S:.0f} s, by TrackEval 1.3.0; kinds match themselves only, objects of "
        "which under a quarter is seen are neither asked for nor wrong. "
    )

    def record(name: str, value: float, other: float | None, goal: str | None, words: str) -> Record:
        return ledger.measure(
            f"video.b.{name}", value, "%", command=command(options), goal=goal, notes=f"{words}. {how}{about} {tuning}",
            baseline=None if other is None else STRONG, baseline_value=None if other is None else max(other, 1e-9),
        )  # fmt: skip

    detail = "; ".join(
        f"{side} DetA {s.det_a:.1f}, AssA {s.ass_a:.1f}, MOTA {s.mota:.1f}, {s.switches} switches, {s.false_positives} "
        f"false, {s.missed} of {s.truths} missed, {s.found_identities} identities for {s.identities}"
        for side, s in scores.items()
    )
    records = [
        record("hota", ours.hota, strong.hota, "value >= 70", f"HOTA on generator B (synthetic). {detail}"),
        record("idf1", ours.idf1, strong.idf1, "value >= 80", "IDF1 on generator B (synthetic)"),
        record(
            "idf1_gain", ours.idf1 - strong.idf1, None, "value >= 5",
            f"IDF1 on generator B (synthetic) less the strong baseline's {strong.idf1:.1f}",
        ),
    ]  # fmt: skip
    for kind in KINDS:
        if not any(one.truths for judged in sides["ours"] for one in judged.compared[kind]):
            continue
        mine, theirs = (tracking_score(judged, [kind]) for judged in sides.values())
        for name in ("hota", "idf1"):
            value, other = getattr(mine, name), getattr(theirs, name)
            words = f"{name.upper()} of {kind}s on generator B (synthetic), {mine.truths} appearances"
            records.append(record(f"{name}.{kind}", value, other, None, words))
    return records


def event_records(
    sides: Mapping[str, Sequence[Judged]], settings: Mapping[str, Settings], hours: float, options: argparse.Namespace
) -> list[Record]:
    cameras = [one.camera for one in sides["ours"]]
    about = where(options, len(cameras), hours)
    found = {side: tallies(judged) for side, judged in sides.items()}
    ratio = false_event_ratio(found["ours"], found["strong"], cameras, hours, RECALL)
    held = {side: windows(judged, settings[side].threshold) for side, judged in sides.items()}
    right = {side: 100 * accuracy(by_rule) for side, by_rule in held.items()}
    events = {side: score_events(list(one.values()), settings[side].threshold) for side, one in found.items()}
    means = {
        side: 100 * np.mean([w.accuracy for w in one.values() if w.accuracy is not None]) for side, one in held.items()
    }
    ours, strong = events["ours"], events["strong"]
    whose = "an event is right if rule, place and object are, within 2 s; what tells of an incident again is false"

    def record(name: str, value: float, unit: str, other: float | None, goal: str | None, words: str) -> Record:
        return ledger.measure(
            f"video.events.{name}", value, unit, command=command(options), goal=goal, notes=f"{words}. {about}",
            baseline=None if other is None else STRONG, baseline_value=None if other is None else max(other, 1e-9),
        )  # fmt: skip

    records = [
        ledger.measure(
            "video.events.fp_ratio", ratio.high, "of the baseline's", command=command(options), goal="value <= 0.4",
            notes=f"False events per camera-hour, of the strong baseline's, at recall {ratio.recall:.3f} (synthetic): "
            f"upper end of the 95 % interval. Point {ratio.ratio:.3f}, interval {ratio.low:.3f} to {ratio.high:.3f} "
            f"(bootstrap over cameras); {ratio.ours:.2f} of ours and {ratio.theirs:.2f} of the baseline's an hour, "
            f"recall {ratio.our_recall:.3f} and {ratio.their_recall:.3f}, from confidences {ratio.our_threshold:.3f} "
            f"and {ratio.their_threshold:.3f} on; {ours.incidents} incidents; {whose}. Baseline: {STRONG}. {about}",
        ),
        record(
            "accuracy", right["ours"], "%", right["strong"], "value >= 94",
            f"Balanced accuracy over cameras, 10-s windows and rules, generator B (synthetic). Mean over rules "
            f"{means['ours']:.1f} (baseline {means['strong']:.1f}); confidence thresholds "
            f"{'searched on open seeds' if options.searched else 'by default'}",
        ),
        record(
            "f1", 100 * ours.f1, "%", 100 * strong.f1, None,
            f"F1 of events, generator B (synthetic). Recall {ours.recall:.3f}, precision {ours.precision:.3f}, "
            f"{ours.false} false of which {ours.again} again, {ours.prompt:.2f} begin within 2 s (baseline: "
            f"{strong.recall:.3f}, {strong.precision:.3f}, {strong.false}, {strong.again}, {strong.prompt:.2f}); "
            f"{whose}",
        ),
    ]  # fmt: skip
    for rule in DWELL:
        mine, theirs = (held[side][rule] for side in ("ours", "strong"))
        if mine.accuracy is None or theirs.accuracy is None:
            continue
        each = {
            side: score_events([t for (_, r), t in one.items() if r == rule], settings[side].threshold)
            for side, one in found.items()
        }
        a, b = each["ours"], each["strong"]
        words = f"of {rule}, generator B (synthetic), {a.incidents} incidents"
        records.append(
            record(
                f"accuracy.{rule}", 100 * mine.accuracy, "%", 100 * theirs.accuracy, None, f"Balanced accuracy {words}"
            )
        )
        records.append(
            record(
                f"f1.{rule}", 100 * a.f1, "%", 100 * b.f1, None,
                f"F1 of events {words}. Recall {a.recall:.2f}, {a.false} false (baseline {b.recall:.2f}, {b.false})",
            )
        )  # fmt: skip
    return records


def gap_records(found: Mapping[str, Sequence[Return]], options: argparse.Namespace) -> list[Record]:
    """One for each kind of long memory that the same weights were run with."""
    records = []
    seeds = "sealed seeds, which follow from the weights" if options.sealed else "open seeds"
    for kind, returns in found.items():
        value, low, high = share(returns)
        if not returns:
            continue
        gaps = [one.seconds for one in returns]
        records.append(
            ledger.measure(
                "video.memory.identity" if kind == "hsa" else f"video.memory.identity.{kind}", value, "%",
                command=command(options), goal="value >= 90" if kind == "hsa" else None,
                notes=f"Persons who are the same to the model after {min(gaps):.0f} to {max(gaps):.0f} s out of the "
                f"picture, long memory {kind} (synthetic). Of {len(returns)}, 95 % interval {low:.1f} to {high:.1f}: "
                f"{sum(o.taken for o in returns)} became somebody else, {sum(o.new for o in returns)} somebody new, "
                f"{sum(o.unseen for o in returns)} nobody; {np.mean([o.others for o in returns]):.1f} others in the "
                f"picture in the mean. Generator B, {seeds}, {options.rate:g} frames a second, each through JPEG; the "
                "same weights for all four kinds of long memory.",
            )
        )  # fmt: skip
    return records


def _settings(settings: Mapping[str, Settings]) -> str:
    said = []
    for side, one in settings.items():
        chosen = {"least": one.least, **(asdict(one.tracking) if one.tracking else {}), **asdict(one.strictness)}
        said.append(f"{side} " + ", ".join(f"{name} {value:g}" for name, value in chosen.items()))
    return "; ".join(said)
