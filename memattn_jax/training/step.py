"""One training step, compiled: maps state and batch to the next state and metrics."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from memattn_jax.detectors.noise_norm import norm
from memattn_jax.entropy import mean_over_sites, token_entropy
from memattn_jax.interceptors import Interceptor, TokenMeans
from memattn_jax.keys import fixed_draws, unit_normal
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL
from memattn_jax.pytree import pytree, static
from memattn_jax.training.gate import Gate, timestep_bins, weights
from memattn_jax.training.objective import add_noise, row_keys, squared_error, training_target

Score = Literal["entropy", "noise_norm", "loss", "random"]


class Batch(NamedTuple):
    """Images and the tokens of their captions.

    Attributes:
      pictures: uint8 [batch, height, width, 3].
      input_ids: int32 [batch, tokens].
    """

    pictures: Array | np.ndarray
    input_ids: Array | np.ndarray


class Trained(NamedTuple):
    """The networks that training may change."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel


@pytree
class TrainState:
    """Everything that changes from step to step; this is what a checkpoint contains.

    Floating-point numbers are float32, whatever the dtype of the forward pass: an update of AdamW at a learning rate of
    1e-5 is smaller than half a unit in the last place of most bfloat16 parameters, and would be rounded away.

    Attributes:
      step: int32 [], updates made.
      params: parameters that are trained, {"unet": …} and, if trained, {"text_encoder": …}.
      ema: their exponential moving average, or None.
      optimizer: optax's state.
      gate: γ(t), or None.
    """

    step: Array
    params: Any
    ema: Any
    optimizer: Any
    gate: Gate | None


@pytree
class Setup:
    """The constants of a run.

    Attributes:
      vae: the autoencoder, frozen, in `dtype`.
      frozen: networks that are not trained, {"text_encoder": …} or {}, in `dtype`.
      empty_ids: int32 [tokens], the empty prompt's.
      signal: ᾱ, float32 [train timesteps].
      seed: random seed of all draws.
      dropout: probability that a row's caption is replaced by the empty prompt.
      high_noise: probability that a row's timestep is drawn from the noisiest two fifths.
      ema_decay: decay of the moving average.
      graphs: name and structure of each trained network, from `nnx.split`.
      optimizer: an optax gradient transformation.
      prediction_type: "epsilon" or "v_prediction".
      accumulation: micro-batches of one update; they change memory, not the result.
      score: the score that the gate uses.
      sites: the cross-attention layers that "entropy" reads; None for all.
      dtype: dtype of the forward pass; parameters are cast to it inside the loss, so that gradients are float32.
    """

    vae: AutoencoderKL
    frozen: Any
    empty_ids: Array
    signal: Array
    seed: Array
    dropout: Array
    high_noise: Array
    ema_decay: Array
    graphs: tuple[tuple[str, nnx.GraphDef], ...] = static(default=())
    optimizer: optax.GradientTransformation = static(default=None)
    prediction_type: str = static(default="epsilon")
    accumulation: int = static(default=1)
    score: Score = static(default="entropy")
    sites: tuple[str, ...] | None = static(default=None)
    dtype: str = static(default="float32")


class Draws(NamedTuple):
    """Random draws for each row."""

    timesteps: Array  # int32 [batch]
    noise: Array  # float32 [batch, h, w, channels]
    posterior: Array  # the same shape
    dropped: Array  # bool [batch]
    uniform: Array  # float32 [batch], in [0, 1)


def draw(
    keys: Array, shape: tuple[int, ...], train_timesteps: int, dropout: Array | float, high_noise: Array | float
) -> Draws:
    """Each row's draws from its own key, of `memattn_jax.keys`; `shape` is that of one row's latents."""
    dropout, high_noise = jnp.float32(dropout), jnp.float32(high_noise)

    def row(key: Array) -> Draws:
        time, high, noise, posterior, dropped = jax.random.split(key, 5)
        lowest = jnp.where(jax.random.bernoulli(high, high_noise), train_timesteps * 3 // 5, 0)
        return Draws(
            jax.random.randint(time, (), lowest, train_timesteps, jnp.int32),
            unit_normal(noise, shape),
            unit_normal(posterior, shape),
            jax.random.bernoulli(dropped, dropout),
            # 5, not less: `fold_in(key, i)` is the i-th key of a split
            jax.random.uniform(jax.random.fold_in(key, 5), (), jnp.float32),
        )

    with fixed_draws():
        return jax.vmap(row)(keys)


def networks(setup: Setup, params: Any) -> Trained:
    """The UNet and text encoder with these parameters, in the dtype of the forward pass."""
    cast = jax.tree.map(lambda x: x.astype(setup.dtype), params)
    merged = {name: nnx.merge(graph, cast[name]) for name, graph in setup.graphs}
    return Trained(**(setup.frozen | merged))


def forward(setup: Setup, params: Any, batch: Batch, draws: Draws, gated: bool) -> tuple[Array, Array]:
    """Squared error and gate score of each row, float32 [batch] each; scores are 0 without a gate."""
    unet, text_encoder = networks(setup, params)
    posterior = setup.vae.encode(jnp.asarray(batch.pictures, jnp.float32) / 127.5 - 1)
    mean, log_variance = (x.astype(jnp.float32) for x in posterior)
    latents = mean + jnp.exp(0.5 * log_variance) * draws.posterior
    latents = jax.lax.stop_gradient(latents * setup.vae.config.scaling_factor)
    signal = setup.signal[draws.timesteps]
    noisy = add_noise(latents, draws.noise, signal)
    input_ids = jnp.where(draws.dropped[:, None], setup.empty_ids, batch.input_ids)
    context = text_encoder(input_ids)

    by_entropy = gated and setup.score == "entropy"
    interceptor = Interceptor(taps={"tokens": TokenMeans(sites=setup.sites)} if by_entropy else {})
    prediction, taps = unet(noisy, draws.timesteps, context, interceptor)
    error = squared_error(prediction, training_target(setup.prediction_type, latents, draws.noise, signal))
    if by_entropy:
        scores = token_entropy(mean_over_sites(taps["tokens"]))
    elif gated and setup.score == "loss":
        scores = -error  # what is learnt already scores high
    elif gated and setup.score == "random":
        scores = draws.uniform
    elif gated:
        nothing = text_encoder(setup.empty_ids[None])  # one text for all rows
        unconditional = jax.lax.stop_gradient(unet(noisy, draws.timesteps, nothing)[0])
        scores = norm(prediction.astype(jnp.float32) - unconditional.astype(jnp.float32))  # Wen et al., equation 2
    else:
        scores = jnp.zeros_like(error)
    return error, jax.lax.stop_gradient(scores)


def is_empty(setup: Setup, batch: Batch) -> Array:
    """Which captions are the empty prompt, bool [batch]: like dropped ones, they are not gated and set no threshold."""
    return (batch.input_ids == setup.empty_ids).all(axis=-1)


@jax.jit(donate_argnames="state")
def train_step(state: TrainState, setup: Setup, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    """One update.

    Every row's draws depend on (seed, step, row) alone, so micro-batches and devices change only the rounding.

    Args:
      state: its arrays are donated.
      setup: the constants of the run.
      batch: its number of rows is a multiple of `setup.accumulation`.

    Returns:
      The next state, and metrics: "loss", "gradient_norm", "kept" (share of rows with weight 1), and for each row
      "timesteps", "error", "score" and "weight".
    """
    rows = len(batch.pictures)
    scale = setup.vae.config.scale
    height, width = (size // scale for size in batch.pictures.shape[1:3])
    train_timesteps = len(setup.signal)
    keys = row_keys(setup.seed, state.step, rows)
    shape = (height, width, setup.vae.config.latent_channels)
    draws = draw(keys, shape, train_timesteps, setup.dropout, setup.high_noise)
    draws = draws._replace(dropped=draws.dropped | is_empty(setup, batch))
    gate = state.gate

    def summed(params: Any, batch: Batch, draws: Draws) -> tuple[Array, tuple[Array, Array, Array]]:
        error, scores = forward(setup, params, batch, draws, gated=gate is not None)
        weight = jnp.ones_like(error)
        if gate is not None:
            bins = timestep_bins(draws.timesteps, train_timesteps, len(gate.thresholds()))
            weight = weights(gate, bins, scores, draws.dropped)
        return jnp.sum(weight * error), (error, scores, weight)

    def micro(gradients: Any, rows: tuple[Batch, Draws]) -> tuple[Any, tuple[Array, Array, Array]]:
        (_, out), new = jax.value_and_grad(summed, has_aux=True)(state.params, *rows)
        return jax.tree.map(jnp.add, gradients, new), out

    gradients = jax.tree.map(jnp.zeros_like, state.params)
    if setup.accumulation == 1:  # XLA on a CPU computes convolutions' gradients several times more slowly in a loop
        gradients, (error, scores, weight) = micro(gradients, (batch, draws))
    else:
        split = jax.tree.map(lambda x: x.reshape(setup.accumulation, -1, *x.shape[1:]), (batch, draws))
        gradients, out = jax.lax.scan(micro, gradients, split)
        error, scores, weight = (x.reshape(rows) for x in out)
    total = jnp.maximum(1.0, weight.sum())
    gradients = jax.tree.map(lambda g: g / total, gradients)

    updates, optimizer = setup.optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = jax.tree.map(lambda old, new: setup.ema_decay * old + (1 - setup.ema_decay) * new, ema, params)
    if gate is not None:
        bins = timestep_bins(draws.timesteps, train_timesteps, len(gate.thresholds()))
        gate = gate.update(bins, scores, ~draws.dropped)
    metrics = {
        "loss": jnp.sum(weight * error) / total,
        "gradient_norm": optax.tree.norm(gradients),
        "kept": weight.mean(),
        "timesteps": draws.timesteps,
        "error": error,
        "score": scores,
        "weight": weight,
    }
    return TrainState(state.step + 1, params, ema, optimizer, gate), metrics
