"""The scale of a layer's change, alpha / rank: from the file's own alphas, or from the config of the PEFT library."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from memattn_jax.errors import InputError

METADATA = "lora_adapter_metadata"  # where diffusers' save_lora_weights keeps PEFT's configs, one for each part
KINDS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}  # by PEFT's peft_type: the name of its alpha
# fields that change what the tensors mean, with the values that change nothing
PLAIN: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False,),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "megatron_config": (None,),
}
# initializations that also change the weights of the model, which a file of the adapter alone does not hold
OTHER_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
UNSAFE = re.compile(r"\)\s*[*+?{]|([*+?{].*){4}")  # patterns that might take forever to match


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raises InputError for a config of PEFT that means more than a scale."""
    kind = config.get("peft_type", "LORA")
    if kind not in KINDS:
        raise InputError(f"{where}: peft_type {str(kind)[:40]} is not supported; {', '.join(KINDS)} are")
    for field, plain in PLAIN.items():
        if field in config and config[field] not in plain:
            raise InputError(f"{where}: {field} {str(config[field])[:40]} is not supported")
    begun = config.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.lower().startswith(OTHER_BASE):
        raise InputError(f"{where}: init_lora_weights {begun[:40]} changes the model's weights too; merge it with PEFT")


def part_configs(text: str, where: str) -> dict[str, dict[str, Any]]:
    """The configs in diffusers' metadata, by part; its keys are such as `unet.lora_alpha`.

    Raises:
      InputError: not JSON, or a config that is not supported.
    """
    try:
        pairs = [(key.partition("."), value) for key, value in json.loads(text).items()]
    except (ValueError, AttributeError, RecursionError):
        raise InputError(f"{where}: its metadata {METADATA} is not a JSON object") from None
    configs: dict[str, dict[str, Any]] = {}
    for (part, _, field), value in pairs:
        configs.setdefault(part, {})[field] = value
    for config in configs.values():
        check_config(config, where)
    return configs


def pattern_value(patterns: Mapping[str, Any], layer: str, default: Any) -> Any:
    """The value of the first pattern that matches a layer's path or its end, as PEFT's `get_pattern_key` finds it.

    Raises:
      ValueError: a pattern that is no regular expression, or one that might take forever.
    """
    for pattern, value in patterns.items():
        if UNSAFE.search(pattern) or len(pattern) > 500:
            raise ValueError(f"pattern {pattern[:40]} is too complex")
        try:
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return value
        except re.error:
            raise ValueError(f"pattern {pattern[:40]} is no regular expression") from None
    return default


def scale_by_config(config: Mapping[str, Any], layer: str, where: str) -> float:
    """The scale of one layer, as PEFT computes it.

    Args:
      config: adapter_config.json, or one part of diffusers' metadata.
      layer: path of the layer in the model that PEFT saw.
      where: names the file in errors.

    Raises:
      InputError: numbers that are none, or patterns that cannot be used.
    """
    try:
        alpha = config.get(KINDS[config.get("peft_type", "LORA")], 8)
        alpha = float(pattern_value(config.get("alpha_pattern") or {}, layer, alpha))
        rank = float(pattern_value(config.get("rank_pattern") or {}, layer, config.get("r", 8)))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{where}: no scale for {layer[:60]} ({str(error)[:60]})") from None
    if not math.isfinite(scale):
        raise InputError(f"{where}: the scale of {layer[:60]} is not finite")
    return scale
