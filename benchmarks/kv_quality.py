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
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import save_results
from texts import text_ids
from torch import Tensor

from awqkit_runtime.cache.key_frame import PLAIN_FRAME, KeyFrame
from awqkit_runtime.cache.page_format import PageFormat
from awqkit_runtime.config import QUANT_POLICIES, QuantPolicy
from awqkit_runtime.engine.key_choice import choose_key_frame, key_frame_for
from awqkit_runtime.models.decoder import Decoder
from awqkit_runtime.models.loader import load_decoder
from awqkit_runtime.text_scores import PagedReader, score_text


@dataclass(frozen=True, kw_only=True)
class Way:
    name: str
    policy: QuantPolicy
    frame: KeyFrame


@dataclass(frozen=True, kw_only=True)
class Row:
    way: str
    kl: float
    perplexity: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """trials: the KL on the sampled text. kept: those that the frame in use is made of."""

    trials: dict[str, float]
    kept: list[str]
    warning: str | None
    seconds: float


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
    ids = text_ids(model, text, tokens=tokens)
    print(f"{model.name} on {len(ids)} tokens of {text.name}", flush=True)
    check, ways = try_frames(decoder)
    reference = PagedReader(decoder, quant_policy=0, seqlen=seqlen)
    rows = []
    for way in ways:
        rows.append(score(way, decoder, reference, ids, seqlen))
        print(f"  {way.name:28} KL {rows[-1].kl:.3e}  perplexity {rows[-1].perplexity:.3f}")
    print(f"  sampled text: {check}", flush=True)
    return {
        "model": model.name,
        "text": text.name,
        "tokens": len(ids),
        "seqlen": seqlen,
        "rows": [asdict(row) for row in rows],
        "check": asdict(check),
    }


def try_frames(decoder: Decoder) -> tuple[Check, list[Way]]:
    page_format = PageFormat.for_policy(decoder.config, 4, decoder.dtype)
    choice = choose_key_frame(decoder, page_format)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        key_frame_for(decoder, page_format)
        seconds = time.perf_counter() - start
    best = choice.best.frame
    check = Check(
        trials={trial.name: trial.kl for trial in choice.trials},
        kept=list(parts(best)),
        warning=str(caught[0].message) if caught else None,
        seconds=round(seconds, 2),
    )
    ways = [
        Way(name=str(policy), policy=policy, frame=PLAIN_FRAME)
        for policy in QUANT_POLICIES
        if policy != 4
    ]
    for trial in choice.trials:
        name = f"4, keys with {' + '.join(parts(trial.frame)) or 'nothing'}"
        chosen = ", chosen" if trial.frame is best else ""
        ways.append(Way(name=name + chosen, policy=4, frame=trial.frame))
    return check, ways


def parts(frame: KeyFrame) -> Iterator[str]:
    if frame.mean is not None:
        yield "mean"
    if frame.rotated:
        yield "rotation"
    if frame.channel_scale is not None:
        yield "scales"


@torch.inference_mode()
def score(way: Way, decoder: Decoder, reference: PagedReader, ids: Tensor, seqlen: int) -> Row:
    reader = PagedReader(decoder, quant_policy=way.policy, seqlen=seqlen, key_frame=way.frame)
    found = score_text(reader, ids, seqlen=seqlen, reference=reference)
    if found.kl is None:
        raise RuntimeError("there is a reference, so there is a divergence")
    return Row(way=way.name, kl=found.kl, perplexity=found.perplexity)


if __name__ == "__main__":
    main()
