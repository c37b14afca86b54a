import torch

from awqkit.checkpoint import QuantizedWeight
from awqkit.waiting_blocks import WaitingBlock, from_tensors, to_tensors


def block(seed: int):
    torch.manual_seed(seed)
    weight = QuantizedWeight(
        codes=torch.randint(0, 16, (8, 128), dtype=torch.uint8),
        scales=torch.rand(8, 1).half(),
        zeros=torch.randint(0, 16, (8, 1), dtype=torch.uint8),
    )
    stored = {"z.weight": torch.randn(3), "a.weight": weight, "m.bias": torch.randn(2).bfloat16()}
    return WaitingBlock(stored=stored, offsets={"a.weight": torch.rand(8, 128).half()})


def test_blocks_come_back_in_order() -> None:
    blocks = [block(layer) for layer in range(12)]
    tensors = dict(sorted(to_tensors(blocks).items())) | {"hidden": torch.ones(2)}
    found = from_tensors(tensors)
    assert len(found) == 12
    for one, other in zip(blocks, found, strict=True):
        assert torch.equal(one.offsets["a.weight"], other.offsets["a.weight"])
        before, after = one.stored, other.stored
        assert list(before) == list(after)
        assert torch.equal(before["z.weight"], after["z.weight"])
        assert after["m.bias"].dtype == torch.bfloat16
        for part in ("codes", "scales", "zeros"):
            assert torch.equal(getattr(before["a.weight"], part), getattr(after["a.weight"], part))


def test_nothing_waits_where_there_is_nothing() -> None:
    assert to_tensors([]) == {} and from_tensors({"hidden": torch.ones(1)}) == []
