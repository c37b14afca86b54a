"""From a checkpoint to a decoder that several processes share."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import cast

import torch

from awqkit.checkpoint import Checkpoint
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.engine.memory import free_memory, part_of_memory, set_aside
from awqkit_runtime.engine.parallel.decoder import load_share
from awqkit_runtime.engine.parallel.following import shared_choice
from awqkit_runtime.engine.parallel.messages import NewCache
from awqkit_runtime.engine.parallel.runner import LeadingGraphRunner, LeadingRunner
from awqkit_runtime.engine.parallel.shares import Share, require_shares
from awqkit_runtime.engine.parallel.team import Team, require_devices
from awqkit_runtime.engine.runner import DecoderModel
from awqkit_runtime.engine.runners import graphs_for, prepare_launches, workspace_for_steps
from awqkit_runtime.engine.step_memory import makes_graphs
from awqkit_runtime.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class SharedModel:
    """Rank 0's part. The other ranks end when its decoder is gone."""

    decoder: Decoder
    team: Team
    #: Bytes that the cache of each rank may have its share of.
    free_bytes: int

    def new_runner(
        self, decoder: DecoderModel, pool: PagePool, *, config: EngineConfig, noise: bool = False
    ) -> LeadingRunner:
        """A runner for this cache, of which every rank now has its part.

        noise: the other ranks get random numbers into theirs.
        """
        whole = cast(Decoder, decoder)
        rows = self._graph_rows(whole, pool, config)
        workspace = workspace_for_steps(decoder, config)
        self.team.tell(
            NewCache(
                num_pages=pool.num_pages,
                quant_policy=config.policy,
                noise=noise,
                graph_rows=rows,
                workspace=workspace,
            )
        )
        if workspace:
            set_aside(workspace, decoder.device)
        peers = self.team.communicator.peers
        if not rows or peers is None:
            prepare_launches(whole, pool)
            return LeadingRunner(decoder, pool, self.team)
        share = Share(rank=0, ranks=self.team.ranks)
        return LeadingGraphRunner(
            *(decoder, pool, self.team, graphs_for(whole, pool, rows)),
            max_rows=rows,
            choose=shared_choice(whole, share, peers),
        )

    def _graph_rows(self, decoder: Decoder, pool: PagePool, config: EngineConfig) -> int:
        """Sequences of the largest graph; 0 where there are none."""
        peers = self.team.communicator.peers
        rows = config.batch_size_for(decoder.device)
        if peers is None or rows > peers.sums.rows:
            return 0
        config = replace(config, tp=self.team.ranks)
        return rows if makes_graphs(decoder.config, decoder.placement, pool.format, config) else 0


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
            max_rows=config.batch_size_for(device),
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
