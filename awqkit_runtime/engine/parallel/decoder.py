"""A rank's decoder: its share of every layer, whose two outputs are summed over the ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from awqkit.checkpoint import Checkpoint
from awqkit.checkpoint.canonical import LM_HEAD
from awqkit_runtime.engine.parallel.communicator import Communicator
from awqkit_runtime.engine.parallel.shares import Share, shard_config
from awqkit_runtime.engine.parallel.weights import pad_input, shard_layer
from awqkit_runtime.models.decoder import Decoder, DecoderLayer
from awqkit_runtime.models.loader import head_bits, ready_placement, resolve_session_len
from awqkit_runtime.models.weight_reader import read_layers, read_outer


class SummedLinear(nn.Module):
    """A linear that has some columns of its weight: x of these → the sum over all ranks."""

    def __init__(
        self, linear: nn.Module, communicator: Communicator, padding: tuple[int, int] = (0, 0)
    ) -> None:
        """padding: columns of zeros that x gets before and after its own."""
        super().__init__()
        self.linear = linear
        self._communicator = communicator
        self._padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return self._communicator.sum_(self.linear(pad_input(x, self._padding)))


def load_share(
    checkpoint: Checkpoint,
    share: Share,
    communicator: Communicator,
    *,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    session_len: int | None = None,
) -> Decoder:
    """Embedding and norms are whole on every rank. Only rank 0 has the head, and gives logits.

    Raises what load_decoder does, and ConfigError where the model cannot be shared so.
    """
    config = checkpoint.config
    local = shard_config(config, share.ranks)
    placement = ready_placement(config, device, dtype, head_bits=head_bits(checkpoint))
    layers = []
    for number, block in enumerate(read_layers(checkpoint, device)):
        # A GPU unpacks and cuts a layer in no time; on a CPU nothing moves.
        placed = {name: weight.to(device) for name, weight in block.items()}
        part = shard_layer(placed, config, share)
        layer = DecoderLayer(local, number, part.block, placement)
        layer.attention.o = SummedLinear(layer.attention.o, communicator, part.o_padding)
        layer.mlp.down = SummedLinear(_module(layer.mlp, "down"), communicator)
        layers.append(layer)
    outer = read_outer(checkpoint, device, placement.dtype)
    if share.rank:
        outer.pop(LM_HEAD, None)
    length = resolve_session_len(config, session_len)
    return Decoder(local, layers, outer, placement, session_len=length)


def _module(parent: nn.Module, name: str) -> nn.Module:
    return parent.get_submodule(name)
