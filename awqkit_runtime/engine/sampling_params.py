"""What a request asks of the engine; the meaning of each number is in sampler.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from awqkit_runtime.engine.grammar import Grammar
from awqkit_runtime.errors import RequestError

#: Below this a temperature only makes numbers overflow.
GREEDY_BELOW = 1e-5
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 100.0
MAX_PRIORITY = 100


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. The default is greedy, 512 tokens at most.

    Wrong values raise RequestError. `stop` may be one string; `stop` and `stop_token_ids` become
    tuples.
    """

    #: 0 is greedy: the likeliest token, always.
    temperature: float = 0.0
    #: Sample among the k likeliest; 0 or -1 means all.
    top_k: int = 0
    #: Sample among the likeliest tokens that together reach this probability.
    top_p: float = 1.0
    #: Leave out tokens less likely than this share of the likeliest one's probability.
    min_p: float = 0.0
    #: Above 1 makes tokens of prompt and answer less likely (CTRL, arXiv 1909.05858, eq. 2).
    repetition_penalty: float = 1.0
    #: Taken once from the logit of every token that the answer already has.
    presence_penalty: float = 0.0
    #: Taken from a token's logit for every time that the answer already has it.
    frequency_penalty: float = 0.0
    #: Added to the logits of these tokens, -100…100.
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    #: The same seed gives the same answer, alone or in any batch; None draws one.
    seed: int | None = None
    #: The answer ends before the first of these texts.
    stop: str | Iterable[str] = ()
    #: The answer ends with the first of these tokens, beside the model's own stop tokens.
    stop_token_ids: Iterable[int] = ()
    #: None: as many as the session length leaves.
    max_tokens: int | None = 512
    #: Until then no stop token is chosen, unless no other token may come next, and no stop text
    #: looked for. An answer that fulfils its grammar, and cannot go on, ends sooner too.
    min_tokens: int = 0
    #: Go on after the model's own stop tokens.
    ignore_eos: bool = False
    #: Log-probabilities of the chosen and of the N likeliest tokens; None: none.
    logprobs: int | None = None
    #: What the answer must match; takes a model with a tokenizer, and the extra `serve`.
    grammar: Grammar | None = None
    #: Leave special tokens out of the text.
    skip_special_tokens: bool = True
    #: A higher one is served first, -100…100; who waits grows older, so no one waits for ever.
    priority: int = 0

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _texts(stop))
        ids = (
            (self.stop_token_ids,) if isinstance(self.stop_token_ids, int) else self.stop_token_ids
        )
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        _number("temperature", self.temperature, low=0, high=math.inf)
        _number("top_p", self.top_p, low=0, high=1, above=True)
        _number("min_p", self.min_p, low=0, high=1)
        _number("repetition_penalty", self.repetition_penalty, low=0, high=math.inf, above=True)
        _number("presence_penalty", self.presence_penalty, low=-2, high=2)
        _number("frequency_penalty", self.frequency_penalty, low=-2, high=2)
        _whole("top_k", self.top_k, low=-1)
        _whole("min_tokens", self.min_tokens, low=0)
        _whole("priority", self.priority, low=-MAX_PRIORITY, high=MAX_PRIORITY)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, low=1)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}."
                )
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS)
        if self.seed is not None:
            _whole("seed", self.seed)
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise RequestError(f"grammar is {self.grammar!r}; it must be a Grammar.")
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be True or False.")

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """`stop`, normalised."""
        return tuple(self.stop)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


def _number(name: str, value: Any, *, low: float, high: float, above: bool = False) -> None:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not sound or not low <= value <= high or (above and value == low):
        least = f"above {low:g}" if above else f"{low:g} or more"
        most = "" if high == math.inf else f" and at most {high:g}"
        raise RequestError(f"{name} is {value!r}; it must be a number, {least}{most}.")


def _whole(name: str, value: Any, *, low: int | None = None, high: int | None = None) -> None:
    sound = isinstance(value, int) and not isinstance(value, bool)
    if not sound or (low is not None and value < low) or (high is not None and value > high):
        least = "" if low is None else f" from {low}"
        most = "" if high is None else f" to {high}"
        raise RequestError(f"{name} is {value!r}; it must be a whole number{least}{most}.")


def _texts(values: Any) -> tuple[str, ...]:
    texts = tuple(values) if isinstance(values, Iterable) else (values,)
    if any(not isinstance(text, str) or not text for text in texts):
        raise RequestError(f"stop is {values!r}; it must be a text or a list of non-empty texts.")
    return texts


def _token_ids(name: str, values: Any) -> tuple[int, ...]:
    ids = tuple(values) if isinstance(values, Iterable) else (values,)
    if any(not isinstance(token, int) or isinstance(token, bool) or token < 0 for token in ids):
        raise RequestError(f"{name} is {values!r}; it must be a list of token ids.")
    return ids


def _biases(values: Any) -> dict[int, float]:
    if not isinstance(values, Mapping):
        raise RequestError(f"logit_bias is {values!r}; it must map token ids to numbers.")
    for token, bias in values.items():
        _token_ids("logit_bias", [token])
        _number(f"logit_bias of token {token}", bias, low=-MAX_LOGIT_BIAS, high=MAX_LOGIT_BIAS)
    return {int(token): float(bias) for token, bias in values.items()}
