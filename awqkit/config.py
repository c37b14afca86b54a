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
#: Of the embedding and the head, and the bits that each stands for.
MATRIX_BITS = {"dense": None, "int8": layout.WIDE_BITS, "int4": layout.BITS}
MATRIX_FORMS = tuple(MATRIX_BITS)
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
    #: int8, int4: the output head too, in groups of 128; dense: it stays in dtype.
    lm_head: str = "dense"
    #: The same of the embedding, and of the head where one matrix is both.
    embeddings: str = "dense"
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
        _one_of("--lm-head", self.lm_head, MATRIX_FORMS)
        _one_of("--embeddings", self.embeddings, MATRIX_FORMS)
        self._require_place_in_format()
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
    def head_bits(self) -> int | None:
        """Of the codes of a head that is a matrix of its own; None where it stays dense."""
        return MATRIX_BITS[self.lm_head]

    @property
    def embedding_bits(self) -> int | None:
        """Of the codes of the embedding; None where it stays dense."""
        return MATRIX_BITS[self.embeddings]

    def _require_place_in_format(self) -> None:
        option, form = ("--embeddings", self.embeddings)
        if form == "dense" and self.lm_head == "int8":
            option, form = ("--lm-head", self.lm_head)
        if self.format == "awq" and (option, form) != ("--embeddings", "dense"):
            raise ConfigError(
                f"{option} {form} has no place in the awq form, which knows 4-bit linears alone, "
                "so that other engines would not find it. Give --format compressed-tensors too."
            )

    @property
    def rows_at_once(self) -> int:
        """The batch size, chosen so that a pass holds some 8,000 tokens where none was given."""
        return self.batch_size or max(1, 8192 // self.calib_seqlen)


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{option} is {value!r}; choose one of {', '.join(choices)}.")
