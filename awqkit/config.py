"""Every setting of a quantization and its default, written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from awqkit.checkpoint import layout
from awqkit.errors import ConfigError

Quality = Literal["fast", "balanced", "best"]
QUALITIES: tuple[Quality, ...] = ("fast", "balanced", "best")
Format = Literal["awq", "compressed-tensors"]
FORMATS: tuple[Format, ...] = ("awq", "compressed-tensors")
HEADS = ("dense", "int4")
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """How to quantize. Raises ConfigError for a value that nothing here can do."""

    w_bits: int = layout.BITS
    w_group_size: int = layout.GROUP_SIZE
    #: Search input scales (AWQ). Off: scale 1; clip and rounding as before.
    search_scale: bool = True
    #: fast rounds with second-order error feedback; balanced aims that at the unquantized model,
    #: which runs beside; best also tunes all codes together, and needs the whole model in memory.
    quality: Quality = "balanced"
    format: Format = "awq"
    #: int4: the output head too, in groups of 128; dense: it stays in dtype.
    lm_head: str = "dense"
    #: dtype of what stays unquantized.
    dtype: str = "bfloat16"
    calib_samples: int = 128
    #: Tokens a sample.
    calib_seqlen: int = 2048
    #: Samples that pass through a block at once; None chooses.
    batch_size: int | None = None
    #: 0 to 2⁶³ − 1, what torch's generators take.
    seed: int = 0
    #: Compare with the unquantized model on rows held out from the calibration.
    evaluate: bool = True

    def __post_init__(self) -> None:
        if self.w_bits != layout.BITS:
            raise ConfigError(
                f"--w-bits is {self.w_bits}; awqkit writes {layout.BITS}-bit weights."
            )
        if self.w_group_size != layout.GROUP_SIZE:
            raise ConfigError(
                f"--w-group-size is {self.w_group_size}; "
                f"awqkit writes groups of {layout.GROUP_SIZE}."
            )
        _one_of("--quality", self.quality, QUALITIES)
        _one_of("--format", self.format, FORMATS)
        _one_of("--lm-head", self.lm_head, HEADS)
        _one_of("--dtype", self.dtype, DTYPES)
        for option, value in (
            ("--calib-samples", self.calib_samples),
            ("--calib-seqlen", self.calib_seqlen),
            ("--batch-size", 1 if self.batch_size is None else self.batch_size),
        ):
            if value < 1:
                raise ConfigError(f"{option} is {value}; it must be at least 1.")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}; it must be from 0 to 2^63 − 1.")

    @property
    def rows_at_once(self) -> int:
        """The batch size, chosen so that a pass holds some 8,000 tokens where none was given."""
        return self.batch_size or max(1, 8192 // self.calib_seqlen)


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} is {value!r}; choose one of {', '.join(choices)}.")
