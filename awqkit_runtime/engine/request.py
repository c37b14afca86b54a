"""A request on its way through the engine, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from awqkit_runtime.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from awqkit_runtime.engine.constraint import Constraint

#: A request of one priority more is served as if it had arrived so many steps earlier.
PRIORITY_STEPS = 100

FinishReason = Literal["stop", "length", "abort", "error"]
#: Token id -> log-probability, likeliest first; always holds the chosen token.
TokenLogprobs = dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished answer.

    token_ids: what was generated, a stop token that ended it included (its text is not in `text`).
    finish_reason: "stop" (stop token or stop text), "length" (max_tokens or session length),
    "abort", "error" (its grammar grew too complex on the way). logprobs: one entry per token where
    they were asked for. reused_tokens: of the prompt, found in the cache; no part of the answer,
    so equal answers may differ in it.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    reused_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """What one step added to a request; `completion` is there once it is finished."""

    request_id: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    completion: Completion | None = None


@dataclass(eq=False, kw_only=True)
class Request:
    """One prompt and its answer so far.

    The first group of fields never changes. `pages` and `num_computed` say how much of the
    sequence the cache holds; both fall to nothing when the request has to give way to others.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    #: Seeds this request's random numbers (params.seed, or drawn for it).
    seed: int
    #: Tokens that end the answer: the model's own unless ignored, and the request's.
    stop_token_ids: frozenset[int]
    #: Tokens of the answer at most: max_tokens, or what the session length leaves.
    max_output: int
    #: Another request with the same prompt, whose pages this one waits for and shares.
    leader: Request | None = None
    #: Where the answer stands in its grammar.
    constraint: Constraint | None = None

    #: Steps of the scheduler before it was queued.
    arrived: int = 0
    output_token_ids: list[int] = field(default_factory=list)
    output_logprobs: list[TokenLogprobs] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    #: Leading tokens whose keys and values are in `pages`.
    num_computed: int = 0
    #: Leading pages that others can find.
    num_published: int = 0
    #: Tokens of the prompt that the cache held when the request entered.
    reused_tokens: int = 0
    finish_reason: FinishReason | None = None

    @property
    def turn(self) -> tuple[int, int]:
        """Whose is smaller is served first: the step of arrival, earlier by the priority."""
        return self.arrived - PRIORITY_STEPS * self.params.priority, self.request_id

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def prompt_computed(self) -> bool:
        return self.num_computed >= len(self.prompt_token_ids)

    def tokens(self, start: int = 0, end: int | None = None) -> list[int]:
        """Tokens start…end of prompt and answer together."""
        stop = self.num_tokens if end is None else end
        split = len(self.prompt_token_ids)
        prompt = self.prompt_token_ids[start:stop]
        return [*prompt, *self.output_token_ids[max(start - split, 0) : max(stop - split, 0)]]
