"""The services over real HTTP: keys, the endpoint without them, faults before and after effects, rate limits."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import uvicorn

from examples.loan_underwriting.documents.facts import make_facts
from examples.loan_underwriting.services.apps import create_services
from examples.loan_underwriting.services.faults import REALISTIC, Faults
from examples.loan_underwriting.services.ledger import Ledger
from examples.loan_underwriting.services.world import load_world

WORLD = load_world(None)
LOAN = {"application": "LA-1", "ssn": "900-10-1000", "amount": 500_000, "months": 24}


@contextmanager
def served(tmp_path, faults=None):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    server = uvicorn.Server(uvicorn.Config(create_services(WORLD, ledger, faults or Faults()), log_level="error"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=10) as client:
                yield client, ledger
        finally:
            server.should_exit = True
            server.force_exit = True
            thread.join()


def opened(client: httpx.Client) -> str:
    return client.post("/bank/loans", json=LOAN, headers={"Idempotency-Key": "key-of-a-loan"}).json()["loan"]


def test_a_key_opens_one_loan_however_many_ask_at_once(tmp_path):
    with served(tmp_path) as (client, ledger):
        ask = lambda _: client.post("/bank/loans", json=LOAN, headers={"Idempotency-Key": "same-key-1"})  # noqa: E731
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(16)))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.text for answer in answers}) == 1
        assert sum(answer.headers.get("idempotent-replayed") == "true" for answer in answers) == 15
        assert len(ledger.effects("loan")) == 1
        assert ledger.duplicates() == []


def test_a_key_does_not_serve_for_another_request(tmp_path):
    with served(tmp_path) as (client, ledger):
        opened(client)
        other = client.post("/bank/loans", json={**LOAN, "amount": 1}, headers={"Idempotency-Key": "key-of-a-loan"})
        assert other.status_code == 422
        assert client.post("/bank/loans", json=LOAN).status_code == 422  # no key at all
        assert len(ledger.effects("loan")) == 1


def test_the_old_endpoint_pays_twice_and_its_lookup_tells(tmp_path):
    account = next(iter(WORLD.accounts))
    with served(tmp_path) as (client, ledger):
        payment = {"loan": opened(client), "account": account, "amount": 500_000, "reference": "payout LA-1"}
        find = {"reference": "payout LA-1"}
        assert client.get("/bank/payments", params=find).json() == []
        for _ in range(2):
            assert client.post("/bank/payments", json=payment).status_code == 201
        assert len(client.get("/bank/payments", params=find).json()) == 2
        assert ledger.duplicates() == [{"kind": "payment", "body": payment, "count": 2}]


@pytest.mark.parametrize(("fault", "happened"), [("error", 0), ("unavailable", 0), ("error_after", 1)])
def test_an_error_says_nothing_of_the_effect(tmp_path, fault, happened):
    with served(tmp_path, Faults.model_validate({fault: 1.0})) as (client, ledger):
        answer = client.post("/bank/loans", json=LOAN, headers={"Idempotency-Key": "key-of-a-loan"})
        assert answer.status_code == (503 if fault == "unavailable" else 500)
        assert len(ledger.effects("loan")) == happened


def test_a_request_that_hangs_after_its_effect_times_out(tmp_path):
    with served(tmp_path, Faults(hang_after=1.0, hang_s=0.5)) as (client, ledger):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/bank/loans", json=LOAN, headers={"Idempotency-Key": "key-of-a-loan"}, timeout=0.2)
        assert len(ledger.effects("loan")) == 1


def test_rate_limits_count_clients_apart_and_say_when_to_return(tmp_path):
    with served(tmp_path, Faults(rate=0.5, burst=2)) as (client, _):
        codes = [client.get("/registry/employers", params={"name": "Nobody"}).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        refused = client.get("/registry/employers", params={"name": "Nobody"})
        assert int(refused.headers["retry-after"]) in (1, 2)
        other = client.get("/registry/employers", params={"name": "Nobody"}, headers={"X-Client-Id": "other"})
        assert other.status_code == 200


def test_the_registry_and_the_bureau_know_the_world(tmp_path):
    sanctioned = next(f for f in map(make_facts, range(60)) if f.sanctioned)
    unregistered = next(f for f in map(make_facts, range(60)) if not f.registered_employer)
    person = sanctioned.person
    with served(tmp_path) as (client, ledger):
        found = client.get("/registry/sanctions", params={"name": person.name, "born": person.born.isoformat()}).json()
        assert found[0]["similarity"] == 1.0
        assert found[0]["born_matches"]
        assert client.get("/registry/sanctions", params={"name": "Zz Unheard"}).json() == []
        assert not client.get("/registry/employers", params={"name": unregistered.employer}).json()["known"]
        assert client.get("/registry/employers", params={"name": sanctioned.employer}).json()["known"]
        query = {"ssn": person.ssn, "name": person.name, "born": person.born.isoformat(), "card": "X0000000"}
        answer = client.post("/registry/identities/verify", json=query).json()
        assert answer["known"]
        assert answer["name_matches"]
        assert not answer["card_matches"]
        subject = {key: query[key] for key in ("ssn", "name", "born")}
        report = client.post("/bureau/reports", json=subject).json()
        assert report["monthly_debt"] == sanctioned.bureau.monthly_debt
        assert client.post("/bureau/reports", json={**subject, "ssn": "999-99-0000"}).status_code == 404
        assert client.post("/bureau/reports", json={**subject, "ssn": "1; DROP"}).status_code == 422
        assert len(ledger.effects("inquiry")) == 2


def test_each_service_has_its_own_openapi_document(tmp_path):
    with served(tmp_path, Faults(error=1.0)) as (client, _):
        names = set()
        for service in ("bureau", "registry", "bank"):
            document = client.get(f"/{service}/openapi.json").json()
            names |= {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
        assert {"credit_report", "find_employer", "search_sanctions", "open_loan", "pay_out"} <= names


def test_faults_of_a_seed_are_the_same_each_time():
    first = [REALISTIC.of_request("bank", n) for n in range(300)]
    assert first == [REALISTIC.of_request("bank", n) for n in range(300)]
    assert first != [REALISTIC.model_copy(update={"seed": 1}).of_request("bank", n) for n in range(300)]
    assert 15 <= sum(fault != "none" for fault, _ in first) <= 50  # a tenth of them
