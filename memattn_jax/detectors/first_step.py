"""The UNet forwards of the first sampling step, each computed once for all detectors.

probes                 unit noise, the same for every prompt or each prompt's own
  │ conditional        one forward a prompt and probe, linearised if a detector needs derivatives
  │ unconditional      for shared probes, computed once a model
  │ late               a second forward on the same noise, at the third timestep from the end
  │ predict            a further forward, on other latents or after the step
FirstStep              what detectors read; what no detector reads is not computed
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.errors import InputError
from memattn_jax.interceptors import Interceptor, Tap, TokenMeans
from memattn_jax.pytree import pytree, static
from memattn_jax.schedulers import SchedulerConfig, alphas_cumprod, make_schedule

LATE = -3  # the timestep of the second forward, 41 of 1000 with 50 steps (Asthana & Belagiannis' `timesteps[-3]`)


class NoiseLevel(NamedTuple):
    """A timestep, and how the UNet's output f there becomes the noise prediction: ε = latents · x + output · f.

    All float32 []. `output` is 1 where the model predicts noise and √ᾱ where it predicts velocity; sigma is √(1 − ᾱ).
    """

    timestep: Array
    latents: Array
    output: Array
    sigma: Array


class Levels(NamedTuple):
    """Where the first step looks: the first timestep, the one that follows it, and the late one."""

    first: NoiseLevel
    second: NoiseLevel
    late: NoiseLevel


def noise_levels(scheduler_config: dict, steps: int) -> Levels:
    """The levels of DDIM with this many steps.

    Raises:
      InputError: fewer than three steps, or a first timestep without signal.
    """
    if steps < -LATE:
        raise InputError(f"steps is {steps}; detection needs at least {-LATE}")
    schedule = make_schedule(scheduler_config, "ddim", steps)
    signal = alphas_cumprod(SchedulerConfig.from_json(scheduler_config, "ddim"))
    rows = schedule.rows()

    def level(number: int) -> NoiseLevel:
        timestep, table = rows.timestep[number], rows.coefficients
        sigma = np.sqrt(1 - signal[int(timestep)])
        return NoiseLevel(timestep, table["noise_latents"][number], table["noise_output"][number], jnp.float32(sigma))

    levels = Levels(level(0), level(1), level(LATE))
    if float(levels.first.output) == 0:
        raise InputError(
            f"at the first timestep, {float(levels.first.timestep):.0f}, this model's latents have no signal "
            "(rescale_betas_zero_snr), so prompts cannot change the noise; use timestep_spacing 'leading'"
        )
    return levels


class Unconditional(NamedTuple):
    """Results for the empty prompt, all float32 [1 or batch, probes, h, w, channels].

    The first axis is 1 where all prompts share the probes. A part that was not asked for is None.

    Attributes:
      noise: εᵤ at the first timestep.
      late: the UNet's output at the late timestep.
      energy_gradient: ∇ₓ ½‖εᵤ‖², that is Jᵤᵀ εᵤ.
    """

    noise: Array | None = None
    late: Array | None = None
    energy_gradient: Array | None = None


@pytree
class Inputs:
    """The inputs of a batch's first step.

    Attributes:
      unet: see `memattn_jax.models.protocols`.
      probes: unit noise, float32 [1 or batch, probes, h, w, channels].
      context: text embeddings of the prompts [batch, tokens, channels].
      empty: of the empty prompt [1, tokens, channels].
      lengths: int32 [batch], tokens of each prompt, begin and end token counted; only own taps may read them.
      levels: of noise.
      unconditional: parts computed before.
      velocity: whether the model predicts velocity.
      entropy_site: the cross-attention layer that metric E is read at.
    """

    unet: Any
    probes: Array
    context: Array
    empty: Array
    lengths: Array
    levels: Levels
    unconditional: Unconditional = Unconditional()
    velocity: bool = static(default=False)
    entropy_site: str = static(default="")


class FirstStep:
    """The first step of a batch of prompts, on a few noise samples; exists while a program is traced.

    Properties have the shape [batch, probes, h, w, channels], float32, unless they say otherwise. ε is the noise
    prediction, c conditional, u unconditional, J the derivative of ε by the latents.

    Args:
      inputs: arrays and the model.
      linearize: whether derivatives will be read.
      taps: of the conditional forward, beside the mean attention per token.
    """

    def __init__(self, inputs: Inputs, *, linearize: bool = False, taps: Mapping[str, Tap] | None = None):
        self.inputs, self.linearize = inputs, linearize
        self.first, self.second, self.late_level = inputs.levels
        self.velocity, self.entropy_site = inputs.velocity, inputs.entropy_site
        self.shape = (inputs.context.shape[0], *inputs.probes.shape[1:])
        lengths = jnp.repeat(inputs.lengths, self.shape[1])
        self.interceptor = Interceptor(taps={"tokens": TokenMeans()} | dict(taps or {}), lengths=lengths)

    def _rows(self, values: Array) -> Array:
        return values.reshape(-1, *self.shape[2:])  # [batch, probes, h, w, channels] → [batch · probes, h, w, channels]

    def _call(self, latents: Array, context: Array, level: NoiseLevel, interceptor: Interceptor) -> tuple[Array, Any]:
        output, taps = self.inputs.unet(latents, level.timestep, context, interceptor)
        return output.astype(jnp.float32), taps

    def _noise(
        self,
        latents: Array,
        context: Array,
        interceptor: Interceptor = Interceptor(),  # noqa: B008 -- immutable
        level: NoiseLevel | None = None,
    ) -> tuple[Array, Any]:
        level = self.first if level is None else level
        output, taps = self._call(latents, context, level, interceptor)
        return level.latents * latents + level.output * output, taps

    @cached_property
    def _latents(self) -> Array:
        return self._rows(jnp.broadcast_to(self.inputs.probes, self.shape))

    @cached_property
    def _conditional(self) -> tuple[Array, Callable[[Array, Array], Array] | None, dict[str, Any]]:
        """ε of every row, the linear map (latents, context) ↦ ε at it, and the taps."""

        def forward(latents: Array, context: Array) -> tuple[Array, Any]:
            return self._noise(latents, context, self.interceptor)

        if not self.linearize:
            noise, taps = forward(self._latents, self.inputs.context)
            return noise, None, taps
        return jax.linearize(forward, self._latents, self.inputs.context, has_aux=True)

    @cached_property
    def _unconditional(self) -> tuple[Array, Callable[[Array], Array]]:
        return jax.linearize(lambda latents: self._noise(latents, self.inputs.empty)[0], self._rows(self.inputs.probes))

    @cached_property
    def taps(self) -> dict[str, Any]:
        """{name: {site: [batch, probes, ...]}} of the conditional forward."""
        return jax.tree.map(lambda tap: tap.reshape(*self.shape[:2], *tap.shape[1:]), self._conditional[2])

    @property
    def tokens(self) -> dict[str, Array]:
        """{site: float32 [batch, probes, heads, tokens]}, mean attention over pixels."""
        return self.taps["tokens"]

    @cached_property
    def conditional(self) -> Array:
        """ε_c."""
        return self._conditional[0].reshape(self.shape)

    def predict(self, latents: Array, level: NoiseLevel | None = None) -> Array:
        """ε_c of other latents than the probes, any number a prompt, at the first level or another: more forwards.

        Args:
          latents: float32 [batch, number, h, w, channels].
          level: None is the first.

        Returns:
          The same shape.
        """
        return self._noise(self._rows(latents), self.inputs.context, level=level)[0].reshape(latents.shape)

    def after_step(self, noise: Array) -> Array:
        """The latents at the second level after DDIM's step with this prediction of the noise, of the same shape."""
        first, second = self.first, self.second
        clean = (self.inputs.probes - first.sigma * noise) / jnp.sqrt(1 - first.sigma**2)
        return jnp.sqrt(1 - second.sigma**2) * clean + second.sigma * noise

    @cached_property
    def unconditional(self) -> Array:
        """ε_u, [1 or batch, probes, h, w, channels]."""
        if self.inputs.unconditional.noise is not None:
            return self.inputs.unconditional.noise
        probes = self.inputs.probes
        rows = self._unconditional[0] if self.linearize else self._noise(self._rows(probes), self.inputs.empty)[0]
        return rows.reshape(probes.shape)

    @cached_property
    def difference(self) -> Array:
        """D = ε_c − ε_u."""
        return self.conditional - self.unconditional

    def _late(self, latents: Array, context: Array) -> Array:
        return self._call(latents, context, self.late_level, Interceptor())[0]

    @cached_property
    def late_conditional(self) -> Array:
        """The UNet's output for the prompt at the late timestep, on the probes as they are."""
        return self._late(self._latents, self.inputs.context).reshape(self.shape)

    @cached_property
    def late_unconditional(self) -> Array:
        """The same for the empty prompt, [1 or batch, probes, h, w, channels]."""
        if self.inputs.unconditional.late is not None:
            return self.inputs.unconditional.late
        probes = self.inputs.probes
        return self._late(self._rows(probes), self.inputs.empty).reshape(probes.shape)

    def jvp(self, tangent: Array) -> Array:
        """(J_c − J_u) tangent, two forward derivatives."""
        _, conditional, _ = self._conditional
        assert conditional is not None
        _, unconditional = self._unconditional
        own = conditional(self._rows(tangent), jnp.zeros_like(self.inputs.context))
        # [batch / shared, shared · probes, h, w, channels]
        grouped = tangent.reshape(-1, *self._rows(self.inputs.probes).shape)
        return (own - self._rows(jax.vmap(unconditional)(grouped))).reshape(self.shape)

    def context_jvp(self, tangent: Array) -> Array:
        """Forward derivative of ε_c by the text embeddings, along [batch, tokens, channels]."""
        _, conditional, _ = self._conditional
        assert conditional is not None
        return conditional(jnp.zeros_like(self._latents), tangent).reshape(self.shape)

    def vjp(self, cotangent: Array) -> tuple[Array, Array]:
        """Reverse derivative of ε_c: J_cᵀ cotangent, and by the text embeddings, [batch, tokens, channels]."""
        _, conditional, _ = self._conditional
        assert conditional is not None
        transposed = jax.linear_transpose(conditional, self._latents, self.inputs.context)
        latents, context = transposed(self._rows(cotangent))
        return latents.reshape(self.shape), context

    @cached_property
    def unconditional_energy_gradient(self) -> Array:
        """J_uᵀ ε_u, [1 or batch, probes, h, w, channels]."""
        if self.inputs.unconditional.energy_gradient is not None:
            return self.inputs.unconditional.energy_gradient
        noise, unconditional = self._unconditional
        (gradient,) = jax.linear_transpose(unconditional, noise)(noise)
        return gradient.reshape(self.inputs.probes.shape)

    def describe_unconditional(self, parts: frozenset[str]) -> Unconditional:
        """The named parts of the empty prompt, for later batches with the same probes."""
        values: dict[str, Any] = {
            "noise": lambda: self.unconditional,
            "late": lambda: self.late_unconditional,
            "energy_gradient": lambda: self.unconditional_energy_gradient,
        }
        return Unconditional(**{name: get() if name in parts else None for name, get in values.items()})
