"""Which tokens of which requests the next step computes, and who has to wait or give way.

Pure decisions over requests and page numbers: no tensors, no clock, no I/O.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from awqkit_runtime.cache.allocator import BlockAllocator
from awqkit_runtime.engine.answer_room import answer_room
from awqkit_runtime.engine.request import Request
from awqkit_runtime.engine.request_pages import (
    forget_pages,
    free_pages,
    publish_full_pages,
    reuse_prefix,
)

_TURN = attrgetter("turn")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """`length` tokens of a request, from its token `start`, that a step computes."""

    request: Request
    start: int
    length: int
    #: It reaches the last token that is there, so that its last logits give the next one.
    samples: bool
    #: It is one token, which the step before samples: the host does not know it yet.
    follows: bool = False

    @property
    def end(self) -> int:
        return self.start + self.length


class Scheduler:
    """Continuous batching, first come first served among requests of one priority.

    Each step shares `max_step_tokens` between sequences that decode (first) and prompts, which
    are split where they do not fit. A request enters when there are pages for all its known
    tokens and one to spare for every running sequence. When a decoding sequence finds no page,
    the last of the running ones gives its pages back and is computed again later; its tokens stay.

    `running` and `waiting` are each in the order of `Request.turn`: by arrival, where a priority
    counts as steps. All who wait grow older alike, so turns never change, and who comes much later
    does not overtake. Nobody enters before who waits in front of him, and the first of those that
    run can always go on; so every request ends.

    A step may be scheduled while the one before it is in flight: launched, not recorded. Nobody
    gives way then. Pages of a request that ends meanwhile are free at once: the device may still
    write there, but whoever gets them comes in a later step, and steps run in order.
    """

    def __init__(
        self,
        allocator: BlockAllocator,
        *,
        session_len: int,
        max_batch_size: int,
        max_step_tokens: int,
        prefix_caching: bool = True,
    ) -> None:
        self.allocator = allocator
        self.session_len = session_len
        self.max_batch_size = max_batch_size
        self.max_step_tokens = max_step_tokens
        self.prefix_caching = prefix_caching
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.requests: dict[int, Request] = {}
        #: So often schedule() gave work.
        self.steps = 0
        self.preemptions = 0
        #: Tokens that entering requests brought, and those of them that the cache already held.
        self.admitted_tokens = 0
        self.reused_tokens = 0

    @property
    def cache_tokens(self) -> int:
        return self.allocator.num_pages * self.allocator.page_tokens

    def room_after(self, prompt_length: int) -> int:
        """Tokens that an answer to such a prompt can have; RequestError if not even one."""
        return answer_room(
            prompt_length, session_len=self.session_len, cache_tokens=self.cache_tokens
        )

    def add(self, request: Request) -> None:
        request.arrived = self.steps
        self.requests[request.request_id] = request
        insort(self.waiting, request, key=_TURN)

    def remove(self, request: Request) -> None:
        """Takes a request out, finished or not, and frees its pages."""
        del self.requests[request.request_id]
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._free_pages(request)

    def schedule(self, in_flight: Sequence[Chunk] = ()) -> list[Chunk]:
        """The next step's work; empty only when there are no requests, or when none can go on
        before the chunks of the step in flight are recorded.
        """
        launched = {chunk.request.request_id: chunk for chunk in in_flight}
        decodes: list[Chunk] = []
        prefills: list[Chunk] = []
        # Who gives way is the last of them, and so none that was looked at before.
        for request in self.running:
            rest = _rest(request, launched.get(request.request_id))
            if rest is None:
                continue
            if rest.length > 1:
                prefills.append(rest)
            elif len(decodes) < self.max_step_tokens:
                if not self._has_page(rest):
                    if in_flight and self.allocator.available < 1:
                        return []
                    if not self._grow(request):
                        continue
                decodes.append(rest)
        chunks = self._fill(decodes, prefills)
        self.steps += bool(chunks)
        return chunks

    def advance(self, chunk: Chunk) -> None:
        """Records that a chunk was computed; full pages can from now on be shared."""
        request = chunk.request
        request.num_computed = chunk.end
        if self.prefix_caching:
            publish_full_pages(self.allocator, request)

    def recover(self) -> None:
        """Makes the state sound again after a step was interrupted halfway (by Ctrl-C, say).

        No token is lost: at worst every request is computed again from its tokens.
        """
        for request in self.running:
            request.num_computed = min(request.num_computed, request.num_tokens - 1)
        placed = [request.request_id for request in (*self.running, *self.waiting)]
        tables = [request.pages for request in self.running]
        for request in self.waiting:
            forget_pages(request)
        if sorted(placed) == sorted(self.requests) and self.allocator.is_sound(tables):
            return
        self.allocator = BlockAllocator(
            self.allocator.num_pages, page_tokens=self.allocator.page_tokens
        )
        self.running = []
        self.waiting = sorted(self.requests.values(), key=_TURN)
        for request in self.waiting:
            forget_pages(request)

    def _fill(self, decodes: list[Chunk], prefills: Sequence[Chunk]) -> list[Chunk]:
        """The decodes, and of prompts what else a step can compute."""
        chunks = decodes
        budget = self.max_step_tokens - len(decodes)
        for rest in prefills:
            if budget > 0:
                chunks.append(_beginning(rest, budget))
                budget -= chunks[-1].length
        while self.waiting and budget > 0:
            request = self.waiting[0]
            if not self._admit(request):
                break
            chunks.append(_beginning(_known_rest(request, request.num_computed), budget))
            budget -= chunks[-1].length
        return chunks

    def _has_page(self, decode: Chunk) -> bool:
        """Whether its token has a place already."""
        return decode.start < len(decode.request.pages) * self.allocator.page_tokens

    def _grow(self, request: Request) -> bool:
        """Gets one more page, if need be from those that run after this request."""
        while self.allocator.available < 1:
            if self.running[-1] is request:
                return False
            self._preempt(self.running[-1])
        request.pages += self.allocator.allocate(1)
        return True

    def _admit(self, request: Request) -> bool:
        """Moves the first waiting request to the running ones, if there is room."""
        spare = len(self.running)
        if spare >= self.max_batch_size or spare > self.allocator.available:
            return False
        if self._leader_reads(request):
            return False
        if self.prefix_caching:
            reuse_prefix(self.allocator, request)
        missing = self.allocator.pages_for(request.num_tokens) - len(request.pages)
        if missing + spare > self.allocator.available:
            self._free_pages(request)
            return False
        request.pages += self.allocator.allocate(missing)
        if not request.output_token_ids:
            request.reused_tokens = request.num_computed
        self.admitted_tokens += request.num_tokens
        self.reused_tokens += request.num_computed
        insort(self.running, self.waiting.pop(0), key=_TURN)
        return True

    def _leader_reads(self, request: Request) -> bool:
        """Whether a request with the same prompt, ahead of this one, still has to read it."""
        leader = request.leader if self.prefix_caching else None
        return (
            leader is not None and leader.request_id in self.requests and not leader.prompt_computed
        )

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._free_pages(request)
        insort(self.waiting, request, key=_TURN)
        self.preemptions += 1

    def _free_pages(self, request: Request) -> None:
        free_pages(self.allocator, request, keep_tail=self.prefix_caching)


def _rest(request: Request, last: Chunk | None) -> Chunk | None:
    """All that the model has yet to read of a request, behind its chunk in flight, if any.

    None where it is certain to end with the token that is in flight.
    """
    if last is None:
        return _known_rest(request, request.num_computed)
    if not last.samples:
        return _known_rest(request, last.end)
    if len(request.output_token_ids) + 1 >= request.max_output:
        return None
    return Chunk(request=request, start=last.end, length=1, samples=True, follows=True)


def _known_rest(request: Request, start: int) -> Chunk:
    return Chunk(request=request, start=start, length=request.num_tokens - start, samples=True)


def _beginning(rest: Chunk, budget: int) -> Chunk:
    """As many of the rest's tokens as `budget` allows."""
    return rest if rest.length <= budget else replace(rest, length=budget, samples=False)
