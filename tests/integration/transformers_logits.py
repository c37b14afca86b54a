"""Run by test_other_engines.py: logits of a folder through the transformers library, to a file.

python transformers_logits.py FOLDER TOKENS.pt LOGITS.pt default|dequantize
"""

import sys

import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

folder, tokens, target, mode = sys.argv[1:]
options = (
    {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    if mode == "dequantize"
    else {}
)
model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager", **options
)
with torch.no_grad():
    torch.save(model(torch.load(tokens)).logits.float(), target)
