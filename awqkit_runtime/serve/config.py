"""The server's settings and their defaults, written once; the command line reads them from here."""

from __future__ import annotations

from dataclasses import dataclass

from awqkit_runtime.errors import ConfigError

TOOL_CALL_PARSERS = ("auto", "internlm", "llama3", "qwen", "none")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where a server listens and what it lets through. Wrong values raise ConfigError."""

    #: Address to listen on; 0.0.0.0 is every interface of the machine.
    server_name: str = "127.0.0.1"
    #: 0 takes any free one.
    server_port: int = 23333
    #: Any of these must come as a bearer token; none: everybody is served.
    api_keys: tuple[str, ...] = ()
    #: The name that requests give; None: the last part of the model's path.
    model_name: str | None = None
    #: Without the page at / and the schema behind it.
    hide_docs: bool = False
    #: Web pages of these origins may use the server from a browser; "*" is all.
    allow_origins: tuple[str, ...] = ()
    #: "auto" is what the model's template and vocabulary show.
    tool_call_parser: str = "auto"
    #: Answers that may wait beside those that run; more are turned away with status 429.
    max_queued_requests: int = 1000
    #: Seconds from a request's arrival to the end of its answer.
    request_timeout: float = 600.0
    #: Bytes of a request's body.
    max_body_size: int = 4 * 2**20
    #: Answers of one request: `n`, times prompts.
    max_choices: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.server_port < 2**16:
            raise ConfigError(f"server_port is {self.server_port}; it must be from 0 to 65535.")
        for name in ("request_timeout", "max_body_size", "max_choices"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if self.tool_call_parser not in TOOL_CALL_PARSERS:
            raise ConfigError(
                f"tool_call_parser is {self.tool_call_parser!r}; it must be one of "
                f"{', '.join(TOOL_CALL_PARSERS)}."
            )
        if self.max_queued_requests < 0:
            raise ConfigError(
                f"max_queued_requests is {self.max_queued_requests}; it must be 0 or more."
            )
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(
                    "An API key is empty or has a character that no HTTP header carries; use "
                    "printable ASCII without spaces."
                )
