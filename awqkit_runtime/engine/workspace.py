"""Bytes that a step of the engine takes besides weights and cache: an upper bound, from shapes.

The factors count the tensors that are alive at once where a layer takes most; a test holds the
sum against what torch allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from awqkit.checkpoint import DecoderConfig
from awqkit.decoder import layer_ropes
from awqkit_runtime.cache.key_pieces import JOINT_KEYS
from awqkit_runtime.cache.prompt_plan import BATCH_KEYS
from awqkit_runtime.engine.steady_runner import TILE_ROWS
from awqkit_runtime.kernels import rotary_append
from awqkit_runtime.kernels.attention import BLOCK_ROWS
from awqkit_runtime.kernels.rotary import can_rotate
from awqkit_runtime.layers.linear import UNPACKED_BYTES
from awqkit_runtime.layers.placement import Placement

#: The residual stream, what is to be added to it, the output of a norm and that of a layer: tensors
#: of hidden_size.
_HIDDEN_TENSORS = 4
#: Gate, up, activated gate, product: tensors of intermediate_size.
_MLP_TENSORS = 4
#: The joint projection, the rotated copy and the products that make it.
_PROJECTION_TENSORS = 6
#: A gathered key or value element, as the pages hold it and as attention computes with it.
_GATHERED_BYTES = 6
#: The same, gathered for kernels.
_BF16_BYTES = 2
#: An output over one piece of the keys: as it is, in float32, and the sum that it goes into.
_PIECE_BYTES = 10
#: Sine and cosine of an angle, float32.
_ANGLE_BYTES = 8
#: One pair of a query and a key in a block's mask: as a truth value, and as torch wants it.
_MASK_BYTES = 5
#: Where keys and values of one head and token lie, int64: two vectors and their parameters.
_KEY_ROW_BYTES = 32
#: Where they lie for all heads, int64.
_SLOT_BYTES = 8
#: One capped score, float32: itself and its share.
_SCORE_BYTES = 12
#: A token's row as an expert gets it, gives it, weighs it and adds it: tensors of hidden_size.
_ROUTED_TENSORS = 4
#: A router's score of one expert: as it is, in float32, as a share; and the order of the choices.
_ROUTER_BYTES = 16
#: One logit with all that sampling makes of it: copies, probabilities, a sum in float64.
_LOGIT_BYTES = 40
#: One logit of a deterministic tile, all rows of which are computed: as it is, and in float32.
_TILE_LOGIT_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Bytes of a step at its largest."""

    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.activations + self.logits


def workspace(
    config: DecoderConfig,
    placement: Placement,
    *,
    step_tokens: int,
    max_batch_size: int,
    session_len: int,
    deterministic: bool = False,
    decodes_in_kernels: bool = False,
) -> Workspace:
    """What a step of up to step_tokens new tokens takes, in sessions of up to session_len.

    deterministic: tile by tile; attention goes token by token, in torch unless decodes_in_kernels.
    """
    in_kernels = not deterministic and _kernels_attend(config, placement)
    step = min(step_tokens, max_batch_size * session_len)
    tokens = min(step, TILE_ROWS) if deterministic else step
    row = tokens * placement.activation_dtype.itemsize
    projections = _projection_bytes(config, row)
    sizes = (config, tokens, max_batch_size, session_len)
    if deterministic:
        gathered = 0 if decodes_in_kernels else _gathered_singly(*sizes)
    else:
        gathered = _gathered_for_kernels(*sizes) if in_kernels else _gathered_bytes(*sizes)
    attention = projections + gathered
    mlp = _mlp_bytes(config, tokens, row)
    # All masks of a step are made before the first layer, and its rotary angles too.
    masks = 0 if in_kernels or deterministic else len(_windows(config))
    prepared = masks * min(tokens, session_len) * session_len + _angle_bytes(config, tokens)
    residual = _HIDDEN_TENSORS * config.hidden_size * row
    tile_logits = TILE_ROWS * config.vocab_size * _TILE_LOGIT_BYTES if deterministic else 0
    return Workspace(
        activations=prepared + residual + max(attention, mlp) + _unpacked_bytes(placement),
        logits=min(max_batch_size, step) * config.vocab_size * _LOGIT_BYTES + tile_logits,
    )


def decode_activations(config: DecoderConfig, placement: Placement, rows: int) -> int:
    """What a step of so many decodes takes besides its logits, where kernels read the pages."""
    row = rows * placement.activation_dtype.itemsize
    largest = max(_projection_bytes(config, row), _mlp_bytes(config, rows, row))
    return _HIDDEN_TENSORS * config.hidden_size * row + largest + _angle_bytes(config, rows)


def _projection_bytes(config: DecoderConfig, row: int) -> int:
    """row: bytes of one channel of all tokens."""
    return _PROJECTION_TENSORS * (config.q_size + 2 * config.kv_size) * row


def _angle_bytes(config: DecoderConfig, tokens: int) -> int:
    return len(layer_ropes(config)) * _ANGLE_BYTES * config.head_dim * tokens


def _unpacked_bytes(placement: Placement) -> int:
    """Of 4-bit weights, where no kernel reads them as they are: beside any of the rest."""
    unpacks = placement.device.type == "cuda" and not placement.uses_cuda_kernels
    return UNPACKED_BYTES if unpacks else 0


def _mlp_bytes(config: DecoderConfig, tokens: int, row: int) -> int:
    """row: bytes of one channel of all tokens."""
    dense = _MLP_TENSORS * config.intermediate_size * row
    experts = config.experts
    if experts is None:
        return dense
    inner = max(experts.intermediate_size, experts.shared_intermediate_size or 0)
    expert = (_MLP_TENSORS * inner + _ROUTED_TENSORS * config.hidden_size) * row
    return max(dense, expert + _ROUTER_BYTES * experts.num_experts * tokens)


def _kernels_attend(config: DecoderConfig, placement: Placement) -> bool:
    """Whether prompts attend over pages through kernels, without masks."""
    return (
        placement.uses_cuda_kernels
        and placement.fusions.rotary
        and config.head_dim in rotary_append.PROGRAMS
        and config.attention_softcap is None
        and all(
            can_rotate(int(config.head_dim * rope.partial_rotary_factor), config.head_dim)
            for rope in layer_ropes(config)
        )
    )


def _windows(config: DecoderConfig) -> set[int | None]:
    return {config.window(layer) for layer in range(config.num_layers)}


def _gathered_for_kernels(
    config: DecoderConfig, tokens: int, max_batch_size: int, session_len: int
) -> int:
    """Keys and values that attend together in BF16, and sums over pieces of longer contexts."""
    widest = max((min(window, session_len) for window in _windows(config) if window), default=0)
    keys = min(max_batch_size * session_len, max(BATCH_KEYS, tokens + widest))
    pieces = 0 if session_len <= BATCH_KEYS else config.q_size * tokens * _PIECE_BYTES
    return 2 * config.kv_size * keys * _BF16_BYTES + pieces


def _gathered_singly(
    config: DecoderConfig, tokens: int, max_batch_size: int, session_len: int
) -> int:
    """Keys and values that are read at once, where those of a tile's rows lie, one row's scores."""
    heads, width = config.num_kv_heads, 2 * config.kv_size * _GATHERED_BYTES
    known = min(session_len, JOINT_KEYS) * heads * _KEY_ROW_BYTES + session_len * _SLOT_BYTES
    places = len(_windows(config)) * min(tokens, TILE_ROWS) * known
    capped = config.attention_softcap is not None
    scores = config.num_heads * session_len * _SCORE_BYTES if capped else 0
    keys = max(session_len, min(min(tokens, TILE_ROWS) * session_len, JOINT_KEYS))
    return keys * (width + heads * _KEY_ROW_BYTES) + places + scores


def _gathered_bytes(
    config: DecoderConfig, tokens: int, max_batch_size: int, session_len: int
) -> int:
    """Keys and values of the sequences that attend together, and the mask of a prompt's block."""
    keys = max(session_len, min(max_batch_size * session_len, BATCH_KEYS))
    rows = min(tokens, session_len, BLOCK_ROWS) * config.queries_per_kv
    mask = rows * session_len * _MASK_BYTES
    if config.attention_softcap is not None:
        batch_rows = max(rows, max_batch_size * config.queries_per_kv)
        mask += batch_rows * config.num_kv_heads * session_len * _SCORE_BYTES
    return 2 * config.kv_size * keys * _GATHERED_BYTES + mask
