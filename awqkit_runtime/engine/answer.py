"""What a new token makes of an answer, and what an answer is at its end."""

from __future__ import annotations

from awqkit_runtime.engine.answer_text import AnswerText
from awqkit_runtime.engine.request import Completion, FinishReason, Request
from awqkit_runtime.engine.sampler import SampledToken


def extend_answer(
    request: Request, answer: AnswerText, sampled: SampledToken
) -> tuple[str, FinishReason | None]:
    """(the text that is sure with this token, why the answer ends with it; None: it goes on)."""
    token = sampled.token_id
    request.output_token_ids.append(token)
    if sampled.logprobs is not None:
        request.output_logprobs.append(sampled.logprobs)
    piece = "" if token in request.stop_token_ids else answer.push(token)
    reason = _reason_to_end(request, answer, token)
    if reason is None:
        return piece, None
    piece += answer.finish()
    return piece, "stop" if answer.stopped else reason


def complete_answer(request: Request, answer: AnswerText, reason: FinishReason) -> Completion:
    return Completion(
        text=answer.text,
        token_ids=list(request.output_token_ids),
        finish_reason=reason,
        prompt_token_ids=list(request.prompt_token_ids),
        logprobs=None if request.params.logprobs is None else list(request.output_logprobs),
        reused_tokens=request.reused_tokens,
    )


def _reason_to_end(request: Request, answer: AnswerText, token: int) -> FinishReason | None:
    constraint = request.constraint
    if constraint is not None:
        constraint.accept(token)
        if constraint.failed:
            return "error"
    if token in request.stop_token_ids or answer.stopped:
        return "stop"
    if constraint is not None and constraint.complete:
        return "stop"
    return "length" if len(request.output_token_ids) >= request.max_output else None
