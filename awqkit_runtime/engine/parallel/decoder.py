"""A rank's decoder: its share of every layer, whose two outputs are summed over the ranks.

The norm behind an output adds it to the residual, so the sum is made there, in the same kernel
where there is one. Models that norm the output itself get the sum behind the linear.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awqkit.checkpoint import Checkpoint, PackedWeight, QuantizedWeight
from awqkit.checkpoint.canonical import LM_HEAD
from awqkit_runtime.engine.parallel.communicator import Communicator
from awqkit_runtime.engine.parallel.peers import ranks_can_meet
from awqkit_runtime.engine.parallel.shares import Share, head_rows, shard_config
from awqkit_runtime.engine.parallel.sums import PartialLinear, SummedLinear, SummingNorm
from awqkit_runtime.engine.parallel.weights import LayerShare, shard_layer
from awqkit_runtime.models.decoder import Decoder, DecoderLayer
from awqkit_runtime.models.loader import head_bits, ready_placement, resolve_session_len
from awqkit_runtime.models.weight_reader import read_layers, read_outer


def load_share(
    checkpoint: Checkpoint,
    share: Share,
    communicator: Communicator,
    *,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    session_len: int | None = None,
    max_rows: int = 0,
) -> Decoder:
    """Embedding and norms are whole on every rank. Only rank 0 has all of the head, for logits.

    max_rows: of the steps that kernels shall sum over the ranks, where they can.

    Raises what load_decoder does, and ConfigError where the model cannot be shared so.
    """
    config = checkpoint.config
    local = shard_config(config, share.ranks)
    placement = ready_placement(config, device, dtype, head_bits=head_bits(checkpoint))
    width = config.hidden_size
    if max_rows and placement.uses_cuda_kernels and ranks_can_meet(width, device, share):
        communicator.connect_peers(rows=max_rows, width=width)
    layers = []
    for number, block in enumerate(read_layers(checkpoint, device)):
        # A GPU unpacks and cuts a layer in no time; on a CPU nothing moves.
        placed = {name: weight.to(device) for name, weight in block.items()}
        part = shard_layer(placed, config, share)
        layer = DecoderLayer(local, number, part.block, placement)
        _sum_outputs(layer, part, communicator, post_norms=config.post_norms)
        layers.append(layer)
    outer = read_outer(checkpoint, device, placement.dtype)
    if share.rank and LM_HEAD in outer:
        outer |= _head_part(outer.pop(LM_HEAD), share, communicator)
    length = resolve_session_len(config, session_len)
    decoder = Decoder(local, layers, outer, placement, session_len=length)
    if not config.post_norms:
        decoder.norm = SummingNorm(decoder.norm, communicator)
    return decoder


def _head_part(
    head: Tensor | QuantizedWeight | PackedWeight, share: Share, communicator: Communicator
) -> dict[str, Tensor]:
    """The rows of a dense head that another rank than 0 looks at, where several do (choice.py)."""
    rows = head_rows(head.shape[0], share) if isinstance(head, Tensor) else range(0)
    if not isinstance(head, Tensor) or communicator.peers is None or not rows:
        return {}
    return {LM_HEAD: head[rows.start : rows.stop].clone()}


def _sum_outputs(
    layer: DecoderLayer, part: LayerShare, communicator: Communicator, *, post_norms: bool
) -> None:
    """Lets the layer sum what its attention and its MLP give, of which it has a part."""
    o = PartialLinear(layer.attention.o, part.o_padding)
    down = PartialLinear(layer.mlp.get_submodule("down"))
    if post_norms:
        layer.attention.o = SummedLinear(o, communicator)
        layer.mlp.down = SummedLinear(down, communicator)
        return
    layer.attention.o, layer.mlp.down = o, down
    # The input norm adds what the MLP of the layer before gave.
    layer.input_norm = SummingNorm(layer.input_norm, communicator)
    layer.mlp_norm = SummingNorm(layer.mlp_norm, communicator)
