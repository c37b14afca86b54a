"""Random requests: lengths, prefixes, ways to choose tokens, stops, priorities, second thoughts."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from awqkit_runtime.engine.sampling_params import SamplingParams

#: Prompts begin with one of so many texts, or with none of them.
_PREFIXES = 5


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request, and after how many steps its sender gives it up, if at all."""

    prompt: tuple[int, ...]
    params: SamplingParams
    abort_after: int | None


def draw_order(rng: Random, vocab_size: int, session_len: int) -> Order:
    """Anything that fits into a session of session_len tokens; a quarter wants most of it."""
    prompt = _prompt(rng, vocab_size, max(session_len // rng.choice((16, 4)), 1))
    room = session_len - len(prompt)
    length = rng.randint(room // 2, room) if rng.random() < 0.25 else rng.randint(1, room // 8)
    params = SamplingParams(
        temperature=rng.choice((0.0, 0.7, 1.5)),
        top_p=rng.choice((1.0, 0.9)),
        top_k=rng.choice((0, 20)),
        repetition_penalty=rng.choice((1.0, 1.1)),
        seed=rng.getrandbits(32),
        stop_token_ids=_tokens(rng, vocab_size, rng.choice((0, 0, vocab_size // 40))),
        ignore_eos=rng.random() < 0.5,
        max_tokens=max(length, 1),
        priority=rng.choice((-1, 0, 0, 0, 1, 2)),
    )
    abort_after = rng.randrange(80) if rng.random() < 0.15 else None
    return Order(prompt=prompt, params=params, abort_after=abort_after)


def _prompt(rng: Random, vocab_size: int, longest: int) -> tuple[int, ...]:
    length = rng.randint(1, longest)
    if rng.random() < 0.5:
        return _tokens(rng, vocab_size, length)
    shared = _tokens(Random(rng.randrange(_PREFIXES)), vocab_size, rng.randint(1, length))
    return shared + _tokens(rng, vocab_size, length - len(shared))


def _tokens(rng: Random, vocab_size: int, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(vocab_size) for _ in range(count))
