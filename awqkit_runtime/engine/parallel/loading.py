"""From a checkpoint to a decoder that several processes share."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from awqkit.checkpoint import Checkpoint
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig, QuantPolicy
from awqkit_runtime.engine.memory import free_memory, part_of_memory
from awqkit_runtime.engine.parallel.decoder import load_share
from awqkit_runtime.engine.parallel.runner import LeadingRunner
from awqkit_runtime.engine.parallel.shares import Share, require_shares
from awqkit_runtime.engine.parallel.team import Team, require_devices
from awqkit_runtime.engine.runner import DecoderModel
from awqkit_runtime.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class SharedModel:
    """Rank 0's part. The other ranks end when its decoder is gone."""

    decoder: Decoder
    team: Team
    #: Bytes that the cache of each rank may have its share of.
    free_bytes: int

    def new_runner(
        self,
        decoder: DecoderModel,
        pool: PagePool,
        *,
        quant_policy: QuantPolicy,
        noise: bool = False,
    ) -> LeadingRunner:
        """A runner for this cache, of which every rank now has its part."""
        return LeadingRunner(decoder, pool, self.team, quant_policy=quant_policy, noise=noise)


def load_shared(checkpoint: Checkpoint, config: EngineConfig) -> SharedModel:
    """Starts config.tp − 1 processes, which load beside this one.

    Raises what load_decoder does, ConfigError where the model or the machine cannot be shared so,
    and RankError when one of the processes ends.
    """
    require_shares(checkpoint.config, config.tp)
    device = first_device(config)
    require_devices(config, device)
    team = Team(checkpoint.folder, config, device)
    try:
        decoder = load_share(
            checkpoint,
            Share(rank=0, ranks=config.tp),
            team.communicator,
            device=device,
            dtype=config.dtype,
            session_len=config.session_len,
        )
        free_bytes = team.communicator.least(part_of_memory(free_memory(device), device, config.tp))
    except RuntimeError as error:
        team.raise_if_ended(error)
        team.close()
        raise
    except BaseException:
        team.close()
        raise
    weakref.finalize(decoder, team.close)
    return SharedModel(decoder=decoder, team=team, free_bytes=free_bytes)


def first_device(config: EngineConfig) -> torch.device:
    """Rank 0's."""
    device = config.torch_device()
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)
