"""The first of all quantizations, so that none that is timed is the first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from awqkit.background import Background
from awqkit.block_job import BlockJob
from awqkit.block_quantizer import quantize_block
from awqkit.checkpoint import DecoderConfig
from awqkit.checkpoint.canonical import layer_shapes
from awqkit.checkpoint.layout import GROUP_SIZE
from awqkit.config import QuantConfig
from awqkit.decoder import RotaryTables
from awqkit.device import choose_gpu
from awqkit.ranks.ranks import ALONE
from awqkit.row_share import share_of
from awqkit.run import compute_dtype
from awqkit.search.clip import search_clip
from awqkit.search.moments import Moments
from awqkit.search.site import Rows, round_linear
from awqkit.stopwatch import Stopwatch

#: Rows of a weight that take the kernels of large ones.
MANY_ROWS = 5120


class WarmUp:
    """Warms a GPU up beside other work; a CPU has nothing to compile."""

    def __init__(self, config: QuantConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._background = Background(device)
        self._is_begun = device.type != "cuda"

    def begin(self) -> None:
        """Once; later calls do nothing."""
        if not self._is_begun:
            self._is_begun = True
            self._background.run(lambda: warm_up(self._config, self._device))

    def wait(self) -> None:
        """Return when the GPU is warm; raises what hindered that."""
        self._background.wait()

    def close(self) -> None:
        """Let it end, whatever comes of it."""
        self._background.close()


def warm_up(config: QuantConfig, device: torch.device) -> None:
    """Quantize the smallest of blocks: what is loaded and compiled once is not a block's time."""
    if device.type != "cuda":
        _quantize_smallest_block(config, device)
        return
    with ThreadPoolExecutor(2, initializer=choose_gpu, initargs=(device,)) as threads:
        beside = [threads.submit(work, device) for work in (_clip_many_rows, _round)]
        _quantize_smallest_block(config, device)
        for each in beside:
            each.result()


def _clip_many_rows(device: torch.device) -> None:
    """Its kernel takes longest to compile, and the block comes to it last."""
    weight = torch.randn(MANY_ROWS, GROUP_SIZE, device=device)
    search_clip(weight, torch.eye(GROUP_SIZE, device=device))


def _round(device: torch.device) -> None:
    """What the block comes to when its scales are found."""
    gram = torch.eye(GROUP_SIZE, device=device)
    moments = Moments(gram=gram, magnitude=gram.diagonal())
    round_linear(torch.randn(GROUP_SIZE, GROUP_SIZE, device=device), Rows(moments, moments))


def _quantize_smallest_block(config: QuantConfig, device: torch.device) -> None:
    decoder = DecoderConfig(
        hidden_size=128,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=256 if device.type == "cpu" else MANY_ROWS // 2,
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
