"""A case from paper to money: durable, with people, and never further than what is known."""

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from examples.loan_underwriting.compliance.policy import load_policy
from examples.loan_underwriting.desk.clerk import Clerk
from examples.loan_underwriting.desk.desk import Desk, connect
from examples.loan_underwriting.documents import generate
from examples.loan_underwriting.documents.facts import TODAY, make_facts
from examples.loan_underwriting.scoring.scorecard import Scorecard
from examples.loan_underwriting.services.apps import create_services
from examples.loan_underwriting.services.faults import Faults
from examples.loan_underwriting.services.ledger import Ledger
from examples.loan_underwriting.services.world import World
from stille.agents import Budget, PolicyGuard
from stille.agents.durable import Workflows, workflow
from stille.agents.errors import ToolFailedError
from stille.agents.tools import Tool


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    """A clean application on text PDFs, and what the services know of it."""
    folder = tmp_path_factory.mktemp("loans")
    facts = make_facts(0, "clean")
    generate.write_case(folder / facts.number, facts, scanned=0.0)
    return folder / facts.number, World.model_validate(generate.world([facts]))


@pytest.fixture
def services(papers, tmp_path):
    """The real services on a port; their URL and ledger."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_services(papers[1], ledger, Faults())
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    for _ in range(100):
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/bank/health")
            break
        time.sleep(0.05)
    yield url, ledger
    server.should_exit = True
    thread.join()


async def make_desk(url: str, **replaced: Tool) -> Desk:
    def guard(name, tools):
        return PolicyGuard(tools=tools, budget=Budget(name, tokens=1_000, calls=60))

    services = (await connect(url)) | replaced
    return Desk(Clerk(), services, load_policy(), Scorecard.load(), TODAY, guard, again_s=())


async def waiting(flows: Workflows, run_id: str) -> str:
    """Why the run waits for a person."""
    for _ in range(600):
        if found := flows.approvals.list(run_id, waiting=True):
            return found[0].reason
        await asyncio.sleep(0.05)
    raise AssertionError("nobody was asked")


async def test_a_person_approves_and_the_money_moves_once(papers, services, tmp_path):
    folder, _ = papers
    url, ledger = services
    for attempt in range(2):  # the second process finds everything done
        flow = workflow(name="underwrite")((await make_desk(url)).underwrite)
        async with Workflows([flow], tmp_path / "runs.db", version="1") as flows:
            await flows.start(flow, folder.name, str(folder), run_id="case")
            if attempt == 0:
                assert await waiting(flows, "case")
                assert not ledger.effects("payment")
                flows.approve("case", by="anna")
            file = await flows.result("case")
    assert (file["outcome"], file["decided_by"], file["status"]) == ("approve", "anna", "done")
    assert file["disputed"] == []
    assert file["completed"] == []
    assert {call.split()[0] for call in file["calls"]} == {
        "read_document", "credit_report", "verify_identity", "find_employer", "search_sanctions",
    }  # fmt: skip
    assert [len(ledger.effects(kind)) for kind in ("loan", "reservation", "payment")] == [1, 1, 1]
    name = next(claim for claim in file["claims"] if claim["field"] == "name")
    assert name["source"]["document"] == "application.pdf"
    assert name["source"]["page"] == 1


async def test_what_nobody_answers_goes_to_a_person(papers, services, tmp_path):
    """A sanctions list that cannot be asked is not one without the name."""

    async def fails(arguments, context):
        raise ToolFailedError("search_sanctions: no answer")

    folder, _ = papers
    url, ledger = services
    down = Tool(name="search_sanctions", run=fails)
    flow = workflow(name="underwrite")((await make_desk(url, search_sanctions=down)).underwrite)
    async with Workflows([flow], tmp_path / "runs.db", version="1") as flows:
        await flows.start(flow, folder.name, str(folder), run_id="case")
        assert await waiting(flows, "case") == "Could not be checked: sanction similarity"
        flows.reject("case", by="anna")
        file = await flows.result("case")
    assert (file["outcome"], file["loan"]) == ("decline", None)
    assert "search_sanctions" in file["completed"]
    assert not ledger.effects("loan")


async def test_a_bank_that_fails_half_way_is_asked_again_by_a_person(papers, services, tmp_path):
    folder, _ = papers
    url, ledger = services
    real, down = (await connect(url))["reserve_funds"], True

    async def sometimes(arguments, context):
        if down:
            raise ToolFailedError("reserve_funds: no answer")
        return await real.run(arguments, context)

    flaky = dataclasses.replace(real, run=sometimes)
    flow = workflow(name="underwrite")((await make_desk(url, reserve_funds=flaky)).underwrite)
    async with Workflows([flow], tmp_path / "runs.db", version="1") as flows:
        await flows.start(flow, folder.name, str(folder), run_id="case")
        await waiting(flows, "case")
        flows.approve("case", by="anna")
        while "no answer" not in await waiting(flows, "case"):
            await asyncio.sleep(0.05)
        assert [len(ledger.effects(kind)) for kind in ("loan", "reservation", "payment")] == [1, 0, 0]
        down = False
        flows.approve("case", by="bert")
        file = await flows.result("case")
    assert file["status"] == "done"
    assert [len(ledger.effects(kind)) for kind in ("loan", "reservation", "payment")] == [1, 1, 1]


async def test_a_payment_that_arrives_after_its_time_is_found(papers, services, tmp_path):
    """The bank is slower than the desk waits: what it is asked about too early it does not know of yet."""
    folder, _ = papers
    url, ledger = services
    tools = await connect(url)
    late = []

    async def slow(arguments, context):
        async def arrive():
            await asyncio.sleep(0.2)
            await tools["pay_out"].run(arguments, context)

        late.append(asyncio.create_task(arrive()))
        raise ToolFailedError("pay_out: no result in time")

    desk = await make_desk(url, pay_out=dataclasses.replace(tools["pay_out"], run=slow))
    desk.settles_s = 1.0
    flow = workflow(name="underwrite")(desk.underwrite)
    async with Workflows([flow], tmp_path / "runs.db", version="1") as flows:
        await flows.start(flow, folder.name, str(folder), run_id="case")
        await waiting(flows, "case")
        flows.approve("case", by="anna")
        file = await flows.result("case")
    assert (file["status"], len(late), len(ledger.effects("payment"))) == ("done", 1, 1)
    assert file["payment"] == f"P-{ledger.effects('payment')[0]['id']}"


async def test_services_that_fail_for_a_while_are_asked_again(papers, services, tmp_path):
    folder, _ = papers
    url, ledger = services
    tools = await connect(url)
    failed: list[str] = []

    def twice(name):
        async def run(arguments, context):
            if failed.count(name) < 2:
                failed.append(name)
                raise ToolFailedError(f"{name}: answered 503", started=False)
            return await tools[name].run(arguments, context)

        return dataclasses.replace(tools[name], run=run)

    desk = await make_desk(url, **{name: twice(name) for name in ("search_sanctions", "pay_out")})
    desk.again_s = (0.01, 0.02, 0.02)
    flow = workflow(name="underwrite")(desk.underwrite)
    async with Workflows([flow], tmp_path / "runs.db", version="1") as flows:
        await flows.start(flow, folder.name, str(folder), run_id="case")
        reason = await waiting(flows, "case")
        assert "checked" not in reason  # the sanctions list has answered
        flows.approve("case", by="anna")
        file = await flows.result("case")
        assert len(flows.approvals.list("case")) == 1  # nobody was asked about the payment
    assert (file["status"], len(ledger.effects("payment"))) == ("done", 1)
    assert sorted(failed) == ["pay_out", "pay_out", "search_sanctions", "search_sanctions"]
