"""The settings of a sampling run, and what their values are turned into before any program runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
from jax import Array

from memattn_jax.diffusion.mitigation import Mitigation
from memattn_jax.errors import InputError, check_name
from memattn_jax.interceptors import AttentionMaps, Tap, TokenMeans
from memattn_jax.schedulers import MakeSchedule, Schedule

NamedTaps = Literal["tokens", "maps"]


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


class Guarding(Protocol):
    """Decides which rows are mitigated, as `memattn_jax.Guard` does."""

    @property
    def mitigation(self) -> Mitigation:
        """Of the rows that `look` finds."""

    def look(self, model: Any, noise: Array, context: Array, lengths: Array) -> tuple[Array, Array]:
        """Scores, float32 [batch], and which rows to mitigate, bool [batch]."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How prompts are sampled.

    Attributes:
      seeds: one for all rows or one a row, in [0, 2³²).
      steps: sampling steps.
      guidance_scale: classifier-free guidance, one number, one a row ([batch]), or one a step ([steps, 1]) or both
        ([steps, batch]); 1 or less is no guidance, and where there is none at all, the unconditional half is not
        computed. PNDM has one step more.
      scheduler: a name, see `memattn_jax.schedulers.SCHEDULERS`; or your own: a `Schedule`, or a function that makes
        one of a `SchedulerConfig` and a number of steps.
      negative_prompts: one for all rows or one a row; the empty prompt by default.
      embeddings: text embeddings [batch, tokens, channels] to attend to instead of the prompts'; prompts that are given
        too say how long each is.
      latents: unit noise [batch, h, w, channels] to start from instead of the seeds'; the scheduler scales it.
      height: of the images, in pixels; by default what the model was trained on.
      width: likewise.
      mitigation: for example `mitigations.AttentionMask()`, of all rows.
      guard: mitigates the rows that its detector finds memorized, instead; the others are what they are without.
      taps: what to return of the attention: {name: tap}; or "tokens", the mean attention per token; or "maps", whole
        attention maps (a large amount of memory) and the means; or None.
      callback: called between chunks of steps with a `Between`; latents that it returns take the place of the run's.
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
    embeddings: Array | np.ndarray | None = None
    latents: Array | np.ndarray | None = None
    height: int | None = None
    width: int | None = None
    mitigation: Mitigation | None = None
    guard: Guarding | None = None
    taps: NamedTaps | Mapping[str, Tap] | None = "tokens"
    callback: Callable[[Between], Array | None] | None = None
    callback_steps: int = 1
    wait: bool = True

    def __post_init__(self) -> None:
        if self.guard is not None and self.mitigation is not None:
            raise InputError("a guard brings its own mitigation; give one of the two")
        if isinstance(self.taps, str):
            check_name("taps", self.taps, get_args(NamedTaps))
        elif not isinstance(self.taps, Mapping | None):
            raise InputError(f"taps is a {type(self.taps).__name__}; a dict is needed, as {{'mine': tap}}")
        if self.callback_steps < 1:
            raise InputError(f"callback_steps is {self.callback_steps}; at least 1 is needed")

    def tap_objects(self) -> dict[str, Tap]:
        """The taps by name."""
        if isinstance(self.taps, str):
            means: dict[str, Tap] = {"tokens": TokenMeans()}
            return means if self.taps == "tokens" else means | {"maps": AttentionMaps()}
        return dict(self.taps or {})

    def scales(self, calls: int, batch: int) -> np.ndarray:
        """Guidance of each call and row, float32 [1 or calls, batch], at least 1."""
        given = np.asarray(self.guidance_scale, np.float32)
        if not np.isfinite(given).all():
            raise InputError("a guidance scale is not finite; numbers such as 7.5 are")
        if given.ndim == 1 and len(given) != batch:
            raise InputError(f"{len(given)} guidance scales for {batch} prompts; give one, or one for each")
        if given.ndim > 2 or (given.ndim == 2 and (len(given) not in (1, calls) or given.shape[1] not in (1, batch))):
            raise InputError(
                f"guidance_scale has the shape {given.shape}; ({calls}, {batch}) or ({calls}, 1) would fit"
            )
        rows = given if given.ndim == 2 else given[None]
        return np.maximum(np.broadcast_to(rows, (len(rows), batch)) if given.ndim else np.full((1, batch), given), 1.0)


def as_list(value: object, rows: int, what: str) -> list:
    """One value for all rows, or one a row."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray | Array) or np.ndim(value) == 0:
        return [value] * rows
    if len(value) != rows:
        raise InputError(f"{len(value)} {what} for {rows} prompts; give one, or one for each")
    return list(value)
