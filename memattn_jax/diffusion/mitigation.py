"""What a mitigation may change of a sampling run: the base class, which changes nothing."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from memattn_jax.checkpoints.tokenizer import Tokens
from memattn_jax.errors import InputError
from memattn_jax.interceptors import Edit
from memattn_jax.pytree import Wrapped, pytree
from memattn_jax.schedulers import Row, Schedule


class Start(NamedTuple):
    """A run before its first step, float32.

    Attributes:
      noise: of unit variance, [batch, h, w, channels].
      context: text embeddings of the prompts, [batch, tokens, channels].
      negative: of the negative prompts, the empty ones by default, likewise.
      lengths: int32 [batch], tokens of each prompt, begin and end token counted.
      guidance_scale: of the first step, [batch].
      keys: a PRNG key of each row, [batch].
      schedule: timesteps and coefficients.
      active: bool [batch], the rows whose change counts: under a guard the memorized ones, else all.
      predict: unit noise and text embeddings to the UNet's output at the first timestep; differentiable.
      call: latents, a row of `schedule.rows()` and text embeddings, and edits if there are any, to the UNet's output
        there; likewise.
      alternatives: embeddings of the texts that `Mitigation.alternatives` returned, [batch, texts, tokens, channels];
        None where it is not overridden.
    """

    noise: Array
    context: Array
    negative: Array
    lengths: Array
    guidance_scale: Array
    keys: Array
    schedule: Schedule
    active: Array
    predict: Callable[[Array, Array], Array]
    call: Callable[..., Array]
    alternatives: Array | None = None


class Step(NamedTuple):
    """One call of the UNet in a run.

    Attributes:
      number: int32 [], from 0.
      calls: how many there are.
      row: timestep and coefficients of the schedule.
      latents: before it, float32 [batch, h, w, channels].
      lengths: see `Start`; likewise the following two.
      context: what the run attends to, mitigated.
      negative: likewise.
      keys: a PRNG key of each row for this step, [batch].
      active: see `Start`.
      predict: text embeddings to the UNet's output for these latents, unedited: one more forward pass.
      memory: what `begin` returned, or `guidance` in the step before.
    """

    number: Array
    calls: int
    row: Row
    latents: Array
    lengths: Array
    context: Array
    negative: Array
    keys: Array
    active: Array
    predict: Callable[[Array], Array]
    memory: Any = ()


class Prediction(NamedTuple):
    """What classifier-free guidance combines, as u + scale · (c − u).

    Attributes:
      conditional: the UNet's output for the prompts, float32 [batch, h, w, channels].
      unconditional: for the negative prompts, likewise.
      scale: float32 [batch].
    """

    conditional: Array
    unconditional: Array
    scale: Array

    def guided(self) -> Array:
        """The combination (Ho & Salimans, arXiv 2207.12598)."""
        scale = self.scale.reshape(-1, 1, 1, 1)
        return self.unconditional + scale * (self.conditional - self.unconditional)


@pytree
class Mitigation:
    """Changes nothing; a mitigation overrides the places that it changes, all of them or one.

    Make yours a `memattn_jax.pytree.pytree`: its numbers are then traced, and other ones compile nothing. `check` and
    the four methods after it run on the host, the others inside the compiled program. A row must not depend on the rows
    beside it. Under a guard a method sees all rows, and what it returns counts for the memorized ones alone.
    """

    def check(self) -> None:
        """Raises InputError for what `fit` lacks whatever the model; commands call it once, before loading one."""

    def fit(self, model: Any, **settings: Any) -> "Mitigation":
        """The mitigation for this model, with what it had to learn from it; commands call it once, after loading.

        Args:
          model: a `StableDiffusion`.
          **settings: of the runs to come: steps, scheduler, guidance_scale, height, width and negative_prompts.
        """
        return self

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[str]:
        """The prompts to sample in place of these."""
        return prompts

    def tokens(self, tokens: Tokens, seeds: Sequence[int], vocabulary: int) -> Tokens:
        """The token ids to encode in place of these; `vocabulary` is how many ids there are."""
        return tokens

    def alternatives(self, prompts: Sequence[str], seeds: Sequence[int]) -> Sequence[Sequence[str]]:
        """Other texts for each prompt, any number of each; their embeddings are `Start.alternatives`.

        A row with fewer repeats its last; one with none has its own `Start.context` there.
        """
        return [()] * len(prompts)

    def embeddings(self, start: Start) -> Array:
        """Text embeddings to attend to, in the shape of `start.context`."""
        return start.context

    def noise(self, start: Start) -> Array:
        """Unit noise to start from, in the shape of `start.noise`; `start.context` is what `embeddings` returned."""
        return start.noise

    def edits(self, step: Step) -> tuple[Edit, ...]:
        """Edits of the attention in this step."""
        return ()

    def begin(self, start: Start) -> Any:
        """What to remember before the first step: a tree of arrays [batch, ...]; see `Step.memory`."""
        return ()

    def guidance(self, step: Step, prediction: Prediction, memory: Any) -> tuple[Prediction, Any]:
        """What guidance combines, and what to remember for the next step.

        Where it is overridden, both predictions are computed, whatever the guidance scale.
        """
        return prediction, memory

    def update(self, step: Step, moved: Array) -> Array:
        """Latents after the step, `moved` where the scheduler moves them; float32 [batch, h, w, channels]."""
        return moved

    def weights(self, unet: Any) -> Any:
        """The UNet with other parameters. Under a guard both are run, at twice the cost."""
        return unet


def kind_of(mitigation: Any) -> Any:
    """The class of a mitigation, also of one that is no `pytree`, which is carried by one."""
    return type(mitigation.value if isinstance(mitigation, Wrapped) else mitigation)


def overrides(mitigation: Any, method: str) -> bool:
    """Whether a mitigation changes what one of the methods of `Mitigation` would return."""
    kind = kind_of(mitigation)
    if hasattr(kind, "overrides"):  # where the class alone does not say
        return mitigation.overrides(method)
    return getattr(kind, method) is not getattr(Mitigation, method)


def choose_texts(texts: Array, given: Array, context: Array) -> Array:
    """Embeddings of other texts [batch, texts, tokens, channels]; a row without any has its own `context` there.

    Args:
      texts: of the rows that have some.
      given: which have some, bool [batch].
      context: embeddings of each row's own, [batch, tokens, channels].
    """
    return choose_rows(given, texts, jnp.broadcast_to(context[:, None], texts.shape))


def choose_rows(active: Array | None, changed: Array, plain: Array, method: str = "a mitigation") -> Array:
    """The changed rows where `active`, bool [batch], is set; all of them where it is None.

    Raises:
      InputError: they have another shape, which would be spread over the rows; names the `method` that returned them.
    """
    if jnp.shape(changed) != plain.shape:
        raise InputError(f"{method} returned {list(jnp.shape(changed))} in place of {list(plain.shape)}")
    if active is None or changed is plain:
        return changed
    return jnp.where(active.reshape(-1, *[1] * (plain.ndim - 1)), changed, plain)
