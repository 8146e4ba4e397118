"""The scale of a layer's change, alpha / rank: from the file's own alphas, or from the config of the PEFT library."""

import math
import re
import time
from collections.abc import Mapping
from typing import Any

from memattn_jax.checkpoints.json_file import parse_json
from memattn_jax.errors import InputError
from memattn_jax.text import printable

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
LONGEST = 200  # characters of a layer's path, or of a pattern
PATIENCE = 2.0  # seconds of this process for the patterns of a file; those of a real one take milliseconds


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raises InputError for a config of PEFT that means more than a scale."""
    kind = config.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{where}: peft_type {str(kind)[:40]} is not supported; {', '.join(KINDS)} are")
    for field, plain in PLAIN.items():
        if field in config and config[field] not in plain:
            raise InputError(f"{where}: {field} {str(config[field])[:40]} is not supported")
    begun = config.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.lower().startswith(OTHER_BASE):
        raise InputError(f"{where}: init_lora_weights {begun[:40]} changes the model's weights too; merge it with PEFT")


def part_configs(text: Any, where: str) -> dict[str | None, dict[str, Any]]:
    """The configs in diffusers' metadata, by part.

    Keys are such as `unet.lora_alpha` where `save_lora_weights` wrote them, and plain, of part None, where a network's
    `save_lora_adapter` did.

    Raises:
      InputError: not JSON, or a config that is not supported.
    """
    try:
        content = parse_json(text.encode())
    except (ValueError, AttributeError):
        raise InputError(f"{where}: its metadata {METADATA} is not a JSON object") from None
    configs: dict[str | None, dict[str, Any]] = {}
    for key, value in content.items():
        part, _, field = key.rpartition(".")
        configs.setdefault(part or None, {})[field] = value
    for config in configs.values():
        check_config(config, where)
    return configs


class Scales:
    """The scales of layers, as PEFT computes them.

    Args:
      config: adapter_config.json, or one part of diffusers' metadata; see `check_config`.
      where: names the file in errors.
    """

    def __init__(self, config: Mapping[str, Any], where: str):
        self.config, self.where = config, where
        self.compiled: dict[str, re.Pattern[str]] = {}
        self.spent = 0.0

    def __call__(self, layer: str) -> float:
        """The scale of one layer, by its path in the model that PEFT saw.

        Raises:
          InputError: numbers that are none, or patterns that cannot be used.
        """
        try:
            alpha = float(self.value("alpha_pattern", layer, KINDS[self.config.get("peft_type", "LORA")]))
            rank = float(self.value("rank_pattern", layer, "r"))
            scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            reason = printable(str(error), 80)
            raise InputError(f"{self.where}: no scale for {printable(layer, 60)} ({reason})") from None
        if not math.isfinite(scale):
            raise InputError(f"{self.where}: the scale of {printable(layer, 60)} is not finite")
        return scale

    def value(self, patterns: str, layer: str, default: str) -> Any:
        """The value of the first pattern that matches a path or its end, as PEFT's `get_pattern_key` finds it."""
        for pattern, value in (self.config.get(patterns) or {}).items():
            if len(layer) > LONGEST or self.spent > PATIENCE:
                raise ValueError(f"{patterns} takes too long")
            start = time.process_time()
            found = self.pattern(pattern).match(layer)
            self.spent += time.process_time() - start
            if found:
                return value
        return self.config.get(default, 8)

    def pattern(self, text: str) -> re.Pattern[str]:
        """A pattern, compiled once; raises ValueError for one that is no regular expression or that is not safe."""
        if text not in self.compiled:
            if UNSAFE.search(text) or len(text) > LONGEST:
                raise ValueError(f"pattern {text[:40]} is too complex")
            try:
                self.compiled[text] = re.compile(rf"(.*\.)?({text})$")
            except (re.error, RecursionError, OverflowError):
                raise ValueError(f"pattern {text[:40]} is no regular expression") from None
        return self.compiled[text]
