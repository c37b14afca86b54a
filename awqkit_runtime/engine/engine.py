"""The engine: requests in, pieces of text out, one step at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from awqkit_runtime.cache.allocator import BlockAllocator
from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PAGE_TOKENS, PageFormat
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine import runners
from awqkit_runtime.engine.answer import complete_answer, extend_answer
from awqkit_runtime.engine.answer_text import AnswerText
from awqkit_runtime.engine.cache_size import cache_pages
from awqkit_runtime.engine.constraint import Constraint, GrammarCompiler
from awqkit_runtime.engine.detokenizer import TextDecoder
from awqkit_runtime.engine.fast_decoder import FastDecoder
from awqkit_runtime.engine.launched_step import launcher
from awqkit_runtime.engine.memory import claim, free_memory, told_of_lack
from awqkit_runtime.engine.model_text import NoText
from awqkit_runtime.engine.parallel.runner import LeadingRunner
from awqkit_runtime.engine.request import Completion, FinishReason, Request, RequestOutput
from awqkit_runtime.engine.runner import DecoderModel, Runner
from awqkit_runtime.engine.runners import claimed_for_steps, reserved_for_steps
from awqkit_runtime.engine.sampler import SampledToken
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.engine.scheduler import Scheduler
from awqkit_runtime.engine.steady_runner import SteadyRunner
from awqkit_runtime.engine.step_pipeline import StepPipeline
from awqkit_runtime.errors import RequestError

#: Between the seeds of a request's choices: 2^64 over the golden ratio, so that neighbouring seeds
#: of requests do not meet (Steele et al., OOPSLA 2014).
_SEED_STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Where the engine stands. Token and preemption counts are since its start."""

    running: int
    waiting: int
    used_pages: int
    total_pages: int
    #: Tokens of requests that entered, and those of them whose pages were found in the cache.
    admitted_tokens: int
    reused_tokens: int
    preemptions: int


class Engine:
    """Serves many requests with one model. Not for several threads at once."""

    def __init__(
        self,
        decoder: DecoderModel,
        tokenizer: TextDecoder,
        config: EngineConfig,
        *,
        stop_token_ids: Iterable[int] = (),
        grammars: GrammarCompiler | None = None,
        key_frame: KeyFrame = PLAIN_FRAME,
        new_runner: Callable[[DecoderModel, PagePool], Runner | SteadyRunner] | None = None,
        free_bytes: int | None = None,
        run_ahead: bool | None = None,
    ) -> None:
        """stop_token_ids: the model's own. grammars: for requests that bring one. key_frame: how
        the cache lays keys.

        new_runner: what computes the steps, None for what the config asks for. free_bytes: what
        the cache gets its share of, None for what is free on the decoder's device. run_ahead:
        whether to launch each step before the one before it is collected, where the runner can;
        None: on a GPU.
        OutOfMemoryError when no session fits the cache.
        """
        self.config = config
        self.session_len = decoder.session_len
        self.max_batch_size = config.batch_size_for(decoder.device)
        self._vocab_size = decoder.config.vocab_size
        self._tokenizer = FastDecoder(tokenizer)
        self._has_text = not isinstance(tokenizer, NoText)
        self._grammars = grammars
        self._stop_token_ids = frozenset(stop_token_ids)
        page_format = PageFormat.for_policy(decoder.config, config.policy, decoder.dtype)
        num_pages = cache_pages(
            config,
            page_format,
            device=decoder.device,
            session_len=self.session_len,
            free_bytes=free_memory(decoder.device) if free_bytes is None else free_bytes,
            reserved_bytes=reserved_for_steps(decoder, config),
        )
        with told_of_lack():
            pool = PagePool(page_format, num_pages, decoder.device, key_frame=key_frame)
            self._runner = (new_runner or partial(runners.new_runner, config=config))(decoder, pool)
        if claimed := claimed_for_steps(decoder, config):
            claim(self, claimed, decoder.device)
        self._scheduler = Scheduler(
            BlockAllocator(num_pages, page_tokens=PAGE_TOKENS),
            session_len=self.session_len,
            max_batch_size=self.max_batch_size,
            max_step_tokens=config.prefill_tokens_for(decoder.device),
            prefix_caching=config.enable_prefix_caching,
        )
        steps = launcher(self._runner)
        on_gpu = decoder.device.type == "cuda"
        self._steps = StepPipeline(
            self._scheduler,
            steps,
            runs_ahead=steps.can_follow and (on_gpu if run_ahead is None else run_ahead),
        )
        self._texts: dict[int, AnswerText] = {}
        self._seeds = random.Random(config.seed)
        self._next_id = 0

    def add_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> int:
        """Queues a prompt; outputs carry the number. RequestError if it can never be served."""
        return self.add_choices(prompt_token_ids, params, 1)[0]

    def add_choices(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, count: int
    ) -> list[int]:
        """Queues several answers to one prompt, which is read once; their numbers, in order.

        The first draws from the seed of `params` as it is, the others from seeds made of it.
        """
        prompt = tuple(prompt_token_ids)
        self._check_tokens("prompt", prompt)
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        self._check_tokens("logit_bias", params.logit_bias)
        if params.stop_texts and not self._has_text:
            raise RequestError(
                "This model has no tokenizer, so its answers have no text that could stop them; "
                "give stop_token_ids."
            )
        room = self._scheduler.room_after(len(prompt))
        own_stops = frozenset() if params.ignore_eos else self._stop_token_ids
        seed = self._seeds.getrandbits(64) if params.seed is None else params.seed
        leader: Request | None = None
        numbers = []
        for choice in range(count):
            request = Request(
                request_id=self._next_id,
                prompt_token_ids=prompt,
                params=params,
                seed=seed + choice * _SEED_STEP,
                stop_token_ids=own_stops.union(params.stop_token_ids),
                max_output=room if params.max_tokens is None else min(params.max_tokens, room),
                leader=leader,
                constraint=self._constraint(params),
            )
            leader = leader or request
            self._next_id += 1
            self._texts[request.request_id] = AnswerText(self._tokenizer, params, prompt=prompt)
            with self._steps:
                self._scheduler.add(request)
            numbers.append(request.request_id)
        return numbers

    def abort(self, request_id: int) -> Completion | None:
        """Ends a request and frees its pages; what it had so far, or None if it is not there."""
        request = self._scheduler.requests.get(request_id)
        if request is None:
            return None
        self._texts[request_id].finish()
        with self._steps:
            completion = self._finish(request, "abort")
            self._rest()
        return completion

    def has_unfinished(self) -> bool:
        """Whether step() has something to do; a step in flight always serves a request."""
        return bool(self._scheduler.requests)

    def step(self) -> list[RequestOutput]:
        """Collects one batch; what it added to the requests that got a token."""
        if not self.has_unfinished():
            return []
        with self._steps:
            outputs = [self._append(request, token) for request, token in self._steps.step()]
            self._rest()
        return outputs

    def require_ranks(self) -> None:
        """RankError where a process that shares the model has ended; costs next to nothing."""
        if isinstance(self._runner, LeadingRunner):
            self._runner.require_ranks()

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            used_pages=scheduler.allocator.used,
            total_pages=scheduler.allocator.num_pages,
            admitted_tokens=scheduler.admitted_tokens,
            reused_tokens=scheduler.reused_tokens,
            preemptions=scheduler.preemptions,
        )

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        if params.grammar is None:
            return None
        if self._grammars is None:
            raise RequestError("This model has no tokenizer, so its answers can have no grammar.")
        return self._grammars.compile(params.grammar)

    def _check_tokens(self, name: str, token_ids: Iterable[int]) -> None:
        for token in token_ids:
            whole = isinstance(token, int) and not isinstance(token, bool)
            if not whole or not 0 <= token < self._vocab_size:
                raise RequestError(
                    f"{name}: {token!r} is not a token id of this model, which has ids from 0 to "
                    f"{self._vocab_size - 1}."
                )

    def _rest(self) -> None:
        """When all have ended, a step in flight serves nobody and is not waited for."""
        if not self.has_unfinished():
            self._steps.drop()

    def _append(self, request: Request, sampled: SampledToken) -> RequestOutput:
        """Adds a token to the answer, and ends it where that token says so."""
        answer = self._texts[request.request_id]
        piece, reason = extend_answer(request, answer, sampled)
        return RequestOutput(
            request_id=request.request_id,
            text=piece,
            token_ids=[sampled.token_id],
            logprobs=None if sampled.logprobs is None else [sampled.logprobs],
            completion=None if reason is None else self._finish(request, reason),
        )

    def _finish(self, request: Request, reason: FinishReason) -> Completion:
        request.finish_reason = reason
        self._scheduler.remove(request)
        answer = self._texts.pop(request.request_id)
        return complete_answer(request, answer, reason)
