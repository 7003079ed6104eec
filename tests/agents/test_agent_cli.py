"""`stille agent`, on the database of real runs."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys

import pytest

from stille.agents.database import Database
from stille.agents.durable import Workflows

CODE = """
from stille.agents.durable import workflow
from stille.agents.journal import ApprovalRequest, EffectCall


async def price():
    return {"micros": 5}


async def wire(key):
    raise ConnectionError("reset")


@workflow
async def loan(journal, name: str) -> dict:
    price_ = await journal.step("price", price)
    decision = await journal.approval(ApprovalRequest(id="a1", tool="wire", arguments={"to": name}, reason="over 4"))
    if decision.verdict == "reject":
        return {"rejected": decision.note}
    call = EffectCall(key=f"wire:{name}", tool="wire", arguments={"to": name}, effect="once")
    return {"wired": await journal.effect(call, wire), "price": price_}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database with a run that waits for approval, and one that is parked; and the code of both."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "flows.py").write_text(CODE)
    space: dict = {}
    exec(compile(CODE, str(folder / "flows.py"), "exec"), space)

    async def make():
        async with Workflows([space["loan"]], folder / "runs.db", version="1", interval_s=0.02) as flows:
            for run in ("ann", "bob"):
                await flows.start(space["loan"], run, run_id=run)
            async with asyncio.timeout(20):
                while len(flows.approvals.list(waiting=True)) < 2:
                    await asyncio.sleep(0.02)
                flows.approve("bob", by="test")
                while not flows.runs.list("parked"):
                    await asyncio.sleep(0.02)

    asyncio.run(make())
    return folder, space["loan"]


@pytest.fixture
def agent(made, tmp_path, monkeypatch, capfd):
    """Run `stille agent ...` in this process, on a copy of the database."""
    from stille.cli import main

    folder, flow = made
    path = shutil.copy(folder / "runs.db", tmp_path / "runs.db")
    monkeypatch.setenv("STILLE_AGENTS_DB", str(path))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["stille", "agent", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert (end.value.code or 0) == status, err or out
        return err if status == 2 else out

    def finish(*runs):
        async def go():
            async with Workflows([flow], path, version="1", interval_s=0.02) as flows:
                return [await flows.result(run) for run in runs]

        return asyncio.run(go())

    run.finish, run.path, run.code = finish, path, str(folder / "flows.py")
    return run


def test_runs_say_what_they_wait_for(agent):
    text = agent("runs")
    assert "approval of wire: over 4" in text
    assert text.count("the one that worked on it has ended; start the program again") == 2
    assert "effect wire:bob may have happened" in text
    listed = {run["id"]: run for run in json.loads(agent("runs", "--json"))}
    assert {run: found["state"] for run, found in listed.items()} == {"ann": "waiting", "bob": "parked"}
    assert [run["id"] for run in json.loads(agent("runs", "--state", "parked", "--json"))] == ["bob"]
    assert "no runs that are failed" in agent("runs", "--state", "failed")


def test_a_run_with_all_that_is_recorded(agent):
    text = agent("show", "bob")
    for part in ("step:price", '{"micros": 5}', "wire:bob", "parked", "approve by test"):
        assert part in text
    found = json.loads(agent("show", "bob", "--json"))
    assert (found["input"], found["effects"][0]["state"]) == ({"name": "bob"}, "unknown")


@pytest.mark.parametrize("reject", [True, False])
def test_a_decision_reaches_the_run(agent, reject):
    more = ["--reject", "--note", "limit exceeded"] if reject else []
    assert ("rejected" if reject else "approved") in agent("approve", "ann", "--by", "carla", *more)
    assert "waits for no approval" in agent("approve", "ann", status=2)
    if reject:
        assert agent.finish("ann") == [{"rejected": "limit exceeded"}]
        assert "same 2 steps" in agent("replay", "ann", "--code", agent.code)
    log = [json.loads(line) for line in _export(agent)]
    decided = [entry for entry in log if entry["action"] == "approval.decided" and entry["run"] == "ann"]
    assert [entry["actor"] for entry in decided] == ["carla"]


def test_a_resolved_effect_lets_the_run_end(agent):
    said = json.loads(agent("resolve", "wire:bob", "--happened", "--result", '{"id": 9}', "--by", "dora", "--json"))
    assert (said["state"], said["outcome"]) == ("done", {"id": 9})
    assert agent.finish("bob") == [{"wired": {"id": 9}, "price": {"micros": 5}}]
    assert "done" in agent("show", "bob")
    assert json.loads(agent("replay", "bob", "--code", agent.code, "--json"))["result"]["wired"] == {"id": 9}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "nobody"], "no run 'nobody'"),
        (["approve", "nobody"], "waits for no approval; what does: ann (a1)"),
        (["approve", "bob"], "'a1' was decided by test: approve"),
        (["resolve", "wire:bob"], "--not-happened"),
        (["resolve", "wire:bob", "--happened", "--result", "{"], "not JSON"),
        (["resolve", "wire:bob", "--not-happened", "--result", "1"], "has no result"),
        (["resolve", "nothing", "--happened"], "no effect 'nothing'; parked are: wire:bob"),
        (["replay", "bob", "--code", "/no/flows.py"], "no Python file"),
        (["replay", "bob", "--code", "no.such.module"], "no module no.such.module"),
        (["replay", "bob", "--code", "stille.errors"], "no workflow 'loan'"),
        (["runs", "--db", "/no/such/runs.db"], "no database"),
        (["runs", "--db", "mysql://me:hunter22@host/db"], "mysql://me:***@host/db': expected a path"),
        (["runs", "--db", __file__], "file is not a database"),
        (["runs", "--db", "/"], "unable to open"),
        (["audit", "verify", "--db", "postgresql://me:hunter22@127.0.0.1:1/x"], "postgresql://me:***@127.0.0.1:1/x: "),
        (["runs", "--state", "odd"], "none of queued"),
        (["audit", "verify", "--sequence", "3"], "belong together"),
    ],
)
def test_a_mistake_is_explained(agent, arguments, says):
    told = " ".join(agent(*arguments, status=2).split())
    assert says in told
    assert "hunter22" not in told


def test_a_database_of_something_else_is_named(agent, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE x (y)")
    assert "holds no runs of agents" in agent("runs", "--db", str(tmp_path / "other.db"), status=2)


def test_a_replay_of_a_run_that_has_not_ended(agent):
    assert "not recorded" in agent("replay", "bob", "--code", agent.code, status=2)


def test_the_audit_log_is_verified(agent):
    head = json.loads(agent("audit", "verify", "--json"))["head"]
    assert f"head {head['sequence']}" in agent("audit", "verify")
    agent("audit", "verify", "--sequence", str(head["sequence"]), "--hash", head["hash"])
    database = Database(agent.path)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER stille_audit_no_update")
        connection.exec_driver_sql("UPDATE stille_audit SET actor = 'eve' WHERE sequence = 2")
    database.close()
    assert "entry 2: it was changed" in agent("audit", "verify", status=1)


def test_help_is_quick_and_imports_no_database():
    code = "import sys; sys.argv = ['stille', 'agent', '--help']\nfrom stille.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in ('dbos', 'sqlalchemy', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "stille agent approve RUN" in done.stdout


def _export(agent):
    path = agent.path.with_name("log.jsonl")
    agent("audit", "export", str(path))
    return path.read_text().splitlines()
