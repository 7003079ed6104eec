"""The page pool keeps its books under any sequence of operations."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stille.engine.block_manager import BlockManager, chain_hash, prefix_hashes
from stille.engine.config import PAGE_SIZE

PAGES = 12


class PagePool(RuleBasedStateMachine):
    """Holders take, share, publish and drop pages; a model on the side knows who holds what and what is in it."""

    def __init__(self):
        super().__init__()
        self.blocks = BlockManager(PAGES + 1)
        self.holders: list[list[int]] = []
        self.content: dict[int, bytes] = {}
        self.names = [chain_hash(b"", [i]) for i in range(6)]

    @rule(count=st.integers(0, PAGES + 1))
    def allocate(self, count):
        available = self.blocks.num_available
        pages = self.blocks.allocate(count)
        if pages is None:
            assert count > available
            return
        assert len(set(pages)) == count
        assert 0 not in pages
        held = {page for holder in self.holders for page in holder}
        assert not held & set(pages), "a page in use was handed out again"
        for page in pages:
            self.content.pop(page, None)
        self.holders.append(pages)

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data(), name=st.integers(0, 5))
    def publish(self, data, name):
        page = data.draw(st.sampled_from([p for holder in self.holders for p in holder]))
        known = self.names[name] in self.content.values() or page in self.content
        self.blocks.publish(page, self.names[name])
        if not known:
            self.content[page] = self.names[name]

    @rule(names=st.lists(st.integers(0, 5), max_size=4))
    def share(self, names):
        pages = self.blocks.lookup([self.names[i] for i in names])
        for page, name in zip(pages, names, strict=False):
            assert self.content[page] == self.names[name], "a page was found under a name that it does not hold"
        if len(pages) < len(names):
            assert self.names[names[len(pages)]] not in self.content.values()
        pages = list(dict.fromkeys(pages))
        before, idle = self.blocks.num_available, self.blocks.idle(pages)
        self.blocks.acquire(pages)
        assert self.blocks.num_available == before - idle
        self.holders.append(pages)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        self.blocks.release(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @invariant()
    def books_balance(self):
        self.blocks.check()
        held = {page for holder in self.holders for page in holder}
        assert self.blocks.num_used == len(held)
        for page in range(1, PAGES + 1):
            assert self.blocks.content(page) == self.content.get(page)

    def teardown(self):
        for holder in self.holders:
            self.blocks.release(holder)
        assert self.blocks.num_available == PAGES


TestPagePool = PagePool.TestCase
TestPagePool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_page_released_longest_ago_is_evicted_first_and_the_end_of_a_prefix_before_its_beginning():
    blocks = BlockManager(5)
    names = prefix_hashes(list(range(4 * PAGE_SIZE)), [], 4)
    first, second = blocks.allocate(2), blocks.allocate(2)
    for pages, chain in ((first, names[:2]), (second, names[2:])):
        for page, name in zip(pages, chain, strict=True):
            blocks.publish(page, name)
    blocks.release(second)
    blocks.release(first)
    assert blocks.allocate(3) == [second[1], second[0], first[1]]
    assert blocks.lookup(names[:2]) == [first[0]]


def test_releasing_too_often_is_noticed():
    blocks = BlockManager(3)
    pages = blocks.allocate(1)
    blocks.release(pages)
    with pytest.raises(RuntimeError, match="more often"):
        blocks.release(pages)


def test_without_prefix_caching_nothing_is_found():
    blocks = BlockManager(3, prefix_caching=False)
    pages = blocks.allocate(1)
    blocks.publish(pages[0], b"name")
    assert blocks.lookup([b"name"]) == []
    blocks.release(pages)
    assert blocks.num_cached == 0


def test_equal_pages_after_different_prefixes_have_different_names():
    page = list(range(PAGE_SIZE))
    one = prefix_hashes([1] * PAGE_SIZE + page, [], 2)
    other = prefix_hashes([2] * PAGE_SIZE + page, [], 2)
    assert one[1] != other[1]
    assert prefix_hashes([1] * PAGE_SIZE + page, one[:1], 2) == one
