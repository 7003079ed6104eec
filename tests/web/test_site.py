"""The pages' hand in a running pipeline: rules and cameras change between two frames, evidence stays in its folder."""

import time

import numpy as np
import pytest

from stille.video.errors import VideoError
from stille.video.events import Desk
from stille.video.pipeline import Pipeline
from stille.video.scenes.__main__ import write_film
from stille.video.sinks import Lane, Sinks
from stille.video.store import Filter, Store
from stille.video.types import KINDS, Event, Seen
from stille.web import RulesFile, Site
from stille.web.rules_file import Shape

EVERYWHERE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


class Somebody:
    """Sees one person who stands still, in every frame."""

    def see(self, frames):
        box = np.array([[60, 20, 80, 90]], np.float32)
        return [
            Seen(f.camera, f.index, f.time, f.size, box, np.array([KINDS.index("person")]), np.array([0.9], np.float32),
                 np.array([1]), np.zeros((1, 5), np.float32))
            for f in frames
        ]  # fmt: skip


@pytest.fixture
def film(tmp_path):
    noise = np.random.default_rng(0).integers(60, 200, (40, 96, 160, 3), dtype=np.uint8)
    write_film(tmp_path / "film.mp4", noise, 10)
    return f"{tmp_path / 'film.mp4'}#loop=true,realtime=true"


@pytest.fixture
def watch(film, tmp_path):
    """A site, its desk and its pipeline, which runs as far as it is let."""
    (tmp_path / "rules.yaml").write_text("cameras: [{name: hall}]\n")
    rules, store = RulesFile(tmp_path / "rules.yaml"), Store(tmp_path / "events.db")
    site = Site(rules, store, tmp_path / "state.json", evidence=tmp_path / "evidence")
    desk = Desk(rules.rules, Sinks([Lane(store)]))
    with Pipeline(Somebody(), on_seen=[desk.see, site.wall.see], on_trouble=[site.trouble]) as pipeline:
        pipeline.add(f"{film},name=hall")
        site.start(pipeline, desk, [f"{film},name=hall"])

        def until(done) -> None:
            end = time.monotonic() + 30
            pipeline.run(until=lambda: bool(site.look() or done() or time.monotonic() > end))
            assert done()

        yield site, desk, until
    desk.close()
    store.close()


def test_a_drawn_zone_is_in_use_without_a_restart_and_open_events_go_on(watch):
    site, desk, until = watch
    until(lambda: desk.engine.state()["cameras"])
    assert site.open_events() == []
    site.rules.put(Shape("zone", "floor", "hall", EVERYWHERE), new={"id": "in", "type": "intrusion"})
    site.rules_changed()
    until(site.open_events)
    (opened,) = site.open_events()
    # Another rule beside it leaves the event open, its own end closes it.
    site.rules.put(Shape("zone", "other", "hall", EVERYWHERE), new={"id": "lies", "type": "lying"})
    site.rules_changed()
    until(lambda: desk.rules.rule("lies") is not None)
    assert [event.id for event in desk.engine.open_events()] == [opened.id]
    text = site.rules.path.read_text()
    site.rules.path.write_text("cameras: [{name: hall}]\n")  # in a text editor
    until(lambda: desk.rules.rule("in") is None)
    assert desk.engine.open_events() == []
    desk.sinks.drain(5)
    (entry,), _ = site.log.find(Filter())
    assert (entry.event.id, entry.event.state) == (opened.id, "closed")
    site.rules.path.write_text(text + "nonsense: 1\n")
    until(lambda: site.rules.problem is not None)
    assert "nonsense" in site.rules.problem
    assert desk.rules.rule("in") is None


def test_cameras_come_and_go(watch, film):
    site, desk, until = watch
    assert site.add_camera(f"{film},name=yard") == "yard"
    until(lambda: all(one.up and one.stats.seen > 2 for one in site.health()))
    assert [one.name for one in site.health()] == ["hall", "yard"]
    assert all(one.fps is None or one.fps > 0 for one in site.health())
    with pytest.raises(VideoError, match="already"):
        site.add_camera(f"{film},name=yard")
    site.remove_camera("yard")
    until(lambda: "yard" not in desk.engine.state()["cameras"])
    assert [one.name for one in site.health()] == ["hall"]
    assert site.wall.picture("yard") is None
    with pytest.raises(VideoError, match="there is no camera named 'yard'"):
        site.remove_camera("yard")


def test_passwords_are_not_shown_and_files_are_for_this_machine_only(watch, tmp_path):
    site, _, _ = watch
    site.add_camera("rtsp://viewer:geheim@127.0.0.1:1/x#name=door")
    assert "geheim" not in repr(site.health())
    strict = Site(site.rules, site.log.store, tmp_path / "s.json", local=False)
    strict.start(site._pipeline, site._desk, [])
    for source in ("/etc/passwd", "/dev/video0", str(tmp_path)):
        with pytest.raises(VideoError, match="only streams"):
            strict.add_camera(source)


def test_evidence_stays_in_its_folder(watch, tmp_path):
    site, _, _ = watch
    (tmp_path / "evidence").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "evidence" / "notes.txt").write_bytes(b"x")
    (tmp_path / "evidence" / "clip.mp4").write_bytes(b"x")
    (tmp_path / "evidence" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    paths = ("clip.mp4", "../secret.mp4", str(tmp_path / "secret.mp4"), "link.mp4", "notes.txt", "gone.mp4")
    for n, path in enumerate(paths):
        site.log.store.add(
            [Event(id=f"e{n}", state="closed", revision=0, camera="hall", rule="in", kind="intrusion", began=1.0,
                   changed=1.0, confidence=1.0, reason="", clip=path)]
        )  # fmt: skip
    assert site.evidence_file("e0", "clip") == tmp_path / "evidence" / "clip.mp4"
    for n in (1, 2, 3, 4):
        with pytest.raises(VideoError, match="outside"):
            site.evidence_file(f"e{n}", "clip")
    assert site.evidence_file("e5", "clip") is None
    assert site.evidence_file("e0", "snapshot") is None
    assert site.evidence_file("e9", "clip") is None
