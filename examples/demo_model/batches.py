"""Random training rows from the token streams."""

import numpy as np
import torch
from prepare import TokenData
from torch import Tensor
from vocabulary import BOS, CONTEXT_LENGTH, token_id

CHAT_ROW_LENGTH = 512


class Batches:
    """Rows are one token longer than the context they train: inputs and targets overlap."""

    def __init__(self, data: TokenData, *, device: torch.device, seed: int) -> None:
        self._device = device
        self._novels = to_tokens(data.novels, device)
        self._chat = to_tokens(data.chat, torch.device("cpu"))
        self._chat_starts = data.chat_starts
        self._torch_rng = torch.Generator(device).manual_seed(seed)
        self._numpy_rng = np.random.default_rng(seed)

    def novels(self, rows: int) -> Tensor:
        """Crops [rows, CONTEXT_LENGTH + 1] at random places; every other one begins with BOS.

        The model so meets a BOS before text from anywhere in a book, as in a user's prompt, and
        text without any BOS, as in calibration rows.
        """
        last_start = len(self._novels) - CONTEXT_LENGTH - 1
        starts = torch.randint(
            last_start, (rows, 1), generator=self._torch_rng, device=self._device
        )
        crops = self._novels[starts + torch.arange(CONTEXT_LENGTH + 1, device=self._device)]
        crops[::2, 0] = token_id(BOS)
        return crops

    def chat(self, rows: int) -> Tensor:
        """Random whole conversations one after another [rows, CHAT_ROW_LENGTH + 1]."""
        batch = torch.stack([self._chat_row() for _ in range(rows)])
        if self._device.type == "cuda":
            batch = batch.pin_memory()
        return batch.to(self._device, non_blocking=True)

    def _chat_row(self) -> Tensor:
        parts, missing = [], CHAT_ROW_LENGTH + 1
        while missing > 0:
            index = self._numpy_rng.integers(len(self._chat_starts) - 1)
            start, end = self._chat_starts[index : index + 2]
            parts.append(self._chat[start : min(end, start + missing)])
            missing -= len(parts[-1])
        return torch.cat(parts)


def to_tokens(stream: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(stream.astype(np.int64)).to(device)


def consecutive_rows(stream: Tensor) -> Tensor:
    """The stream as rows [n, CONTEXT_LENGTH + 1] whose last token opens the next row."""
    count = (len(stream) - 1) // CONTEXT_LENGTH
    starts = torch.arange(count, device=stream.device)[:, None] * CONTEXT_LENGTH
    return stream[starts + torch.arange(CONTEXT_LENGTH + 1, device=stream.device)]
