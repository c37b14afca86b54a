"""Finds the calls of tools in an answer that comes piece by piece."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from awqkit_runtime.engine.detokenizer import StopTexts
from awqkit_runtime.serve.tools.formats import ToolFormat


@dataclass(frozen=True, kw_only=True)
class Call:
    name: str
    #: JSON.
    arguments: str


class ToolReader:
    """push() and finish() give texts, at once, and calls, whole.

    What looks like a call but is none is given as the text that it is.
    """

    def __init__(self, format: ToolFormat, *, many: bool) -> None:
        """many: whether calls after the first count; otherwise they are dropped."""
        self._format = format
        self._many = many
        self._opening = StopTexts([format.opening])
        #: The call that has been opened, without its opening.
        self._call: str | None = None
        #: The whole answer while it may be a bare call.
        self._bare: str | None = "" if format.bare else None
        self.calls = 0

    def push(self, piece: str) -> list[str | Call]:
        if self._bare is not None:
            start = (self._bare + piece).lstrip()
            if not start or start.startswith("{"):
                self._bare += piece
                return []
            piece, self._bare = self._bare + piece, None
        found: list[str | Call] = []
        while piece:
            piece = self._advance(piece, found)
        return found

    def finish(self) -> list[str | Call]:
        """What was held back, when nothing more comes."""
        if self._bare is not None:
            bare, self._bare = self._bare, None
            return self._read(bare, bare) if bare else []
        if self._call is not None:
            call, self._call = self._call, None
            return self._read(call, self._format.opening + call)
        rest = self._opening.flush()
        return [rest] if rest else []

    def _advance(self, piece: str, found: list[str | Call]) -> str:
        """Takes a piece up to the next border of a call; what is left of it."""
        if self._call is None:
            held = self._opening.flush()
            text, opened = self._opening.push(held + piece)
            if text and not (self.calls and not text.strip()):
                found.append(text)
            if not opened:
                return ""
            self._call = ""
            return (held + piece)[len(text) + len(self._format.opening) :]
        self._call += piece
        closing = self._format.closing
        if not closing or closing not in self._call:
            return ""
        call, rest = self._call.split(closing, 1)
        self._call = None
        found += self._read(call, self._format.opening + call + closing)
        return rest

    def _read(self, text: str, raw: str) -> list[str | Call]:
        """The calls that a text holds; the raw text where it holds none."""
        calls = parse_calls(text, self._format.arguments_key)
        if not calls:
            return [raw]
        kept = calls if self._many else calls[: max(1 - self.calls, 0)]
        self.calls += len(kept)
        return list(kept)


def parse_calls(text: str, arguments_key: str) -> list[Call]:
    """One or several JSON objects, white space and semicolons between; none if any is wrong."""
    calls = []
    decoder = json.JSONDecoder()
    rest = text.strip()
    while rest:
        try:
            found, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return []
        call = _call(found, arguments_key)
        if call is None:
            return []
        calls.append(call)
        rest = rest[end:].lstrip("; \n\t\r")
    return calls


def _call(found: Any, arguments_key: str) -> Call | None:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    if found.keys() - {"name", "type", "arguments", "parameters"}:
        return None
    arguments = found.get(arguments_key, found.get("arguments", found.get("parameters", {})))
    if not isinstance(arguments, dict):
        return None
    return Call(name=found["name"], arguments=json.dumps(arguments, ensure_ascii=False))
