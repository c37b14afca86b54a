"""Run by test_other_engines.py: logits of folders through the transformers library.

python transformers_logits.py default|dequantize TOKENS.pt FOLDER...  (→ logits.pt beside each)
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

mode, tokens, *folders = sys.argv[1:]
options = (
    {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    if mode == "dequantize"
    else {}
)
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager", **options
    )
    with torch.no_grad():
        logits = model(torch.load(tokens)).logits.float()
    torch.save(logits, Path(folder).parent / "logits.pt")
