"""The engine's settings and their defaults, written once; command lines read them from here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from awqkit_runtime.errors import ConfigError

if TYPE_CHECKING:
    # Command lines read the defaults without waiting for it.
    import torch

QuantPolicy = Literal[0, 8, 4, "k8v4"]
QUANT_POLICIES: tuple[QuantPolicy, ...] = (0, 8, 4, "k8v4")
ModelFormat = Literal["auto", "hf", "awq", "compressed-tensors"]
MODEL_FORMATS: tuple[ModelFormat, ...] = ("auto", "hf", "awq", "compressed-tensors")
DTYPES = ("float32", "float16", "bfloat16")

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?(b)?\s*", re.IGNORECASE)
_TOKENS = re.compile(r"\s*(\d+)\s*tok(ens)?\s*", re.IGNORECASE)
#: Sizes of steps that an engine chooses from where nobody does: the first for a GPU, the last for a
#: CPU and where a GPU's memory is short.
PREFILL_TOKENS = (8192, 4096, 2048)
#: A smaller absolute cache is a mistyped unit, not a wish.
_SMALLEST_CACHE = 2**16


@dataclass(frozen=True)
class TokenCount:
    """A size in tokens of all sequences together; written as 32768tok."""

    tokens: int

    def __str__(self) -> str:
        return f"{self.tokens}tok"


def parse_size(text: str) -> int:
    """Bytes of "8GiB", "500MB", "1.5 GiB" or a plain number of bytes; ConfigError otherwise."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a size; write for instance 8GiB, 500MB or 1073741824.")
    number, unit = match[1], (match[2] or "").lower()
    return int(float(number) * _UNITS[unit]) if "." in number else int(number) * _UNITS[unit]


def parse_quant_policy(value: object) -> QuantPolicy:
    """The policy meant by 0, 8, 4, "k8v4" or their spelling as text; ConfigError otherwise."""
    if isinstance(value, int | str) and not isinstance(value, bool):
        for policy in QUANT_POLICIES:
            if str(value).strip().lower() == str(policy):
                return policy
    raise ConfigError(
        f"quant_policy is {value!r}; it must be 0 (cache in the model's dtype), 8 (int8), 4 (int4) "
        "or 'k8v4' (int8 keys, int4 values)."
    )


def parse_dtype(value: str | torch.dtype) -> Literal["auto"] | torch.dtype:
    """A compute dtype from its name or itself; "auto" is kept. ConfigError otherwise."""
    name = str(value).removeprefix("torch.").lower()
    if name == "auto":
        return "auto"
    if name in DTYPES:
        return named_dtype(name)
    raise ConfigError(f"dtype is {value!r}; it must be auto or one of {', '.join(DTYPES)}.")


def named_dtype(name: str) -> torch.dtype:
    """The dtype of one of the names in DTYPES."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def parse_device(value: str | torch.device) -> str:
    """The name of a device, checked for its spelling alone; ConfigError otherwise."""
    name = str(value)
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", name) is None:
        raise ConfigError(f"device is {name!r}; it must be auto, cpu, cuda or cuda:N.")
    return name


def resolve_device(value: str | torch.device) -> torch.device:
    """The device meant by "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".

    ConfigError when the name is not one of these or the machine has no such device.
    """
    import torch

    name = parse_device(value)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (torch.device(name).index or 0) >= count:
        raise ConfigError(
            f"device is {name!r}, but torch sees {count} CUDA devices on this machine; "
            "use another number, or cpu."
        )
    return torch.device(name)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is served. Malformed values raise ConfigError; spellings are normalised."""

    #: 0: cache in the model's dtype; 8: int8; 4: int4; "k8v4": int8 keys and int4 values.
    quant_policy: int | str = 0
    #: Cache size: a share in (0, 1] of the memory that is free after the weights, an absolute size
    #: ("8GiB", or a whole number of bytes), or the tokens that it holds ("32768tok").
    cache_max_entry_count: float | int | str | TokenCount = 0.8
    #: Tensor parallelism: processes that share the model, each with a GPU of its own, or a share
    #: of the CPU.
    tp: int = 1
    device: str | torch.device = "auto"
    #: "auto" is the dtype that the checkpoint names; on a GPU bfloat16 in place of float16.
    dtype: str | torch.dtype = "auto"
    #: Tokens of prompt and answer together; None: what the model was made for.
    session_len: int | None = None
    #: Sequences that run at once; None: batch_size_for the device.
    max_batch_size: int | None = None
    #: New tokens of all sequences together in one step; longer prompts are split. None:
    #: prefill_tokens_for the device, or less where memory is short.
    max_prefill_tokens: int | None = None
    enable_prefix_caching: bool = True
    model_format: str = "auto"
    #: Every bit of an answer is independent of what else is computed with it, and of what the
    #: cache held; slower.
    deterministic: bool = False
    #: Seeds the sampling of requests that bring no seed of their own; None: a fresh one.
    seed: int | None = None

    def __post_init__(self) -> None:
        self._set("quant_policy", parse_quant_policy(self.quant_policy))
        self._set("cache_max_entry_count", _parse_cache_size(self.cache_max_entry_count))
        self._set("dtype", parse_dtype(self.dtype))
        self._set("device", parse_device(self.device))
        _require_positive("tp", self.tp)
        if self.tp > 1 and self.deterministic:
            raise ConfigError(
                f"tp is {self.tp}, but a deterministic engine runs on one device. Use tp=1, or "
                "one that is not deterministic."
            )
        for name in ("session_len", "max_batch_size", "max_prefill_tokens"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        if self.model_format not in MODEL_FORMATS:
            raise ConfigError(
                f"model_format is {self.model_format!r}; "
                f"it must be one of {', '.join(MODEL_FORMATS)}."
            )
        if self.seed is not None and (not isinstance(self.seed, int) or self.seed < 0):
            raise ConfigError(f"seed is {self.seed!r}; it must be a whole number from 0 on.")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def policy(self) -> QuantPolicy:
        """quant_policy, normalised."""
        return cast(QuantPolicy, self.quant_policy)

    def torch_device(self) -> torch.device:
        """The device itself; ConfigError when the machine has none such."""
        return resolve_device(self.device)

    def batch_size_for(self, device: torch.device) -> int:
        """max_batch_size, or what suits the kind of device."""
        if self.max_batch_size is not None:
            return self.max_batch_size
        return 128 if device.type == "cuda" else 16

    def prefill_tokens_for(self, device: torch.device) -> int:
        """max_prefill_tokens, or what the kind of device needs to read prompts at full speed."""
        if self.max_prefill_tokens is not None:
            return self.max_prefill_tokens
        return PREFILL_TOKENS[0] if device.type == "cuda" else PREFILL_TOKENS[-1]

    @property
    def cache_size(self) -> float | int | TokenCount:
        """cache_max_entry_count, normalised: a share, bytes or tokens."""
        return cast(float | int | TokenCount, self.cache_max_entry_count)

    def cache_bytes(self, free_bytes: int, *, page_tokens: int, page_bytes: int) -> int:
        """Bytes that the cache may take where free_bytes are free for it.

        The cache has pages of page_tokens tokens and page_bytes bytes; tokens are asked for in
        whole ones. ConfigError when an absolute size asks for more than there is.
        """
        size = self.cache_size
        if isinstance(size, float):
            return int(free_bytes * size)
        if isinstance(size, TokenCount):
            size = -(-size.tokens // page_tokens) * page_bytes
        if size > free_bytes:
            raise ConfigError(
                f"cache_max_entry_count asks for {size / 2**30:.2f} GiB, but only "
                f"{free_bytes / 2**30:.2f} GiB are free for it; ask for less, "
                "or give a share such as 0.8."
            )
        return size


def _require_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number from 1 on.")


def _parse_cache_size(value: object) -> float | int | TokenCount:
    """A share as float, an absolute size in bytes as int, or tokens."""
    if isinstance(value, str):
        tokens = _TOKENS.fullmatch(value)
        value = TokenCount(int(tokens[1])) if tokens else _share_or_bytes(value)
    if isinstance(value, TokenCount) and value.tokens > 0:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 < value <= 1:
            return float(value)
        if _SMALLEST_CACHE <= value < math.inf and value == int(value):
            return int(value)
    raise ConfigError(
        f"cache_max_entry_count is {str(value)!r}; it must be a share in (0, 1] of the memory that "
        f"is free after the weights, a size such as '8GiB', of at least {_SMALLEST_CACHE} bytes, "
        "or a number of tokens such as '32768tok'."
    )


def _share_or_bytes(text: str) -> float | int:
    try:
        return float(text)
    except ValueError:
        return parse_size(text)
