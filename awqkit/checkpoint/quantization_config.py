"""config.json's `quantization_config`: what a checkpoint says about its quantized linears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from awqkit.checkpoint.errors import UnsupportedModelError
from awqkit.checkpoint.families.config_fields import REQUIRED, ConfigFields
from awqkit.checkpoint.layout import BITS, GROUP_SIZE, WIDE_BITS
from awqkit.checkpoint.packing import PACKED_FORMATS, PackedFormat, StoredFormat

#: The key is `compression_config` in early compressed-tensors checkpoints.
CONFIG_KEYS = ("quantization_config", "compression_config")
#: What GPTQ's two formats take from the zero points before they store them.
GPTQ_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
PACK_QUANTIZED = "pack-quantized"
AUTO_ROUND = ("auto-round", "intel/auto-round")
#: AutoRound's names for the layouts of others; with GPTQ's, what the zero points lack.
AUTO_ROUND_GPTQ = {"auto_round:auto_gptq": 1, "auto_round:gptqmodel": 0}
AUTO_ROUND_AWQ = "auto_round:auto_awq"
#: A module of so many bits is one that was left unquantized.
DENSE_BITS = 16


@dataclass(frozen=True, kw_only=True)
class StoredQuantization:
    """How the quantized linears of a checkpoint are stored.

    optional: suffixes of tensors that a linear may lack: zero points, where the middle code is
    zero, and GPTQ's group of each input.  zero_offset: see checkpoint.gptq.  widths: bits of a code
    that some matrix may have; shapes tell which one has them.
    """

    format: StoredFormat
    optional: tuple[str, ...] = ()
    zero_offset: int = 0
    widths: tuple[int, ...] = (BITS,)


def read_quantization(raw: Mapping[str, Any]) -> StoredQuantization | None:
    """What a config.json says about quantization; None for a plain checkpoint.

    Raises UnsupportedModelError, by name, for every method and setting that cannot be read.
    """
    section = next((value for key in CONFIG_KEYS if (value := raw.get(key))), None)
    if section is None:
        return None
    fields = ConfigFields({"quantization_config": section}).section("quantization_config")
    method = fields.get("quant_method")
    if method == "awq":
        return _read_awq(ConfigFields(fields, "config.json, quantization_config"))
    if method == "compressed-tensors":
        return _read_compressed_tensors(fields)
    if method == "gptq":
        return _read_gptq(ConfigFields(fields, "config.json, quantization_config"))
    if method in AUTO_ROUND:
        return _read_auto_round(ConfigFields(fields, "config.json, quantization_config"))
    raise UnsupportedModelError(
        f"The checkpoint is quantized with {method!r}, which cannot be read; known are "
        f"{', '.join(PACKED_FORMATS)}, gptq and auto-round, with {BITS} bits and groups of "
        f"{GROUP_SIZE}. Start from the model before it was quantized."
    )


def write_quantization(
    packed_format: PackedFormat,
    dense_modules: Sequence[str],
    named_modules: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """The `quantization_config` of a written checkpoint.

    dense_modules: full names of the linears left unquantized, such as "lm_head".  named_modules:
    the bits of those that are quantized, but no linears or not to 4 bits; `awq` has none.
    """
    if packed_format == "awq":
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": BITS,
            "group_size": GROUP_SIZE,
            "zero_point": True,
            "modules_to_not_convert": list(dense_modules),
        }
    wide = [module for module, bits in named_modules.items() if bits != BITS]
    narrow = ["Linear", *(module for module in named_modules if module not in wide)]
    # The wide ones first: some readers unpack everything by the first group. So they find too few
    # codes in a linear and stop; by the other they would read half of the codes that are wide.
    groups = [_group(wide, WIDE_BITS)] if wide else []
    groups.append(_group(narrow, BITS))
    return {
        "quant_method": "compressed-tensors",
        "format": PACK_QUANTIZED,
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": list(dense_modules),
        "kv_cache_scheme": None,
    }


def _group(targets: list[str], bits: int) -> dict[str, Any]:
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": GROUP_SIZE,
        "dynamic": False,
        "actorder": None,
    }
    return {
        "targets": targets,
        "format": PACK_QUANTIZED,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
    }


def _read_awq(fields: ConfigFields) -> StoredQuantization:
    _require("awq version", fields.text("version", "gemm").lower(), "gemm")
    _require("bits", fields.integer("bits", fields.integer("w_bit", BITS)), BITS)
    group_size = fields.integer("group_size", fields.integer("q_group_size", GROUP_SIZE))
    _require("group_size", group_size, GROUP_SIZE)
    _require("zero_point", fields.flag("zero_point", default=True), True)
    return StoredQuantization(format="awq")


def _read_gptq(fields: ConfigFields) -> StoredQuantization:
    _require("gptq bits", fields.integer("bits"), BITS)
    _require("gptq group_size", fields.integer("group_size"), GROUP_SIZE)
    layout = fields.text("checkpoint_format", fields.text("format", "gptq"))
    if layout not in GPTQ_ZERO_OFFSETS or fields.flag("is_marlin_format", default=False):
        raise _unsupported("gptq checkpoint_format", repr(layout), " or ".join(GPTQ_ZERO_OFFSETS))
    # With desc_act the groups' order must be told; it may be the usual one all the same.
    optional = () if fields.flag("desc_act", default=False) else ("g_idx",)
    return StoredQuantization(
        format="gptq", optional=optional, zero_offset=GPTQ_ZERO_OFFSETS[layout]
    )


def _read_auto_round(fields: ConfigFields) -> StoredQuantization:
    _require_auto_round("auto-round", fields)
    _require("auto-round data_type", fields.text("data_type", "int"), "int")
    if fields.integer("act_bits", DENSE_BITS) < DENSE_BITS:
        raise _unsupported("auto-round act_bits", "quantized activations", "none")
    others = fields.section("extra_config")
    for name in others:
        other = ConfigFields(ConfigFields(others).section(name), f"extra_config, {name}")
        if other.integer("bits", BITS) < DENSE_BITS:
            _require_auto_round(f"auto-round {name}", other, bits=BITS, group_size=GROUP_SIZE)
    packing = fields.text("packing_format", fields.text("backend", "auto_round:auto_gptq"))
    if packing == AUTO_ROUND_AWQ:
        return StoredQuantization(format="awq")
    if packing not in AUTO_ROUND_GPTQ:
        known = " or ".join((*AUTO_ROUND_GPTQ, AUTO_ROUND_AWQ))
        raise _unsupported("auto-round packing_format", repr(packing), known)
    offset = AUTO_ROUND_GPTQ[packing]
    return StoredQuantization(format="gptq", optional=("g_idx",), zero_offset=offset)


def _require_auto_round(what: str, fields: ConfigFields, **usual: int) -> None:
    """usual: what a module's own section need not repeat."""
    _require(f"{what} bits", fields.integer("bits", usual.get("bits", REQUIRED)), BITS)
    size = fields.integer("group_size", usual.get("group_size", REQUIRED))
    _require(f"{what} group_size", size, GROUP_SIZE)


def _read_compressed_tensors(section: Mapping[str, Any]) -> StoredQuantization:
    top = ConfigFields(section, "config.json, quantization_config")
    stored_format = top.text("format", PACK_QUANTIZED)
    if stored_format != "mixed-precision":
        _require("format", stored_format, PACK_QUANTIZED)
    if top.section("transform_config").get("config_groups"):
        raise _unsupported("transform_config", "rotations of the activations", "none")
    groups = top.section("config_groups")
    if not groups:
        raise _unsupported("config_groups", "no groups", "at least one")
    read = [_read_group(name, groups) for name in groups]
    optional = ("weight_zero_point",) if any(symmetric for _, symmetric in read) else ()
    widths = tuple(sorted({bits for bits, _ in read}))
    return StoredQuantization(format="compressed-tensors", optional=optional, widths=widths)


def _read_group(name: str, groups: Mapping[str, Any]) -> tuple[int, bool]:
    """Bits of a code, and whether the middle one stands for zero."""
    where = f"config.json, quantization_config, {name}"
    group = ConfigFields(ConfigFields(groups, where).section(name), where)
    _require(f"{name} format", group.text("format", PACK_QUANTIZED), PACK_QUANTIZED)
    if group.get("input_activations") is not None or group.get("output_activations") is not None:
        raise _unsupported(f"{name} activations", "quantized activations", "none")
    weights = ConfigFields(group.section("weights"), f"{where}, weights")
    bits, targets = weights.integer("num_bits"), group.get("targets")
    # Named modules may be the embedding or the head; where they are not, their shapes show it.
    names_modules = isinstance(targets, list) and "Linear" not in targets
    if bits != WIDE_BITS or not names_modules:
        _require(f"{name} num_bits", bits, BITS)
    _require(f"{name} type", weights.text("type", "int"), "int")
    _require(f"{name} strategy", weights.text("strategy", "group"), "group")
    _require(f"{name} group_size", weights.integer("group_size", 0), GROUP_SIZE)
    # "group" stores the columns in another order than the weight's own.
    if weights.get("actorder") in ("group", True):
        raise _unsupported(f"{name} actorder", repr(weights.get("actorder")), "null or 'weight'")
    return bits, weights.flag("symmetric", default=True)


def _require(what: str, found: object, supported: object) -> None:
    if found != supported:
        raise _unsupported(what, repr(found), repr(supported))


def _unsupported(what: str, found: str, supported: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"config.json, quantization_config: {what} is {found}, which cannot be read; supported "
        f"is {supported}. Start from the model before it was quantized."
    )
