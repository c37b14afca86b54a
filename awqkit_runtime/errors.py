"""Errors of the runtime that a user can mend; the checkpoint's own are re-exported."""

from awqkit.checkpoint.errors import (
    AwqkitError,
    CheckpointError,
    ConversationError,
    OutputError,
    TextError,
    UnsupportedModelError,
)


class ConfigError(AwqkitError, ValueError):
    """An engine setting is out of range, malformed or contradicts the model or the machine."""


class RequestError(AwqkitError, ValueError):
    """A request that this engine can never serve: too long, empty, or with bad parameters."""


class NumericsError(AwqkitError):
    """The numbers of a model left the range of its dtype."""


class ServerError(AwqkitError):
    """A server that cannot be reached, refuses a request or breaks off an answer."""


class StressError(AwqkitError):
    """An engine under load did not keep what it promises."""


class RankError(AwqkitError):
    """One of the processes that share a model is gone."""


class OutOfMemoryError(AwqkitError):
    """Weights, workspace or cache do not fit into the memory there is."""


__all__ = [
    "AwqkitError",
    "CheckpointError",
    "ConfigError",
    "ConversationError",
    "NumericsError",
    "OutOfMemoryError",
    "OutputError",
    "RankError",
    "RequestError",
    "ServerError",
    "StressError",
    "TextError",
    "UnsupportedModelError",
]
