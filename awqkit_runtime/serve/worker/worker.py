"""Turns messages into steps of an engine, and its steps into messages."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from awqkit_runtime.engine.grammar import Grammar
from awqkit_runtime.engine.request import RequestOutput
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import NumericsError, RequestError
from awqkit_runtime.serve.worker.mailbox import Mailbox
from awqkit_runtime.serve.worker.messages import (
    Abort,
    Piece,
    Refused,
    Stats,
    Step,
    Submit,
    ToEngine,
)

if TYPE_CHECKING:
    from awqkit_runtime.engine.engine import Engine

#: How often an engine without work looks whether its ranks are there.
_LOOK_SECONDS = 1.0


class Worker:
    """Keeps the engine stepping while there is work, and knows whose output is whose."""

    def __init__(self, engine: Engine, mailbox: Mailbox) -> None:
        self._engine = engine
        self._mailbox = mailbox
        #: Engine's request -> (HTTP side's request, choice), and back.
        self._owners: dict[int, tuple[int, int]] = {}
        self._choices: dict[int, list[int]] = {}

    def serve(self) -> None:
        """For good; RankError where a rank that shares the model ends."""
        while True:
            if not self._engine.has_unfinished():
                self._handle(self._next())
            for message in self._mailbox.arrived():
                self._handle(message)
            self._step()

    def _next(self) -> ToEngine:
        """Waits for it; RankError where a rank ends meanwhile."""
        while (message := self._mailbox.wait(_LOOK_SECONDS)) is None:
            self._engine.require_ranks()
        return message

    def _handle(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self._submit(message)
        elif isinstance(message, Abort):
            self._abort(message.request)

    def _submit(self, message: Submit) -> None:
        numbers = self._choices.setdefault(message.request, [])
        try:
            params = _sampling_params(message.params)
            for prompt in message.prompts:
                numbers += self._engine.add_choices(prompt, params, message.choices)
        except RequestError as error:
            self._abort(message.request)
            self._mailbox.send(Refused(request=message.request, message=str(error), invalid=True))
            return
        for choice, number in enumerate(numbers):
            self._owners[number] = (message.request, choice)

    def _abort(self, request: int) -> None:
        for number in self._choices.pop(request, ()):
            self._engine.abort(number)
            self._owners.pop(number, None)

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except NumericsError as error:
            outputs = []
            self._give_up(str(error))
        pieces = [self._piece(output) for output in outputs]
        self._mailbox.send(Step(pieces=pieces, stats=Stats(**asdict(self._engine.stats()))))

    def _give_up(self, message: str) -> None:
        """Ends all requests: which of them broke the step is not known."""
        for request in list(self._choices):
            self._abort(request)
            self._mailbox.send(Refused(request=request, message=message, invalid=False))

    def _piece(self, output: RequestOutput) -> Piece:
        request, choice = self._owners[output.request_id]
        piece = Piece(
            request=request,
            choice=choice,
            text=output.text,
            token_ids=output.token_ids,
            logprobs=output.logprobs,
        )
        if output.completion is not None:
            piece.finish_reason = output.completion.finish_reason
            piece.cached_tokens = output.completion.reused_tokens
            self._forget(output.request_id)
        return piece

    def _forget(self, number: int) -> None:
        request, _ = self._owners.pop(number)
        rest = [other for other in self._choices[request] if other != number]
        if rest:
            self._choices[request] = rest
        else:
            del self._choices[request]


def _sampling_params(fields: dict[str, Any]) -> SamplingParams:
    """SamplingParams as asdict() took them apart."""
    grammar = fields["grammar"]
    return SamplingParams(**fields | {"grammar": None if grammar is None else Grammar(**grammar)})
