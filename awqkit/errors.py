"""Every error that awqkit raises for a user's mistake, in one place to import from."""

from awqkit.checkpoint.errors import (
    AwqkitError,
    CheckpointError,
    ConversationError,
    OutputError,
    ResumeError,
    TextError,
    UnsupportedModelError,
)


class CalibrationError(AwqkitError):
    """The calibration text is missing, unreadable or too short, or its options do not fit."""


class ConfigError(AwqkitError):
    """A setting has a value that nothing here can do."""


class QuantizationError(AwqkitError):
    """The model cannot be quantized as asked, and nothing was written."""


__all__ = [
    "AwqkitError",
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "ConversationError",
    "OutputError",
    "QuantizationError",
    "ResumeError",
    "TextError",
    "UnsupportedModelError",
]
