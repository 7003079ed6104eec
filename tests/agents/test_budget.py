"""Budgets: reserved before spend, exact under threads, tasks and killed processes."""

import asyncio
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stille.agents.budget import Amounts, Budget, Price, Prices, SqliteStore
from stille.agents.errors import BudgetExceededError
from stille.agents.types import Usage
from stille.errors import ConfigError


def test_what_is_reserved_and_not_spent_is_given_back():
    budget = Budget("run", tokens=100, calls=2)
    budget.reserve(tokens=80, calls=1).settle(tokens=30, calls=1)
    account = budget.account()
    assert (account.spent.tokens, account.reserved.tokens, account.spent.calls) == (30, 0, 1)
    budget.reserve(tokens=70, calls=1)
    with pytest.raises(
        BudgetExceededError, match="'run' has 0 tokens left of 100 tokens, but 1 tokens are needed"
    ) as e:
        budget.reserve(tokens=1)
    assert (e.value.budget, e.value.resource) == ("run", "tokens")


@pytest.mark.parametrize("resource", ["tokens", "micros", "calls", "seconds"])
def test_every_resource_is_limited(resource):
    budget = Budget("run", **{resource: 3})
    with pytest.raises(BudgetExceededError) as caught:
        budget.reserve(**{resource: 4})
    assert caught.value.resource == resource
    budget.reserve(**{resource: 3})


def test_seconds_are_summed_in_milliseconds_without_drift():
    budget = Budget("run", seconds=1)
    for _ in range(10):
        budget.reserve(seconds=0.1).settle(seconds=0.1)
    assert budget.account().spent.millis == 1000
    with pytest.raises(BudgetExceededError, match="0 seconds left of 1 seconds"):
        budget.reserve(seconds=0.001)


def test_a_parent_that_cannot_cover_it_leaves_nothing_reserved_anywhere():
    tenant = Budget("tenant", micros=100)
    flow = Budget("flow", micros=1000, parent=tenant)
    agents = [Budget(name, micros=1000, parent=flow) for name in "ab"]
    agents[0].reserve(micros=60)
    with pytest.raises(BudgetExceededError) as caught:
        agents[1].reserve(micros=41)
    assert caught.value.budget == "tenant"
    assert [b.account().reserved.micros for b in (tenant, flow, *agents)] == [60, 60, 60, 0]
    agents[1].reserve(micros=40).settle(micros=5)
    assert tenant.account().spent.micros == flow.account().spent.micros == 5


def test_more_than_reserved_is_booked_as_overdraft_and_ends_the_budget():
    tenant = Budget("tenant", tokens=1000)
    careless, careful = Budget("a", tokens=500, parent=tenant), Budget("b", parent=tenant)
    careless.reserve(tokens=10).settle(tokens=25)
    assert careless.account().overdraft.tokens == 15
    with pytest.raises(BudgetExceededError, match="15 tokens were spent beyond what was reserved"):
        careless.reserve(calls=1)
    assert tenant.account().spent.tokens == 25
    careful.reserve(tokens=975)  # a sibling pays for what is left, not for the mistake
    with pytest.raises(BudgetExceededError):
        careful.reserve(tokens=1)


def test_released_is_not_spent_and_must_not_be_settled():
    budget = Budget("run", tokens=10)
    reservation = budget.reserve(tokens=10)
    reservation.release()
    reservation.release()
    assert budget.account().reserved.tokens == 0
    with pytest.raises(ConfigError, match="was released"):
        reservation.settle(tokens=1)


def test_settling_twice_spends_once():
    budget = Budget("run", tokens=10)
    reservation = budget.reserve(tokens=10)
    reservation.settle(tokens=4)
    reservation.settle(tokens=9)
    reservation.release()
    assert (reservation.settled, reservation.amounts.tokens, budget.account().spent.tokens) == (True, 4, 4)


@pytest.mark.parametrize("bad", [{"tokens": -1}, {"tokens": 1.5}, {"calls": True}, {"seconds": float("nan")}])
def test_amounts_that_are_none(bad):
    budget = Budget("run")
    with pytest.raises(ConfigError, match=next(iter(bad))):
        budget.reserve(**bad)
    with pytest.raises(ConfigError):
        Budget("other", **bad)


def test_names_and_stores_are_checked():
    with pytest.raises(ConfigError, match="without '/'"):
        Budget("a/b")
    with pytest.raises(ConfigError, match="another store"):
        Budget("a", parent=Budget("p"), store=SqliteStore())


def test_a_limit_of_zero_is_a_limit():
    with pytest.raises(BudgetExceededError):
        Budget("run", tokens=0).reserve(tokens=1)


def test_a_resumed_run_does_not_spend_again(tmp_path):
    path = tmp_path / "books.sqlite"
    first = Budget("run", tokens=100, store=SqliteStore(path))
    first.reserve(tokens=60, id="step-1").settle(tokens=50)
    first.reserve(tokens=40, id="step-2")  # and the process dies

    again = Budget("run", tokens=100, store=SqliteStore(path))
    one = again.reserve(tokens=60, id="step-1")
    assert (one.settled, one.amounts.tokens) == (True, 50)
    with pytest.raises(BudgetExceededError):
        again.reserve(tokens=20, id="step-3")
    two = again.reserve(tokens=40, id="step-2")
    assert not two.settled
    two.settle(tokens=10)
    account = again.account()
    assert (account.spent.tokens, account.reserved.tokens) == (60, 0)
    with pytest.raises(ConfigError, match="belongs to budget 'run'"):
        Budget("else", store=again.store).reserve(tokens=1, id="step-1")


def test_what_was_never_settled_is_swept_by_age_and_spent_if_it_is_settled_after_all():
    store = SqliteStore()
    budget = Budget("run", tokens=100, store=store)
    lost = budget.reserve(tokens=90, id="lost")
    assert store.sweep(older_than_s=3600) == 0
    assert store.sweep(older_than_s=0) == 1
    budget.reserve(tokens=100, id="new")
    lost.settle(tokens=90)
    assert budget.account().spent.tokens == 90
    with pytest.raises(BudgetExceededError):
        budget.reserve(tokens=1)


def test_threads_never_overspend_and_sums_are_exact(tmp_path):
    tenant = Budget("tenant", tokens=1000, calls=300, store=SqliteStore(tmp_path / "books.sqlite"))
    agents = [Budget(f"agent{i}", parent=tenant) for i in range(4)]
    spent = [0] * 8

    def spend(thread: int) -> None:
        for turn in range(40):
            try:
                reservation = agents[thread % 4].reserve(tokens=11, calls=1)
            except BudgetExceededError:
                continue
            actual = (turn * 7 + thread) % 12
            reservation.settle(tokens=actual, calls=1)
            spent[thread] += actual

    threads = [threading.Thread(target=spend, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    account = tenant.account()
    assert account.spent.tokens == sum(spent) == sum(agent.account().spent.tokens for agent in agents)
    assert 900 < account.spent.tokens <= 1000
    assert account.reserved == Amounts()


async def test_tasks_share_a_budget():
    budget = Budget("run", calls=10)

    async def call() -> bool:
        try:
            reservation = budget.reserve(calls=1)
        except BudgetExceededError:
            return False
        await asyncio.sleep(0)
        reservation.settle(calls=1)
        return True

    assert sum(await asyncio.gather(*(call() for _ in range(25)))) == 10


def test_processes_share_the_books_and_a_killed_one_keeps_its_reservation(tmp_path):
    path = tmp_path / "books.sqlite"
    program = """
import os, signal, sys
from stille.agents.budget import Budget, SqliteStore
budget = Budget("run", tokens=100, store=SqliteStore(sys.argv[1]))
budget.reserve(tokens=70, id="call")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60)
    assert done.returncode == -9
    budget = Budget("run", tokens=100, store=SqliteStore(path))
    assert budget.account().reserved.tokens == 70
    with pytest.raises(BudgetExceededError):
        budget.reserve(tokens=31)
    budget.reserve(tokens=70, id="call").settle(tokens=20)
    assert budget.account().spent.tokens == 20


class Books(RuleBasedStateMachine):
    """A tree of budgets against sums in plain Python."""

    def __init__(self):
        super().__init__()
        self.limits = {"t": 60, "t/w": 40, "t/w/a": 30, "t/w/b": None, "t/c": 25}
        tenant = Budget("t", tokens=60)
        flow = Budget("w", tokens=40, parent=tenant)
        self.budgets = {
            "t": tenant,
            "t/w": flow,
            "t/w/a": Budget("a", tokens=30, parent=flow),
            "t/w/b": Budget("b", parent=flow),
            "t/c": Budget("c", tokens=25, parent=tenant),
        }
        self.spent = dict.fromkeys(self.limits, 0)
        self.open = []
        self.overdrawn = set()

    def chain(self, path):
        return [name for name in self.limits if path == name or path.startswith(name + "/")]

    def reserved(self, path):
        return sum(r.amounts.tokens for r, owner in self.open if path in self.chain(owner))

    @rule(path=st.sampled_from(["t", "t/w", "t/w/a", "t/w/b", "t/c"]), tokens=st.integers(0, 35))
    def reserve(self, path, tokens):
        chain = self.chain(path)
        covered = all(
            self.limits[n] is None or not tokens or self.spent[n] + self.reserved(n) + tokens <= self.limits[n]
            for n in chain
        )
        if covered and not self.overdrawn & set(chain):
            self.open.append((self.budgets[path].reserve(tokens=tokens), path))
        else:
            with pytest.raises(BudgetExceededError):
                self.budgets[path].reserve(tokens=tokens)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), over=st.sampled_from([0, 0, 0, 0, 3]))
    def settle(self, data, over):
        reservation, path = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        reserved = reservation.amounts.tokens
        actual = reserved + over if over else data.draw(st.integers(0, reserved))
        reservation.settle(tokens=actual)
        for name in self.chain(path):
            self.spent[name] += actual
        if over:
            self.overdrawn.add(path)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data):
        self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))[0].release()

    @invariant()
    def books_agree(self):
        for name, budget in self.budgets.items():
            account = budget.account()
            assert (account.spent.tokens, account.reserved.tokens) == (self.spent[name], self.reserved(name))
            limit = self.limits[name]
            if limit is not None and not self.overdrawn:
                assert account.spent.tokens + account.reserved.tokens <= limit


Books.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestBooks = Books.TestCase


def test_prices_round_up_and_cached_input_has_its_own():
    prices = Prices({"m": Price(input=3_000_000, cached_input=300_000, output=15_000_000), "free": Price()})
    usage = Usage(prompt_tokens=1000, cached_tokens=600, completion_tokens=11)
    assert prices.cost("m", usage) == 400 * 3 + 180 + 165
    assert prices.cost("m", Usage(prompt_tokens=1, cached_tokens=1)) == 1
    assert prices.cost("free", usage) == 0
    with pytest.raises(ConfigError, match="no price of model 'x'"):
        prices.cost("x", usage)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.data())
def test_what_is_reserved_for_a_call_covers_it(prompt, cached, output, data):
    price = Price(**{name: data.draw(st.integers(0, 10**8)) for name in ("input", "cached_input", "output")})
    prices = Prices({"m": price})
    usage = Usage(prompt_tokens=prompt, cached_tokens=min(cached, prompt), completion_tokens=output)
    assert prices.cost("m", usage) <= prices.most("m", prompt, output)
