"""Which tokens of which requests the next step computes, and who has to wait or give way.

Pure decisions over requests and page numbers: no tensors, no clock, no I/O.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from awqkit_runtime.cache.allocator import BlockAllocator
from awqkit_runtime.engine.request import Request
from awqkit_runtime.errors import RequestError

_TURN = attrgetter("turn")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """`length` tokens of a request, from its token `start`, that a step computes."""

    request: Request
    start: int
    length: int
    #: It reaches the last known token, so that its last logits give the next one.
    samples: bool
    #: Its one token is what the step before samples for the request, which lacks it still.
    follows: bool = False


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
        #: schedule() was called so often.
        self.steps = 0
        self.preemptions = 0
        #: Tokens that entering requests brought, and those of them that the cache already held.
        self.admitted_tokens = 0
        self.reused_tokens = 0

    @property
    def capacity(self) -> int:
        """Tokens of prompt and answer that one request can have; the last is never cached."""
        return min(self.session_len, self.allocator.num_pages * self.allocator.page_tokens + 1)

    def room_after(self, prompt_length: int) -> int:
        """Tokens that an answer to such a prompt can have; RequestError if not even one."""
        if prompt_length < 1:
            raise RequestError("The prompt is empty: there is no token to continue from.")
        if prompt_length + 1 > self.session_len:
            raise RequestError(
                f"The prompt has {prompt_length} tokens; with at least one of the answer that is "
                f"more than the session length, {self.session_len}. Shorten the prompt or raise "
                "session_len."
            )
        if prompt_length + 1 > self.capacity:
            raise RequestError(
                f"The prompt has {prompt_length} tokens, but the whole cache holds "
                f"{self.capacity - 1}. Shorten the prompt, or make the cache larger with "
                "cache_max_entry_count or its entries smaller with quant_policy."
            )
        return self.capacity - prompt_length

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

    def schedule(self) -> list[Chunk]:
        """The next step's work; empty only when there are no requests."""
        self.steps += 1
        chunks: list[Chunk] = []
        budget = self.max_step_tokens
        decoding = [request for request in self.running if request.num_pending == 1]
        for request in decoding[:budget]:
            if request in self.running and self._grow(request):
                chunks.append(_chunk(request, 1))
        budget -= len(chunks)
        prefilling = [request for request in self.running if request.num_pending > 1]
        for request in prefilling:
            if budget > 0:
                chunks.append(_chunk(request, budget))
                budget -= chunks[-1].length
        while self.waiting and budget > 0:
            request = self.waiting[0]
            if not self._admit(request):
                break
            chunks.append(_chunk(request, budget))
            budget -= chunks[-1].length
        return chunks

    def advance(self, chunk: Chunk) -> None:
        """Records that a chunk was computed; full pages can from now on be shared."""
        request = chunk.request
        request.num_computed = chunk.start + chunk.length
        if not self.prefix_caching:
            return
        size = self.allocator.page_tokens
        while (request.num_published + 1) * size <= request.num_computed:
            index = request.num_published
            request.pages[index] = self.allocator.publish(
                request.pages[index],
                parent=request.pages[index - 1] if index else None,
                tokens=tuple(request.tokens(index * size, (index + 1) * size)),
            )
            request.num_published += 1

    def recover(self) -> None:
        """Makes the state sound again after a step was interrupted halfway (by Ctrl-C, say).

        No token is lost: at worst every request is computed again from its tokens.
        """
        for request in self.running:
            request.num_computed = min(request.num_computed, request.num_tokens - 1)
        placed = [request.request_id for request in (*self.running, *self.waiting)]
        tables = [request.pages for request in self.running]
        if sorted(placed) == sorted(self.requests) and self.allocator.is_sound(tables):
            return
        self.allocator = BlockAllocator(
            self.allocator.num_pages, page_tokens=self.allocator.page_tokens
        )
        self.running = []
        self.waiting = sorted(self.requests.values(), key=_TURN)
        for request in self.waiting:
            _forget_pages(request)

    def _grow(self, request: Request) -> bool:
        """Gets the page for one more token, if need be from those that run after this one."""
        if len(request.pages) >= self.allocator.pages_for(request.num_tokens):
            return True
        while self.allocator.available < 1:
            if self.running[-1] is request:
                return False
            self._preempt(self.running[-1])
        request.pages += self.allocator.allocate(1)
        return True

    def _admit(self, request: Request) -> bool:
        """Moves the first waiting request to the running ones, if there is room."""
        if len(self.running) >= self.max_batch_size or self._leader_reads(request):
            return False
        tokens = request.tokens()
        if self.prefix_caching:
            self._reuse(request, tokens)
        missing = self.allocator.pages_for(len(tokens)) - len(request.pages)
        if missing + len(self.running) > self.allocator.available:
            self._free_pages(request)
            return False
        request.pages += self.allocator.allocate(missing)
        if not request.output_token_ids:
            request.reused_tokens = request.num_computed
        self.admitted_tokens += len(tokens)
        self.reused_tokens += request.num_computed
        insort(self.running, self.waiting.pop(0), key=_TURN)
        return True

    def _reuse(self, request: Request, tokens: list[int]) -> None:
        """Gives a request the pages that begin as it does; its last token is never among them."""
        size = self.allocator.page_tokens
        request.pages = self.allocator.reuse(tokens)
        request.num_published = len(request.pages)
        request.num_computed = len(request.pages) * size
        parent = request.pages[-1] if request.pages else None
        rest = tokens[request.num_computed : -1][:size]
        tail = self.allocator.adopt(parent, rest)
        if tail is not None:
            request.pages.append(tail[0])
            request.num_computed += tail[1]

    def _leader_reads(self, request: Request) -> bool:
        """Whether a request with the same prompt, ahead of this one, still has to read it."""
        leader = request.leader
        if leader is None or not self.prefix_caching or leader.request_id not in self.requests:
            return False
        return not leader.prompt_computed

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._free_pages(request)
        insort(self.waiting, request, key=_TURN)
        self.preemptions += 1

    def _free_pages(self, request: Request) -> None:
        """Last page first; a page that is full in part can be adopted by who goes on from there."""
        pages, size = request.pages, self.allocator.page_tokens
        full, rest = divmod(request.num_computed, size)
        if rest and self.prefix_caching:
            self.allocator.release(pages[full + 1 :])
            self.allocator.retire(
                pages[full],
                parent=pages[full - 1] if full else None,
                tokens=tuple(request.tokens(full * size, request.num_computed)),
            )
            self.allocator.release(pages[:full])
        else:
            self.allocator.release(pages)
        _forget_pages(request)


def _chunk(request: Request, budget: int) -> Chunk:
    """As many of the request's pending tokens as `budget` allows."""
    length = min(request.num_pending, budget)
    return Chunk(
        request=request,
        start=request.num_computed,
        length=length,
        samples=length == request.num_pending,
    )


def _forget_pages(request: Request) -> None:
    request.pages = []
    request.num_computed = 0
    request.num_published = 0
