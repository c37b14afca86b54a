"""LLM: a model to generate, stream and chat with, from any thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from awqkit_runtime.config import EngineConfig, TokenCount
from awqkit_runtime.engine.dispatcher import Dispatcher
from awqkit_runtime.engine.engine import EngineStats
from awqkit_runtime.engine.loading import load_engine
from awqkit_runtime.engine.plan import MemoryPlan
from awqkit_runtime.engine.request import Completion, RequestOutput
from awqkit_runtime.engine.sampling_params import SamplingParams
from awqkit_runtime.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from awqkit.checkpoint.tokenizer import TextTokenizer

#: A text, or the ids of its tokens.
Prompt = str | Sequence[int]
Message = Mapping[str, Any]


class LLM:
    """A model with its cache, loaded from a folder or hub id.

    The arguments are those of EngineConfig, which documents them. Folders without a tokenizer
    serve prompts of token ids, and their completions have no text. Threads may share it: steps
    serve what all of them ask for. Use it in a `with` statement, or close() it, to give the memory
    back.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        quant_policy: int | str = EngineConfig.quant_policy,
        cache_max_entry_count: float | int | str | TokenCount = EngineConfig.cache_max_entry_count,
        tp: int = EngineConfig.tp,
        device: str | torch.device = EngineConfig.device,
        dtype: str | torch.dtype = EngineConfig.dtype,
        session_len: int | None = EngineConfig.session_len,
        max_batch_size: int | None = EngineConfig.max_batch_size,
        max_prefill_tokens: int | None = EngineConfig.max_prefill_tokens,
        enable_prefix_caching: bool = EngineConfig.enable_prefix_caching,
        model_format: str = EngineConfig.model_format,
        deterministic: bool = EngineConfig.deterministic,
        seed: int | None = EngineConfig.seed,
        announce: Callable[[MemoryPlan], None] | None = None,
    ) -> None:
        """announce: is told where the memory will go, before anything is loaded."""
        self.config = EngineConfig(
            quant_policy=quant_policy,
            cache_max_entry_count=cache_max_entry_count,
            tp=tp,
            device=device,
            dtype=dtype,
            session_len=session_len,
            max_batch_size=max_batch_size,
            max_prefill_tokens=max_prefill_tokens,
            enable_prefix_caching=enable_prefix_caching,
            model_format=model_format,
            deterministic=deterministic,
            seed=seed,
        )
        engine, self._text = load_engine(path, self.config, announce=announce)
        #: What chat() uses where the caller says nothing.
        self.chat_defaults = self._text.chat_defaults
        self._dispatcher: Dispatcher | None = Dispatcher(engine)

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives model and cache back; what is still running is lost."""
        self._dispatcher = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """In the transformers library's class, which is imported for it.

        CheckpointError where the folder has none.
        """
        from awqkit.checkpoint.tokenizer import transformers_tokenizer

        return transformers_tokenizer(self._text.folder)

    @property
    def has_chat_template(self) -> bool:
        """Whether chat() can be used."""
        return self._text.has_chat_template

    @property
    def session_len(self) -> int:
        """Tokens that prompt and answer can have together."""
        return self._open.engine.session_len

    def stats(self) -> EngineStats:
        return self._open.engine.stats()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continues one or many prompts; completions come in the order of the prompts.

        sampling_params: one for all or one for each; None is SamplingParams(), greedy. A text is
        encoded as the tokenizer does by default; an empty one starts from the bos token. A
        refused prompt raises RequestError before anything is computed.
        """
        batch = _prompt_list(prompts)
        params = _one_for_each(sampling_params, SamplingParams(), len(batch))
        return self._open.complete([self.encode(prompt) for prompt in batch], params)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Generator[str]:
        """The continuation in pieces of text, as they come; closing the generator ends it."""
        for output in self.stream_outputs(self.encode(prompt), sampling_params or SamplingParams()):
            if output.text:
                yield output.text

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Any:
        """The assistant's answer to a conversation, or a list of answers to a list of them.

        sampling_params: None is `chat_defaults`, which the model's generation_config.json sets.
        """
        some = isinstance(messages, Sequence) and len(messages) > 0
        many = some and not isinstance(messages[0], Mapping)
        conversations: Any = messages if many else [messages]
        params = _one_for_each(sampling_params, self.chat_defaults, len(conversations))
        done = self._open.complete([self.encode_chat(one) for one in conversations], params)
        return done if many else done[0]

    def chat_stream(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> Generator[str]:
        """The assistant's answer in pieces of text; closing the generator ends it."""
        params = sampling_params or self.chat_defaults
        return _texts(self.stream_outputs(self.encode_chat(messages), params))

    def stream_outputs(
        self, prompt_token_ids: Sequence[int], sampling_params: SamplingParams
    ) -> Generator[RequestOutput]:
        """What each step adds to one answer; the last output carries the completion."""
        return self._open.follow(prompt_token_ids, sampling_params)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
        from awqkit.checkpoint.tokenizer import encode_prompt

        if isinstance(prompt, str):
            ids = encode_prompt(self._text_tokenizer, prompt)
            if not ids and self._text.bos_token_id is not None:
                return [self._text.bos_token_id]
            return ids
        if isinstance(prompt, Sequence):
            return [*prompt]
        raise RequestError(
            f"A prompt is a text or a list of token ids, not {type(prompt).__name__}."
        )

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's next answer begins."""
        from awqkit.checkpoint.tokenizer import render_chat

        return render_chat(self._text_tokenizer, messages)

    @property
    def _text_tokenizer(self) -> TextTokenizer:
        """CheckpointError where the folder has none."""
        from awqkit.checkpoint.tokenizer import load_tokenizer

        return self._text.tokenizer or load_tokenizer(self._text.folder)

    @property
    def _open(self) -> Dispatcher:
        if self._dispatcher is None:
            raise RuntimeError("this LLM is closed")
        return self._dispatcher


def _texts(outputs: Generator[RequestOutput]) -> Generator[str]:
    with closing(outputs):
        for output in outputs:
            if output.text:
                yield output.text


def _prompt_list(prompts: Any) -> list[Prompt]:
    """A single text or list of ids becomes a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes):
        raise RequestError(
            f"The prompts are a {type(prompts).__name__}; give a text, the token ids of one, or a "
            "list of such."
        )
    listed = list(prompts)
    return [listed] if listed and isinstance(listed[0], int) else listed


def _one_for_each(
    params: SamplingParams | Sequence[SamplingParams] | None, default: SamplingParams, count: int
) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or default] * count
    listed = list(params) if isinstance(params, Iterable) else [params]
    if not all(isinstance(one, SamplingParams) for one in listed):
        raise RequestError(
            f"The sampling parameters are {params!r}; give SamplingParams, one for all prompts or "
            "a list with one for each."
        )
    if len(listed) != count:
        raise RequestError(
            f"There are {count} prompts but {len(listed)} sampling parameters; give one for all "
            "prompts or one for each."
        )
    return listed
