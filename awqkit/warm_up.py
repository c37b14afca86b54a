"""The first of all quantizations, so that none that is timed is the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from awqkit.background import Background
from awqkit.block_job import BlockJob
from awqkit.block_quantizer import quantize_block
from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import layer_shapes
from awqkit.config import QuantConfig
from awqkit.decoder import RotaryTables
from awqkit.ranks.ranks import ALONE
from awqkit.row_share import share_of
from awqkit.run import compute_dtype
from awqkit.stopwatch import Stopwatch


@contextmanager
def warming_up(config: QuantConfig, device: torch.device) -> Iterator[None]:
    """Warm a GPU up beside the context, whose end waits for it; a CPU has nothing to compile."""
    if device.type != "cuda":
        yield
        return

    def on_its_gpu() -> None:
        if device.index is not None:
            torch.cuda.set_device(device)  # a new thread takes the first GPU for its own
        warm_up(config, device)

    background = Background(device)
    try:
        background.run(on_its_gpu)
        yield
        background.wait()
    finally:
        background.close()


def warm_up(config: QuantConfig, device: torch.device) -> None:
    """Quantize the smallest of blocks: what is loaded and compiled once is not a block's time."""
    decoder = DecoderConfig(
        hidden_size=128,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=64,
        # On a GPU as many rows of gate and up as take the kernels of large weights.
        intermediate_size=2560 if device.type == "cuda" else 256,
        vocab_size=8,
        max_position_embeddings=16,
        norm_eps=1e-5,
    )
    dtype = compute_dtype(device)
    job = BlockJob(
        config=decoder,
        rotary=RotaryTables(decoder, 16, device),
        device=device,
        compute_dtype=dtype,
        stored_dtype=torch.bfloat16,
        search_scale=config.search_scale,
        aims_at_original=config.quality != "fast",
        tunes=False,
        batch_size=1,
        ranks=ALONE,
        share=share_of(4, 1, rank=0, count=1),
        on_site=lambda site: None,
        timed=Stopwatch(device).timed,
    )
    weights = {
        name: torch.randn(shape, device=device) / 16
        for name, shape in layer_shapes(decoder, 0).items()
    }
    hidden = torch.randn(4, 16, 128, device=device, dtype=dtype)
    quantize_block(job, 0, weights, hidden, hidden.clone() if job.aims_at_original else None)
