"""The chat page: a conversation, its settings, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from awqkit_runtime.errors import ServerError
from awqkit_runtime.remote import RemoteModel
from awqkit_runtime.webui.statistics import AnswerClock, CacheWatch

if TYPE_CHECKING:
    import gradio

#: For the sidebar, which Gradio lays over the whole page on screens of at most this width.
_OPEN_ON_WIDE_SCREENS = """
() => ({__type__: "update", open: window.matchMedia("(width > 768px)").matches})
"""
#: Longest answer that the page's slider offers, in tokens.
MAX_ANSWER_TOKENS = 4096


def chat_page(remote: RemoteModel) -> gradio.Blocks:
    """A page that talks to one model; nothing on it is fetched from elsewhere."""
    import gradio as gr

    with gr.Blocks(title=remote.name, analytics_enabled=False, fill_height=True) as page:
        with gr.Sidebar(open=False, elem_id="settings") as sidebar:
            settings = _settings()
        page.load(None, outputs=sidebar, js=_OPEN_ON_WIDE_SCREENS)
        gr.Markdown(f"### {remote.name}\n{remote.base_url}")
        statistics = gr.Markdown("", elem_id="statistics", render=False)
        gr.ChatInterface(
            partial(answer, remote),
            chatbot=gr.Chatbot(
                label="Conversation", elem_id="conversation", buttons=["copy", "copy_all"], scale=1
            ),
            textbox=gr.Textbox(
                placeholder="A message",
                show_label=False,
                submit_btn=True,
                stop_btn=True,
                elem_id="message",
            ),
            additional_inputs=settings,
            additional_outputs=[statistics],
            analytics_enabled=False,
            flagging_mode="never",
            # The server queues; a page that queues too would hide how long its queue is.
            concurrency_limit=None,
            api_visibility="private",
        )
        statistics.render()
    return page


def _settings() -> list[Any]:
    """In the order of answer()'s last arguments."""
    import gradio as gr

    return [
        gr.Textbox(label="System prompt", lines=2, elem_id="system"),
        gr.Slider(0, 2, value=0.7, step=0.05, label="Temperature", elem_id="temperature"),
        gr.Slider(0.05, 1, value=0.95, step=0.05, label="Top p", elem_id="top-p"),
        gr.Slider(0, 200, value=0, step=1, label="Top k (0: all)", elem_id="top-k"),
        gr.Slider(1, 2, value=1, step=0.05, label="Repetition penalty", elem_id="repetition"),
        gr.Slider(
            1, MAX_ANSWER_TOKENS, value=512, step=1, label="Tokens at most", elem_id="max-tokens"
        ),
    ]


def answer(
    remote: RemoteModel,
    message: str,
    history: Sequence[dict[str, Any]],
    system: str,
    temperature: float,
    top_p: float,
    top_k: int,
    repetition_penalty: float,
    max_tokens: int,
) -> Iterator[tuple[str, str]]:
    """The answer so far and a line of statistics, again with every piece.

    Closing the iterator, as the stop button does, ends the server's work on the answer. An error
    becomes a message on the page, and the conversation stays.
    """
    import gradio as gr

    sampling: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
    }
    if top_k:
        sampling["top_k"] = top_k
    if repetition_penalty != 1:
        sampling["repetition_penalty"] = repetition_penalty
    text, clock, cache = "", AnswerClock(), CacheWatch(remote.base_url, remote.api_key)
    try:
        with closing(remote.stream(_messages(system, history, message), sampling)) as pieces:
            for piece in pieces:
                text += piece.text
                clock.saw(piece)
                yield text, clock.line(cache.share())
    except ServerError as error:
        # A raised gr.Error would leave the page's text box disabled.
        gr.Warning(str(error), title="No answer")
        yield text, clock.line()


def _messages(system: str, history: Sequence[dict[str, Any]], message: str) -> list[dict[str, str]]:
    """The page's history as the API wants it, without an empty system prompt or unanswered turns.

    The roles alternate on the page: every user's turn is followed by its answer, which is empty
    where the server refused.
    """
    texts = [{"role": turn["role"], "content": _text(turn["content"])} for turn in history]
    answered = [
        turn
        for question, reply in zip(texts[::2], texts[1::2], strict=False)
        if reply["content"]
        for turn in (question, reply)
    ]
    first = [{"role": "system", "content": system}] if system.strip() else []
    return [*first, *answered, {"role": "user", "content": message}]


def _text(content: Any) -> str:
    """A turn's text; the page keeps it whole or in parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
