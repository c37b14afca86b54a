"""The variants of w4_prefill.cu that are built: their compile-time numbers and measured cycles."""

from __future__ import annotations

from dataclasses import dataclass

from awqkit_runtime.kernels.launch_plan import ceil_div

#: Of a multiprocessor of sm_90a.
_SHARED_BYTES = 228 * 1024
_MOST_STAGES, _STAGE_BARRIERS = 16, 16


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One set of compile-time numbers.

    blocks: of one multiprocessor, at most. cycles: of a group in a block that has a multiprocessor
    to itself; paired_cycles: that shares it with others. scale_sums: scales meet a group's sums
    in FP32, for one tile of tokens; else they meet the weights, in BF16.
    """

    tokens: int
    consumers: int
    cycles: int
    blocks: int = 1
    paired_cycles: int = 0
    row_blocks: int = 1
    cluster: int = 1
    split: int = 1
    batch: int = 1
    scale_sums: bool = False

    @property
    def defines(self) -> tuple[str, ...]:
        numbers = {
            "TOKENS": self.tokens,
            "CONSUMERS": self.consumers,
            "ROW_BLOCKS": self.row_blocks,
            "CLUSTER": self.cluster,
            "SPLIT": self.split,
            "STAGES": self.stages,
            "BATCH": self.batch,
            "BLOCKS": self.blocks,
            "SCALE_SUMS": int(self.scale_sums),
        }
        return tuple(f"W4_{name}={value}" for name, value in numbers.items())

    @property
    def by_warps(self) -> bool:
        """Every warp multiplies by itself, with mma.sync."""
        return self.tokens == 8

    @property
    def row_tiles(self) -> int:
        """Of 16 rows, of a block's tile."""
        return 4 * self.consumers * self.row_blocks

    @property
    def rows(self) -> int:
        """Output rows of a block's tile."""
        return 16 * self.row_tiles

    @property
    def threads(self) -> int:
        return 128 * (self.consumers + 1)

    @property
    def stage_inputs(self) -> int:
        return 64 * self._slices

    @property
    def stages(self) -> int:
        """As many as shared memory holds."""
        room = _SHARED_BYTES // self.blocks - 1024 - self._fixed_bytes
        return min(_MOST_STAGES, room // (self._stage_bytes + _STAGE_BARRIERS))

    @property
    def shared_bytes(self) -> int:
        """Stages, store buffers, barriers, alignment, and the sums of a split tile."""
        return self._fixed_bytes + self.stages * (self._stage_bytes + _STAGE_BARRIERS)

    @property
    def _slices(self) -> int:
        """Halves of a group in a stage."""
        return 2 if self.scale_sums else 1

    @property
    def _stage_bytes(self) -> int:
        return self._slices * (128 * self.tokens + 512 * self.row_tiles) + 64 * self.row_tiles

    @property
    def _store_tokens(self) -> int:
        narrow = self.tokens % 32 or self.tokens * self.consumers < 32 * self.split
        return min(self.tokens, 16 if narrow else 32)

    @property
    def _fixed_bytes(self) -> int:
        store = 256 * self._store_tokens
        row_blocks = self.consumers * self.row_blocks
        parts = ceil_div(row_blocks * self.tokens // self._store_tokens, self.split)
        sums = self.split * parts * store if self.split > 1 else 0
        return 1024 + 8 * self.consumers + store * self.consumers + sums

    def tiles(self, m: int, n: int) -> int:
        """Tiles of the output; those of a cluster that shares tokens count as one."""
        return ceil_div(n, self.rows * self.cluster) * ceil_div(m, self.tokens)


def _few(**numbers: int) -> Variant:
    return Variant(**numbers, scale_sums=True)


#: Up to 64 tokens, which one tile holds.
_FEW_TOKENS = (
    _few(tokens=8, consumers=2, blocks=2, cycles=560, paired_cycles=803),
    _few(tokens=8, consumers=2, blocks=2, cycles=830, paired_cycles=889, split=4),
    _few(tokens=8, consumers=1, blocks=3, cycles=1210, paired_cycles=1210, split=8, row_blocks=2),
    _few(tokens=16, consumers=2, blocks=2, batch=4, cycles=659, paired_cycles=904),
    _few(tokens=16, consumers=2, blocks=2, batch=4, cycles=956, paired_cycles=1064, split=4),
    _few(tokens=16, consumers=2, blocks=2, batch=4, cycles=860, paired_cycles=903, split=5),
    _few(tokens=16, consumers=4, batch=4, cycles=973),
    _few(tokens=32, consumers=2, blocks=2, batch=4, cycles=674, paired_cycles=1009),
    # 1067 alone; 990 lets it win where it made a whole block faster than those that win alone.
    _few(tokens=32, consumers=2, blocks=2, batch=4, cycles=990, paired_cycles=1159, split=4),
    _few(tokens=32, consumers=3, batch=4, cycles=840, split=5),
    _few(tokens=32, consumers=4, batch=4, cycles=1030),
    _few(tokens=48, consumers=2, blocks=2, batch=2, cycles=811, paired_cycles=1239),
    _few(tokens=48, consumers=2, blocks=2, batch=2, cycles=1329, paired_cycles=1402, split=4),
    _few(tokens=48, consumers=3, batch=4, cycles=905),
    _few(tokens=48, consumers=4, batch=4, cycles=1245),
    _few(tokens=64, consumers=3, batch=4, cycles=1037),
    _few(tokens=64, consumers=3, batch=4, cycles=905, split=3),
    _few(tokens=64, consumers=3, batch=4, cycles=1040, split=5),
    _few(tokens=64, consumers=4, batch=2, cycles=1445),
)
VARIANTS = (
    *_FEW_TOKENS,
    Variant(tokens=256, consumers=2, cycles=2380),
    Variant(tokens=256, consumers=2, cycles=2300, cluster=2),
    Variant(tokens=128, consumers=4, cycles=2440),
    Variant(tokens=128, consumers=3, cycles=1920),
    Variant(tokens=128, consumers=3, cycles=1920, split=2),
    Variant(tokens=128, consumers=2, cycles=1400),
    Variant(tokens=128, consumers=2, cycles=1400, split=2),
    Variant(tokens=96, consumers=3, cycles=1600),
    Variant(tokens=64, consumers=2, cycles=1100, split=2),
)
