"""Typed access to a config.json: a field of the wrong kind is an error that names it."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from typing import Any, Final

from awqkit.checkpoint.errors import CheckpointError


class _Required:
    """Marks a field without a default."""


REQUIRED: Final = _Required()
#: Every count of a model is far below. Longer integers are valid JSON, but have no float.
LARGEST_INTEGER = 2**63 - 1


class ConfigFields:
    """Reads fields of one JSON object; `where` names the object in errors.

    A field that is null counts as absent: configurations write null for "the usual".
    """

    def __init__(self, raw: Mapping[str, Any], where: str = "config.json") -> None:
        self._raw = raw
        self._where = where

    def has(self, key: str) -> bool:
        """Whether the key is written at all, be it as null."""
        return key in self._raw

    def get(self, key: str) -> Any:
        return self._raw.get(key)

    def integer(self, key: str, default: int | _Required = REQUIRED) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        if abs(value) > LARGEST_INTEGER:
            raise self._wrong(key, value, "a whole number of 64 bits")
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self.get(key) is None else self.integer(key)

    def number(self, key: str, default: float | _Required = REQUIRED) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        # A whole number of any length is valid JSON, but may have no float.
        if not abs(value) <= sys.float_info.max:
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers; it must be there."""
        values = self._value(key, REQUIRED)
        if not isinstance(values, list):
            raise self._wrong(key, values, "a list of numbers")
        return tuple(ConfigFields({key: value}, self._where).number(key) for value in values)

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | _Required = REQUIRED) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def section(self, key: str) -> Mapping[str, Any]:
        """A nested object; empty where there is none."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is not None:
            return value
        if isinstance(default, _Required):
            raise CheckpointError(
                f"{self._where} has no {key}, which describes the model's shape. "
                "Fetch the file again; a folder of an adapter or a tokenizer alone is no model."
            )
        return default

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where}: {key} is {reprlib.repr(value)}; it must be {wanted}."
        )
