"""Which frame 4-bit keys are stored in, and whether a model bears them, tried on its own text.

The model reads the text once with keys and values as they are, and once more for each thing to try,
through pages. A mean key, the rotation, factors for the channels: each stays
where it lowers the KL divergence from the first reading, and what did not is tried once more at the
end. Where too much is left, a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PageFormat, pages_for
from awqkit_runtime.cache.paged_attention import PagedAttention, SequenceSpan
from awqkit_runtime.cache.pool import PagePool
from awqkit_runtime.engine.key_statistics import KeyStatistics
from awqkit_runtime.engine.runner import require_finite
from awqkit_runtime.engine.sampled_text import SampledText, sample_text
from awqkit_runtime.layers.attention import AttentionState
from awqkit_runtime.models.decoder import Decoder

#: KL in nats per token above which an int4 cache is called harmful: what rounding all weights of
#: small models to nearest costs, 0.012 to 0.037 (docs/quality.md), and nobody would serve that.
HARMFUL_KL = 0.025
#: Bytes of the float32 logits that are held at once.
_LOGIT_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class KeyTrial:
    """What storing keys in a frame costs, in nats per token of the sampled text."""

    name: str
    frame: KeyFrame
    kl: float


@dataclass(frozen=True, kw_only=True)
class KeyChoice:
    """What was tried, in that order: keys as they are first."""

    trials: tuple[KeyTrial, ...]
    #: A sentence for the user where even the best frame does harm.
    warning: str | None

    @property
    def best(self) -> KeyTrial:
        return _best(self.trials)


def key_frame_for(decoder: Decoder, page_format: PageFormat) -> KeyFrame:
    """The frame for pages of this format; a warning where even the best one does harm.

    Costs nothing where keys do not have 4 bits. NumericsError for logits that are not finite.
    """
    if page_format.k_bits != 4:
        return PLAIN_FRAME
    choice = choose_key_frame(decoder, page_format)
    if choice.warning is not None:
        warnings.warn(choice.warning, stacklevel=2)
    if decoder.device.type == "cuda":
        torch.cuda.empty_cache()  # What is free decides on the size of the cache.
    return choice.best.frame


def choose_key_frame(decoder: Decoder, page_format: PageFormat) -> KeyChoice:
    """Tries frames for 4-bit keys; see the module. NumericsError as above."""
    trial = _Trial(decoder, page_format)
    trials = trial.run()
    kl = _best(trials).kl
    return KeyChoice(trials=trials, warning=_warning(kl, trial) if kl > HARMFUL_KL else None)


def _best(trials: Sequence[KeyTrial]) -> KeyTrial:
    return min(trials, key=lambda trial: trial.kl)


def _warning(kl: float, trial: _Trial) -> str:
    """Names the smallest cache that does no harm."""
    text = (
        f"An int4 KV cache does this model harm: it changes the predictions by {kl:.2g} nats per "
        f"token of a text that the model sampled itself, and more than {HARMFUL_KL:g} is too much."
    )
    for policy, name in (("k8v4", "K8V4: keys in 8 bits, values in 4"), (8, "int8")):
        found = trial.divergence_under(policy)
        if found <= HARMFUL_KL:
            return f"{text} Use quant_policy {policy} ({name}), with which it is {found:.2g}."
    return f"{text} Use quant_policy 0: 8 bits harm it too."


class _Trial:
    """A text, how the model reads it, and what its keys and queries are like."""

    def __init__(self, decoder: Decoder, page_format: PageFormat) -> None:
        self._decoder = decoder
        self._format = page_format
        self._text = sample_text(decoder)
        self._statistics = KeyStatistics(decoder.config, self._text)
        self._reference = self._read(self._statistics)

    def run(self) -> tuple[KeyTrial, ...]:
        trials = [KeyTrial(name="as they are", frame=PLAIN_FRAME, kl=self.divergence(PLAIN_FRAME))]
        parts = list(self._parts())
        refused = [part for part in parts if not self._adds(trials, *part)]
        for name, with_part in refused:
            # What gave nothing at its turn may do so beside what came later.
            if name != parts[-1][0]:
                self._adds(trials, f"{name} again", with_part)
        return tuple(trials)

    def _adds(
        self, trials: list[KeyTrial], name: str, with_part: Callable[[KeyFrame], KeyFrame]
    ) -> bool:
        """Tries the best frame so far with one part more; whether that is better."""
        best = _best(trials)
        frame = with_part(best.frame)
        trials.append(KeyTrial(name=name, frame=frame, kl=self.divergence(frame)))
        return trials[-1].kl < best.kl

    def divergence(self, frame: KeyFrame) -> float:
        """KL in nats per token, with keys in this frame, from the reading as they are."""
        return self._divergence(self._format, frame)

    def divergence_under(self, policy: int | str) -> float:
        """The same of another policy, with keys as they are."""
        config, dtype = self._decoder.config, self._decoder.dtype
        return self._divergence(PageFormat.for_policy(config, policy, dtype), PLAIN_FRAME)

    def _divergence(self, page_format: PageFormat, frame: KeyFrame) -> float:
        state = _over_pages(self._decoder, self._text, page_format, frame)
        return _divergence(self._decoder, self._reference, self._read(state))

    def _parts(self) -> Iterator[tuple[str, Callable[[KeyFrame], KeyFrame]]]:
        """What a frame can have besides, in the order of trial."""
        mean, scale = self._statistics.mean_key(), self._statistics.channel_scale()
        # A soft cap on the scores sees what a mean key takes from them.
        if self._decoder.config.attention_softcap is None:
            yield "mean key", lambda frame: replace(frame, mean=mean)
        yield "rotation", lambda frame: replace(frame, rotated=True)
        yield "channel scales", lambda frame: replace(frame, channel_scale=scale)

    @torch.inference_mode()
    def _read(self, state: AttentionState) -> Tensor:
        """[rows · tokens, hidden] after the final norm."""
        text = self._text
        return self._decoder.hidden(text.ids.flatten(), text.positions.flatten(), state)


def _over_pages(
    decoder: Decoder, text: SampledText, page_format: PageFormat, frame: KeyFrame
) -> PagedAttention:
    """What reads the text's rows as the engine would: through pages of this format."""
    rows, tokens = text.ids.shape
    width = pages_for(tokens)
    pool = PagePool(page_format, rows * width, decoder.device, key_frame=frame)
    spans = [
        SequenceSpan(
            start=row * tokens,
            length=tokens,
            context=0,
            pages=tuple(range(row * width, (row + 1) * width)),
        )
        for row in range(rows)
    ]
    return PagedAttention(pool, spans, config=decoder.config)


@torch.inference_mode()
def _divergence(decoder: Decoder, reference: Tensor, hidden: Tensor) -> float:
    """Mean over rows of Σ p · log(p / q), of the logits of two tensors [rows, hidden]."""
    step = max(1, _LOGIT_BYTES // (4 * decoder.config.vocab_size))
    total = 0.0
    for ours, theirs in zip(hidden.split(step), reference.split(step), strict=True):
        logs, expected = (
            require_finite(decoder.logits(part), decoder).log_softmax(dim=-1)
            for part in (ours, theirs)
        )
        total += float((expected.exp() * (expected - logs)).sum(dtype=torch.float64))
    return total / len(hidden)
