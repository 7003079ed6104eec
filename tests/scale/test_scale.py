"""Cameras over shards: few moves, and a shard that is really killed costs no event and no identity."""

import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.scale.checkpoint import Checkpoint, next_turn
from stille.scale.hashing import assign, choose
from stille.scale.shard import Shard, ShardSettings
from stille.video.errors import VideoError
from stille.video.rules import parse_rules
from stille.video.store import Filter, Store
from tests.scale.scripted import Lanes, Scripted
from tests.video.rtsp.serve import write_video

CAMERAS = [f"cam{i}" for i in range(6)]
RULES = parse_rules(
    f"cameras: [{', '.join(f'{{name: {name}}}' for name in CAMERAS)}]\nzones:\n"
    + "".join(f"  - {{name: hall-{n}, camera: {n}, points: [[0, 0], [1, 0], [1, 1], [0, 1]]}}\n" for n in CAMERAS)
    + f"rules:\n  - {{id: in, type: intrusion, zones: [{', '.join(f'hall-{n}' for n in CAMERAS)}], quiet: 30}}\n"
)


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("scale") / "hall.mp4", 60)


def camera(video: Path, name: str) -> str:
    return f"{video}#name={name},realtime=true,loop=true,fps=10"


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=9, unique=True), st.integers(0, 10**6))
def test_only_the_cameras_of_a_lost_shard_move(shards: list[str], seed: int) -> None:
    cameras = [f"camera {seed + i}" for i in range(60)]
    before, after = assign(cameras, shards), assign(cameras, shards[1:])
    assert all(before[one] == shards[0] for one in cameras if before[one] != after[one])
    assert assign(cameras, shards[::-1]) == before  # their order means nothing


def test_shares_are_even() -> None:
    counts = Counter(assign([f"dock-{i}" for i in range(2000)], [f"shard{i}" for i in range(8)]).values())
    assert len(counts) == 8
    assert max(counts.values()) < 1.35 * 250
    with pytest.raises(ValueError, match="no shard"):
        choose("dock", [])


def test_a_shard_goes_on_where_another_was(video: Path, tmp_path: Path) -> None:
    """Without Ray, in one process: identity and open event, and one who lost its turn neither writes nor tells."""
    made = ShardSettings(RULES, tmp_path, Scripted, Lanes(tmp_path), checkpoint_s=0.2)
    first = Shard("a", made)
    Checkpoint(tmp_path / "state", "cam0", 1).claim()
    try:
        assert first.add([(camera(video, "cam0"), 1)]) == {"cam0": None}
        assert "already" in (first.add([(camera(video, "cam0"), 1)])["cam0"] or "")
        wait_for(lambda: first.status().open_events.get("cam0"))
        (event,) = first.status().open_events["cam0"]
        wait_for((tmp_path / "state" / "cam0.safetensors").exists)
        first.release(["cam0"])
        assert first.status().cameras == {}
        (tmp_path / "state" / "cam0.safetensors").write_bytes(
            (tmp_path / "state" / "cam0.safetensors").read_bytes().replace(  # it was another process
                os.getpid().to_bytes(8, "little"), (77).to_bytes(8, "little")
            )
        )  # fmt: skip
        turn = next_turn(tmp_path / "state", "cam0")
        Checkpoint(tmp_path / "state", "cam0", turn).claim()
        assert first.add([(camera(video, "cam0"), turn)]) == {"cam0": None}
        wait_for(lambda: first.status().cameras["cam0"].seen > 3)
        assert first.status().open_events["cam0"] == [event]
        assert int(first._perception.state("cam0")["identity"]) == 77  # type: ignore[attr-defined]
        Checkpoint(tmp_path / "state", "cam0", turn + 1).claim()
        wait_for(lambda: not first.status().cameras)  # it has noticed
    finally:
        first.close()
    store = Store(tmp_path / "events.db")
    assert [one.id for one in store.find()] == [event]
    store.close()


def test_a_damaged_checkpoint_is_told_and_left_alone(video: Path, tmp_path: Path) -> None:
    shard = Shard("a", ShardSettings(RULES, tmp_path, Scripted, Lanes(tmp_path)))
    try:
        checkpoint = Checkpoint(tmp_path / "state", "cam1", 1)
        checkpoint.claim()
        checkpoint.memory.write_bytes(b"nothing")
        assert "is damaged" in (shard.add([(camera(video, "cam1"), 1)])["cam1"] or "")
        checkpoint.save_memory({"identity": torch.tensor(5)})
        checkpoint.rules.write_text("{}")
        assert "saved state" in (shard.add([(camera(video, "cam1"), 1)])["cam1"] or "")
        assert checkpoint.rules.read_text() == "{}"
        assert shard.status().cameras == {}
    finally:
        shard.close()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="pip install 'stille[scale]'")
    ray.init(num_cpus=8, include_dashboard=False, logging_level="error", object_store_memory=80_000_000)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_killed_shard_loses_no_event_and_no_identity(cluster: None, video: Path, tmp_path: Path) -> None:
    from stille.scale import Fleet

    made = ShardSettings(RULES, tmp_path, Scripted, Lanes(tmp_path), checkpoint_s=0.3)

    def opened() -> dict[str, list[str]]:
        members, _ = fleet.status()
        return {name: ids for m in members.values() if m.status for name, ids in m.status.open_events.items() if ids}

    def owners() -> dict[str, str | None]:
        return {name: placed.shard for name, placed in fleet.status()[1].items()}

    with Fleet(made, 2, beat_s=0.1, backoff_s=0.5) as fleet:
        for name in CAMERAS:
            fleet.add(camera(video, name))
        with pytest.raises(VideoError, match="cam0"):
            fleet.add(camera(video, "cam0"))
        wait_for(
            lambda: len(opened()) == 6 and all((tmp_path / "state" / f"{n}.safetensors").exists() for n in CAMERAS)
        )
        wait_for(lambda: all(member.ready for member in fleet.status()[0].values()))
        wait_for(lambda: owners() == assign(CAMERAS, ["shard0", "shard1"]))
        before, at = opened(), owners()
        victim = at["cam0"]
        assert victim is not None
        member = fleet.status()[0][victim]
        assert member.status is not None
        os.kill(member.status.pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_for(lambda: victim not in owners().values() and None not in owners().values())
        took = time.monotonic() - killed
        wait_for(lambda: len(opened()) == 6)
        assert opened() == before  # the same events, still open
        assert took < 5
        assert {n: s for n, s in owners().items() if at[n] != victim} == {n: s for n, s in at.items() if s != victim}
        wait_for(lambda: owners() == at)  # it was started again, and has its cameras back
        assert fleet.status()[0][victim].restarts == 1
        wait_for(lambda: len(opened()) == 6)
        fleet.remove("cam5")
        assert "cam5" not in owners()
        with pytest.raises(VideoError, match="cam5"):
            fleet.remove("cam5")
        closed = Store(tmp_path / "events.db")
        wait_for(lambda: closed.find(Filter(cameras=["cam5"], state="closed")))
        kept = closed.find()
        closed.close()
    assert {event.camera: [event.id] for event in kept} == before  # no second one for anybody
    assert {len(event.identities) for event in kept} == {1}
    first: defaultdict[str, set[tuple[int, ...]]] = defaultdict(set)
    for path in (tmp_path / "lines").iterdir():
        for line in path.read_text().splitlines():
            event = json.loads(line)
            first[event["id"]].add(tuple(event["identities"]))
    assert all(len(identities) == 1 for identities in first.values())
