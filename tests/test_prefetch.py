import pytest
import torch

from awqkit.checkpoint import open_checkpoint
from awqkit.errors import CheckpointError
from awqkit.prefetch import BlockReader
from tests.tiny_models import write_tiny_model


def test_blocks_come_as_they_are_stored(tmp_path) -> None:
    checkpoint = open_checkpoint(write_tiny_model(tmp_path / "model", dtype=torch.bfloat16))
    reader = BlockReader(checkpoint, torch.device("cpu"))
    for layer in (1, 0, 1):
        block, expected = reader.read(layer), checkpoint.block(layer)
        assert set(block) == set(expected)
        assert all(torch.equal(block[name], expected[name]) for name in block)


@pytest.mark.gpu
def test_blocks_read_ahead_are_the_right_ones_and_damage_is_told(tmp_path) -> None:
    folder = write_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    checkpoint = open_checkpoint(folder)
    reader = BlockReader(checkpoint, torch.device("cuda"))
    for layer in (0, 1, 0):
        for name, tensor in reader.read(layer).items():
            assert torch.equal(tensor.cpu(), checkpoint.block(layer)[name])
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])
    reader = BlockReader(checkpoint, torch.device("cuda"))
    with pytest.raises(CheckpointError):
        [reader.read(layer) for layer in range(checkpoint.config.num_layers)]
