"""What tokenizer folders of a family leave unsaid because their own code knew it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from awqkit.checkpoint.json_file import read_json_object


@dataclass(frozen=True, kw_only=True)
class TokenizerDefaults:
    """Used only where a folder of the family has nothing to say itself."""

    #: What tells the family: `model_type` of config.json, `tokenizer_class` of its tokenizer.
    model_type: str = ""
    tokenizer_classes: tuple[str, ...] = ()
    #: Names of reserved pieces by id.
    reserved_names: Mapping[int, str] = field(default_factory=dict)
    #: bos_token, eos_token, unk_token, pad_token
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None


#: A folder of no such family.
NO_DEFAULTS = TokenizerDefaults()

_INTERNLM2 = TokenizerDefaults(
    model_type="internlm2",
    tokenizer_classes=("InternLM2Tokenizer", "InternLM2TokenizerFast"),
    reserved_names={
        92538: "<|plugin|>",
        92539: "<|interpreter|>",
        92540: "<|action_end|>",
        92541: "<|action_start|>",
        92542: "<|im_end|>",
        92543: "<|im_start|>",
    },
    named_tokens={
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
    },
    chat_template=(
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
)
FAMILIES = (_INTERNLM2,)


def find_defaults(folder: Path, tokenizer_config: Mapping[str, Any]) -> TokenizerDefaults:
    """The defaults for a model folder, found by its config.json or its tokenizer's class."""
    path = folder / "config.json"
    model_type = read_json_object(path).get("model_type") if path.is_file() else None
    tokenizer_class = tokenizer_config.get("tokenizer_class")
    for family in FAMILIES:
        if model_type == family.model_type or tokenizer_class in family.tokenizer_classes:
            return family
    return NO_DEFAULTS
