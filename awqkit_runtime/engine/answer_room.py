"""How long an answer can be."""

from __future__ import annotations

from awqkit_runtime.errors import RequestError


def answer_room(prompt_length: int, *, session_len: int, cache_tokens: int) -> int:
    """Tokens that an answer to such a prompt can have; RequestError if not even one.

    session_len bounds prompt and answer together, cache_tokens all of them but the last.
    """
    if prompt_length < 1:
        raise RequestError("The prompt is empty: there is no token to continue from.")
    if prompt_length + 1 > session_len:
        raise RequestError(
            f"The prompt has {prompt_length} tokens; with at least one of the answer that is "
            f"more than the session length, {session_len}. Shorten the prompt or raise "
            "session_len."
        )
    if prompt_length > cache_tokens:
        raise RequestError(
            f"The prompt has {prompt_length} tokens, but the whole cache holds "
            f"{cache_tokens}. Shorten the prompt, or make the cache larger with "
            "cache_max_entry_count."
        )
    return min(session_len, cache_tokens + 1) - prompt_length
