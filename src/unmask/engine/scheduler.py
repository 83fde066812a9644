"""Which requests take part in the next forward, with which tokens, on which pages. Pure Python, no torch.

Priority is the order of arrival. Pages go to earlier requests first: when there are none left, the latest running request
gives its own back and waits (its tokens stay; keys and values are computed again later). So the earliest request always
goes on, and as it fits into the pool alone, which is checked when it arrives, every request ends.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from heapq import merge

from unmask.engine.pages import Match, PagePool
from unmask.engine.request import Request, Row
from unmask.errors import UnmaskError


@dataclass(slots=True)
class Plan:
    """One forward: its rows, and pages to be copied (source, target) before it."""

    rows: list[Row] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """Requests waiting and running, and the pool.

    shares_last_block: a known beginning may reach up to the window. Families with shifted logits need the hidden state of
    the token before the window, so they compute the last block themselves.
    """

    def __init__(self, pool: PagePool, *, max_sequences: int, max_tokens: int, use_prefix_cache: bool, shares_last_block: bool):
        self.pool, self.max_sequences, self.max_tokens = pool, max_sequences, max_tokens
        self.use_prefix_cache, self.shares_last_block = use_prefix_cache, shares_last_block
        self.waiting: list[Request] = []  # by arrival
        self.running: list[Request] = []  # by arrival
        self.num_preemptions = self.num_shared_tokens = self.peak_pages = 0
        self._slots = list(range(max_sequences - 1, -1, -1))

    def check(self, request: Request, name: str) -> None:
        """Raises `UnmaskError` with the numbers if the request, called `name`, can never fit."""
        needed = self.pool.pages_for(request.sequence.end) if request.uses_pages else 0
        if needed > self.pool.num_pages:
            raise UnmaskError(
                f"{name}: {len(request.sequence.prompt_ids)} prompt and {request.sequence.params.max_new_tokens} new "
                f"tokens need {needed} pages of {self.pool.page_size} tokens; the pool has {self.pool.num_pages}: "
                "ask for fewer tokens, or give the engine more memory"
            )

    def add(self, request: Request) -> None:
        """Of a request that `check` let pass."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it is."""
        if request in self.running:
            self.running.remove(request)
            self._give_back(request)
        else:
            self.waiting.remove(request)

    def preempt(self, request: Request) -> None:
        """Back to waiting, without pages."""
        self.num_preemptions += 1
        self.remove(request)
        if request.uses_pages and not request.keeps_committed:
            # Its kept keys and values are those of the window's first step; only from there they can be had again.
            request.sequence.restart_window()
        insort(self.waiting, request, key=lambda r: r.arrival)

    def schedule(self, *, only_begun: bool = False) -> Plan:
        """only_begun: of those waiting, only requests that have had a denoising step may run."""
        plan = Plan()
        self._assign_pages(plan, [r for r in self.waiting if r.sequence.step > 0] if only_begun else self.waiting.copy())
        self.peak_pages = max(self.peak_pages, self.pool.num_pages - self.pool.num_available)
        self._fill(plan)
        return plan

    def _fill(self, plan: Plan) -> None:
        """Rows of at most `max_tokens` tokens.

        Those that decode, then long prompts in parts, the shortest first. A long prompt that has come before all others is
        sure of a quarter, and the earliest request goes on even if it alone has more tokens than a forward.
        """
        first, left = self.running[0] if self.running else None, self.max_tokens

        def add(request: Request, limit: int) -> None:
            nonlocal left
            row = self._row(request, limit, must_go_on=request is first)
            if row is not None:
                plan.rows.append(row)
                left -= row.num_tokens

        prefilling = sorted((r for r in self.running if r.is_prefilling), key=lambda r: r.num_uncommitted)
        kept = 0
        if first is not None and first.is_prefilling:
            b = first.sequence.block_size
            kept = max(b, self.max_tokens // 4 // b * b)
        for request in self.running:
            if not request.is_prefilling:
                add(request, left - kept)
        if first is not None and first.is_prefilling:
            prefilling.remove(first)
            add(first, max(kept, left - sum(r.denoising_row().num_tokens for r in prefilling)))
        for request in prefilling:
            add(request, left)

    def commit(self, row: Row) -> None:
        """After a forward: what was clean in it is committed and can be found by others."""
        request = row.request
        if not request.keeps_committed:
            return
        b, s = request.sequence.block_size, request.sequence
        end = min(row.query_end, s.window[0])
        if self.use_prefix_cache:
            for start in range(request.num_committed, end, b):
                request.node = self.pool.add_block(request.node, s.ids[start : start + b], start, request.pages)
        request.num_committed = end

    def _row(self, request: Request, limit: int, *, must_go_on: bool) -> Row | None:
        """The request's tokens of this forward, at most `limit`; more only if it must go on and they cannot be cut."""
        row = request.denoising_row()
        if row.num_tokens <= limit:
            return row
        if not must_go_on and not request.is_prefilling:
            return None
        b, uncommitted = request.sequence.block_size, request.num_uncommitted
        if uncommitted <= 0:
            return row
        num = min(uncommitted, max(limit // b * b, b if must_go_on else 0))
        if num <= 0:
            return None
        start = request.num_committed
        return Row(request, start, start + num, start + num, is_denoising=False)

    def _assign_pages(self, plan: Plan, waiting: list[Request]) -> None:
        """Pages for the next step of every running request and, in the order of arrival, for waiting ones."""
        pending = {self._next_key(r) for r in self.running if r.num_uncommitted > 0}
        num_wanted = sum(_least_tokens(r) for r in self.running)
        admits, num_skipped, last_running = True, 0, self.running[-1].arrival if self.running else -1
        for request in merge(list(self.running), waiting, key=lambda r: r.arrival):
            if request.slot >= 0:
                missing = self.pool.pages_for(request.denoising_row().key_end) - len(request.pages)
                if request.uses_pages and missing > 0 and self._make_room(request, missing):
                    request.pages += self.pool.allocate(missing)
                continue
            admits = admits and len(self.running) < self.max_sequences and num_wanted < self.max_tokens
            admits = admits and self._admit(request, plan, pending)
            if request.slot >= 0:
                num_wanted += _least_tokens(request)
            else:
                num_skipped += 1
            if (not admits or num_skipped > 4 * self.max_sequences) and request.arrival > last_running:
                break

    def _admit(self, request: Request, plan: Plan, pending: set) -> bool:
        """Makes a waiting request run, if it can. False: there is no room for it, nor for those after it."""
        s = request.sequence
        nothing = Match(0, self.pool.root(s.block_size), [], None)
        if not (self.use_prefix_cache and request.keeps_committed):
            return self._take(request, nothing, plan, pending)
        limit = s.window[0] if self.shares_last_block else s.window[0] - s.block_size
        match = self.pool.match(s.ids, s.block_size, limit)
        known = match.num_tokens
        if known < limit and (match.node, s.ids[known : known + s.block_size].tobytes()) in pending:
            return True  # somebody is computing its next block right now: wait for that
        # A copy holds its source for a moment: on a pool that is full to the last page there is room only without it.
        return self._take(request, match, plan, pending) or (known > 0 and self._take(request, nothing, plan, pending))

    def _take(self, request: Request, match: Match, plan: Plan, pending: set) -> bool:
        """Gives a waiting request what is known of it and the other pages of its next step. False: there is no room."""
        held = match.pages + ([match.copied_page] if match.copied_page is not None else [])
        self.pool.share(held)
        row = request.denoising_row()
        missing = self.pool.pages_for(row.key_end) - len(match.pages) if request.uses_pages else 0
        # Some air, so that those who run do not need its pages at once.
        has_room = missing == 0 or self.pool.num_available >= missing + len(self.running)
        if not has_room and self.running and self.running[-1].arrival > request.arrival:
            has_room = self._make_room(request, missing)
        if has_room:
            own = self.pool.allocate(missing)
            if match.copied_page is not None:
                plan.copies.append((match.copied_page, own[0]))
                self.pool.release([match.copied_page])
            request.pages, request.num_committed, request.node = match.pages + own, match.num_tokens, match.node
            request.slot = self._slots.pop()
            self.waiting.remove(request)
            insort(self.running, request, key=lambda r: r.arrival)
            self.num_shared_tokens += match.num_tokens
            if request.num_uncommitted > 0:
                pending.add(self._next_key(request))
        else:
            self.pool.release(held)
        return has_room

    def _make_room(self, request: Request, missing: int) -> bool:
        """Preempts the latest running requests until `missing` pages are there, itself at last. False: there are not."""
        while self.pool.num_available < missing:
            latest = self.running[-1] if self.running else None
            if latest is None or latest.arrival < request.arrival:
                return False
            self.preempt(latest)
            if latest is request:
                return False
        return True

    def _next_key(self, request: Request) -> tuple[int, bytes]:
        s, start = request.sequence, request.num_committed
        return request.node, s.ids[start : start + s.block_size].tobytes()

    def _give_back(self, request: Request) -> None:
        self.pool.release(request.pages)
        self._slots.append(request.slot)
        request.pages, request.num_committed, request.slot = [], 0, -1


def _least_tokens(request: Request) -> int:
    """What a request needs of a forward to go on: its next step, or a part of a long prompt that is worth the while."""
    num_tokens = request.denoising_row().num_tokens
    return min(num_tokens, 4 * request.sequence.block_size) if request.is_prefilling else num_tokens
