"""What a long run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol

from awqkit.block_quantizer import SiteResult


class Progress(Protocol):
    """Called from the pipeline as it goes; must return quickly."""

    def sampled(self, done: int, total: int) -> None:
        """Tokens that each row has reached, over all batches, while the model samples."""

    def begin(self, blocks: int, *, done: int) -> None:
        """The blocks are about to be quantized; done: by an earlier process."""

    def site_done(self, result: SiteResult) -> None:
        """One site of a block is quantized."""

    def block_done(self, layer: int) -> None:
        """A block is quantized and has been passed on."""

    def tuned(self, done: int, total: int) -> None:
        """Steps of the tuning of the whole model."""


class Silent:
    """Says nothing."""

    def sampled(self, done: int, total: int) -> None:
        """Ignore."""

    def begin(self, blocks: int, *, done: int) -> None:
        """Ignore."""

    def site_done(self, result: SiteResult) -> None:
        """Ignore."""

    def block_done(self, layer: int) -> None:
        """Ignore."""

    def tuned(self, done: int, total: int) -> None:
        """Ignore."""
