"""Bytes of a 4-bit checkpoint, defined once; every size and offset elsewhere derives from here."""

BITS = 4
#: What the embedding and the head may have instead.
WIDE_BITS = 8
WORD_BITS = 32
MAX_CODE = 2**BITS - 1
GROUP_SIZE = 128
CODES_PER_WORD = WORD_BITS // BITS

#: `awq` ("gemm") packs eight output columns into an int32: nibble i holds column 8c + AWQ_ORDER[i].
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
#: `compressed-tensors` packs eight consecutive elements, element j in nibble j.
SEQUENTIAL_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)


def max_code(bits: int) -> int:
    """The largest code of so many bits."""
    return 2**bits - 1


def codes_per_word(bits: int) -> int:
    """Codes of so many bits in an int32."""
    return WORD_BITS // bits


def is_quantizable(out_features: int, in_features: int) -> bool:
    """Whether both formats can hold a linear of this shape in groups of GROUP_SIZE inputs."""
    return in_features % GROUP_SIZE == 0 and out_features % CODES_PER_WORD == 0
