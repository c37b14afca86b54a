"""Token ids of a text file, to measure on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from awqkit.calibration.chat_text import chat_renderer
from awqkit.calibration.sources import open_source
from awqkit.checkpoint.tokenizer import load_tokenizer

#: Of a file of documents, so many are read, in a seeded order.
DOCUMENTS = 40


def text_ids(model: Path, text: Path, *, tokens: int) -> Tensor:
    """int64 [tokens], or fewer where there are no more: a .txt from its beginning, or documents."""
    tokenizer = load_tokenizer(model)
    if text.suffix == ".txt":
        content = text.read_text(encoding="utf-8")
    else:
        source = open_source(str(text), render_chat=chat_renderer(tokenizer))
        content = "\n\n".join(islice(source.documents(0), DOCUMENTS))
    return torch.tensor(tokenizer.encode(content)[:tokens])
