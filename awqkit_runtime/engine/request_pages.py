"""The pages of one request: found again where others began alike, published, given back."""

from __future__ import annotations

from awqkit_runtime.cache.allocator import BlockAllocator
from awqkit_runtime.engine.request import Request


def reuse_prefix(allocator: BlockAllocator, request: Request) -> None:
    """Gives a request the pages that begin as it does; its last token is never among them."""
    size, tokens = allocator.page_tokens, request.tokens()
    request.pages = allocator.reuse(tokens)
    request.num_published = len(request.pages)
    request.num_computed = len(request.pages) * size
    parent = request.pages[-1] if request.pages else None
    rest = tokens[request.num_computed : -1][:size]
    tail = allocator.adopt(parent, rest)
    if tail is not None:
        request.pages.append(tail[0])
        request.num_computed += tail[1]


def publish_full_pages(allocator: BlockAllocator, request: Request) -> None:
    """Lets others find the pages that are full and computed; equal ones become one."""
    size = allocator.page_tokens
    while (request.num_published + 1) * size <= request.num_computed:
        index = request.num_published
        request.pages[index] = allocator.publish(
            request.pages[index],
            parent=request.pages[index - 1] if index else None,
            tokens=tuple(request.tokens(index * size, (index + 1) * size)),
        )
        request.num_published += 1


def free_pages(allocator: BlockAllocator, request: Request, *, keep_tail: bool) -> None:
    """Last page first; with keep_tail who goes on from there can adopt the one that is begun.

    A published page is never a tail, though its last token may be computed again after an error.
    """
    pages, size = request.pages, allocator.page_tokens
    full, rest = divmod(request.num_computed, size)
    if rest and keep_tail and full >= request.num_published:
        allocator.release(pages[full + 1 :])
        allocator.retire(
            pages[full],
            parent=pages[full - 1] if full else None,
            tokens=tuple(request.tokens(full * size, request.num_computed)),
        )
        allocator.release(pages[:full])
    else:
        allocator.release(pages)
    forget_pages(request)


def forget_pages(request: Request) -> None:
    """As if nothing of it had been computed; the allocator is not told."""
    request.pages = []
    request.num_computed = 0
    request.num_published = 0
