"""The search of `value_neurons` for the neurons of each row: NeMo's selection and refinement."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memattn_jax.diffusion.mitigation import Start
from memattn_jax.diffusion.noise import fold
from memattn_jax.interceptors import Attention, Context, for_rows
from memattn_jax.keys import draw_rows
from memattn_jax.pytree import pytree
from memattn_jax.ssim import multiscale_ssim, rescaled

Neurons = dict[str, Array]  # {site: bool [batch, channels]}
Values = Mapping[str, Array]
Scalar = Array | float
State = tuple[Array, Array, Array, Array]  # θ, k, done and agreement, [batch]
FIRST, FALL, LAST = 5.0, 0.25, 1.0  # θ
SECOND = 1  # the call whose timestep is looked at


@pytree
class ScaleValues:
    """Edit: some channels of the values are multiplied by a factor, in all rows."""

    neurons: Mapping[str, Array]  # bool [batch, channels]
    factor: Array | float

    def __call__(self, attention: Attention, context: Context) -> Attention:
        """See `Edit`."""
        if context.site not in self.neurons:
            return attention
        values = attention.values
        neurons = self.neurons[context.site]
        factors = jnp.where(for_rows(neurons, len(values)), self.factor, 1.0)
        return attention._replace(values=values * factors.reshape(-1, 1, *values.shape[2:]).astype(values.dtype))


@jax.jit
def activations(context: Array, weights: Mapping[str, Array]) -> dict[str, Array]:
    """|value| of each channel, mean over tokens, float32 [batch, channels] by site."""
    return {site: jnp.abs(context.astype(jnp.float32) @ weight[0]).mean(axis=1) for site, weight in weights.items()}


class Search:
    """The neurons of a batch's rows; exists while a program is traced.

    Args:
      start: of the run.
      active: activations of each row, {site: float32 [batch, channels]}.
      z: how many standard deviations from clean prompts' mean they are, likewise.
      factor: see `ValueNeurons`; likewise the others.
      limit: see there.
      noises: see there.
    """

    def __init__(
        self, start: Start, active: Values, z: Values, *, factor: Array | float, limit: Array | float, noises: int
    ):
        self.start, self.z, self.factor, self.limit = start, z, factor, limit
        # 0 for the largest activation of a row
        self.rank = {site: jnp.argsort(jnp.argsort(-value, axis=1), axis=1) for site, value in active.items()}
        others = [draw_rows(fold(start.keys, i), start.noise.shape[1:]) for i in range(1, noises)]
        self.noises = jnp.stack([start.noise, *others])  # [noises, batch, h, w, channels]
        calls = len(start.schedule.timesteps)
        self.row = jax.tree.map(lambda x: x[min(SECOND, calls - 1)], start.schedule.rows())
        nobody = {site: jnp.zeros(value.shape, bool) for site, value in active.items()}
        self.plain = self.differences(nobody)
        alike = jax.lax.map(lambda one: jax.vmap(multiscale_ssim, (None, 0))(one, self.plain), self.plain)
        numbers = jnp.arange(len(self.noises))
        alike = jnp.where((numbers[:, None] == numbers)[:, :, None], 0.0, alike)  # [noises, noises, batch]
        self.look = alike.max(axis=1) > self.limit  # [noises, batch]
        self.memorized = self.look.any(axis=0)

    def differences(self, neurons: Neurons) -> Array:
        """What is predicted less the noise, rescaled, for each noise: [noises, batch, h, w, channels]."""
        edits = (ScaleValues(neurons, self.factor),)
        sigma = self.start.schedule.init_noise_sigma

        def one(noise: Array) -> Array:
            return rescaled(self.start.call(noise * sigma, self.row, self.start.context, edits) - noise)

        return jax.lax.map(one, self.noises)

    def agreement(self, neurons: Neurons) -> Array:
        """The largest similarity of the noises that look memorized, with and without neurons, [batch]."""
        alike = jax.vmap(multiscale_ssim)(self.plain, self.differences(neurons))
        return jnp.where(self.look, alike, 0.0).max(axis=0)

    def at(self, theta: Array, most: Array) -> Neurons:
        """Neurons over θ [batch], and the k [batch] most active of each layer, of rows that look memorized."""
        return {
            site: ((self.z[site] > theta[:, None]) | (self.rank[site] < most[:, None])) & self.memorized[:, None]
            for site in self.z
        }

    def select(self) -> tuple[Neurons, Array]:
        """The neurons, and the agreement that a refinement must stay below, [batch]."""

        def unfinished(state: State) -> Array:
            return ~state[2].all()

        def widen(state: State) -> State:
            theta, most, done, agreed = state
            theta, most = jnp.where(done, theta, theta - FALL), jnp.where(done, most, most + 1)
            agreed = jnp.where(done, agreed, self.agreement(self.at(theta, most)))
            return theta, most, done | (agreed <= self.limit) | (theta <= LAST), agreed

        rows = len(self.memorized)
        theta, most = jnp.full(rows, FIRST, jnp.float32), jnp.zeros(rows, jnp.int32)
        agreed = self.agreement(self.at(theta, most))
        done = (agreed <= self.limit) | ~self.memorized | ~self.start.active
        theta, most, _, agreed = jax.lax.while_loop(unfinished, widen, (theta, most, done, agreed))
        return self.at(theta, most), jnp.maximum(self.limit, agreed)

    def refine_layers(self, neurons: Neurons, bound: Array) -> Neurons:
        """Gives back the layers without which agreement stays below the bound, from the last on."""
        for site in reversed(neurons):
            without = neurons | {site: jnp.zeros_like(neurons[site])}
            enough = self.agreement(without) < bound
            neurons = neurons | {site: neurons[site] & ~enough[:, None]}
        return neurons

    def refine_neurons(self, neurons: Neurons, bound: Array) -> Neurons:
        """The same, neuron by neuron."""
        sites, sizes = list(reversed(neurons)), [neurons[site].shape[1] for site in reversed(neurons)]
        ends = np.cumsum(sizes)[:-1]
        flat = jnp.concatenate([neurons[site] for site in sites], axis=1)
        places = jnp.arange(flat.shape[1])

        def split(flat: Array) -> Neurons:
            parts = dict(zip(sites, jnp.split(flat, ends, axis=1), strict=True))
            return {site: parts[site] for site in neurons}

        def ahead(state: tuple[Array, Array]) -> Array:
            return state[0] & (places >= state[1][:, None]) & self.start.active[:, None]

        def give_back(state: tuple[Array, Array]) -> tuple[Array, Array]:
            flat, _ = state
            left = ahead(state)
            place = jnp.argmax(left, axis=1).astype(jnp.int32)
            one = (places == place[:, None]) & left
            enough = self.agreement(split(flat & ~one)) < bound
            return flat & ~(one & enough[:, None]), jnp.where(left.any(axis=1), place + 1, len(places))

        start = (flat, jnp.zeros(len(flat), jnp.int32))
        return split(jax.lax.while_loop(lambda state: ahead(state).any(), give_back, start)[0])
