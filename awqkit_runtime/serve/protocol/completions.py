"""/v1/completions: bodies of requests and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from awqkit_runtime.engine.sampling_params import MAX_LOGPROBS
from awqkit_runtime.serve.protocol.formats import ConstrainedFields
from awqkit_runtime.serve.protocol.sampling import Count, StreamOptions, TokenId, Usage

#: OpenAI's, where a completion says nothing.
DEFAULT_MAX_TOKENS = 16

TokenPrompt = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]


class CompletionRequest(ConstrainedFields):
    prompt: (
        str
        | Annotated[list[str], Field(fail_fast=True, min_length=1)]
        | TokenPrompt
        | Annotated[list[TokenPrompt], Field(fail_fast=True, min_length=1)]
    )
    n: Count | None = None
    max_tokens: Count | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    #: One answer is drawn for each that is given.
    best_of: Literal[1] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        if self.echo and self.logprobs is not None:
            raise ValueError("logprobs of an echoed prompt are not supported; leave one out")
        return self

    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        prompt = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class CompletionBody(BaseModel):
    """A whole answer, or a piece of one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
