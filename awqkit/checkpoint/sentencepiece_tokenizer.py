"""A SentencePiece model as a fast tokenizer that gives the same ids and the same text.

Differences that remain: unigram paths whose scores tie in SentencePiece's float32, stacks of
combining marks in unusual order under an NFKC table, several U+2581 typed at the start of a text
where spaces are trimmed (decoding), and byte pieces that form no UTF-8, where the library shows the
whole run of bytes as U+FFFD. Control pieces typed as text become those pieces, as in every fast
tokenizer, while SentencePiece reads them as text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from awqkit.checkpoint.errors import CheckpointError
from awqkit.checkpoint.sentencepiece_model import SPACE_MARK, PieceKind, SentencePieceModel
from awqkit.checkpoint.sentencepiece_normalizer import build_normalizer

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import Decoder
    from tokenizers.models import Model
    from tokenizers.pre_tokenizers import PreTokenizer

#: What SentencePiece adds to a path for each byte of a user-defined symbol after the first.
_SYMBOL_BONUS = 0.1


#: Where a text is cut at added tokens, what gets the space that models put before a text.
Prefixed = Literal["every part", "the first part"]


def build_fast_tokenizer(
    model: SentencePieceModel,
    added: Mapping[int, AddedToken] | None = None,
    *,
    prefixed: Prefixed = "every part",
) -> Tokenizer:
    """Build the `tokenizers` tokenizer that equals a SentencePiece model.

    added: tokens by id that are split off the text before everything else. An id inside the
    vocabulary renames its piece (a reserved one, usually); ids behind it extend the vocabulary
    without gaps. The model's control pieces are added as special tokens too.
    prefixed: SentencePiece itself, given the parts one by one, prefixes every one. Where it is but
    the first, and that begins with a space, none is put before it, as in the transformers library.
    Sequences get no bos or eos here. Raises CheckpointError when names or ids collide.
    """
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import Sequence

    tokens = _special_pieces(model) | dict(added or {})
    names = _names(model, tokens)
    symbols = _user_symbols(model, names)
    tokenizer = Tokenizer(
        _bpe(model, names, symbols) if model.algorithm == "bpe" else _unigram(model, names, symbols)
    )
    if prefixed == "the first part" and model.add_dummy_prefix and model.escape_whitespaces:
        bare = replace(model, add_dummy_prefix=False)
        tokenizer.normalizer = build_normalizer(bare, symbols)
        steps = [_prefix_of_first(), _pre_tokenizer(model, symbols)]
    else:
        tokenizer.normalizer = build_normalizer(model, symbols)
        steps = [_pre_tokenizer(model, symbols)]
    known = [step for step in steps if step is not None]
    if known:
        tokenizer.pre_tokenizer = known[0] if len(known) == 1 else Sequence(known)
    tokenizer.decoder = _decoder(model)
    split_off = [_split_off_first(token) for token in tokens.values()]
    # All of them are in the vocabulary, so the order of adding does not decide their ids.
    tokenizer.add_special_tokens([token for token in split_off if token.special])
    tokenizer.add_tokens([token for token in split_off if not token.special])
    return tokenizer


def _split_off_first(token: AddedToken) -> AddedToken:
    """The token as one that is searched in the text as typed: normalizing could hide it."""
    from tokenizers import AddedToken

    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        special=token.special,
        normalized=False,
    )


def _special_pieces(model: SentencePieceModel) -> dict[int, AddedToken]:
    from tokenizers import AddedToken

    kinds = (PieceKind.CONTROL, PieceKind.UNKNOWN)
    return {
        index: AddedToken(piece.text, special=True, normalized=False)
        for index, piece in enumerate(model.pieces)
        if piece.kind in kinds
    }


def _names(model: SentencePieceModel, tokens: Mapping[int, AddedToken]) -> list[str]:
    """The text of every id, added tokens included."""
    names = [piece.text for piece in model.pieces]
    if model.byte_fallback and "\0" in names and "<0x00>" in names:
        # SentencePiece encodes the null character as its byte piece even where it has a piece of
        # its own. With the two names exchanged, both ids encode and decode as they do there.
        own, byte = names.index("\0"), names.index("<0x00>")
        names[own], names[byte] = names[byte], names[own]
    for index, token in sorted(tokens.items()):
        if index > len(names):
            raise CheckpointError(
                f"The added token {token.content!r} has id {index}, but no token has id "
                f"{len(names)}. Add the missing tokens to added_tokens_decoder in "
                "tokenizer_config.json."
            )
        names[index : index + 1] = [token.content]
    repeated, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise CheckpointError(
            f"The token {repeated!r} has {count} ids, among them {names.index(repeated)}. "
            "Correct added_tokens_decoder in tokenizer_config.json."
        )
    return names


def _user_symbols(model: SentencePieceModel, names: list[str]) -> list[str]:
    """User-defined symbols that no added token renamed, the longest first."""
    symbols = {
        piece.text
        for piece, name in zip(model.pieces, names, strict=False)
        if piece.kind is PieceKind.USER_DEFINED and piece.text == name
    }
    return sorted(symbols, key=lambda symbol: (-len(symbol), symbol))


def _bpe(model: SentencePieceModel, names: list[str], symbols: list[str]) -> Model:
    from tokenizers.models import BPE

    vocabulary = {name: index for index, name in enumerate(names)}
    return BPE(
        vocabulary,
        list(_merges(model, names)),
        unk_token=_unknown_name(model, names),
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=bool(symbols),
    )


def _unknown_name(model: SentencePieceModel, names: list[str]) -> str:
    return names[next(i for i, p in enumerate(model.pieces) if p.kind is PieceKind.UNKNOWN)]


def _merges(model: SentencePieceModel, names: list[str]) -> Iterator[tuple[str, str]]:
    """Every pair that forms a piece, best score first.

    SentencePiece joins any two neighbours whose text is a piece, the highest score first and then
    the leftmost. Only normal pieces take part.
    """
    score = {
        piece.text: piece.score
        for piece, name in zip(model.pieces, names, strict=False)
        if piece.kind is PieceKind.NORMAL and piece.text == name
    }
    for piece in sorted(score, key=lambda text: -score[text]):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in score and right in score:
                yield left, right


def _unigram(model: SentencePieceModel, names: list[str], symbols: list[str]) -> Model:
    from tokenizers.models import Unigram

    normal = {p.text: p.score for p in model.pieces if p.kind is PieceKind.NORMAL}
    worst = min(normal.values(), default=0.0)
    # The library derives the cost of an unknown character from the worst score of all, so what
    # text never gives (control and byte pieces) must not be worse. Unused pieces must lose.
    score = dict.fromkeys(names, worst) | normal
    score |= dict.fromkeys(model.texts(PieceKind.UNUSED), 10 * worst - 100)
    score |= {symbol: (len(symbol.encode()) - 1) * _SYMBOL_BONUS for symbol in symbols}
    return Unigram(
        [(name, score[name]) for name in names],
        unk_id=names.index(_unknown_name(model, names)),
        byte_fallback=model.byte_fallback,
    )


def _prefix_of_first() -> PreTokenizer:
    from tokenizers.pre_tokenizers import Metaspace

    return Metaspace(SPACE_MARK, prepend_scheme="first", split=False)


def _pre_tokenizer(model: SentencePieceModel, symbols: list[str]) -> PreTokenizer | None:
    from tokenizers import Regex, pre_tokenizers

    if model.algorithm == "bpe" and symbols:
        # SentencePiece freezes the longest symbol at each place before it merges anything; cut
        # out, a symbol meets the vocabulary whole (`ignore_merges`).
        pattern = "|".join(re.escape(symbol) for symbol in symbols)
        return pre_tokenizers.Split(Regex(pattern), "isolated")
    if model.algorithm == "unigram" and model.byte_fallback:
        # The library would match "<0x0A>" typed as text against the piece of that byte.
        return pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous")
    return None


def _decoder(model: SentencePieceModel) -> Decoder:
    from tokenizers import decoders

    steps: list[Decoder] = [
        decoders.Replace(SPACE_MARK, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if model.add_dummy_prefix or model.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
