"""Tokenizer and generation files of a new checkpoint, in the form that any engine loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from awqkit.checkpoint.decoder_config import DecoderConfig
from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.stop_tokens import (
    GENERATION_FILE,
    read_generation_config,
    stop_token_ids,
)
from awqkit.checkpoint.text_tokenizer import TextTokenizer
from awqkit.checkpoint.tokenizer_defaults import NO_DEFAULTS
from awqkit.checkpoint.tokenizer_loading import (
    FAST_FILE,
    SENTENCEPIECE_FILE,
    SLOW_FILES,
    has_tokenizer,
    load_tokenizer,
)
from awqkit.checkpoint.tokenizer_settings import (
    ADDED_TOKENS_FILE,
    CONFIG_FILE,
    NAMED_TOKENS,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
    TEMPLATE_JSON_FILE,
    TEMPLATES_FOLDER,
    TokenizerSettings,
    read_settings,
)

_COPIED = (
    FAST_FILE,
    SENTENCEPIECE_FILE,
    *SLOW_FILES,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    TEMPLATE_FILE,
    TEMPLATE_JSON_FILE,
)
#: The one class name that transformers 4 and 5 both know for a tokenizer.json without own code.
_PLAIN_CLASS = "PreTrainedTokenizerFast"
#: Entries that steer how other code converts a SentencePiece model; here that has been done.
_CONVERSION_KEYS = ("add_prefix_space", "from_slow", "legacy", "sp_model_kwargs", "vocab_file")
#: Names of the same class that only transformers 5 knows.
_NEW_CLASSES = ("TokenizersBackend",)


def carry_tokenizer(source: str | Path, out: str | Path, config: DecoderConfig) -> None:
    """Write a model folder's tokenizer and generation files into another, existing folder.

    Files are copied, except that a lone SentencePiece model gets a tokenizer.json next to it, that
    nothing refers to remote code any more, and that what a family's own code knew is written out
    (chat template, stop tokens). A folder without a tokenizer gives none.
    Raises CheckpointError where a file is damaged; errors of writing are left to the caller.
    """
    source, out = Path(source), Path(out)
    settings = read_settings(source)
    # Loading proves that the files are sound before anything is copied.
    tokenizer = load_tokenizer(source) if has_tokenizer(source) else None
    for name in _COPIED:
        _copy(source / name, out / name)
    for path in sorted((source / TEMPLATES_FOLDER).glob("*.jinja")):
        (out / TEMPLATES_FOLDER).mkdir(exist_ok=True)
        _copy(path, out / TEMPLATES_FOLDER / path.name)
    if tokenizer is not None:
        if not (source / FAST_FILE).is_file():
            # Its own save() reports a full disk as a bare Exception; Python's write as an OSError.
            text = tokenizer.backend.to_str(pretty=True)
            (out / FAST_FILE).write_text(text, encoding="utf-8")
        written = _tokenizer_config(source, settings, tokenizer)
        if written:
            _write_json(out / CONFIG_FILE, written)
    elif settings.raw:
        _write_json(out / CONFIG_FILE, _without_remote_code(settings.raw))
    generation = _generation_config(source, config, settings, tokenizer)
    if generation:
        _write_json(out / GENERATION_FILE, generation)


def _copy(path: Path, target: Path) -> None:
    """Copy a file if it is there. A source that cannot be read is its fault, not the output's."""
    if not path.is_file():
        return
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    shutil.copyfile(path, target)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _without_remote_code(raw: Any) -> dict[str, Any]:
    """tokenizer_config.json as any release of transformers reads it, with its own classes only."""
    config = {key: value for key, value in raw.items() if key != "auto_map"}
    if "auto_map" in raw or config.get("tokenizer_class") in _NEW_CLASSES:
        config["tokenizer_class"] = _PLAIN_CLASS
    if isinstance(config.get("extra_special_tokens"), list):
        # transformers 5 writes a list here, where transformers 4 stops at anything but an object.
        tokens = config.pop("extra_special_tokens")
        config.setdefault("additional_special_tokens", tokens)
    return config


def _tokenizer_config(
    source: Path, settings: TokenizerSettings, tokenizer: TextTokenizer
) -> dict[str, Any]:
    config = _without_remote_code(settings.raw)
    if not (source / FAST_FILE).is_file():
        config = {key: value for key, value in config.items() if key not in _CONVERSION_KEYS}
        config |= _converted_entries(tokenizer)
    if settings.defaults is not NO_DEFAULTS:
        config["tokenizer_class"] = _PLAIN_CLASS
        if settings.chat_template is None and tokenizer.chat_template is not None:
            config["chat_template"] = tokenizer.chat_template
    return config


def _converted_entries(tokenizer: TextTokenizer) -> dict[str, Any]:
    """What a converted tokenizer needs next to its tokenizer.json."""
    added = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in tokenizer.added_tokens.items()
    }
    named = tokenizer.named_tokens
    return {
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        **{role: named[role] for role in NAMED_TOKENS if role in named},
        "tokenizer_class": _PLAIN_CLASS,
    }


def _generation_config(
    source: Path,
    config: DecoderConfig,
    settings: TokenizerSettings,
    tokenizer: TextTokenizer | None,
) -> dict[str, Any]:
    """As the source has it; of a family whose own code knew the stop tokens, with all of them."""
    written = read_generation_config(source)
    stops = stop_token_ids(source, config, tokenizer=tokenizer)
    if tokenizer is None or settings.defaults is NO_DEFAULTS:
        return written
    ids = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    known = {key: value for key, value in ids.items() if value is not None and key not in written}
    return written | known | ({"eos_token_id": list(stops)} if stops else {})
