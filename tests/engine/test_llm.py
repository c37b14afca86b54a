"""LLM: what a script sees."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from awqkit_runtime import LLM, SamplingParams
from awqkit_runtime.config import EngineConfig
from awqkit_runtime.errors import (
    AwqkitError,
    CheckpointError,
    ConfigError,
    OutOfMemoryError,
    RequestError,
)
from tests.engine.chat_model import write_chat_model
from tests.engine.tokenizers_for_tests import shared_folder

PROMPTS = ["The old lighthouse", "It's 5 o'clock", "你好,世界", "The old lighthouse keeper counted"]
SHORT = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, device="cpu", seed=0) as model:
        yield model


@pytest.fixture(autouse=True)
def _nothing_stays_behind(llm: LLM) -> Iterator[None]:
    yield
    stats = llm.stats()
    assert (stats.running, stats.waiting, stats.used_pages) == (0, 0, 0)


def test_one_and_many_prompts_as_text_and_as_ids_give_the_same(llm: LLM) -> None:
    together = llm.generate(PROMPTS, SHORT)
    assert [done.token_ids for done in together] == [
        llm.generate(prompt, SHORT)[0].token_ids for prompt in PROMPTS
    ]
    ids = [llm.encode(prompt) for prompt in PROMPTS]
    assert llm.generate(ids, SHORT) == together
    assert llm.generate(ids[0], SHORT) == together[:1]
    assert llm.generate([], SHORT) == []


def test_a_completion_says_what_was_generated_and_why_it_ended(llm: LLM) -> None:
    (done,) = llm.generate(PROMPTS[0], SamplingParams(max_tokens=12, logprobs=1))
    assert done.finish_reason in ("stop", "length") and 1 <= len(done.token_ids) <= 12
    assert done.prompt_token_ids == llm.encode(PROMPTS[0])
    text_ids = [token for token in done.token_ids if token != 1]
    before = llm.tokenizer.decode(done.prompt_token_ids, skip_special_tokens=True)
    joined = llm.tokenizer.decode([*done.prompt_token_ids, *text_ids], skip_special_tokens=True)
    assert before + done.text == joined
    assert done.logprobs is not None and len(done.logprobs) == len(done.token_ids)


def test_the_default_is_greedy_and_bounded(llm: LLM) -> None:
    (long,) = llm.generate(PROMPTS[0])
    (short,) = llm.generate(PROMPTS[0], SamplingParams(temperature=0, max_tokens=12))
    assert long.token_ids[: len(short.token_ids)] == short.token_ids
    assert len(long.prompt_token_ids) + len(long.token_ids) <= 512


def test_each_prompt_can_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (1, 2, 3, 4)]
    assert [len(done.token_ids) for done in llm.generate(PROMPTS, params)] == [1, 2, 3, 4]
    with pytest.raises(RequestError, match="4 prompts but 2 sampling parameters"):
        llm.generate(PROMPTS, params[:2])
    with pytest.raises(RequestError, match="4 prompts but 0 sampling parameters"):
        llm.generate(PROMPTS, [])


@pytest.mark.parametrize("wrong", [5, "greedy", {"temperature": 1}, [{"temperature": 1}] * 4])
def test_what_are_no_sampling_parameters_is_refused(llm: LLM, wrong: Any) -> None:
    with pytest.raises(RequestError, match="give SamplingParams"):
        llm.generate(PROMPTS, wrong)


def test_an_empty_text_starts_from_bos(llm: LLM) -> None:
    assert llm.generate("", SHORT)[0].prompt_token_ids == [0]


def test_streams_give_the_text_of_generate_in_pieces(llm: LLM) -> None:
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    for prompt in PROMPTS:
        pieces = list(llm.stream(prompt, params))
        assert "".join(pieces) == llm.generate(prompt, params)[0].text
        assert len(pieces) > 5 and all(pieces)


def test_streams_can_be_read_in_turns_with_other_work_between(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    expected = [done.text for done in llm.generate(PROMPTS, params)]
    streams = [llm.stream(prompt, params) for prompt in PROMPTS]
    texts = ["", "", "", ""]
    for turn in range(60):
        texts[turn % 4] += next(streams[turn % 4], "")
        if turn == 7:
            assert llm.generate(PROMPTS, params)[1].text == expected[1]
    assert [text + "".join(rest) for text, rest in zip(texts, streams, strict=True)] == expected


def test_closing_a_stream_ends_its_request(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=200, ignore_eos=True))
    next(stream)
    assert llm.stats().running == 1
    stream.close()
    assert llm.stats().running == 0 and llm.stats().used_pages == 0


def test_a_refused_prompt_leaves_the_others_uncomputed(llm: LLM) -> None:
    with pytest.raises(RequestError, match="session length, 512"):
        llm.generate([[5, 6], [7] * 512])
    with pytest.raises(RequestError, match="not a token id"):
        llm.generate([[5, 6], [100_000]])
    with pytest.raises(RequestError, match="not float"):
        llm.generate([1.5])  # type: ignore[list-item]


def test_chat_renders_the_template_and_follows_the_models_wishes(llm: LLM) -> None:
    assert (llm.chat_defaults.temperature, llm.chat_defaults.top_k) == (0.6, 30)
    messages = [{"role": "user", "content": "Hello"}]
    done = llm.chat(messages, SHORT)
    text = "<|im_start|>user\nHello</s><|im_start|>assistant\n"
    assert done.prompt_token_ids == llm.tokenizer.encode(text, add_special_tokens=False)
    both = llm.chat([messages, [{"role": "user", "content": "Bye"}]], SHORT)
    assert both[0] == done and len(both) == 2
    assert "".join(llm.chat_stream(messages, SHORT)) == done.text
    assert llm.chat(messages).finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("wishes", "temperature", "top_p"),
    [
        ({}, 0.8, 0.95),
        ({"do_sample": False, "temperature": 0.6}, 0.0, 0.95),
        ({"do_sample": True, "temperature": None, "top_p": 0.7}, 0.8, 0.7),
    ],
)
def test_wishes_of_models(
    tmp_path: Path, wishes: dict[str, Any], temperature: float, top_p: float
) -> None:
    with LLM(write_chat_model(tmp_path, wishes=wishes), device="cpu") as model:
        assert model.chat_defaults.temperature == temperature
        assert model.chat_defaults.top_p == top_p


def test_senseless_wishes_name_their_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: top_p is 7"):
        LLM(write_chat_model(tmp_path, wishes={"top_p": 7}), device="cpu")


def test_conversations_without_sense_or_template_are_refused(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(AwqkitError, match="non-empty list of messages"):
        llm.chat([])
    with LLM(write_chat_model(tmp_path, chat=False), device="cpu") as base:
        with pytest.raises(CheckpointError, match="no chat template"):
            base.chat([{"role": "user", "content": "Hello"}])
        assert base.generate("Hello", SHORT)


def test_a_folder_without_tokenizer_serves_token_ids(tmp_path: Path) -> None:
    with LLM(write_chat_model(tmp_path, tokenizer=False), device="cpu") as model:
        (done,) = model.generate([[3, 4, 5]], SHORT)
        assert done.text == "" and done.token_ids
        with pytest.raises(CheckpointError, match="no tokenizer"):
            model.generate("text")
        with pytest.raises(RequestError, match="give stop_token_ids"):
            model.generate([[3, 4, 5]], SamplingParams(stop="."))


def test_settings_are_those_of_the_engines_config() -> None:
    parameters = inspect.signature(LLM).parameters
    settings = {
        name: p.default for name, p in parameters.items() if name not in ("path", "announce")
    }
    assert settings == {
        name: field.default for name, field in EngineConfig.__dataclass_fields__.items()
    }


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"tp": 3}, ConfigError),
        ({"tp": 2, "deterministic": True}, ConfigError),
        ({"quant_policy": 3}, ConfigError),
        ({"session_len": 513}, ConfigError),
        ({"model_format": "awq"}, CheckpointError),
        ({"cache_max_entry_count": "64KiB"}, OutOfMemoryError),
        ({"temperature": 1.0}, TypeError),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(
    folder: Path, settings: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        LLM(folder, device="cpu", **settings)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(CheckpointError, match="/no/such/folder"):
        LLM("/no/such/folder")


def test_a_closed_model_says_so(folder: Path) -> None:
    with LLM(folder, device="cpu") as model:
        assert model.session_len == 512
    with pytest.raises(RuntimeError, match="closed"):
        model.generate("Hello")


@pytest.mark.parametrize("policy", [0, 8, 4, "k8v4"])
def test_a_real_model_tells_its_story(policy: int | str) -> None:
    with LLM(shared_folder("models/stories260k"), device="cpu", quant_policy=policy) as model:
        (done,) = model.generate("", SamplingParams(max_tokens=60))
        assert done.text.startswith("Once upon a time, there was a")
        assert "".join(model.stream("", SamplingParams(max_tokens=60))) == done.text


@pytest.mark.parametrize("prompts", [5, None, b"text"])
def test_prompts_that_are_none_are_refused(llm: LLM, prompts: Any) -> None:
    with pytest.raises(RequestError, match=f"The prompts are a {type(prompts).__name__}"):
        llm.generate(prompts)


def test_threads_share_a_model(llm: LLM) -> None:
    expected = [llm.generate(prompt, SHORT)[0].text for prompt in PROMPTS]

    def answer(streaming: bool) -> list[str]:
        if streaming:
            return ["".join(llm.stream(prompt, SHORT)) for prompt in PROMPTS]
        return [llm.generate(prompt, SHORT)[0].text for prompt in PROMPTS]

    with ThreadPoolExecutor(4) as threads:
        for texts in threads.map(answer, [True, False] * 4):
            assert texts == expected
