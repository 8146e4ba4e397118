"""Settings of a training run, and its optimizer."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memattn_jax.errors import InputError, check_name

if TYPE_CHECKING:
    import optax

SHARE = (lambda value: 0 <= value <= 1), "must be between 0 and 1"
POSITIVE = (lambda value: 0 < value < math.inf), "must be above 0 and finite"
# for each option, whether a value is valid, and the rule in words; NaN is never valid
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(
        ("steps", "batch_size", "accumulation", "gate_bins", "gate_window", "height", "width"),
        ((lambda value: value >= 1), "must be at least 1"),
    ),
    **dict.fromkeys(("gate_quantile", "dropout", "high_noise"), SHARE),
    **dict.fromkeys(("learning_rate", "gradient_clip", "gate_margin"), POSITIVE),
    "warmup_steps": ((lambda value: value >= 0), "must be at least 0"),
    "weight_decay": ((lambda value: 0 <= value < math.inf), "must be at least 0 and finite"),
    "ema_decay": ((lambda value: 0 <= value < 1), "must be at least 0 and below 1"),
    "seed": ((lambda value: 0 <= value < 2**32), "must be in [0, 2**32)"),
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of a training run.

    Runs with equal settings, initial model and data have equal losses, however often they are interrupted.

    Attributes:
      steps: Number of updates.
      batch_size: Number of pairs per update.
      accumulation: Number of micro-batches that an update is split into; more of them need less memory.
      learning_rate: Learning rate of AdamW, after warm-up.
      warmup_steps: Number of steps in which the learning rate rises linearly from 0.
      schedule: Learning-rate schedule: constant, or cosine, which falls to 0 at the last step.
      weight_decay: Weight decay of AdamW.
      gradient_clip: Maximum global norm of the gradient.
      ema_decay: Decay of the moving average of the parameters, which is saved instead of the last ones; 0 turns it off.
      dropout: Probability of replacing a caption by the empty prompt, for classifier-free guidance.
      high_noise: Probability of drawing a timestep from the noisiest two fifths instead of from all.
      train_text_encoder: Train the text encoder as well.
      gate: Memorization gate: none; entropy (of the training forward pass); noise_norm (Wen et al.; costs one more
        forward pass); loss (IET-AGC; of the row itself); or random, which drops rows without looking, as a control.
      gate_sites: Prefix of the cross-attention layers that the entropy gate reads, such as up_blocks.2; all if empty.
      gate_quantile: Quantile of clean scores above which a pair gets weight 0. The loss gate reads it where thresholds
        are fitted.
      gate_margin: The loss gate drops a row whose loss is less than the moving average by this factor.
      gate_bins: Number of timestep bins, each with its own threshold.
      gate_window: Number of recent scores per bin for running thresholds; unused with fitted thresholds.
      dtype: Data type of the computation: float32 or bfloat16. Parameters, gradients, the optimizer's state, the moving
        average and the saved model are float32 in both cases.
      remat: Recompute blocks in the backward pass instead of storing their activations, to save memory.
      seed: Random seed of all draws and of the order of the data.
      height: Image height in pixels; None stands for the size that the model was trained on.
      width: Image width in pixels; None stands for the size that the model was trained on.
    """

    steps: int = 1000
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    schedule: str = "constant"
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    ema_decay: float = 0.0
    dropout: float = 0.1
    high_noise: float = 0.0
    train_text_encoder: bool = False
    gate: str = "none"
    gate_sites: str = ""
    gate_quantile: float = 0.95
    gate_margin: float = 1.25
    gate_bins: int = 10
    gate_window: int = 256
    dtype: str = "float32"
    remat: bool = False
    seed: int = 0
    height: int | None = None
    width: int | None = None

    def check(self) -> None:
        """Raises InputError where a value is out of range; the message names the command line's option."""
        for name, choices in (
            ("schedule", ("cosine", "constant")),
            ("gate", ("none", "entropy", "noise_norm", "loss", "random")),
            ("dtype", ("float32", "bfloat16")),
        ):
            check_name(name, getattr(self, name), choices, f"--{name}")
        for name, (fits, needed) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise InputError(f"--{name.replace('_', '-')} {value}: {needed}")
        if self.batch_size % self.accumulation:
            raise InputError(f"--batch-size {self.batch_size} is not a multiple of --accumulation {self.accumulation}")
        if self.gate_sites and self.gate != "entropy":
            raise InputError("--gate-sites has no effect without --gate entropy")

    def learning_rates(self) -> "optax.Schedule":
        """The learning rate of each step."""
        import optax  # not before a run: it imports JAX

        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(
                init_value=0.0 if self.warmup_steps else self.learning_rate,
                peak_value=self.learning_rate,
                warmup_steps=self.warmup_steps,
                decay_steps=max(self.steps, self.warmup_steps + 1),
            )
        return optax.join_schedules(
            [
                optax.linear_schedule(0.0, self.learning_rate, max(1, self.warmup_steps)),
                optax.constant_schedule(self.learning_rate),
            ],
            boundaries=[self.warmup_steps],
        )

    @functools.cache  # noqa: B019 -- equal settings share one optimizer, and so one compiled step
    def optimizer(self) -> "optax.GradientTransformation":
        """AdamW on clipped gradients."""
        import optax

        return optax.chain(
            optax.clip_by_global_norm(self.gradient_clip),
            optax.adamw(self.learning_rates(), weight_decay=self.weight_decay),
        )
