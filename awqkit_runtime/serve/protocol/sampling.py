"""Fields that all endpoints share: which model, and how tokens are chosen."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from awqkit_runtime.engine.sampling_params import MAX_LOGIT_BIAS, SamplingParams
from awqkit_runtime.errors import RequestError
from awqkit_runtime.serve.errors import invalid

MAX_STOPS = 16
MAX_STOP_LENGTH = 256
MAX_BIASES = 1024

StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopTexts = Annotated[list[StopText], Field(fail_fast=True, max_length=MAX_STOPS)]
#: Numbers beyond it mean nothing, and have no place in a message.
MAX_NUMBER = 2**31 - 1
TokenId = Annotated[int, Field(ge=0, le=MAX_NUMBER)]
Count = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
Bias = Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]


def at_most(count: int) -> BeforeValidator:
    """For a dict: counts before it looks at entries, of which a million may be wrong."""

    def check(entries: Any) -> Any:
        if isinstance(entries, dict) and len(entries) > count:
            raise ValueError(f"it has {len(entries)} entries, and may have {count}")
        return entries

    return BeforeValidator(check, json_schema_input_type=dict)


#: Keys are token ids; JSON wants them as texts.
LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Bias],
    at_most(MAX_BIASES),
    Field(max_length=MAX_BIASES),
]

_SAMPLING_NAMES = {field.name for field in fields(SamplingParams)}


class RequestModel(BaseModel):
    """A body whose every field means something: unknown ones are refused by name.

    Of what is wrong only the first is told: lists fail fast, and one unknown field stands for
    all, or a large body could have millions of errors, and keep the server busy with them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_unknown_nulls(cls, body: Any) -> Any:
        """What is null is not asked for, so nothing is lost with it."""
        if not isinstance(body, dict):
            return body
        require_characters(body)
        names = {field.alias or name for name, field in cls.model_fields.items()}
        known = {key: value for key, value in body.items() if key in names}
        unknown = ((k, value) for k, value in body.items() if k not in names and value is not None)
        return known | dict(islice(unknown, 1))


def require_characters(body: Any) -> None:
    """ValueError for a text with half a surrogate pair, which JSON can hold and no text is."""
    rest = [body]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    "a text has half a surrogate pair, which is no character"
                ) from None
        elif isinstance(value, dict):
            rest += [*value, *value.values()]
        elif isinstance(value, list):
            rest += value


class SamplingFields(RequestModel):
    """What is null or absent is as the model's generation_config.json wants it."""

    model: str
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_NUMBER)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    logit_bias: LogitBias | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopText | StopTexts | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_STOPS)] | None = (
        None
    )
    min_tokens: int | None = Field(default=None, ge=0, le=MAX_NUMBER)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    #: Who asks; of no use here.
    user: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    def sampling(self, defaults: SamplingParams, **more: Any) -> SamplingParams:
        """The engine's parameters: what is given here over `defaults`. ApiError if they clash."""
        given = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if name in _SAMPLING_NAMES and name not in more
        }
        if self.logit_bias is not None:
            given["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        wishes = {name: value for name, value in given.items() if value is not None}
        try:
            return replace(defaults, **(wishes | more))
        except RequestError as error:
            raise invalid(str(error)) from error


class StreamOptions(RequestModel):
    #: A last event, without choices, that counts the tokens.
    include_usage: bool | None = None


def wants_usage(options: StreamOptions | None) -> bool:
    return options is not None and bool(options.include_usage)


class PromptTokensDetails(BaseModel):
    #: Found in the cache.
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
