"""Run by test_other_engines.py: logits of folders through the transformers library.

python transformers_logits.py default|dequantize TOKENS.pt FOLDER...  (→ logits.pt beside each)
python transformers_logits.py refused TOKENS.pt FOLDER...  (dequantize must fail → refusal.pt)
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

mode, tokens, *folders = sys.argv[1:]
options = (
    {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    if mode in ("dequantize", "refused")
    else {}
)


def loaded(folder: str):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager", **options
    )


for folder in folders:
    if mode == "refused":
        try:
            loaded(folder)
        except RuntimeError as error:
            torch.save(str(error), Path(folder).parent / "refusal.pt")
            continue
        raise SystemExit(f"{folder} was loaded")
    model = loaded(folder)
    with torch.no_grad():
        logits = model(torch.load(tokens)).logits.float()
    torch.save(logits, Path(folder).parent / "logits.pt")
