"""From the novels to token arrays: cleaning, conversations, tokenizer, encoding."""

import random
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from dialogues import cut_dialogues
from novels import read_novels
from passages import cut_passages
from scripted import Script, read_script, write_conversations
from tokenizers import Tokenizer
from vocabulary import BOS, EOS, render_conversation, save_tokenizer, train_tokenizer

HERE = Path(__file__).parent
_SCRIPTED_CONVERSATIONS = 10_000
_HELD_OUT_SHARE = 0.02
_SYSTEM_PROMPT_SHARE = 0.15


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """uint16 token streams; `chat_starts` [conversations + 1] (int64) delimits the chat stream."""

    novels: np.ndarray
    chat: np.ndarray
    chat_starts: np.ndarray
    held_out_novels: np.ndarray
    held_out_chat: np.ndarray

    def save(self, path: Path) -> None:
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "TokenData":
        with np.load(path) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})


def prepare(corpus: Path, folder: Path, *, seed: int) -> TokenData:
    """Write tokenizer files and tokens.npz into `folder`.

    The held-out chat holds only conversations cut from held-out pieces: the scripted ones are
    meant to be learned by heart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    split = read_novels(corpus, held_out_share=_HELD_OUT_SHARE, seed=seed)
    script = read_script(HERE / "conversations.txt")
    conversations = _novel_conversations(split.training, script, rng)
    conversations += write_conversations(script, count=_SCRIPTED_CONVERSATIONS, rng=rng)
    rng.shuffle(conversations)
    chat = _render(conversations, script, rng)
    held_out_chat = _render(_novel_conversations(split.held_out, script, rng), script, rng)

    novels = [_document(piece) for piece in split.training]
    tokenizer = train_tokenizer([*novels, *chat])
    save_tokenizer(tokenizer, folder)
    encoded_chat = _encode(tokenizer, chat)
    data = TokenData(
        novels=np.concatenate(_encode(tokenizer, novels)),
        chat=np.concatenate(encoded_chat),
        chat_starts=np.cumsum([0, *map(len, encoded_chat)], dtype=np.int64),
        held_out_novels=np.concatenate(
            _encode(tokenizer, [_document(piece) for piece in split.held_out])
        ),
        held_out_chat=np.concatenate(_encode(tokenizer, held_out_chat)),
    )
    data.save(folder / "tokens.npz")
    return data


def _novel_conversations(
    pieces: list[list[str]], script: Script, rng: random.Random
) -> list[list[str]]:
    subjects = script.fillings["subject"]
    conversations = []
    for piece in pieces:
        conversations += cut_dialogues(piece)
        conversations += cut_passages(piece, subjects=subjects, rng=rng)
    return conversations


def _render(conversations: list[list[str]], script: Script, rng: random.Random) -> list[str]:
    def system_prompt() -> str | None:
        has_one = rng.random() < _SYSTEM_PROMPT_SHARE
        return rng.choice(script.system_prompts) if has_one else None

    return [render_conversation(turns, system_prompt=system_prompt()) for turns in conversations]


def _document(paragraphs: list[str]) -> str:
    return BOS + "\n\n".join(paragraphs) + EOS


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.uint16) for encoding in encodings]
