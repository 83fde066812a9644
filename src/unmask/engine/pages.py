"""The page pool: which pages hold which tokens' keys and values, who uses them, and what can be found again. No torch.

A page holds `page_size` neighbouring positions of a sequence. Finished blocks are remembered by their content and all
content before it, so that a request whose prompt begins like an earlier one takes over its pages. Keys and values depend
on the block grid, therefore only requests with the same block size share.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Node:
    """A finished block, known by its number; `pages` are those it touches, by their place in the sequence."""

    number: int
    pages: dict[int, int]


@dataclass(slots=True)
class Match:
    """The longest known beginning of a sequence: `num_tokens` in whole blocks, its last node, and where they are.

    pages: full pages to be shared. copied_page: the page with the rest of the tokens, whose content is to be copied.
    """

    num_tokens: int
    node: int
    pages: list[int]
    copied_page: int | None


class PagePool:
    """Page numbers 0 .. num_pages - 1 with reference counts, and the index of known blocks.

    A page that nobody uses any more keeps its content until its place is needed; the one unused for longest goes first.
    """

    def __init__(self, num_pages: int, page_size: int):
        self.num_pages, self.page_size = num_pages, page_size
        self._free: list[int] = []
        self._num_fresh = num_pages  # of the last pages of the pool, never allocated so far
        self._unused: OrderedDict[int, None] = OrderedDict()  # known content, no user; first = unused for longest
        self._num_users: dict[int, int] = {}
        self._nodes: dict[tuple[int, bytes], Node] = {}
        self._keys_of_page: dict[int, set[tuple[int, bytes]]] = {}
        self._last_number = 0
        self._roots: dict[int, int] = {}

    @property
    def num_available(self) -> int:
        """Pages that can be allocated now."""
        return self._num_fresh + len(self._free) + len(self._unused)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def allocate(self, num: int) -> list[int]:
        """`num` pages with one user each; the caller has checked `num_available`."""
        pages = []
        for _ in range(num):
            if self._free:
                page = self._free.pop()
            elif self._num_fresh:
                page = self.num_pages - self._num_fresh
                self._num_fresh -= 1
            else:
                page, _ = self._unused.popitem(last=False)
                self._forget(page)
            self._num_users[page] = 1
            pages.append(page)
        return pages

    def share(self, pages: list[int]) -> None:
        """One more user for each."""
        for page in pages:
            self._unused.pop(page, None)
            self._num_users[page] += 1

    def release(self, pages: list[int]) -> None:
        """One user less for each; of pages that become unused, the last of the list will be taken again first."""
        for page in reversed(pages):
            self._num_users[page] -= 1
            if self._num_users[page] == 0:
                if self._keys_of_page.get(page):
                    self._unused[page] = None
                else:
                    self._free.append(page)

    def root(self, block_size: int) -> int:
        """The node before the first block."""
        if block_size not in self._roots:
            self._roots[block_size] = self._new_number()
        return self._roots[block_size]

    def add_block(self, parent: int, ids: np.ndarray, start: int, pages: list[int]) -> int:
        """Remembers a finished block (its token ids, its first position) of a sequence with these pages; its node."""
        key = (parent, ids.tobytes())
        if key not in self._nodes:
            touched = range(start // self.page_size, (start + len(ids) - 1) // self.page_size + 1)
            node = Node(self._new_number(), {place: pages[place] for place in touched})
            self._nodes[key] = node
            for page in node.pages.values():
                self._keys_of_page.setdefault(page, set()).add(key)
        return self._nodes[key].number

    def next_block(self, parent: int, ids: np.ndarray) -> Node | None:
        return self._nodes.get((parent, ids.tobytes()))

    def match(self, ids: np.ndarray, block_size: int, limit: int) -> Match:
        """The longest known beginning of `ids` that has at most `limit` tokens."""
        number, position = self.root(block_size), 0
        page_of: dict[int, int] = {}
        while position + block_size <= limit:
            node = self.next_block(number, ids[position : position + block_size])
            if node is None:
                break
            page_of.update(node.pages)  # a later block's page holds the earlier ones of that place, too
            number, position = node.number, position + block_size
        num_full, rest = divmod(position, self.page_size)
        return Match(position, number, [page_of[i] for i in range(num_full)], page_of[num_full] if rest else None)

    def clear(self) -> None:
        """Forgets all content (the weights have changed); users keep their pages."""
        self._nodes.clear()
        self._keys_of_page.clear()
        self._free.extend(self._unused)
        self._unused.clear()

    def _forget(self, page: int) -> None:
        for key in self._keys_of_page.pop(page, ()):
            node = self._nodes.pop(key, None)
            for other in node.pages.values() if node else ():
                if other != page and other in self._keys_of_page:
                    self._keys_of_page[other].discard(key)

    def _new_number(self) -> int:
        self._last_number += 1
        return self._last_number
