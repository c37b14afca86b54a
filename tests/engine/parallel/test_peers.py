"""Which GPUs meet in each other's memory, and who looks at which part of the vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from awqkit.checkpoint import open_checkpoint
from awqkit_runtime.engine.parallel.choice import HeadPart, head_part
from awqkit_runtime.engine.parallel.communicator import Communicator
from awqkit_runtime.engine.parallel.decoder import load_share
from awqkit_runtime.engine.parallel.peers import can_meet, peer_bytes, ranks_can_meet
from awqkit_runtime.engine.parallel.shares import Share, head_rows
from awqkit_runtime.engine.step_memory import graph_memory
from awqkit_runtime.layers.placement import Placement
from awqkit_runtime.models.decoder import Decoder
from tests.checkpoint.folders import write_quantized_ends
from tests.tiny_models import write_tiny_model

CPU = torch.device("cpu")
SECOND = torch.device("cuda", 1)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """All reach each other but the last one, which nobody reaches."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: 3 not in (a, b))


def test_gpus_meet_where_all_of_them_reach_each_other(four_gpus: None) -> None:
    assert can_meet(4096, torch.device("cuda"), 2) and can_meet(4096, torch.device("cuda"), 3)
    assert can_meet(4096, SECOND, 2)
    assert not can_meet(4096, torch.device("cuda"), 4) and not can_meet(4096, SECOND, 3)
    assert not can_meet(4096, SECOND, 4)  # There are no four from the second one on.
    assert not can_meet(4100, SECOND, 2) and not can_meet(4096, SECOND, 1)
    assert not can_meet(4096, CPU, 2)


def test_all_ranks_say_so(four_gpus: None) -> None:
    for rank in range(3):
        assert ranks_can_meet(4096, torch.device("cuda", rank), Share(rank=rank, ranks=3))
        of_two = Share(rank=min(rank, 1), ranks=2)
        assert ranks_can_meet(4096, torch.device("cuda", rank), of_two)
    for rank in range(4):
        assert not ranks_can_meet(4096, torch.device("cuda", rank), Share(rank=rank, ranks=4))


def test_a_plan_for_other_machines_takes_it_that_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert can_meet(4096, torch.device("cuda"), 2) and not can_meet(4096, torch.device("cuda"), 9)


def test_what_ranks_write_into_is_planned(tmp_path: Path) -> None:
    """Two slots for each rank, of 16 bytes for four numbers of a row and of some for its token."""
    config = open_checkpoint(write_tiny_model(tmp_path, "llama")).config
    sums = 2 * 3 * 16 * (config.hidden_size // 4) * 16
    planned = peer_bytes(ranks=3, rows=16, width=config.hidden_size)
    assert sums < planned <= sums + 2 * 3 * 16 * 64

    def graphs(ranks: int) -> int:
        placement = Placement(device=CPU, dtype=torch.bfloat16)
        return graph_memory(config, placement, 16, 64, graphs=10, ranks=ranks)

    assert graphs(3) == graphs(1) + planned


@pytest.mark.parametrize("vocab", [1, 63, 64, 320, 92544])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_token_is_looked_at_by_one_rank(vocab: int, ranks: int) -> None:
    parts = [head_rows(vocab, Share(rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert [token for part in parts for token in part] == list(range(vocab))
    assert all(part.start % 64 == 0 for part in parts if part)


def part_of(folder: Path, rank: int) -> tuple[Decoder, HeadPart | None]:
    share = Share(rank=rank, ranks=2)
    alone = Communicator(dist.HashStore(), Share(rank=0, ranks=1), CPU)
    decoder = load_share(open_checkpoint(folder), share, alone, device=CPU, dtype="float32")
    return decoder, head_part(decoder, share)


def test_of_a_dense_head_each_rank_has_its_rows(tmp_path: Path) -> None:
    """Here it is the embedding too, so each has all of it in memory, once."""
    folder = write_tiny_model(tmp_path, "gemma2")
    for rank, rows in ((0, slice(0, 192)), (1, slice(192, 320))):
        decoder, part = part_of(folder, rank)
        whole = decoder.head.weight
        assert part is not None and part.first == rows.start and part.rows is not None
        assert torch.equal(part.rows, whole[rows])
        assert part.rows.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize("embedding_bits", [4, None])
def test_a_quantized_head_is_rank_0s(embedding_bits: int | None, tmp_path: Path) -> None:
    """Whatever the embedding is, which other ranks than 0 have in its place."""
    folder = write_quantized_ends(tmp_path, embedding_bits=embedding_bits, head_bits=4, tied=False)
    first, second = (part_of(folder, rank)[1] for rank in range(2))
    assert first is not None and first.rows is None and second is None
