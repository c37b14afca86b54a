"""Train the demo model: novels in, a Hugging Face folder out.

    python examples/demo_model/train.py --corpus novels.jsonl.zst --out DIR --minutes 8

One GPU is enough. The learning rate falls to zero as the minutes run out, so the time budget is
part of the recipe: a faster machine sees more tokens.
"""

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from batches import to_tokens
from export import round_to_bfloat16, save_model
from network import Llama, Shape
from optimisation import Recipe, Report, held_out_loss, train
from prepare import TokenData, prepare
from vocabulary import CONTEXT_LENGTH, VOCABULARY_SIZE


def main() -> None:
    arguments = _parse_arguments()
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    cache = arguments.data_cache or arguments.out / "data"
    data = _load_or_prepare(arguments.corpus, cache, seed=recipe.seed)
    if arguments.prepare_only:
        return

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    shape = Shape(vocabulary=VOCABULARY_SIZE, context=CONTEXT_LENGTH)
    model = Llama(shape, dropout=recipe.dropout).to(device)
    last_report = train(model, data, recipe, device=device, on_report=_print_report)

    round_to_bfloat16(model)
    save_model(model, tokenizer_folder=cache, out=arguments.out)
    record = {
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "recipe": asdict(recipe),
        "training": asdict(last_report),
        "held_out_novel_loss": held_out_loss(model, to_tokens(data.held_out_novels, device)),
        "held_out_chat_loss": held_out_loss(model, to_tokens(data.held_out_chat, device)),
    }
    text = json.dumps(record, indent=2)
    (arguments.out / "training.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="novels as .jsonl.zst with a 'text' per line")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--data-cache", type=Path, help="folder for tokens and tokenizer (reused)")
    parser.add_argument("--prepare-only", action="store_true", help="stop before the training")
    for field in fields(Recipe):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default)
    return parser.parse_args()


def _load_or_prepare(corpus: Path | None, cache: Path, *, seed: int) -> TokenData:
    if (cache / "tokens.npz").exists():
        return TokenData.load(cache / "tokens.npz")
    if corpus is None:
        raise SystemExit(f"--corpus is needed: {cache} holds no prepared tokens.")
    return prepare(corpus, cache, seed=seed)


def _print_report(report: Report) -> None:
    print(json.dumps({name: round(value, 4) for name, value in asdict(report).items()}), flush=True)


if __name__ == "__main__":
    main()
