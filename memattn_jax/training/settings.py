"""What decides a training run, and the optimizer made of it."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memattn_jax.errors import InputError, check_name

if TYPE_CHECKING:
    import optax

SHARE = (lambda value: 0 <= value <= 1), "a number from 0 to 1 is needed"
POSITIVE = (lambda value: 0 < value < math.inf), "a number above 0 is needed"
# of each option, whether a value can be, and what is needed; NaN is in no range
RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(
        ("steps", "batch_size", "accumulation", "gate_bins", "gate_window", "height", "width"),
        ((lambda value: value >= 1), "at least 1 is needed"),
    ),
    **dict.fromkeys(("gate_quantile", "dropout", "high_noise"), SHARE),
    **dict.fromkeys(("learning_rate", "gradient_clip"), POSITIVE),
    "warmup_steps": ((lambda value: value >= 0), "at least 0 is needed"),
    "weight_decay": ((lambda value: 0 <= value < math.inf), "a number from 0 on is needed"),
    "ema_decay": ((lambda value: 0 <= value < 1), "a number from 0 to below 1 is needed"),
    "seed": ((lambda value: 0 <= value < 2**32), "a number in [0, 2**32) is needed"),
}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Two runs with equal settings, start and data have equal losses, however often they were interrupted.

    Attributes:
      steps: updates.
      batch_size: rows of an update.
      accumulation: micro-batches of an update.
      learning_rate: AdamW's, after warm-up.
      warmup_steps: of linear increase from 0.
      schedule: "cosine" falls to 0 at the last step, "constant" stays.
      weight_decay: AdamW's.
      gradient_clip: largest global norm of the gradient.
      ema_decay: of the moving average, which is saved in the end instead of the last parameters; 0 keeps none.
      dropout: probability that a caption is replaced by the empty prompt, for classifier-free guidance.
      high_noise: probability that a timestep is drawn from the noisiest two fifths instead of from all.
      train_text_encoder: whether the text encoder is trained as well.
      gate: "none", "entropy" (read off the training forward pass) or "noise_norm" (Wen et al., one pass more).
      gate_sites: where "entropy" reads the attention: the cross-attention layers whose path begins so, as
        "up_blocks.2"; all of them by default.
      gate_quantile: of clean scores, above which a sample gets weight 0.
      gate_bins: bins of timesteps with a threshold each.
      gate_window: scores that a running threshold remembers for each bin; unused where thresholds are fitted.
      dtype: what is computed in, "float32" or "bfloat16"; parameters, gradients, the optimizer's state and the moving
        average are float32 in either, and so is the model that is saved.
      remat: compute blocks again in the backward pass instead of keeping their insides.
      seed: of every draw and of the data's order.
      height: of the pictures, in pixels; None is what the model was trained on.
      width: likewise.
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
            ("gate", ("none", "entropy", "noise_norm")),
            ("dtype", ("float32", "bfloat16")),
        ):
            check_name(name, getattr(self, name), choices, f"--{name}")
        for name, (fits, needed) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not fits(value):
                raise InputError(f"--{name.replace('_', '-')} {value}: {needed}")
        if self.batch_size % self.accumulation:
            raise InputError(f"--batch-size {self.batch_size} does not divide into {self.accumulation} micro-batches")
        if self.gate_sites and self.gate != "entropy":
            raise InputError("--gate-sites has a meaning for --gate entropy alone")

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
