"""What a quantized KV cache costs a model: KL to its unquantized cache, in nats per token.

    python benchmarks/kv_quality.py MODEL TEXT [MODEL TEXT ...] --json FILE

Keys and values go through the pages that the engine uses. 4-bit keys are measured as they are, with
every part that the check at start-up tries, and as it decides; what the check itself found on the
text that the model sampled, and whether it warns, stands beside. TEXT: .txt, or documents as
awqkit-convert reads them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import save_results
from texts import text_ids
from torch import Tensor

from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.config import QuantPolicy
from awqkit_runtime.engine.key_choice import KeyChoice, choose_key_frame
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder
from awqkit_runtime.text_scores import PagedReader


@dataclass(frozen=True, kw_only=True)
class Way:
    name: str
    policy: QuantPolicy
    frame: KeyFrame


@dataclass(frozen=True, kw_only=True)
class Row:
    way: str
    kl: float
    #: Share of tokens whose likeliest successor stays the same.
    same_likeliest: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """trials: the KL on the sampled text. kept: those that the frame in use is made of."""

    trials: dict[str, float]
    kept: list[str]
    warning: str | None
    #: Of one thread, if there is one.
    processor_seconds: float


def main() -> None:
    options = parse_options()
    models = [Path(name) for name in options.pairs[::2]]
    texts = [Path(name) for name in options.pairs[1::2]]
    measured = [
        measure(model, text, tokens=options.tokens, seqlen=options.seqlen)
        for model, text in zip(models, texts, strict=True)
    ]
    if options.json:
        save_results(options.json, seqlen=options.seqlen, measured=measured)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+", metavar="MODEL TEXT", help="folders and files in turn")
    parser.add_argument("--tokens", type=int, default=8192, help="of each text at most")
    parser.add_argument("--seqlen", type=int, default=1024, help="tokens of a chunk of the text")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if len(options.pairs) % 2:
        parser.error("each MODEL needs its TEXT")
    return options


def measure(model: Path, text: Path, *, tokens: int, seqlen: int) -> dict[str, object]:
    decoder = load_decoder(model, device="cpu")
    seqlen = min(seqlen, decoder.session_len)
    chunks = text_ids(model, text, tokens=tokens).split(seqlen)
    count = sum(len(chunk) for chunk in chunks)
    print(f"{model.name} on {count} tokens of {text.name}", flush=True)
    start = time.process_time()
    choice = choose_key_frame(decoder, PageFormat.for_policy(decoder.config, 4, decoder.dtype))
    seconds = time.process_time() - start
    reference = read(decoder, chunks, Way(name="0", policy=0, frame=PLAIN_FRAME))
    rows = []
    for way in ways(choice):
        rows.append(score(way, read(decoder, chunks, way), reference))
        print(f"  {rows[-1].way:46} KL {rows[-1].kl:.3e}", flush=True)
    check = Check(
        trials={trial.name: trial.kl for trial in choice.trials},
        kept=list(parts(choice.best.frame)),
        warning=choice.warning,
        processor_seconds=round(seconds, 2),
    )
    print(f"  sampled text: {check}", flush=True)
    return {
        "model": model.name,
        "text": text.name,
        "tokens": count,
        "seqlen": seqlen,
        "rows": [asdict(row) for row in rows],
        "check": asdict(check),
    }


def ways(choice: KeyChoice) -> Iterator[Way]:
    yield Way(name="8", policy=8, frame=PLAIN_FRAME)
    yield Way(name="k8v4", policy="k8v4", frame=PLAIN_FRAME)
    for trial in choice.trials:
        name = f"4, keys with {' + '.join(parts(trial.frame)) or 'nothing'}"
        chosen = ", chosen" if trial is choice.best else ""
        yield Way(name=name + chosen, policy=4, frame=trial.frame)


def parts(frame: KeyFrame) -> Iterator[str]:
    if frame.mean is not None:
        yield "mean"
    if frame.rotated:
        yield "rotation"
    if frame.channel_scale is not None:
        yield "scales"


@torch.inference_mode()
def read(decoder: Decoder, chunks: Sequence[Tensor], way: Way) -> Tensor:
    """Log-probabilities, float32 [tokens, vocab]."""
    longest = max(len(chunk) for chunk in chunks)
    reader = PagedReader(decoder, quant_policy=way.policy, seqlen=longest, key_frame=way.frame)
    return torch.cat([reader.log_probabilities(reader.hidden(chunk)) for chunk in chunks])


def score(way: Way, logs: Tensor, reference: Tensor) -> Row:
    terms = (reference.exp() * (reference - logs)).sum(-1)
    agree = (reference.argmax(-1) == logs.argmax(-1)).float()
    return Row(way=way.name, kl=float(terms.mean()), same_likeliest=float(agree.mean()))


if __name__ == "__main__":
    main()
