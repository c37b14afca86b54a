"""What a model folder's files say about its tokenizer, apart from the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.json_file import read_json_object
from awqkit.checkpoint.tokenizer_defaults import TokenizerDefaults, find_defaults

if TYPE_CHECKING:
    from tokenizers import AddedToken

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_JSON_FILE = "chat_template.json"
TEMPLATES_FOLDER = "additional_chat_templates"

#: In the order in which the transformers library gives ids to those that a vocabulary lacks.
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_PASSED_ON: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "model_max_length": (int, float),
        "clean_up_tokenization_spaces": (bool,),
    }
)


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    #: tokenizer_config.json as it is; empty without one.
    raw: Mapping[str, Any]
    #: Token texts by their role, such as bos_token.
    named: Mapping[str, str]
    #: Tokens by id, from added_tokens_decoder or added_tokens.json.
    added: Mapping[int, AddedToken]
    #: Whether those come with their flags, which added_tokens.json does not tell.
    has_flags: bool
    #: Further special tokens, without a role.
    extra_special: tuple[str, ...]
    #: One template, or several by name; None without any.
    chat_template: str | dict[str, str] | None
    add_bos: bool | None
    add_eos: bool | None
    #: Of a SentencePiece model: whether the parts between added tokens each begin with its space.
    prefixes_parts: bool
    #: Keyword arguments of the transformers class.
    options: Mapping[str, Any]
    defaults: TokenizerDefaults


def read_settings(folder: Path) -> TokenizerSettings:
    """Read the settings of a model folder, none of whose files must exist.

    `auto_map` and with it all remote code is ignored. Raises CheckpointError where a file is
    damaged or a field has the wrong type.
    """
    raw = _optional_json(folder / CONFIG_FILE)
    special_map = _optional_json(folder / SPECIAL_TOKENS_FILE)
    # transformers reads the older files only where the newer field is absent.
    modern = "added_tokens_decoder" in raw
    sources = [(raw, CONFIG_FILE), (special_map, SPECIAL_TOKENS_FILE)]
    if not modern:
        sources.reverse()
    named = _named_tokens(sources)
    extra_special = _extra_special(sources)
    special = {*named.values(), *extra_special}
    return TokenizerSettings(
        raw=raw,
        named=named,
        added=_decoder_tokens(raw) if modern else _listed_tokens(folder, special),
        has_flags=modern,
        extra_special=extra_special,
        chat_template=_chat_template(folder, raw),
        add_bos=_typed(raw, "add_bos_token", (bool,)),
        add_eos=_typed(raw, "add_eos_token", (bool,)),
        # The name that transformers gave to what SentencePiece does.
        prefixes_parts=_typed(raw, "legacy", (bool,)) is not False,
        options={
            key: value
            for key, types in _PASSED_ON.items()
            if (value := _typed(raw, key, types)) is not None
        },
        defaults=find_defaults(folder, raw),
    )


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _fault(file: str, what: str) -> CheckpointError:
    return CheckpointError(f"{file}: {what}. Correct the entry, or fetch the file again.")


def _typed(raw: Mapping[str, Any], key: str, types: tuple[type, ...]) -> Any:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        expected = " or ".join(sorted(kind.__name__ for kind in types))
        raise _fault(CONFIG_FILE, f"{key} is {value!r}; it must be of type {expected}")
    return value


def _text_of(value: Any, key: str, file: str) -> str:
    """A token as a text, from either of its forms: the text itself or an object that holds it."""
    text = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(text, str) or not text:
        raise _fault(file, f"{key} is {value!r}; it must be a token's text")
    return text


def _named_tokens(sources: list[tuple[dict[str, Any], str]]) -> dict[str, str]:
    named: dict[str, str] = {}
    for document, file in reversed(sources):
        for role in NAMED_TOKENS:
            if document.get(role) is not None:
                named[role] = _text_of(document[role], role, file)
    return named


def _extra_special(sources: list[tuple[dict[str, Any], str]]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for document, file in sources:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            value = document.get(key) or ()
            tokens = list(value.values()) if isinstance(value, Mapping) else value
            if not isinstance(tokens, list | tuple):
                raise _fault(file, f"{key} is {value!r}; it must be a list of tokens")
            found |= dict.fromkeys(_text_of(token, key, file) for token in tokens)
    return tuple(found)


def _decoder_tokens(raw: Mapping[str, Any]) -> dict[int, AddedToken]:
    from tokenizers import AddedToken

    key = "added_tokens_decoder"
    entries = raw[key]
    if not isinstance(entries, Mapping):
        raise _fault(CONFIG_FILE, f"{key} must map ids to tokens")
    tokens = {}
    for index, entry in entries.items():
        if not index.isdecimal() or not isinstance(entry, Mapping):
            raise _fault(CONFIG_FILE, f"{key} must map ids to tokens, not {index!r} to {entry!r}")
        flags = {
            flag: bool(entry.get(flag, False))
            for flag in ("lstrip", "rstrip", "single_word", "special", "normalized")
        }
        tokens[int(index)] = AddedToken(_text_of(entry, f"{key}[{index}]", CONFIG_FILE), **flags)
    return tokens


def _listed_tokens(folder: Path, special: set[str]) -> dict[int, AddedToken]:
    from tokenizers import AddedToken

    tokens = {}
    for text, index in _optional_json(folder / ADDED_TOKENS_FILE).items():
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise _fault(ADDED_TOKENS_FILE, f"the id of {text!r} is {index!r}")
        is_special = text in special
        tokens[index] = AddedToken(text, special=is_special, normalized=not is_special)
    return tokens


def _chat_template(folder: Path, raw: Mapping[str, Any]) -> str | dict[str, str] | None:
    """Template files win over the configuration's entry."""
    templates: dict[str, str] = {}
    if (folder / TEMPLATE_FILE).is_file():
        templates["default"] = _read_text(folder / TEMPLATE_FILE)
    for path in sorted((folder / TEMPLATES_FOLDER).glob("*.jinja")):
        templates[path.stem] = _read_text(path)
    if templates:
        return templates["default"] if set(templates) == {"default"} else templates
    value, file = raw.get("chat_template"), CONFIG_FILE
    if value is None:
        file = TEMPLATE_JSON_FILE
        value = _optional_json(folder / file).get("chat_template")
    if isinstance(value, list):
        value = _template_list(value, file)
    if value is not None and not isinstance(value, str | dict):
        raise _fault(file, f"chat_template is of type {type(value).__name__}, not a text")
    return value or None


def _template_list(entries: list[Any], file: str) -> dict[str, str]:
    templates: dict[str, str] = {}
    for entry in entries:
        name, text = (
            (entry.get("name"), entry.get("template"))
            if isinstance(entry, Mapping)
            else (None, None)
        )
        if not isinstance(name, str) or not isinstance(text, str):
            raise _fault(file, "each chat_template needs a name and a template")
        templates[name] = text
    return templates


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text. Fetch the file again.") from error
