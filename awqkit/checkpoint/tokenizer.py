"""Tokenizers of model folders: loading, carrying over, prompts, conversations, stop tokens."""

from awqkit.checkpoint.chat import (
    encode_prompt,
    encode_rendered,
    render_chat,
    render_chat_text,
)
from awqkit.checkpoint.stop_tokens import stop_token_ids
from awqkit.checkpoint.text_tokenizer import TextTokenizer
from awqkit.checkpoint.tokenizer_carry import carry_tokenizer
from awqkit.checkpoint.tokenizer_loading import has_tokenizer, load_tokenizer
from awqkit.checkpoint.transformers_tokenizer import transformers_tokenizer

__all__ = [
    "TextTokenizer",
    "carry_tokenizer",
    "encode_prompt",
    "encode_rendered",
    "has_tokenizer",
    "load_tokenizer",
    "render_chat",
    "render_chat_text",
    "stop_token_ids",
    "transformers_tokenizer",
]
