"""A model folder's tokenizer, from either of the two forms that are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.sentencepiece_model import (
    PieceKind,
    SentencePieceModel,
    read_sentencepiece,
)
from awqkit.checkpoint.sentencepiece_tokenizer import Prefixed, build_fast_tokenizer
from awqkit.checkpoint.text_tokenizer import TextTokenizer
from awqkit.checkpoint.tokenizer_settings import NAMED_TOKENS, TokenizerSettings, read_settings

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

FAST_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
#: Vocabularies that only a model's own Python code can read rightly.
SLOW_FILES = ("vocab.json", "merges.txt", "vocab.txt", "tekken.json", "qwen.tiktoken")


def load_tokenizer(folder: str | Path) -> TextTokenizer:
    """Load the tokenizer of a model folder, chat template included.

    tokenizer.json is taken as it is; a lone SentencePiece tokenizer.model is converted. No code
    from the folder runs and nothing is downloaded. Raises CheckpointError when the folder has
    neither file, or one that is damaged.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if (folder / FAST_FILE).is_file():
        backend = _read_fast(folder / FAST_FILE)
        _heed_explicit_flags(backend, settings)
        return _with_tokens(backend, settings, settings.named, _told_besides(backend, settings))
    if (folder / SENTENCEPIECE_FILE).is_file():
        return _convert(folder / SENTENCEPIECE_FILE, settings)
    raise _no_tokenizer(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether load_tokenizer has something to load."""
    return any((folder / name).is_file() for name in (FAST_FILE, SENTENCEPIECE_FILE))


def _no_tokenizer(folder: Path) -> CheckpointError:
    found = [name for name in SLOW_FILES if (folder / name).is_file()]
    there = f" (only {' and '.join(found)}, which no fast tokenizer is made of here)"
    return CheckpointError(
        f"{folder} has no tokenizer: looked for {FAST_FILE} and {SENTENCEPIECE_FILE}"
        f"{there if found else ''}. Put one of them into the folder; the transformers library "
        f"writes {FAST_FILE} when it saves a fast tokenizer."
    )


def _read_fast(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(path))
    # The library raises no narrower class than this.
    except Exception as error:
        raise CheckpointError(
            f"{path} is no tokenizer that the tokenizers library can read ({error}). The file is "
            "damaged, or made by a newer release: fetch it again, or upgrade `tokenizers`."
        ) from error
    # Some files ask for what training needed.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _convert(path: Path, settings: TokenizerSettings) -> TextTokenizer:
    model = read_sentencepiece(path)
    added = _reserved_tokens(model, settings) | dict(settings.added)
    prefixed: Prefixed = "every part" if settings.prefixes_parts else "the first part"
    backend = build_fast_tokenizer(model, added, prefixed=prefixed)
    named = _model_names(model) | {
        role: text
        for role, text in settings.defaults.named_tokens.items()
        if backend.token_to_id(text) is not None
    }
    named |= settings.named
    # SentencePiece models mark the start of a text and not its end, unless told otherwise.
    bos = named.get("bos_token") if settings.add_bos in (True, None) else None
    _surround(backend, bos, named.get("eos_token") if settings.add_eos else None)
    return _with_tokens(backend, settings, named, added={})


def _model_names(model: SentencePieceModel) -> dict[str, str]:
    names = {
        "bos_token": model.bos,
        "eos_token": model.eos,
        "unk_token": model.unknown,
        "pad_token": model.pad,
    }
    return {role: text for role, text in names.items() if text is not None}


def _reserved_tokens(
    model: SentencePieceModel, settings: TokenizerSettings
) -> dict[int, AddedToken]:
    """Names for reserved pieces that the folder leaves unnamed and does not use as they are."""
    from tokenizers import AddedToken

    template = str(settings.chat_template or "")
    return {
        index: AddedToken(name, special=True, normalized=False)
        for index, name in settings.defaults.reserved_names.items()
        if index < len(model.pieces)
        and model.pieces[index].kind is PieceKind.USER_DEFINED
        and model.pieces[index].text not in template
    }


def _heed_explicit_flags(backend: Tokenizer, settings: TokenizerSettings) -> None:
    """Let add_bos_token and add_eos_token of tokenizer_config.json win over tokenizer.json.

    The classes of the transformers library that know these flags treat them so.
    """
    bos, eos = settings.named.get("bos_token"), settings.named.get("eos_token")
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a").ids
    adds_bos = bos is not None and whole[:1] == [backend.token_to_id(bos)] and whole != plain
    adds_eos = eos is not None and whole[-1:] == [backend.token_to_id(eos)] and whole != plain
    wants_bos = bos is not None and (adds_bos if settings.add_bos is None else settings.add_bos)
    wants_eos = eos is not None and (adds_eos if settings.add_eos is None else settings.add_eos)
    if (wants_bos, wants_eos) != (adds_bos, adds_eos):
        _surround(backend, bos if wants_bos else None, eos if wants_eos else None)


def _surround(backend: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Put bos before and eos behind every encoded text; None for nothing."""
    from tokenizers.processors import TemplateProcessing

    ends = {text: _known_id(backend, text) for text in (bos, eos) if text is not None}
    first, last = ([bos] if bos else []), ([eos] if eos else [])
    backend.post_processor = TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B:1", *last],
        special_tokens=list(ends.items()),
    )


def _known_id(backend: Tokenizer, text: str) -> int:
    index = backend.token_to_id(text)
    if index is None:
        raise CheckpointError(
            f"tokenizer_config.json names the token {text!r}, which the vocabulary lacks. "
            "Correct bos_token and eos_token, or fetch the tokenizer's files again."
        )
    return int(index)


def _told_besides(backend: Tokenizer, settings: TokenizerSettings) -> Mapping[int, AddedToken]:
    """Tokens of the other files; added_tokens.json tells no flags, so tokenizer.json's stay."""
    if settings.has_flags:
        return settings.added
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    return {id_: token for id_, token in settings.added.items() if token.content not in present}


def _with_tokens(
    backend: Tokenizer,
    settings: TokenizerSettings,
    named: Mapping[str, str],
    added: Mapping[int, AddedToken],
) -> TextTokenizer:
    """With all tokens that the folder tells of, those that the vocabulary lacks at its end."""
    backend.add_tokens(list(_missing_tokens(backend, settings, named, added)))
    return TextTokenizer(
        backend=backend,
        named_tokens=dict(named),
        chat_template=settings.chat_template or _default_template(backend, settings),
    )


def _missing_tokens(
    backend: Tokenizer,
    settings: TokenizerSettings,
    named: Mapping[str, str],
    added: Mapping[int, AddedToken],
) -> Iterator[AddedToken]:
    """Those that the backend does not have, or not with these flags, in the order of their ids."""
    from tokenizers import AddedToken

    present = list(backend.get_added_tokens_decoder().values())
    # Tokens are equal whatever their flags are; their representations are not.
    flagged = {repr(token) for token in present}
    told = present + [token for _, token in sorted(added.items())]
    by_text = {token.content: token for token in told}
    for text, token in by_text.items():
        # What has a role is special, whatever the files say.
        wanted = _as_special(token) if text in named.values() else token
        if repr(wanted) not in flagged:
            yield wanted
    in_order = (named[role] for role in NAMED_TOKENS if role in named)
    for text in dict.fromkeys((*in_order, *settings.extra_special)):
        if text not in by_text:
            yield AddedToken(text, special=True)


def _as_special(token: AddedToken) -> AddedToken:
    from tokenizers import AddedToken

    flags = {flag: getattr(token, flag) for flag in ("lstrip", "rstrip", "single_word")}
    return AddedToken(token.content, special=True, normalized=token.normalized, **flags)


def _default_template(backend: Tokenizer, settings: TokenizerSettings) -> str | None:
    """The family's template, where the vocabulary has the tokens that it writes."""
    names = settings.defaults.reserved_names.values()
    known = all(backend.token_to_id(name) is not None for name in names)
    return settings.defaults.chat_template if known else None
