"""What the endpoints share: the engine, the tokenizer, the limits, the figures."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from awqkit_runtime.serve.config import ServeConfig
from awqkit_runtime.serve.errors import ApiError
from awqkit_runtime.serve.limits import Admission
from awqkit_runtime.serve.metrics import Metrics
from awqkit_runtime.serve.prompts import PromptEncoder
from awqkit_runtime.serve.token_texts import TokenTexts
from awqkit_runtime.serve.tools.formats import ToolFormat
from awqkit_runtime.serve.worker.client import EngineClient


@dataclass(frozen=True, kw_only=True)
class Service:
    config: ServeConfig
    model_name: str
    engine: EngineClient
    encoder: PromptEncoder
    admission: Admission
    metrics: Metrics
    token_texts: TokenTexts
    #: How the model writes calls of tools; None where it knows none.
    tool_format: ToolFormat | None
    #: Seconds since the epoch.
    created: int = field(default_factory=lambda: int(time.time()))

    def require_model(self, name: str) -> None:
        """ApiError for a model that is not served here."""
        if name != self.model_name:
            raise ApiError(
                404,
                f"The model {name!r} does not exist here; this server has {self.model_name!r}.",
                param="model",
                code="model_not_found",
            )

    def require_choices(self, count: int, *, param: str) -> None:
        """ApiError for more answers than one request may have."""
        if count > self.config.max_choices:
            raise ApiError(
                400,
                f"The request wants {count} answers (n times prompts); this server gives at most "
                f"{self.config.max_choices} to one request.",
                param=param,
            )
