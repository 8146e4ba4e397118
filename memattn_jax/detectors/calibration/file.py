"""Calibrations as JSON files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from memattn_jax.detectors.calibration.attention_excess import KINDS, CleanAttention
from memattn_jax.detectors.calibration.calibration import Calibration
from memattn_jax.detectors.calibration.likeness import Kind
from memattn_jax.errors import InputError

FORMAT = 3


def to_json(calibration: Calibration) -> str:
    """What `load_calibration` reads: a line for each part."""
    attention = calibration.attention
    content = {
        "format": FORMAT,
        "model": calibration.model,
        "settings": calibration.settings,
        "fpr": calibration.fpr,
        "scores": plain(calibration.scores),
        "own_noise": plain(calibration.own_noise),
        "attention": {
            "means": attention.means,
            "positions": numbers(attention.positions),
            "margins": attention.margins,
        },
        "statistics": plain(calibration.kind.statistics),
        "fits": {name: plain(fit) for name, fit in calibration.fits.items()},
    }
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def load_calibration(path: Path) -> Calibration:
    """Reads a file with what `to_json` gives.

    Raises:
      FileNotFoundError: no such file.
      InputError: not a calibration, one of an older version, or one that holds a number that is not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such calibration file: {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        old = isinstance(content, dict) and "model" in content and content.get("format") != FORMAT
        if not old:
            return read(content)
    except NotFiniteError as error:
        raise InputError(
            f"{path}: {error} is not finite, so it allows no verdict; create the file again with `detect --calibrate`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: not a calibration file; create one with `detect --calibrate`") from None
    raise InputError(f"{path}: a calibration of another version; create it again with `detect --calibrate`")


class NotFiniteError(Exception):
    """A number that is not finite, where there must be none; the message names it."""


def read(content: Any) -> Calibration:
    """A calibration from the content of its file.

    Raises:
      NotFiniteError: a number is not finite.
      ValueError, KeyError, TypeError, AttributeError: not a calibration.
    """
    scores, own = ({name: finite(name, row) for name, row in content[key].items()} for key in ("scores", "own_noise"))
    if len({row.shape for row in scores.values()}) > 1 or any(row.ndim != 1 or row.size < 2 for row in scores.values()):
        raise ValueError
    fpr = number("fpr", content["fpr"])
    if not 0 < fpr < 1:
        raise ValueError
    means, margins = (
        {kind: number(f"attention {part}", content["attention"][part][kind]) for kind in KINDS}
        for part in ("means", "margins")
    )
    attention = CleanAttention(means, finite("attention", content["attention"]["positions"]), margins)
    statistics = {name: finite(name, row) for name, row in content["statistics"].items()}
    kind = Kind(statistics)
    fits = {
        name: {part: finite(f"{name} {part}", row) for part, row in fit.items()}
        for name, fit in content["fits"].items()
    }
    return Calibration(content["model"], dict(content["settings"]), fpr, scores, own, attention, kind, fits)


def finite(what: str, values: Any) -> np.ndarray:
    """Numbers as float32; raises NotFiniteError, naming what they are, where one of them is not finite."""
    array = np.asarray(values, np.float32)
    if not np.isfinite(array).all():
        raise NotFiniteError(what)
    return array


def number(what: str, value: Any) -> float:
    """One number, likewise."""
    if value is None or not np.isfinite(value):
        raise NotFiniteError(what)
    return float(value)


def numbers(values: np.ndarray) -> list[float]:
    """Float32 for JSON, in as many digits as it takes to read them back."""
    return [float(f"{value:.9g}") for value in values]


def plain(parts: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """`numbers` of several arrays."""
    return {name: numbers(values) for name, values in parts.items()}
