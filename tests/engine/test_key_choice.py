"""The frame that a model chooses for its 4-bit keys, and the warning where none helps."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from awqkit.checkpoint.tokenizer import load_tokenizer
from awqkit_runtime import LLM
from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.engine import key_choice
from awqkit_runtime.engine.key_choice import KeyChoice, choose_key_frame, key_frame_for
from awqkit_runtime.engine.sampled_text import sample_text
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import LanguageModel, load_decoder
from awqkit_runtime.text_scores import PagedReader, score_text
from tests.engine.planted_keys import FAST_PAIR, SLOW_PAIR, write_loud_model
from tests.tiny_models import write_tiny_model

DEMO = Path(__file__).parents[2] / "examples" / "demo_model"
#: Of the demo model, to the unquantized cache, in nats per token.
TARGETS = {8: 3e-4, "k8v4": 1e-2, 4: 2.5e-2}


def int4(decoder: Decoder) -> PageFormat:
    return PageFormat.for_policy(decoder.config, 4, decoder.dtype)


def kls(choice: KeyChoice) -> dict[str, float]:
    return {trial.name: trial.kl for trial in choice.trials}


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loud where the rotary embedding turns fast: no mean key takes that away."""
    return write_loud_model(tmp_path_factory.mktemp("fast"), pair=FAST_PAIR, bias=60.0)


@pytest.fixture(scope="module")
def demo() -> Decoder:
    return load_decoder(DEMO / "model", device="cpu")


@pytest.fixture(scope="module")
def demo_choice(demo: Decoder) -> KeyChoice:
    return choose_key_frame(demo, int4(demo))


def test_each_part_stays_only_where_it_lowers_the_kl(demo_choice: KeyChoice) -> None:
    kept, lowest = PLAIN_FRAME, demo_choice.trials[0].kl
    for trial in demo_choice.trials[1:]:
        frame = trial.frame
        assert frame.mean is kept.mean or trial.name.startswith("mean key")
        assert frame.rotated == kept.rotated or trial.name.startswith("rotation")
        assert frame.channel_scale is kept.channel_scale or trial.name == "channel scales"
        if trial.kl < lowest:
            kept, lowest = frame, trial.kl
    assert demo_choice.best.frame is kept and demo_choice.best.kl == lowest
    assert lowest < demo_choice.trials[0].kl / 2


def test_the_demo_model_stays_within_its_targets(demo: Decoder, demo_choice: KeyChoice) -> None:
    text = (DEMO / "evaluation.txt").read_text(encoding="utf-8")
    ids = torch.tensor(load_tokenizer(DEMO / "model").encode(text)[:1000])
    reference = PagedReader(demo, quant_policy=0, seqlen=500)
    for policy, target in TARGETS.items():
        frame = demo_choice.best.frame if policy == 4 else PLAIN_FRAME
        reader = PagedReader(demo, quant_policy=policy, seqlen=500, key_frame=frame)
        kl = score_text(reader, ids, seqlen=500, reference=reference).kl
        assert kl is not None and 0 < kl <= target, policy


def test_a_common_part_of_slow_channels_is_subtracted(tmp_path: Path) -> None:
    decoder = load_decoder(write_loud_model(tmp_path, pair=SLOW_PAIR, bias=60.0), device="cpu")
    choice = choose_key_frame(decoder, int4(decoder))
    assert choice.best.frame.mean is not None
    assert kls(choice)["mean key"] < kls(choice)["as they are"] / 3


def test_loud_fast_channels_are_rotated_and_scaled(fast: Path) -> None:
    decoder = load_decoder(fast, device="cpu")
    choice = choose_key_frame(decoder, int4(decoder))
    frame = choice.best.frame
    assert frame.rotated and frame.channel_scale is not None
    assert choice.best.kl < kls(choice)["as they are"] / 3


def test_what_gave_nothing_at_its_turn_is_tried_again_at_the_end(
    fast: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a mean key helps only beside the rotation, and channel scales never."""

    def divergence(trial: object, frame: KeyFrame) -> float:
        helped = frame.rotated and frame.mean is not None
        return 1.0 + (frame.channel_scale is not None) - 0.1 * frame.rotated - 0.1 * helped

    monkeypatch.setattr(key_choice._Trial, "divergence", divergence)
    monkeypatch.setattr(key_choice, "HARMFUL_KL", 1.0)
    decoder = load_decoder(fast, device="cpu")
    choice = choose_key_frame(decoder, int4(decoder))
    assert [trial.name for trial in choice.trials[1:]] == [
        *("mean key", "rotation", "channel scales", "mean key again")
    ]
    best = choice.best.frame
    assert best.mean is not None and best.rotated and best.channel_scale is None


def test_soft_caps_get_no_mean_key(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of soft caps having no kernel
        decoder = load_decoder(write_tiny_model(tmp_path, "gemma2"), device="cpu")
    choice = choose_key_frame(decoder, int4(decoder))
    assert "mean key" not in kls(choice) and choice.best.frame.mean is None


def test_the_kl_is_that_of_whole_texts(fast: Path) -> None:
    """Against the model without any cache, and with its keys and values stored by a pool."""
    decoder = load_decoder(fast, device="cpu", dtype="float32", session_len=64)
    text = sample_text(decoder)
    exact = LanguageModel(decoder)(text.ids).double().log_softmax(-1)
    total = 0.0
    for row, logs in zip(text.ids, exact, strict=True):
        reader = PagedReader(decoder, quant_policy=4, seqlen=len(row))
        stored = reader.log_probabilities(reader.hidden(row)).double()
        total += float((logs.exp() * (logs - stored)).sum())
    found = choose_key_frame(decoder, int4(decoder)).trials[0].kl
    assert found == pytest.approx(total / text.ids.numel(), rel=1e-3)


def test_the_choice_is_the_same_at_every_start(fast: Path) -> None:
    decoder = load_decoder(fast, device="cpu")
    first, second = (choose_key_frame(decoder, int4(decoder)) for _ in range(2))
    assert kls(first) == kls(second)


@pytest.mark.parametrize("policy", [0, 8, "k8v4"])
def test_other_policies_try_nothing(
    fast: Path, monkeypatch: pytest.MonkeyPatch, policy: int | str
) -> None:
    def never(decoder: Decoder) -> None:
        raise AssertionError("a text was sampled")

    monkeypatch.setattr(key_choice, "sample_text", never)
    decoder = load_decoder(fast, device="cpu")
    page_format = PageFormat.for_policy(decoder.config, policy, decoder.dtype)
    assert key_frame_for(decoder, page_format) is PLAIN_FRAME


def test_harm_is_told_and_k8v4_named_and_a_cure(fast: Path) -> None:
    with pytest.warns(UserWarning, match="does this model harm.*Use quant_policy k8v4") as caught:
        llm = LLM(fast, device="cpu", quant_policy=4, cache_max_entry_count="64MiB")
    assert len(caught) == 1
    llm.close()
    decoder = load_decoder(fast, device="cpu")
    trial = key_choice._Trial(decoder, int4(decoder))
    assert trial.divergence_under("k8v4") < key_choice.HARMFUL_KL < trial.run()[-1].kl


@pytest.mark.parametrize(
    ("harmful", "cure"), [(0.008, "quant_policy 8 "), (1e-7, "quant_policy 0: ")]
)
def test_where_k8v4_is_no_cure_another_is_named(
    fast: Path, monkeypatch: pytest.MonkeyPatch, harmful: float, cure: str
) -> None:
    monkeypatch.setattr(key_choice, "HARMFUL_KL", harmful)
    decoder = load_decoder(fast, device="cpu")
    with pytest.warns(UserWarning, match=f"Use {cure}"):
        key_frame_for(decoder, int4(decoder))


def test_nothing_is_said_where_4_bits_do(tmp_path: Path) -> None:
    decoder = load_decoder(write_tiny_model(tmp_path), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(key_frame_for(decoder, int4(decoder)), KeyFrame)
