import torch

from awqkit.checkpoint import QuantizedWeight
from awqkit.tuning.latent import Latent


def random_weight(seed: int) -> QuantizedWeight:
    torch.manual_seed(seed)
    return QuantizedWeight(
        codes=torch.randint(0, 16, (8, 256), dtype=torch.uint8),
        scales=(torch.rand(8, 2) + 0.5).bfloat16().half(),
        zeros=torch.randint(0, 16, (8, 2), dtype=torch.uint8),
    )


def centred(weight: QuantizedWeight) -> Latent:
    return Latent.of(weight, torch.zeros(8, 256))


def test_the_weight_given_stays_as_it_is() -> None:
    weight = random_weight(0)
    before = weight.codes.clone()
    latent = centred(weight)
    for count in range(1, 30):
        latent.step(torch.randn(8, 256), rate=0.2, count=count)
    assert torch.equal(weight.codes, before) and not torch.equal(latent.stored.codes, before)


def test_small_steps_add_up_until_the_code_changes() -> None:
    latent = centred(random_weight(1))
    before = latent.stored.codes.clone()
    for count in range(1, 10):
        latent.step(torch.ones(8, 256), rate=0.04, count=count)
    assert torch.equal(latent.stored.codes, before)
    for count in range(10, 16):
        latent.step(torch.ones(8, 256), rate=0.04, count=count)
    expected = (before.float() - 1).clamp(min=0)
    assert torch.equal(latent.stored.codes.float(), expected)


def test_codes_stay_in_range() -> None:
    latent = centred(random_weight(2))
    for count in range(1, 60):
        latent.step(torch.full((8, 256), -1.0), rate=0.5, count=count)
    assert (latent.stored.codes == 15).all() and latent.offset.abs().max() <= 0.5


def test_gradients_of_zero_move_nothing() -> None:
    latent = centred(random_weight(3))
    latent.step(torch.zeros(8, 256), rate=0.5, count=1)
    assert latent.offset.abs().max() == 0


def test_descends_to_the_codes_of_a_known_weight() -> None:
    torch.manual_seed(4)
    wanted, latent = random_weight(4), centred(random_weight(4))
    latent.stored.codes.copy_((wanted.codes.int() + torch.randint(-2, 3, (8, 256))).clamp(0, 15))
    x = torch.randn(2000, 256)
    gram = x.T @ x / 2000
    for count in range(1, 400):
        difference = latent.stored.dequantize() - wanted.dequantize()
        latent.step(difference @ gram, rate=0.05 * (1 - count / 400), count=count)
    assert (latent.stored.codes == wanted.codes).float().mean() > 0.98


def test_what_lay_between_two_levels_changes_first() -> None:
    weight = random_weight(5)
    weight.codes.clamp_(1, 14)
    offset = torch.linspace(-0.5, 0.5, 256).expand(8, 256)
    latent = Latent.of(weight, offset)
    assert torch.equal(latent.stored.codes, weight.codes)
    for count in range(1, 4):
        latent.step(torch.full((8, 256), -1.0), rate=0.09, count=count)
    moved = latent.stored.codes != weight.codes
    assert moved[:, -20:].all() and not moved[:, :128].any()
