"""/v1/models, /health, /tokenize: bodies."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from awqkit_runtime.serve.protocol.chat import Messages
from awqkit_runtime.serve.protocol.sampling import RequestModel


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "awqkit"
    #: Tokens of prompt and answer together.
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class TokenizeRequest(RequestModel):
    """Either a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None


class Tokens(BaseModel):
    tokens: list[int]
    count: int
    #: Tokens of prompt and answer together, at most.
    max_model_len: int
