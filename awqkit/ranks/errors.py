"""What goes wrong between processes."""

from __future__ import annotations

from awqkit.errors import QuantizationError


class LostRankError(QuantizationError):
    """Another process is gone. What became of it is the error to tell, where it can be known."""
