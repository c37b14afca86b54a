"""Who owns which page of the cache, and which pages can be shared by equal prefixes.

Pure bookkeeping: page numbers and token ids, no tensors and no device.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice

#: What a published page holds: the page before it in the sequence (None at the start) and its
#: own tokens. Keys and values depend on every token before them, so the chain matters. The
#: tokens themselves are compared, never only their hash.
PrefixKey = tuple[int | None, tuple[int, ...]]
#: Of the beginnings of pages behind one parent, the latest are looked at when one is sought.
_TAILS_TRIED = 32


class BlockAllocator:
    """Hands out pages, counts references, and finds full pages of a prefix computed before.

    A page is *free* (content worthless), *used* (referenced by at least one sequence) or *idle*
    (unreferenced, but published, or the retired *tail* of a sequence: it can be found again until
    its space is needed). Idle pages are given away least recently used first. A sequence
    references all pages before any page it references, and returns its pages last first, so a
    page is never given away before the pages that continue it; a key may therefore name its
    parent by page number.
    """

    def __init__(self, num_pages: int, *, page_tokens: int) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self._references = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._pages: dict[PrefixKey, int] = {}
        self._keys: dict[int, PrefixKey] = {}
        #: Tails behind each parent, latest last, with the tokens that they begin with.
        self._tails: dict[int | None, dict[int, tuple[int, ...]]] = {}
        self._tail_parents: dict[int, int | None] = {}

    @property
    def available(self) -> int:
        """Pages that allocate() can hand out."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """Pages that sequences reference."""
        return self.num_pages - self.available

    def pages_for(self, tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-tokens // self.page_tokens)

    def allocate(self, count: int) -> list[int]:
        """`count` pages with one reference each; the caller checks `available` first."""
        if count > self.available:
            raise ValueError(f"{count} pages wanted, {self.available} of {self.num_pages} left")
        return [self._take() for _ in range(count)]

    def reuse(self, tokens: Sequence[int]) -> list[int]:
        """Pages that already hold the longest known prefix of `tokens`, referenced once more.

        Only full pages are shared, and never all of `tokens`: the last one is always left to
        compute, since its logits are what the caller is after.
        """
        pages: list[int] = []
        parent: int | None = None
        for end in range(self.page_tokens, len(tokens), self.page_tokens):
            key = (parent, tuple(tokens[end - self.page_tokens : end]))
            page = self._pages.get(key)
            if page is None:
                break
            self._references[page] += 1
            self._idle.pop(page, None)
            pages.append(page)
            parent = page
        return pages

    def publish(self, page: int, *, parent: int | None, tokens: tuple[int, ...]) -> int:
        """Lets later sequences find a page that is full and computed; returns the page to keep.

        When another page holds the same already, the caller's reference moves there and its
        own page becomes free.
        """
        key = (parent, tokens)
        twin = self._pages.setdefault(key, page)
        if twin == page:
            self._keys[page] = key
            return page
        self._references[twin] += 1
        self._idle.pop(twin, None)
        self.release([page])
        return twin

    def retire(self, page: int, *, parent: int | None, tokens: tuple[int, ...]) -> None:
        """Drops the only reference of a page that is full in part, so that adopt() can find it.

        It begins with `tokens`. The pages behind it have been released before, those before it
        will be later.
        """
        self._references[page] -= 1
        self._idle[page] = None
        self._tails.setdefault(parent, {})[page] = tokens
        self._tail_parents[page] = parent

    def adopt(self, parent: int | None, tokens: Sequence[int]) -> tuple[int, int] | None:
        """A page behind `parent` that begins as `tokens` do, and how many of them it holds.

        It becomes the caller's own, to be written from there on; None if there is none.
        """
        best: tuple[int, int] | None = None
        for page, held in islice(reversed(self._tails.get(parent, {}).items()), _TAILS_TRIED):
            shared = _shared_length(held, tokens)
            if shared > (0 if best is None else best[1]):
                best = page, shared
        if best is not None:
            del self._idle[best[0]]
            self._forget_content(best[0])
            self._references[best[0]] = 1
        return best

    def release(self, pages: Sequence[int]) -> None:
        """Drops one reference of each page; `pages` are in the order of their sequence."""
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] > 0:
                continue
            if page in self._keys:
                self._idle[page] = None
            else:
                self._free.append(page)

    def is_sound(self, tables: Iterable[Sequence[int]]) -> bool:
        """Whether references are exactly those of the sequences' page tables, and no page is lost.

        Serves to detect a step that was interrupted halfway, and tests.
        """
        counts = Counter(page for table in tables for page in table)
        if any(self._references[page] != counts[page] for page in range(self.num_pages)):
            return False
        homeless = {page for page in range(self.num_pages) if not self._references[page]}
        resting = [*self._free, *self._idle]
        if len(resting) != len(homeless) or set(resting) != homeless:
            return False
        published = {page: key for key, page in self._pages.items()}
        listed = {page: parent for parent, tails in self._tails.items() for page in tails}
        if published != self._keys or listed != self._tail_parents:
            return False
        found_again = self._keys.keys() | listed.keys()
        return found_again.isdisjoint(self._free) and listed.keys() <= self._idle.keys()

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            self._forget_content(page)
        self._references[page] = 1
        return page

    def _forget_content(self, page: int) -> None:
        """Lets nobody find an idle page any more."""
        if page in self._keys:
            del self._pages[self._keys.pop(page)]
            return
        parent = self._tail_parents.pop(page)
        del self._tails[parent][page]
        if not self._tails[parent]:
            del self._tails[parent]


def _shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
