"""Errors that a user can mend: each names the object, the cause and the cure."""


class AwqkitError(Exception):
    """Base of every error that a command prints as one paragraph, with exit code 1."""

    exit_code = 1


class CheckpointError(AwqkitError):
    """A model folder or one of its files is missing, damaged or inconsistent."""


class UnsupportedModelError(CheckpointError):
    """The model is sound, but of a family or with a feature that is not known here."""


class OutputError(AwqkitError):
    """The result cannot be written: the folder is taken, the disk is full, no permission."""


class ResumeError(OutputError):
    """A stopped conversion that cannot be gone on with, or not without being asked to."""


class ConversationError(AwqkitError, ValueError):
    """A conversation that a model's chat template cannot render."""


class TextError(AwqkitError):
    """A text that cannot be read, is not UTF-8, or is too short to be scored."""
