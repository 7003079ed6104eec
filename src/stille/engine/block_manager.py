"""Pages of the KV cache: who uses which, and which full pages can be used again.

A page is free, in use (reference count > 0) or cached (count 0, content known by hash, evicted oldest first). Page 0 is
the executors' scratch page and belongs to nobody. The content of a full page is named by a hash chain: the page's
tokens and the hash of the page before it, so equal hashes mean equal prefixes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence as Seq

import numpy as np

from stille.engine.config import PAGE_SIZE


def chain_hash(previous: bytes, tokens: Seq[int]) -> bytes:
    """Name of a full page: 16 bytes over the hash before it (b"" for the first page) and its tokens."""
    return hashlib.blake2b(previous + np.asarray(tokens, np.int64).tobytes(), digest_size=16).digest()


def prefix_hashes(tokens: Seq[int], known: list[bytes], pages: int, root: bytes = b"") -> list[bytes]:
    """Extends `known` in place to the hashes of the first `pages` full pages of `tokens`, and returns it.

    `root` names what else the content depends on; pages under different roots are never taken for each other.
    """
    for page in range(len(known), pages):
        previous = known[-1] if known else root
        known.append(chain_hash(previous, tokens[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]))
    return known


class BlockManager:
    """Hands out pages 1 .. num_pages-1 and remembers full ones by hash.

    Args:
        num_pages: pages of the executor's cache, the scratch page included.
        prefix_caching: False: `publish` does nothing, so nothing is ever found again.
    """

    def __init__(self, num_pages: int, prefix_caching: bool = True):
        self.num_pages = num_pages
        self.prefix_caching = prefix_caching
        self._references = [0] * num_pages
        self._free = deque(range(1, num_pages))
        self._cached: OrderedDict[int, None] = OrderedDict()  # count 0, oldest first
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could hand out now: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return self.num_pages - 1 - self.num_available

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages with reference count 1 and unknown content, or None if there are not as many.

        Takes free pages first, then evicts the cached pages that were released longest ago.
        """
        if count > self.num_available:
            return None
        pages = []
        for _ in range(count):
            if self._free:
                page = self._free.popleft()
            else:
                page, _ = self._cached.popitem(last=False)
                del self._page_of[self._hash_of.pop(page)]
            self._references[page] = 1
            pages.append(page)
        return pages

    def lookup(self, hashes: Seq[bytes]) -> list[int]:
        """Pages that hold the longest known beginning of this chain. Takes no reference: see `acquire`."""
        pages = []
        for name in hashes:
            page = self._page_of.get(name)
            if page is None:
                break
            pages.append(page)
        return pages

    def idle(self, pages: Seq[int]) -> int:
        """How many of `pages` are cached only, so that acquiring them lowers `num_available`."""
        return sum(self._references[page] == 0 for page in pages)

    def acquire(self, pages: Seq[int]) -> None:
        """Adds a reference to each page (found by `lookup`)."""
        for page in pages:
            if self._references[page] == 0:
                del self._cached[page]
            self._references[page] += 1

    def release(self, pages: Seq[int]) -> None:
        """Drops a reference to each page of one sequence, given in order of position.

        The last pages count as released first: the end of a prefix is of less use than its beginning.
        """
        for page in reversed(pages):
            count = self._references[page] - 1
            if count < 0:
                raise RuntimeError(f"page {page} was released more often than acquired")
            self._references[page] = count
            if count == 0:
                if page in self._hash_of:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def publish(self, page: int, name: bytes) -> None:
        """Declares that `page`, in use, is full and holds the content called `name`; the first such page counts."""
        if self.prefix_caching and name not in self._page_of and page not in self._hash_of:
            self._page_of[name] = page
            self._hash_of[page] = name

    def content(self, page: int) -> bytes | None:
        """Hash that `page` is published under, or None."""
        return self._hash_of.get(page)

    def check(self) -> None:
        """Raises RuntimeError if the books do not balance (for tests and diagnosis)."""
        free, cached = set(self._free), set(self._cached)
        used = {page for page in range(1, self.num_pages) if self._references[page] > 0}
        if len(free) != len(self._free) or free & cached or free & used or cached & used:
            raise RuntimeError("a page is in two states")
        if free | cached | used != set(range(1, self.num_pages)):
            raise RuntimeError("a page is in no state")
        if any(self._references[page] for page in (0, *free, *cached)):
            raise RuntimeError("a page that nobody uses has references")
        if {page: name for name, page in self._page_of.items()} != self._hash_of:
            raise RuntimeError("hashes and pages disagree")
        if free & self._hash_of.keys() or cached - self._hash_of.keys():
            raise RuntimeError("a free page has a hash or a cached page has none")
