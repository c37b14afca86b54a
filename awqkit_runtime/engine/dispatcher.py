"""Lets each caller follow its own requests while every step serves all of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence

from awqkit_runtime.engine.engine import Engine
from awqkit_runtime.engine.request import Completion, RequestOutput
from awqkit_runtime.engine.sampling_params import SamplingParams


class Dispatcher:
    """Around an engine: generators may be read in any order and from any thread, or given up."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._outputs: dict[int, deque[RequestOutput]] = {}
        #: Held by the thread that uses the engine, which serves one at a time.
        self._turn = threading.RLock()

    def follow(
        self, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> Generator[RequestOutput]:
        """Outputs of one request, the last with its completion; closing it aborts the request.

        RequestError, at the first output, for a request that can never be served.
        """
        number = self._submit(prompt_token_ids, params)
        try:
            yield from self._outputs_of(number)
        finally:
            self._drop(number)

    def complete(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[Completion]:
        """All prompts at once; completions in their order.

        RequestError, before anything is computed, if one of them can never be served.
        """
        numbers: list[int] = []
        try:
            for prompt, one in zip(prompts, params, strict=True):
                numbers.append(self._submit(prompt, one))
            done = [
                output.completion
                for number in numbers
                for output in self._outputs_of(number)
                if output.completion is not None
            ]
        finally:
            for number in numbers:
                self._drop(number)
        return done

    def _submit(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> int:
        with self._turn:
            number = self.engine.add_request(prompt_token_ids, params)
            self._outputs[number] = deque()
        return number

    def _outputs_of(self, number: int) -> Generator[RequestOutput]:
        own = self._outputs[number]
        while True:
            while own:
                output = own.popleft()
                yield output
                if output.completion is not None:
                    return
            with self._turn:
                if not own:  # Another thread's step may have served this request, too.
                    self._step()

    def _step(self) -> None:
        for output in self.engine.step():
            if output.request_id in self._outputs:
                self._outputs[output.request_id].append(output)

    def _drop(self, number: int) -> None:
        with self._turn:
            self.engine.abort(number)
            self._outputs.pop(number, None)
