"""From the records of a data set to documents: which field holds the text, and how chats are read.

A record may be a string, an object with a text field, an object whose question and answer lie in
two fields, or a conversation, as `messages` (role, content) or `conversations` (from, value).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from awqkit.errors import CalibrationError

Message = dict[str, str]
RenderChat = Callable[[Sequence[Message]], str]

TEXT_FIELDS = ("text", "content", "document", "article", "passage", "body")
CHAT_FIELDS = ("messages", "conversations", "conversation")
# The first and the last of a group must be there; what stands between them may be missing.
FIELD_GROUPS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "input", "output"),
    ("question", "answer"),
)
KNOWN_FIELDS = frozenset(
    (*TEXT_FIELDS, *CHAT_FIELDS, *(field for group in FIELD_GROUPS for field in group))
)

RECORDS_BEFORE_GIVING_UP = 1000
_SHOWN_FIELDS = 20
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}


def text_columns(names: Sequence[str]) -> list[str]:
    """Of a table's columns those that hold text; all of them where these do not make a document."""
    whole = any(name in names for name in (*TEXT_FIELDS, *CHAT_FIELDS))
    whole = whole or any(group[0] in names and group[-1] in names for group in FIELD_GROUPS)
    return [name for name in names if name in KNOWN_FIELDS] if whole else list(names)


def documents_in(records: Iterable[Any], *, name: str, render_chat: RenderChat) -> Iterator[str]:
    """The non-blank texts of the records; `name` is what errors call the data set.

    A record without text is passed over as long as others have some.

    Raises:
        CalibrationError: no record has text, or none of the first thousand.
    """
    seen_fields: dict[str, None] = {}
    found = False
    for number, record in enumerate(records):
        text = text_of(record, render_chat=render_chat)
        if text is not None:
            found = True
            if text.strip():
                yield text
        elif not found:
            seen_fields.update(dict.fromkeys(_fields_of(record)))
            if number >= RECORDS_BEFORE_GIVING_UP:
                break
    if not found and seen_fields:
        raise _no_text_field(name, list(seen_fields))


def text_of(record: Any, *, render_chat: RenderChat) -> str | None:
    """The text of one record, blank where its text fields are; None where it has none of them."""
    blank = None
    for text in _candidate_texts(record, render_chat):
        if text.strip():
            return text
        blank = text
    return blank


def _candidate_texts(record: Any, render_chat: RenderChat) -> Iterator[str]:
    if isinstance(record, str):
        yield record
    if isinstance(record, list):
        yield from _chat_texts(record, render_chat)
    if not isinstance(record, dict):
        return
    for field in TEXT_FIELDS:
        if field in record and isinstance(record[field], str | None):
            yield record[field] or ""
    for field in CHAT_FIELDS:
        yield from _chat_texts(record.get(field), render_chat)
    for group in FIELD_GROUPS:
        yield from _group_texts(record, group)


def _group_texts(record: dict[str, Any], group: tuple[str, ...]) -> Iterator[str]:
    if isinstance(record.get(group[0]), str) and isinstance(record.get(group[-1]), str):
        parts = (record.get(field) for field in group)
        yield "\n".join(part for part in parts if isinstance(part, str) and part)


def _chat_texts(value: Any, render_chat: RenderChat) -> Iterator[str]:
    if isinstance(value, list):
        messages = [message for turn in value if (message := _message(turn)) is not None]
        if messages:
            yield render_chat(messages)


def _message(turn: Any) -> Message | None:
    if not isinstance(turn, dict):
        return None
    role = turn.get("role", turn.get("from"))
    content = _content_text(turn.get("content", turn.get("value")))
    if not isinstance(role, str) or not content:
        return None
    return {"role": _ROLES.get(role, role), "content": content}


def _content_text(content: Any) -> str | None:
    """A message's text; of a content that is a list of parts (text, images, …), its text parts."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else None


def _fields_of(record: Any) -> list[str]:
    if isinstance(record, dict):
        named = [f"{str(name)[:40]} ({type(value).__name__})" for name, value in record.items()]
        return named or ["(an empty object)"]
    return [f"(a bare {type(record).__name__})"]


def _no_text_field(name: str, seen: list[str]) -> CalibrationError:
    shown = ", ".join(seen[:_SHOWN_FIELDS]) + (", …" if len(seen) > _SHOWN_FIELDS else "")
    groups = ", ".join(" + ".join(group) for group in FIELD_GROUPS)
    return CalibrationError(
        f"The calibration data {name} has no text field; the fields seen are: {shown}. Text is "
        f"taken from {', '.join(TEXT_FIELDS)}, {', '.join(CHAT_FIELDS)}, or {groups}. Rename the "
        'field that holds your text, or write each document as {"text": "..."} on a line of a '
        ".jsonl file."
    )
