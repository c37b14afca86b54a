"""Conversations as calibration text."""

from collections.abc import Sequence

from awqkit.calibration.text_fields import Message, RenderChat
from awqkit.checkpoint.errors import CheckpointError, ConversationError
from awqkit.checkpoint.tokenizer import TextTokenizer, render_chat_text


def chat_renderer(tokenizer: TextTokenizer) -> RenderChat:
    """Renders through the tokenizer's chat template, so that the model sees chats as in service.

    Without a template, or where it refuses a conversation (roles out of order, no room for a
    system message), the messages are joined plainly.
    """
    if not tokenizer.chat_template:
        return _joined

    def render(messages: Sequence[Message]) -> str:
        try:
            return render_chat_text(tokenizer, messages, add_generation_prompt=False)
        except (CheckpointError, ConversationError):
            return _joined(messages)

    return render


def _joined(messages: Sequence[Message]) -> str:
    return "\n\n".join(message["content"] for message in messages)
