"""The denoising loop: one `lax.scan` over the scheduler's calls of the UNet, with the places a mitigation may change.

begin     weights, embeddings, noise        once
advance   edits, guidance, update           at every call
"""

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from memattn_jax.diffusion.mitigation import Mitigation, Prediction, Start, Step, choose_rows, choose_texts, overrides
from memattn_jax.diffusion.noise import fold, step_keys
from memattn_jax.diffusion.pairs import by_prompt, interleave
from memattn_jax.interceptors import Edit, Interceptor, OnRows, Tap, for_rows
from memattn_jax.interceptors.taps import step_weights
from memattn_jax.models.kernels.program import Program, program
from memattn_jax.models.protocols import prepare_text
from memattn_jax.pytree import pytree, static
from memattn_jax.schedulers import Row, Schedule

Taps = dict[str, dict[str, Any]]  # {name: {site: tap}}
MITIGATION = 1  # folded into a step's keys: a mitigation's draws are not the solver's


@pytree
class Plan:
    """All that a run is made from.

    Attributes:
      unet: see `memattn_jax.models.protocols`.
      schedule: timesteps and coefficients, from `make_schedule`.
      noise: [batch, height, width, channels], of unit variance.
      context: text embeddings of the prompts [batch, tokens, channels].
      negative: of the negative prompts, likewise.
      guidance_scale: float32, broadcastable to [calls, batch].
      lengths: int32 [batch], tokens of each prompt, begin and end token counted.
      keys: a PRNG key of each row, [batch].
      mitigation: what to change.
      active: bool [batch], the rows that it changes; None is all.
      alternatives: see `Start`; and which rows have some, bool [batch].
      taps: what to return of the conditional rows' attention, by name.
      guided: whether the unconditional rows are computed.
    """

    unet: Any
    schedule: Schedule
    noise: Array
    context: Array
    negative: Array
    guidance_scale: Array
    lengths: Array
    keys: Array
    mitigation: Mitigation = field(default_factory=Mitigation)
    active: Array | None = None
    alternatives: tuple[Array, Array] | None = None
    taps: Mapping[str, Tap] = field(default_factory=dict)
    guided: bool = static(default=True)


class State(NamedTuple):
    """Between two calls.

    Attributes:
      latents: float32 [batch, h, w, channels].
      solver: memory of the solver.
      guidance: memory of the mitigation's guidance.
      number: int32 [], calls made.
    """

    latents: Array
    solver: Any
    guidance: Any
    number: Array


class Call(NamedTuple):
    """What an observer sees of one call of the UNet: float32 [batch, h, w, channels], and taps.

    Attributes:
      row: timestep and coefficients.
      latents: before the call.
      moved: the latents after it.
      conditional: the UNet's output for the prompts.
      unconditional: for the negative prompts; the conditional output where there is no guidance.
      taps: of the conditional rows, {name: {site: [batch, ...]}}.
      lengths: int32 [batch], tokens of each prompt, begin and end token counted.
      number: int32 [], of the call, from 0.
      guided: what the latents were moved by.
    """

    row: Row
    latents: Array
    moved: Array
    conditional: Array
    unconditional: Array
    taps: Taps
    lengths: Array
    number: Array
    guided: Array

    @property
    def noise_difference(self) -> Array:
        """ε_c − ε_u, of the noise predictions, whatever the model predicts; in a run with DDIM."""
        return self.row.coefficients["noise_output"] * (self.conditional - self.unconditional)


Kept = Any
Observer = Callable[[Call], Kept]  # what to keep of every call


def call_unet(unet: Any, latents: Array, row: Row, context: Any, interceptor: Interceptor) -> tuple[Array, Taps]:
    """The UNet's output, float32, for latents as the schedule scales them, and taps."""
    output, taps = unet(latents * row.input_scale, row.timestep, context, interceptor)
    return output.astype(jnp.float32), taps


def begin(plan: Plan) -> tuple[Plan, Any, State]:
    """Applies what a mitigation changes before the first step.

    Returns:
      The plan with the changed embeddings; the text of all rows as the UNet takes it; the state before the first call.
    """
    # what a mitigation reads and optimises is float32, whatever the UNet computes in
    plan = replace(plan, context=plan.context.astype(jnp.float32), negative=plan.negative.astype(jnp.float32))
    mitigation, noise = plan.mitigation, plan.noise.astype(jnp.float32)
    first = jax.tree.map(lambda x: x[0], plan.schedule.rows())
    sigma = plan.schedule.init_noise_sigma

    def call(latents: Array, row: Row, context: Array, edits: tuple[Edit, ...] = ()) -> Array:
        return call_unet(plan.unet, latents, row, context, Interceptor(edits, lengths=plan.lengths))[0]

    def predict(noise: Array, context: Array) -> Array:
        return call(noise * sigma, first, context)

    def wordings(context: Array) -> Array | None:  # a row without any has its own, whatever it has become
        return plan.alternatives and choose_texts(*plan.alternatives, context)

    scale = jnp.broadcast_to(plan.guidance_scale[0], len(noise))
    keys = fold(step_keys(plan.keys, -1), MITIGATION)
    active = jnp.ones(len(noise), bool) if plan.active is None else plan.active
    text = (plan.context, plan.negative, plan.lengths)
    start = Start(noise, *text, scale, keys, plan.schedule, active, predict, call, wordings(plan.context))
    start = start._replace(context=choose_rows(plan.active, mitigation.embeddings(start), plan.context, "embeddings"))
    start = start._replace(alternatives=wordings(start.context))
    start = start._replace(noise=choose_rows(plan.active, mitigation.noise(start), noise, "noise"))
    context = interleave(plan.negative, start.context) if plan.guided else start.context
    text = prepare_text(plan.unet, context)  # no step changes it
    latents = start.noise * sigma
    state = State(latents, plan.schedule.init(latents), mitigation.begin(start), jnp.int32(0))
    return replace(plan, context=start.context), text, state


def step_once(plan: Plan, text: Any, state: State, row: Row, scale: Array) -> tuple[State, Call]:
    """One call of the UNet, and the latents' step that follows from it.

    Args:
      plan: as `begin` returns it.
      text: likewise.
      state: before the call.
      row: of the schedule.
      scale: of guidance, [1 or batch].
    """
    batch, mitigation, latents = len(state.latents), plan.mitigation, state.latents
    rows = 2 * batch if plan.guided else batch
    keys = step_keys(plan.keys, state.number)

    def predict(context: Array) -> Array:
        return call_unet(plan.unet, latents, row, context, Interceptor(step=state.number, lengths=plan.lengths))[0]

    step = Step(
        state.number,
        len(plan.schedule.timesteps),
        row,
        latents,
        plan.lengths,
        plan.context,
        plan.negative,
        fold(keys, MITIGATION),
        jnp.ones(batch, bool) if plan.active is None else plan.active,
        predict,
        state.guidance,
    )
    edits = mitigation.edits(step)
    if plan.active is not None:
        edits = tuple(OnRows(edit, for_rows(plan.active, rows)) for edit in edits)
    interceptor = Interceptor(
        edits,
        plan.taps,
        state.number,
        conditional=(jnp.arange(rows) % 2 == 1) | (not plan.guided),
        lengths=for_rows(plan.lengths, rows),
    )
    output, taps = call_unet(plan.unet, for_rows(latents, rows), row, text, interceptor)
    outputs = by_prompt(output, batch)
    plain = Prediction(outputs[:, -1], outputs[:, 0], jnp.broadcast_to(scale, batch))
    changed, memory = mitigation.guidance(step, plain, state.guidance)
    prediction = Prediction(*(choose_rows(plan.active, *pair, "guidance") for pair in zip(changed, plain, strict=True)))
    guided = prediction.guided() if plan.guided else prediction.conditional
    moved, solver = plan.schedule.step(row, state.solver, guided, latents, keys)
    moved = choose_rows(plan.active, mitigation.update(step, moved), moved, "update")
    call = Call(
        row,
        latents,
        moved,
        plain.conditional,
        plain.unconditional,
        jax.tree.map(lambda tap: by_prompt(tap, batch)[:, -1], taps),
        plan.lengths,
        state.number,
        guided,
    )
    return State(moved, solver, memory, state.number + 1), call


def advance(plan: Plan, text: Any, state: State, rows: Row, scales: Array, observer: Observer) -> tuple[State, Kept]:
    """Some calls in one `lax.scan`; what the observer keeps has a leading axis [calls].

    Args:
      plan: as `begin` returns it.
      text: likewise.
      state: before the first of the calls.
      rows: of the schedule, one for each call.
      scales: of guidance, [calls, 1 or batch].
      observer: see `Observer`.
    """

    def body(state: State, inputs: tuple[Row, Array]) -> tuple[State, Kept]:
        state, call = step_once(plan, text, state, *inputs)
        return state, observer(call)

    return jax.lax.scan(body, state, (rows, scales))


def observe(plan: Plan, observer: Observer) -> tuple[Array, Kept]:
    """A whole run.

    Returns:
      Latents float32 [batch, height, width, channels], before the decoder, and what was kept of every call, with a
      leading axis [calls].
    """
    plan, text, state = begin(plan)
    state, kept = advance(plan, text, state, plan.schedule.rows(), scales_of_calls(plan), observer)
    return state.latents, kept


def scales_of_calls(plan: Plan) -> Array:
    """Guidance scales, [calls, 1 or batch]."""
    return jnp.broadcast_to(plan.guidance_scale, (len(plan.schedule.timesteps), plan.guidance_scale.shape[1]))


def advance_taps(plan: Plan, text: Any, state: State, rows: Row, scales: Array) -> tuple[State, Taps]:
    """`advance` with the taps as a run returns them: of every call, or a mean over calls as [1, batch, ...]."""
    weights = step_weights(plan.taps, len(plan.schedule.timesteps))

    def every(call: Call) -> Taps:
        return {name: taps for name, taps in call.taps.items() if name not in weights}

    if not weights:
        return advance(plan, text, state, rows, scales, every)

    def part(call: Call) -> Taps:
        shares = {name: jnp.asarray(own)[call.number] for name, own in weights.items()}
        return {name: jax.tree.map(lambda tap, w=w: (w * tap)[None], call.taps[name]) for name, w in shares.items()}

    def body(carry: tuple[State, Taps], inputs: tuple[Row, Array]) -> tuple[tuple[State, Taps], Taps]:
        state, call = traced_step(plan, text, carry[0], *inputs)
        return (state, jax.tree.map(jnp.add, carry[1], part(call))), every(call)

    first = jax.tree.map(lambda x: x[0], (rows, scales))
    shapes = jax.eval_shape(lambda: part(traced_step(plan, text, state, *first)[1]))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    (state, means), taps = jax.lax.scan(body, (state, zeros), (rows, scales))
    return state, taps | means


traced_step = jax.jit(step_once, inline=True)  # JAX traces it once where it is called twice


@program()
def denoise(plan: Plan) -> tuple[Array, Taps]:
    """Latents float32 [batch, height, width, channels], before the decoder, and {name: {site: [calls, batch, ...]}}.

    Compiled once for each scheduler, number of steps, shape and kind of mitigation and taps; every number is traced.
    """
    plan, text, state = begin(plan)
    state, taps = advance_taps(plan, text, state, plan.schedule.rows(), scales_of_calls(plan))
    return state.latents, taps


start_run = jax.jit(begin)
continue_run = Program(advance_taps)  # for runs that return to the host between chunks of steps


def needs_guidance(scales: Any, mitigation: Mitigation) -> bool:
    """Whether a run computes the unconditional rows: some scale is over 1, or the mitigation reads both of a pair."""
    return bool((scales > 1).any()) or overrides(mitigation, "guidance")
