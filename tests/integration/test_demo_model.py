"""The model that ships in the repository is what its card says, and other tools load it."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "demo_model"
MODEL = EXAMPLE / "model"
SIZE_LIMIT = 16_000_000
GROUP_SIZE = 128


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def test_folder_stays_under_the_size_limit() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= SIZE_LIMIT


def test_every_weight_is_bfloat16_and_every_linear_quantizable() -> None:
    with safe_open(MODEL / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        for name in names:
            tensor = weights.get_slice(name)
            assert tensor.get_dtype() == "BF16", name
            if name.endswith("_proj.weight"):
                out_features, in_features = tensor.get_shape()
                assert in_features % GROUP_SIZE == 0, name
                assert out_features % 8 == 0, name
    assert sum(name.endswith("_proj.weight") for name in names) == 7 * 8


def test_configuration_matches_the_tokenizer(tokenizer) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    generation = json.loads((MODEL / "generation_config.json").read_text())
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["max_position_embeddings"] == tokenizer.model_max_length == 2048
    assert config["vocab_size"] == len(tokenizer)
    assert config["bos_token_id"] == tokenizer.bos_token_id
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert config["pad_token_id"] == tokenizer.pad_token_id
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation["eos_token_id"] == [tokenizer.eos_token_id, turn_end]


@pytest.mark.parametrize(
    "text", ["It rained.", "  two  spaces\n\n\tand a tab", "naïve — 你好 🙂", "<|not special|>", ""]
)
def test_tokenizer_gives_back_any_text(tokenizer, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


def test_template_renders_system_and_several_turns(tokenizer) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "U2"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turns = "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages
    )
    assert text == f"<|bos|>{turns}<|im_start|>assistant\n"


def test_perplexity_on_the_evaluation_text_is_the_cards(network, tokenizer) -> None:
    ids = torch.tensor(tokenizer((EXAMPLE / "evaluation.txt").read_text())["input_ids"])
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 2048):
            row = ids[start : start + 2049]
            logits = network(row[None, :-1]).logits[0]
            total += F.cross_entropy(logits, row[1:], reduction="sum").item()
    perplexity = math.exp(total / (len(ids) - 1))
    assert f"perplexity {perplexity:.1f} (float32" in (EXAMPLE / "README.md").read_text()


@pytest.mark.parametrize("question", ["Hello! Who are you?", "Tell me a story.", "Good night."])
def test_greedy_chat_answers_in_sentences_and_stops(network, tokenizer, question: str) -> None:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = network.generate(
        **prompt, max_new_tokens=150, do_sample=False, temperature=None, top_p=None
    )[0, prompt["input_ids"].shape[1] :].tolist()
    assert written[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    answer = tokenizer.decode(written, skip_special_tokens=True)
    assert len(answer.split()) >= 4
    assert answer[0].isupper() or answer[0] == '"'
    assert answer.endswith((".", "!", "?", '"'))
