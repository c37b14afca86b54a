"""Which heads and channels of a decoder each rank computes: pure arithmetic.

A rank has num_heads / ranks query heads and the key-value heads that they read: where there are
fewer of these than ranks, several ranks hold the same one. Of the MLP's inner channels it has as
many whole groups of GROUP_SIZE as every other rank; past the last channel the weights are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit_runtime.errors import ConfigError

#: A rank's part of the head is a multiple of this, so that rows of logits are read in wide pieces.
_HEAD_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of rank `rank`, counted from 0, of `ranks`."""

    rank: int
    ranks: int


def require_shares(config: DecoderConfig, ranks: int) -> None:
    """ConfigError, naming tp, for a model that so many ranks cannot share."""
    if ranks > 1 and config.experts is not None:
        raise ConfigError(
            f"tp is {ranks}, but a model with experts runs on one device in this version. Use tp=1."
        )
    if not _divides(config, ranks):
        allowed = [str(n) for n in range(1, config.num_heads + 1) if _divides(config, n)]
        raise ConfigError(
            f"tp is {ranks}, but {config.num_heads} attention heads and {config.num_kv_heads} "
            f"key-value heads cannot be shared evenly by so many. Use {' or '.join(allowed)}."
        )


def shard_config(config: DecoderConfig, ranks: int) -> DecoderConfig:
    """The decoder that each rank runs; its outputs are summed over the ranks."""
    require_shares(config, ranks)
    if ranks == 1:
        return config
    return replace(
        config,
        num_heads=config.num_heads // ranks,
        num_kv_heads=max(1, config.num_kv_heads // ranks),
        intermediate_size=-(-config.intermediate_size // (GROUP_SIZE * ranks)) * GROUP_SIZE,
    )


def query_rows(config: DecoderConfig, share: Share) -> range:
    """Rows of the query projection, and columns of the output projection."""
    size = config.q_size // share.ranks
    return range(share.rank * size, (share.rank + 1) * size)


def key_rows(config: DecoderConfig, share: Share) -> range:
    """Rows of the key and of the value projection."""
    heads = max(1, config.num_kv_heads // share.ranks)
    first = share.rank * config.num_kv_heads // share.ranks
    return range(first * config.head_dim, (first + heads) * config.head_dim)


def inner_channels(config: DecoderConfig, share: Share) -> range:
    """Rows of gate and up, and columns of down; fewer than the shard has where these end."""
    size = shard_config(config, share.ranks).intermediate_size
    end = config.intermediate_size
    return range(min(share.rank * size, end), min((share.rank + 1) * size, end))


def head_rows(vocab_size: int, share: Share) -> range:
    """Rows of the head where each rank looks at some; none where a small one has ended before."""
    size = -(-vocab_size // (_HEAD_ROWS * share.ranks)) * _HEAD_ROWS
    return range(min(share.rank * size, vocab_size), min((share.rank + 1) * size, vocab_size))


def _divides(config: DecoderConfig, ranks: int) -> bool:
    kv_heads = config.num_kv_heads
    return config.num_heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)
