"""Effects on a real PostgreSQL: many at once, while its connections break."""

import asyncio
import importlib.util
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from stille.agents.audit import AuditLog
from stille.agents.database import Database
from stille.agents.effects import Effects
from stille.agents.journal import EffectCall

HARNESS = Path(__file__).parent / "kill" / "harness.py"
spec = importlib.util.spec_from_file_location("agents_postgres_harness", HARNESS)
assert spec is not None
assert spec.loader is not None
harness = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = harness
spec.loader.exec_module(harness)

needs_server = pytest.mark.skipif(harness.Postgres.missing() is not None, reason=str(harness.Postgres.missing()))


@pytest.fixture(scope="module")
def url():
    with tempfile.TemporaryDirectory(prefix="stille-postgres-") as name:
        Path(name).chmod(0o755)  # PostgreSQL runs as another user, which pytest's own folders keep out
        with harness.Postgres(Path(name) / "server") as server:
            yield server.url


@pytest.fixture
def cut(url):
    """Breaks every connection to the server, as when it is restarted; their number."""
    engine = sa.create_engine(
        "postgresql+psycopg://" + url.partition("://")[2], isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )

    def cut():
        with engine.connect() as connection:
            return len(connection.execute(sa.text(query)).all())

    return cut


def seal(number: int) -> EffectCall:
    return EffectCall(key=f"seal:{number}", tool="seal", arguments={"n": number}, effect="once")


@needs_server
async def test_many_effects_at_once_happen_once_while_connections_break(url, cut):
    database, happened, cuts = Database(url), Counter(), []
    effects = Effects(database, 0.02)

    async def cause(key):
        happened[key] += 1
        if key in ("seal:20", "seal:90", "seal:160"):
            cuts.append(await asyncio.to_thread(cut))
        return {"sealed": key}

    async with asyncio.timeout(60):
        results = await asyncio.gather(*(effects.perform(f"run-{n}", seal(n), cause) for n in range(200)))
    assert results == [{"sealed": f"seal:{n}"} for n in range(200)]
    assert len(cuts) == 3
    assert all(cuts)
    assert happened == Counter({f"seal:{n}": 1 for n in range(200)})
    assert {record.state for record in effects.list()} == {"done"}
    assert AuditLog(database).verify().entries == 2 * 200
    database.close()


@needs_server
def test_a_process_whose_connection_broke_is_soon_seen_to_live(url, cut, monkeypatch):
    monkeypatch.setattr("stille.agents.database.LOOK_S", 0.0)
    one, other = Database(url), Database(url)
    name = one.own()
    assert other.alive(name)
    cut()
    assert not other.alive(name)
    deadline = time.monotonic() + 10
    while not other.alive(name):
        assert time.monotonic() < deadline
        assert one.own() == name
    cut()
    one.close()  # without an error, although its connections are gone
    assert not other.alive(name)
    other.close()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=needs_server)])
def test_threads_that_begin_at_the_same_time_take_one_lock(kind, request, tmp_path):
    where = tmp_path / "runs.db" if kind == "sqlite" else request.getfixturevalue("url")
    for _ in range(5):
        database, other, barrier = Database(where), Database(where), threading.Barrier(8)

        def own(_, database=database, barrier=barrier):
            barrier.wait(10)
            return database.own()

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(own, range(8), timeout=20)) == {database.owner}
        assert other.alive(database.owner)
        database.close()
        assert not other.alive(database.owner)
        other.close()
