"""A chat model behind any OpenAI-compatible server, spoken to with OpenAI's own client."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from awqkit_runtime.errors import ServerError

if TYPE_CHECKING:
    import openai

#: Sampling parameters that OpenAI's API knows; any other travels beside them.
STANDARD_PARAMETERS = frozenset(
    {"temperature", "top_p", "max_tokens", "seed", "stop", "presence_penalty", "frequency_penalty"}
)
#: OpenAI's client wants some key, also for servers that want none.
NO_KEY = "none"
#: Seconds until a server must have taken the connection; an answer may take as long as it likes.
CONNECT_SECONDS = 10.0

Message = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one event adds to an answer.

    finish_reason comes with the last text; the token counts after it, where the server tells them.
    """

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class RemoteModel:
    """One model of one server. Raises ServerError where the server cannot be used."""

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None) -> None:
        """url: of the server, with or without /v1 and scheme.  model: None is the first it has."""
        import openai

        self.base_url = api_base(url)
        self.api_key = api_key
        self._client = openai.OpenAI(
            base_url=self.base_url,
            api_key=api_key or NO_KEY,
            max_retries=0,
            timeout=openai.Timeout(None, connect=CONNECT_SECONDS),
        )
        self.name = model or self._first_model()

    def stream(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece]:
        """The answer to a conversation as it comes; closing the generator stops the server's work.

        sampling: parameters by their API names; those that are left out are the server's to choose.
        """
        standard = {name: sampling[name] for name in sampling if name in STANDARD_PARAMETERS}
        special = {name: sampling[name] for name in sampling if name not in STANDARD_PARAMETERS}
        conversation: Any = [dict(message) for message in messages]
        with self._explained_errors(unreachable=self._nobody_there):
            events = self._client.chat.completions.create(
                model=self.name,
                messages=conversation,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=special,
                **standard,
            )
        broken = f"{self.base_url} broke off in the middle of an answer."
        with self._explained_errors(unreachable=broken), events:
            for event in events:
                yield _piece(event)

    @property
    def _nobody_there(self) -> str:
        return (
            f"Nothing answers at {self.base_url}. Is the server running, and this its address? "
            "`awqkit-runtime serve MODEL` starts one."
        )

    def _first_model(self) -> str:
        with self._explained_errors(unreachable=self._nobody_there):
            models = self._client.models.list().data
        if not models:
            raise ServerError(f"{self.base_url} serves no model.")
        return models[0].id

    @contextmanager
    def _explained_errors(self, *, unreachable: str) -> Generator[None]:
        import openai

        try:
            yield
        except openai.AuthenticationError as error:
            raise ServerError(
                f"{self.base_url} wants an API key, or does not know this one: --api-key gives one."
            ) from error
        except openai.NotFoundError as error:
            reason = _reason(error).rstrip(".")
            raise ServerError(
                f"{self.base_url} answered 404: {reason}. Is this the address of an "
                "OpenAI-compatible server, and the model one that it serves?"
            ) from error
        except openai.APIStatusError as error:
            raise ServerError(
                f"{self.base_url} refused ({error.status_code}): {_reason(error)}"
            ) from error
        except openai.APITimeoutError as error:
            raise ServerError(
                f"{self.base_url} took no connection within {CONNECT_SECONDS:g} seconds."
            ) from error
        except openai.APIConnectionError as error:
            raise ServerError(unreachable) from error
        except openai.APIError as error:
            raise ServerError(f"{self.base_url} broke off: {error.message}") from error


def api_base(url: str) -> str:
    """http://host:23333, with or without scheme, slash and /v1 → http://host:23333/v1."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ServerError(f"{url!r} is no address of a server; http://127.0.0.1:23333 would be.")
    path = parts.path.rstrip("/")
    if not path.endswith("/v1"):
        path += "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _piece(event: openai.types.chat.ChatCompletionChunk) -> Piece:
    choice = event.choices[0] if event.choices else None
    usage = event.usage
    return Piece(
        text=(choice.delta.content or "") if choice else "",
        finish_reason=choice.finish_reason if choice else None,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
    )


def _reason(error: openai.APIStatusError) -> str:
    """The server's own words, without the shell that OpenAI's client puts around them."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return body["message"]
    return error.response.text.strip()[:300] or error.response.reason_phrase
