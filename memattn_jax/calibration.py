"""What clean prompts score on one model: the ground of every verdict, refused for any other model or settings."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from memattn_jax.conformal import check_level
from memattn_jax.detectors import Detection, Scorer
from memattn_jax.detectors.attention_excess import KINDS, CleanAttention
from memattn_jax.detectors.detection import concatenate, select
from memattn_jax.detectors.latent_step_deviation import CleanMoves, latent_step_deviation
from memattn_jax.detectors.registry import DETECTORS, DEVIATION, PROMPT
from memattn_jax.errors import InputError
from memattn_jax.likeness import Kind
from memattn_jax.verdicts import Joint, fitting_rows

if TYPE_CHECKING:
    from memattn_jax.pipeline import StableDiffusion

FORMAT = 2
SETTINGS = ("seed", "probes", "steps", "guidance_scale")  # of a Scorer, that move scores; and two that follow below
MOST_SHOWN = 3  # detectors that a message names


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
      settings: of the scorer, see `settings_of`.
      fpr: the share of clean prompts that a verdict may call memorized, where no other is asked for.
      scores: {detector: float32 [clean]}, finite, prompts in one order.
      own_noise: {first-step detector: float32 [clean]}, finite: through one noise of each prompt's own.
      attention: of the clean prompts' tokens at the first step.
      kind: what the clean prompts are like.
      moves: of their sampling runs; None where no run was looked at.
    """

    model: str
    settings: dict[str, Any]
    fpr: float
    scores: dict[str, np.ndarray]
    own_noise: dict[str, np.ndarray]
    attention: CleanAttention
    kind: Kind
    moves: CleanMoves | None

    def judged(self, detectors: Iterable[str]) -> tuple[str, ...]:
        """Those of the detectors that verdicts come from: whose clean scores it has, and that look at the model."""
        return tuple(name for name in detectors if name in self.scores and name not in PROMPT)

    def joint(self, detectors: Iterable[str]) -> Joint | None:
        """The joint statistic of these detectors; None where no verdict comes from any of them."""
        names = self.judged(detectors)
        return Joint.fit({name: self.scores[name] for name in names}) if names else None

    def memorized(self, detection: Detection, fpr: float | None = None) -> dict[str, np.ndarray]:
        """For each detector that decides, bool [batch]: whether its score alone makes a row's verdict "memorized".

        A row's verdict is "memorized" where any does. At the calibration's rate, where no other is given.
        """
        joint = self.joint(detection.scores)
        return {} if joint is None else joint.over(detection.scores, self.fpr if fpr is None else fpr)

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
        """What `load` reads: a line for each part."""
        attention = self.attention
        content = {
            "format": FORMAT,
            "model": self.model,
            "settings": self.settings,
            "fpr": self.fpr,
            "scores": plain(self.scores),
            "own_noise": plain(self.own_noise),
            "attention": {
                "means": attention.means,
                "positions": numbers(attention.positions),
                "margins": attention.margins,
            },
            "statistics": plain(self.kind.statistics),
            "moves": None if self.moves is None else plain(self.moves._asdict()),
        }
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def load(cls, path: Path) -> "Calibration":
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
                f"{path}: {error} is not finite, and no verdict can come from it; create the file anew with "
                "`detect --calibrate`"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: not a calibration file; create one with `detect --calibrate`") from None
        raise InputError(f"{path}: a calibration of another version; create the file anew with `detect --calibrate`")


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
    moves = content["moves"]
    if moves is not None:
        moves = CleanMoves(**{name: finite(f"moves {name}", row) for name, row in moves.items()})
    return Calibration(content["model"], dict(content["settings"]), fpr, scores, own, attention, kind, moves)


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


def settings_of(scorer: Scorer) -> dict[str, Any]:
    """The scorer's settings that move its scores, as JSON gives them back; `site` is the one read, whoever named it."""
    steps = scorer.noise_norm_steps
    return {name: getattr(scorer, name) for name in SETTINGS} | {
        "site": scorer.read_site,
        "noise_norm_steps": None if steps is None else list(steps),
    }


def calibrate(scorer: Scorer, clean: Sequence[Detection], fpr: float, own: Sequence[Detection] = ()) -> Calibration:
    """What a scorer's detections of clean prompts say.

    Args:
      scorer: with `attribute`, so that the detections hold attention.
      clean: its detections of clean prompts. A prompt with a score that is not finite is left out.
      fpr: the share of clean prompts that a verdict may call memorized, in (0, 1).
      own: detections of first-step detectors through one noise of each prompt's own, for a guard; likewise.

    Raises:
      InputError: an fpr out of range, or too few prompts that all detectors gave a finite score.
    """
    check_level(fpr, "--fpr")
    rows = concatenate(clean)
    assert rows.attention is not None
    given = [score for name, score in rows.scores.items() if name != DEVIATION]
    arrays = [*given, rows.attention, *([] if rows.moves is None else [rows.moves])]
    rows = select(rows, finite_rows(arrays, "clean prompts"))
    scores = {name: np.asarray(score, np.float32) for name, score in rows.scores.items()}
    moves = None
    if DEVIATION in scores:
        fitted = rows.moves[fitting_rows(len(rows.prompts))]
        if len(fitted) < 2:
            raise InputError(f"{DEVIATION} needs 8 clean prompts to fit on, and there are {len(rows.prompts)}")
        moves = CleanMoves.fit(fitted.reshape(-1, fitted.shape[-1]))
        scores[DEVIATION] = np.asarray(latent_step_deviation(rows.moves, moves).mean(axis=1))
    own_noise: dict[str, np.ndarray] = {}
    if own:
        looked = concatenate(own)
        kept = finite_rows(looked.scores.values(), "clean prompts through their own noise")
        own_noise = {
            name: np.asarray(score[kept], np.float32)
            for name, score in looked.scores.items()
            if DETECTORS[name].sees == "first step"
        }
    attention = CleanAttention.fit(rows.attention, rows.lengths)
    ids = [row[1 : length - 1].tolist() for row, length in zip(rows.input_ids, rows.lengths, strict=True)]
    kind = Kind.of(rows.prompts, ids)
    return Calibration(fingerprint(scorer.sd), settings_of(scorer), fpr, scores, own_noise, attention, kind, moves)


def finite_rows(arrays: Iterable[np.ndarray], what: str) -> np.ndarray:
    """The rows that are finite in all arrays, bool [rows]; InputError where they are fewer than two."""
    kept = np.all([np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays], axis=0)
    if kept.sum() < 2:
        raise InputError(f"{kept.sum()} of {len(kept)} {what} have finite scores; at least 2 are needed")
    return kept
