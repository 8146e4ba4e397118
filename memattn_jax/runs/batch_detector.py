"""Detection as a function of columns, for engines that move batches of rows: Ray Data, Daft, Beam, Spark."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from memattn_jax import demo
from memattn_jax.detectors.calibration import Calibration, load_calibration
from memattn_jax.detectors.calibration.verdicts import Rule
from memattn_jax.detectors.scorer import DEFAULT, Scorer, named_detectors
from memattn_jax.errors import InputError
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.prompts.noise_seed import noise_seed
from memattn_jax.prompts.record import judge
from memattn_jax.text import printable

SETTINGS = ("seed", "probes", "steps", "guidance_scale", "site")  # of a Scorer, where no calibration names them


class BatchDetector:
    """Scores the prompts of a batch of columns; loads and compiles at its first call, once in a process.

    It pickles as its arguments, so an engine sends little to its workers. Rows that are no prompts get an error and
    empty scores, and the rest of their batch is scored. Batches of any number of rows run in one compiled program of
    `batch_size` rows, the last of which is filled up.

    Attributes:
      model: as of `StableDiffusion.from_pretrained`; None is the built-in model, in float32 unless `dtype` says else.
      detectors: names; one of them may be given by itself.
      calibration: a file that `detect --calibrate` wrote; None without verdicts, but for the built-in model, unchanged
        and in float32, its own.
      batch_size: rows that the device computes at once.
      column: the prompts'.
      fpr: false-positive rate of verdicts; by default the calibration's.
      dtype: of weights and computation, see `StableDiffusion.from_pretrained`.
      source: further arguments of `from_pretrained`, such as `loras`.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        detectors: str | Sequence[str] = DEFAULT,
        calibration: str | Path | None = None,
        batch_size: int = 16,
        *,
        column: str = "prompt",
        fpr: float | None = None,
        dtype: str | None = None,
        **source: Any,
    ):
        """Keeps the arguments; nothing is loaded yet.

        Raises:
          InputError: an unknown detector, a batch size or a rate that cannot be, or a rate without a calibration.
        """
        self.detectors = (detectors,) if isinstance(detectors, str) else tuple(detectors)
        self.model, self.batch_size, self.column = model, batch_size, column
        self.dtype = dtype or ("float32" if model is None else None)
        own = model is None and calibration is None and self.dtype == "float32" and not source
        self.calibration = demo.CALIBRATION if own else calibration
        self.fpr, self.source = fpr, source
        named_detectors(self.detectors)  # refuses wrong names here instead of in a worker
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; must be at least 1")
        if fpr is not None and not 0 < fpr < 1:
            raise InputError(f"fpr is {fpr}; must be between 0 and 1")
        if fpr is not None and self.calibration is None:
            raise InputError("fpr needs clean prompts: calibration=FILE")

    def __getstate__(self) -> dict[str, Any]:
        """The arguments, without what was loaded."""
        return {name: value for name, value in self.__dict__.items() if name != "loaded"}

    @cached_property
    def loaded(self) -> tuple[Scorer, Rule | None]:
        """The detectors bound to the model, and the rule for verdicts.

        Raises:
          InputError: a calibration of another model or of other settings.
        """
        model = demo.MODEL if self.model is None else self.model
        sd = StableDiffusion.from_pretrained(model, self.dtype, **self.source)
        if self.calibration is None:
            return Scorer(sd, self.detectors), None
        calibration = load_calibration(Path(self.calibration))
        scorer = calibrated(sd, self.detectors, calibration)
        joint = calibration.joint(scorer.judging)
        if joint is None and self.fpr is not None:
            raise InputError(f"fpr={self.fpr}: the calibration has no scores of {', '.join(scorer.detectors)}")
        return scorer, None if joint is None else Rule(joint, calibration.fpr if self.fpr is None else self.fpr)

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns, and those of a `memattn detect` table that do not explain.

        Args:
          columns: {name: array or list [rows]}, the prompts among them, of Python's or NumPy's strings.

        Returns:
          The same columns and, each an array [rows]: every detector's score, float32, NaN where there is none; "p",
          float64, and "verdict", str or None, with a calibration; "error", str or None.

        Raises:
          InputError: no column of prompts, or one that has the name of a new one.
        """
        scorer, rule = self.loaded
        new = (*scorer.detectors, *(("p", "verdict") if rule else ()), "error")
        if self.column not in columns:
            raise InputError(f"no column {printable(self.column, 60)}; the batch has {printable(str([*columns]), 80)}")
        if taken := [name for name in new if name in columns]:
            raise InputError(f"the batch already has a column {taken[0]}; rename it")
        prompts = [judge(plain(value), f"row {row}") for row, value in enumerate(columns[self.column])]
        good = np.array([row for row, prompt in enumerate(prompts) if prompt.error is None], np.int64)
        found = {name: np.full(len(prompts), np.nan, np.float32) for name in scorer.detectors}
        for first in range(0, len(good), self.batch_size):
            rows = good[first : first + self.batch_size]
            texts = [prompts[row].text for row in rows]
            texts += texts[-1:] * (self.batch_size - len(texts))
            detection = scorer(texts, [noise_seed(text, 0, scorer.probes) for text in texts])
            for name, scores in detection.scores.items():
                found[name][rows] = np.asarray(scores)[: len(rows)]
        errors: list[str | None] = [prompt.error for prompt in prompts]
        for row in good:
            if missing := [name for name, scores in found.items() if not np.isfinite(scores[row])]:
                errors[row] = f"not finite: {', '.join(missing)}"
        return {**columns, **found, **verdicts(rule, found, good), "error": np.array(errors, object)}


def calibrated(sd: StableDiffusion, names: Sequence[str], calibration: Calibration) -> Scorer:
    """Detectors with the settings and the fits of a calibration.

    Raises:
      InputError: the calibration is of another model.
    """
    settings = calibration.settings
    named = named_detectors(list(names), site=settings.get("site"), **settings.get("options", {}))
    kept = {name: settings[name] for name in SETTINGS if name in settings}
    scorer = Scorer(sd, calibration.fitted(named), **kept, options=settings.get("options", {}))
    calibration.check(scorer)
    return scorer


def verdicts(rule: Rule | None, scores: Mapping[str, np.ndarray], good: np.ndarray) -> dict[str, np.ndarray]:
    """The columns "p" and "verdict"; rows that are no prompts have neither."""
    if rule is None:
        return {}
    rows = len(next(iter(scores.values())))
    p, verdict = np.full(rows, np.nan), np.full(rows, None, object)
    for row, judged in zip(good, rule.judge({name: score[good] for name, score in scores.items()}), strict=True):
        p[row] = np.nan if judged["p"] is None else judged["p"]
        verdict[row] = judged["verdict"]
    return {"p": p, "verdict": verdict}


def plain(value: Any) -> Any:
    """NumPy's string as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value
