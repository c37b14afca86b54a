"""Frozen dataclasses from what JSON made of them."""

from __future__ import annotations

import types
from dataclasses import is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_document(cls: type[T], document: dict[str, Any]) -> T:
    """The inverse of dataclasses.asdict and JSON: lists become the tuples that they were.

    Raises KeyError, TypeError or ValueError where the document is of another shape.
    """
    hints = get_type_hints(cls)
    return cls(**{name: _typed(hints[name], value) for name, value in document.items()})


def _typed(hint: Any, value: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        others = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _typed(others[0], value)
    if origin is tuple:
        return tuple(_typed(arguments[0], item) for item in value)
    if origin is dict:
        return {key: _typed(arguments[1], item) for key, item in value.items()}
    if origin is Literal or not is_dataclass(hint):
        return value
    return from_document(hint, value)  # type: ignore[arg-type]
