"""The settings of a sampling run, and their conversion to arrays before any program runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from jax import Array

from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.errors import InputError, check_name
from memattn_jax.interceptors import AttentionMaps, MeanMaps, Tap, TokenMeans
from memattn_jax.schedulers import MakeSchedule, Schedule
from memattn_jax.text import counted

NamedTaps = Literal["tokens", "heatmaps", "maps"]


class Between(NamedTuple):
    """A run between two chunks of steps, as a callback sees it.

    Attributes:
      step: calls of the UNet made so far.
      calls: how many there will be.
      latents: float32 [batch, h, w, channels].
    """

    step: int
    calls: int
    latents: Array


Callback = Callable[[Between], Array | None]  # latents that it returns replace those of the run


class Guarding(Protocol):
    """Decides which rows are mitigated, as `memattn_jax.Guard` does."""

    @property
    def mitigation(self) -> Mitigation:
        """The mitigation for rows that `look` selects."""

    def look(self, model: Any, noise: Array, context: Array, lengths: Array) -> tuple[Array, Array]:
        """Scores, float32 [batch], and which rows to mitigate, bool [batch]."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How prompts are sampled.

    Attributes:
      seeds: one for all rows or one per row, in [0, 2³²).
      steps: sampling steps.
      guidance_scale: classifier-free guidance: one number, one per row ([batch]), one per step ([steps, 1]), or both
        ([steps, batch]); 1 or less turns guidance off, and without any guidance the unconditional rows are not
        computed. PNDM has one step more.
      scheduler: a name, see `memattn_jax.schedulers.SCHEDULERS`; or your own: a `Schedule`, or a function that makes
        one of a `SchedulerConfig` and a number of steps.
      negative_prompts: one for all rows or one per row; the empty prompt by default.
      negative_embeddings: text embeddings in their place, [1 or batch, tokens, channels]; where `embeddings` have more
        tokens than the text encoder, guidance needs these, too.
      embeddings: text embeddings [batch, tokens, channels] to attend to instead of the prompts'; prompts that are given
        too say how long each is.
      latents: unit noise [batch, h, w, channels] to start from instead of the seeds'; the scheduler scales it.
      height: of the images, in pixels; default: the size that the model was trained on.
      width: of the images, in pixels; default: the size that the model was trained on.
      mitigation: for example `mitigations.AttentionMask()`, of all rows.
      guard: mitigates only the rows that its detector flags; the others are unchanged.
      taps: what to return of the attention: {name: tap}; or "tokens", the mean attention per token; or with it
        "heatmaps", maps averaged over steps and heads, or "maps", whole maps (a large amount of memory), both for
        `Samples.heatmap`; or None.
      callback: called between chunks of steps with a `Between`; latents that it returns replace those of the run.
        Each chunk is a compiled program.
      callback_steps: steps of a chunk.
      wait: False returns at once, with arrays that the device is still computing; `Samples.fetch` waits for them.

    Raises:
      InputError: see the message.
    """

    seeds: int | Sequence[int] = 0
    steps: int = 50
    guidance_scale: float | Sequence[float] | Array | np.ndarray = 7.5
    scheduler: str | Schedule | MakeSchedule = "ddim"
    negative_prompts: str | Sequence[str] | None = None
    negative_embeddings: Array | np.ndarray | None = None
    embeddings: Array | np.ndarray | None = None
    latents: Array | np.ndarray | None = None
    height: int | None = None
    width: int | None = None
    mitigation: Mitigation | None = None
    guard: Guarding | None = None
    taps: NamedTaps | Mapping[str, Tap] | None = "tokens"
    callback: Callback | None = None
    callback_steps: int = 1
    wait: bool = True

    def __post_init__(self) -> None:
        if self.guard is not None and self.mitigation is not None:
            raise InputError("guard and mitigation are mutually exclusive: a guard has its own mitigation")
        if isinstance(self.taps, str):
            check_name("taps", self.taps, get_args(NamedTaps))
        elif not isinstance(self.taps, Mapping | None):
            raise InputError(f"taps is a {type(self.taps).__name__}; expected a dict such as {{'mine': tap}}")
        if self.callback_steps < 1:
            raise InputError(f"callback_steps is {self.callback_steps}; must be at least 1")

    def tap_objects(self) -> dict[str, Tap]:
        """The taps by name."""
        if isinstance(self.taps, str):
            maps: dict[str, Tap] = {"heatmaps": MeanMaps(), "maps": AttentionMaps()}
            return {"tokens": TokenMeans()} | {name: tap for name, tap in maps.items() if name == self.taps}
        return dict(self.taps or {})

    def scales(self, calls: int, batch: int) -> np.ndarray:
        """Guidance of each call and row, float32 [1 or calls, batch], at least 1."""
        given = np.asarray(self.guidance_scale, np.float32)
        if not np.isfinite(given).all():
            raise InputError("guidance_scale must be finite, such as 7.5")
        if given.ndim == 1 and len(given) != batch:
            raise InputError(
                f"{len(given)} guidance scales for {counted(batch, 'prompt')}; expected one, or one per prompt"
            )
        if given.ndim > 2 or (given.ndim == 2 and (len(given) not in (1, calls) or given.shape[1] not in (1, batch))):
            raise InputError(f"guidance_scale has shape {given.shape}; expected ({calls}, {batch}) or ({calls}, 1)")
        rows = given if given.ndim == 2 else given[None]
        return np.maximum(np.broadcast_to(rows, (len(rows), batch)) if given.ndim else np.full((1, batch), given), 1.0)


def as_list(value: object, rows: int, what: str) -> list:
    """Expands one value for all rows to one per row."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray | Array) or np.ndim(value) == 0:
        return [value] * rows
    if len(value) != rows:
        raise InputError(f"{len(value)} {what} for {counted(rows, 'prompt')}; expected one, or one per prompt")
    return list(value)
