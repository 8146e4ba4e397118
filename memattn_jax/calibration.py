"""Thresholds on detectors' scores, fitted on clean prompts of one model and refused for any other."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from memattn_jax.detectors import Detection, Scorer
from memattn_jax.detectors.scorer import concatenate
from memattn_jax.errors import InputError
from memattn_jax.metrics import Threshold, threshold_at_fpr

if TYPE_CHECKING:
    from memattn_jax.pipeline import StableDiffusion

INFINITE = {"low": -math.inf, "high": math.inf}  # bounds that JSON cannot write
SETTINGS = ("seed", "probes", "steps", "guidance_scale", "site", "noise_norm_steps")  # of a Scorer, that move scores


def fingerprint(sd: "StableDiffusion", pictures: bool = False) -> str:
    """A hash of all that decides scores: configs and weights of UNet and text encoder, as loaded, and the scheduler.

    With `pictures`, of all that decides those: the autoencoder too.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (sd.unet, sd.text_encoder, sd.vae)[: 3 if pictures else 2]:
        digest.update(repr(part.config).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    digest.update(json.dumps(sd.scheduler_config, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Calibration:
    """What clean prompts score on one model.

    Attributes:
      model: its fingerprint.
      settings: of the scorer, see `SETTINGS`.
      fpr: the share of clean prompts that a threshold lets pass as memorized.
      thresholds: for each detector, see `memattn_jax.metrics.Threshold`.
      attention: mean share of the attention that a prompt token takes at each position, float32 [tokens]; see
        `attention_excess`.
    """

    model: str
    settings: dict[str, Any]
    fpr: float
    thresholds: dict[str, Threshold]
    attention: np.ndarray

    def memorized(self, detection: Detection) -> dict[str, np.ndarray]:
        """For each detector that has a threshold, bool [batch]: whether the score lies above it; NaN does not."""
        return {
            name: score > self.thresholds[name].value
            for name, score in detection.scores.items()
            if name in self.thresholds
        }

    def check_model(self, sd: "StableDiffusion") -> None:
        """Raises InputError where it was fitted on another model, or on this one in another dtype."""
        own = fingerprint(sd)
        if own != self.model:
            raise InputError(
                f"this calibration was fitted on another model, {self.model}; the one at hand, in its dtype, is {own}; "
                "fit one with detect --calibrate"
            )

    def check(self, scorer: Scorer) -> None:
        """Raises InputError where the scorer's model or settings are not those of the calibration."""
        self.check_model(scorer.sd)
        for name, value in settings_of(scorer).items():
            if value != self.settings[name]:
                raise InputError(
                    f"this calibration was fitted with {name} {self.settings[name]}, not {value}; "
                    "take the same, or fit another with detect --calibrate"
                )

    def to_json(self) -> str:
        """What `load` reads."""
        content = dataclasses.asdict(self) | {
            "thresholds": {
                name: {key: None if value in INFINITE.values() else value for key, value in t._asdict().items()}
                for name, t in self.thresholds.items()
            },
            "attention": [float(share) for share in self.attention],
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Reads a file with what `to_json` gives.

        Raises:
          FileNotFoundError: no such file.
          InputError: no calibration.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no such calibration file: {path}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            thresholds = {name: threshold_from(values) for name, values in content["thresholds"].items()}
            attention = np.asarray(content["attention"], np.float32)
            return cls(content["model"], content["settings"], content["fpr"], thresholds, attention)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: no calibration; detect --calibrate writes one") from None


def threshold_from(values: dict[str, Any]) -> Threshold:
    """A threshold from JSON, which knows no infinity."""
    low, high = (values[key] if values[key] is not None else bound for key, bound in INFINITE.items())
    return Threshold(**values | {"low": low, "high": high})


def settings_of(scorer: Scorer) -> dict[str, Any]:
    """What of a scorer moves its scores, as JSON would give it back."""
    settings = {name: getattr(scorer, name) for name in SETTINGS}
    return settings | {"noise_norm_steps": None if scorer.noise_norm_steps is None else list(scorer.noise_norm_steps)}


def calibrate(scorer: Scorer, clean: Sequence[Detection], fpr: float) -> Calibration:
    """Fits a threshold for each detector of a scorer.

    Args:
      scorer: with `attribute`, so that the detections hold attention.
      clean: its detections of clean prompts; NaN scores are left out.
      fpr: the share of clean prompts that may lie above a threshold, in (0, 1).

    Raises:
      InputError: an fpr out of range, or a detector that gave no score.
    """
    if not 0 < fpr < 1:
        raise InputError(f"fpr is {fpr}; it lies between 0 and 1, as 0.01")
    rows = concatenate(clean)
    thresholds = {name: threshold_at_fpr(score[~np.isnan(score)], fpr) for name, score in rows.scores.items()}
    assert rows.attention is not None
    shares = clean_attention(rows.attention, rows.lengths)
    return Calibration(fingerprint(scorer.sd), settings_of(scorer), fpr, thresholds, shares)


def clean_attention(attention: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Mean share of a prompt token at each position, float32 [tokens]; where no prompt reaches, the mean of all.

    Args:
      attention: float32 [rows, tokens]; rows with NaN are left out.
      lengths: int [rows], begin and end token counted.
    """
    positions = np.arange(attention.shape[1])
    own = (positions > 0) & (positions < lengths[:, None] - 1) & np.isfinite(attention)
    total, count = np.where(own, attention, 0).sum(axis=0), own.sum(axis=0)
    overall = total.sum() / max(1, count.sum())
    return np.where(count > 0, total / np.maximum(1, count), overall).astype(np.float32)
