"""What a stranger may bring, written as a stranger would; docs/extending.md shows the marked parts."""

import jax
import jax.numpy as jnp
import numpy as np

# [tap]
from memattn_jax.interceptors import Interceptor, by_name, cross_attention
from memattn_jax.pytree import pytree, static


@pytree
class Peak:
    """Tap: the largest attention that a token has at any pixel, [batch, heads, tokens]."""

    sites: tuple[str, ...] | None = static(default=None)  # None: every cross-attention layer

    def __call__(self, probs, context):  # float32 [batch, heads, pixels, tokens]
        return probs.max(axis=2)


# [end]
# [edit]
@pytree
class QuietEndToken:
    """Edit: the end token keeps a part of its attention, from some step on."""

    factor: float = 0.1
    after: int = 1

    def __call__(self, attention, context):
        is_end = jnp.arange(attention.keys.shape[1]) == context.lengths[:, None] - 1  # [batch, tokens]
        strength = jnp.where(context.step >= self.after, jnp.log(self.factor), 0.0)
        return attention.add_bias(jnp.where(is_end, strength, 0.0)[:, None, None, :])


# [end]
# [mitigations]
from memattn_jax.mitigations import Mitigation  # noqa: E402


@pytree
class QuietLater(Mitigation):
    """Attention edits that depend on the step."""

    factor: float = 0.1

    def edits(self, step):
        return (QuietEndToken(self.factor),)


@pytree
class CloserEmbedding(Mitigation):
    """Optimises the text embeddings until the prompt moves the prediction less."""

    rate: float = 1e-3
    updates: int = static(default=2)

    def embeddings(self, start):
        unconditional = start.predict(start.noise, start.negative)

        def pull(context):
            return jnp.sum((start.predict(start.noise, context) - unconditional) ** 2)

        return jax.lax.fori_loop(0, self.updates, lambda _, e: e - self.rate * jax.grad(pull)(e), start.context)


@pytree
class MirroredNoise(Mitigation):
    """Another starting noise, in one program with what else changes."""

    def noise(self, start):
        return start.noise[:, :, ::-1]


@pytree
class LateGuidance(Mitigation):
    """No guidance at first; remembers how far the prompt has pulled so far."""

    free: int = 1

    def begin(self, start):
        return jnp.zeros(len(start.noise))

    def guidance(self, step, prediction, memory):
        pull = jnp.linalg.norm((prediction.conditional - prediction.unconditional).reshape(len(memory), -1), axis=1)
        scale = jnp.where(step.number < self.free, 1.0, prediction.scale)
        return prediction._replace(scale=scale), memory + pull


@pytree
class Clamped(Mitigation):
    """Bounds how far one step moves the latents."""

    limit: float = 1.0

    def update(self, step, moved):
        return step.latents + jnp.clip(moved - step.latents, -self.limit, self.limit)


class Repeated(Mitigation):
    """Other words, chosen on the host."""

    def prompts(self, prompts, seeds):
        return [f"{prompt} {prompt.split()[-1]}" for prompt in prompts]


@pytree
class Weaker(Mitigation):
    """Other weights: all of them are scaled, each in its own dtype."""

    factor: float = 0.5

    def weights(self, unet):
        return jax.tree.map(lambda weight: (self.factor * weight).astype(weight.dtype), unet)


# [end]
# [detectors]
from memattn_jax.detectors import FirstStepDetector, TrajectoryDetector  # noqa: E402


@pytree
class LargestDifference(FirstStepDetector):
    """First step: the largest entry of ε_c − ε_u, mean over probes."""

    shared = frozenset({"noise"})  # ε_u of the empty prompt, computed once

    def score(self, step):
        return jnp.abs(step.difference).max(axis=(2, 3, 4)).mean(axis=1)


@pytree
class PeakDrift(TrajectoryDetector):
    """A run: how much the largest attention of the begin token moves from the first step to the last."""

    weight: float = 1.0

    @property
    def taps(self):
        return {"peak": Peak()}

    def observe(self, call):
        return jnp.stack([peak[..., 0].mean(axis=1) for peak in call.taps["peak"].values()]).mean(axis=0)

    def finish(self, kept, lengths):  # [calls, runs]
        return self.weight * jnp.abs(kept[-1] - kept[0])


# [end]
# [scheduler]
from memattn_jax.schedulers import Solver, alphas_cumprod, tabulate  # noqa: E402
from memattn_jax.schedulers.noise import conversion  # noqa: E402


def noisy_ddim(config, steps):
    """DDIM that forgets a little of its noise at every step, in evenly spaced timesteps."""
    timesteps = np.arange(steps)[::-1] * (config.num_train_timesteps // steps)
    signal = alphas_cumprod(config).astype(np.float64)
    alpha, sigma = np.sqrt(signal[timesteps]), np.sqrt(1 - signal[timesteps])
    after = np.append(signal[timesteps][1:], 1.0)
    table = conversion(config.prediction_type, alpha, sigma)._asdict()  # the UNet's output to x₀ and ε
    return tabulate(NOISY, timesteps, alpha=np.sqrt(after), sigma=np.sqrt(1 - after), **table)


def noisy_step(c, memory, output, x, keys):  # one PRNG key a row
    clean = c["clean_latents"] * x + c["clean_output"] * output
    noise = c["noise_latents"] * x + c["noise_output"] * output
    drawn = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    return c["alpha"] * clean + c["sigma"] * (0.8 * noise + 0.6 * drawn), memory


NOISY = Solver(init=lambda zeros: (), step=noisy_step, stochastic=True)
# [end]

# [jax model]
from types import SimpleNamespace  # noqa: E402


@pytree
class PlainUNet:
    """A UNet of three matrices: pixels that attend to the text, and a residual."""

    query: jax.Array  # [channels, width]
    text: jax.Array  # [2, text channels, width]
    out: jax.Array  # [width, channels]

    config = SimpleNamespace(in_channels=4, sample_size=4)
    sites = ("attention",)
    dtype = jnp.float32

    def __call__(self, latents, timesteps, context, interceptor=Interceptor()):  # noqa: B008
        pixels = latents.reshape(len(latents), -1, latents.shape[-1])
        query, keys, values = (x[:, :, None] for x in (pixels @ self.query, *(context @ w for w in self.text)))
        out, taps = cross_attention(query, keys, values, interceptor.at(timesteps), "attention")
        return latents + (out[:, :, 0] @ self.out).reshape(latents.shape), by_name(taps, interceptor.taps)


# [end]
# [equinox model]
import equinox as eqx  # noqa: E402


class EquinoxUNet(eqx.Module):
    """The same as an Equinox module."""

    to_q: eqx.nn.Linear
    to_k: eqx.nn.Linear
    to_v: eqx.nn.Linear
    to_out: eqx.nn.Linear
    config = SimpleNamespace(in_channels=4, sample_size=4)
    sites = ("attention",)
    dtype = jnp.float32

    def __call__(self, latents, timesteps, context, interceptor=Interceptor()):  # noqa: B008
        def each(layer, x):
            return jax.vmap(jax.vmap(layer))(x)

        pixels = latents.reshape(len(latents), -1, latents.shape[-1])
        query, keys, values = each(self.to_q, pixels), each(self.to_k, context), each(self.to_v, context)
        heads = (x[:, :, None] for x in (query, keys, values))
        out, taps = cross_attention(*heads, interceptor.at(timesteps), "attention")
        return latents + each(self.to_out, out[:, :, 0]).reshape(latents.shape), by_name(taps, interceptor.taps)


# [end]
# [linen model]
from flax import linen  # noqa: E402


class Network(linen.Module):
    """The same as a Flax Linen module, whose parameters lie outside it."""

    @linen.compact
    def __call__(self, latents, timesteps, context, interceptor):
        pixels = latents.reshape(len(latents), -1, latents.shape[-1])
        query = linen.DenseGeneral((1, 8), name="to_q")(pixels)
        keys, values = (linen.DenseGeneral((1, 8), name=name)(context) for name in ("to_k", "to_v"))
        out, taps = cross_attention(query, keys, values, interceptor.at(timesteps), "attention")
        return latents + linen.Dense(4, name="to_out")(out[:, :, 0]).reshape(latents.shape), taps


@pytree
class LinenUNet:
    """Its parameters, as a UNet."""

    parameters: dict

    config = SimpleNamespace(in_channels=4, sample_size=4)
    sites = ("attention",)
    dtype = jnp.float32

    def __call__(self, latents, timesteps, context, interceptor=Interceptor()):  # noqa: B008
        output, taps = Network().apply(self.parameters, latents, timesteps, context, interceptor)
        return output, by_name(taps, interceptor.taps)


# [end]


def linen_unet(key, channels: int) -> LinenUNet:
    arguments = (jnp.zeros((1, 4, 4, 4)), jnp.float32(1), jnp.zeros((1, 77, channels)), Interceptor())
    return LinenUNet(Network().init(key, *arguments))


def equinox_unet(key, channels: int) -> EquinoxUNet:
    keys = jax.random.split(key, 4)
    sizes = ((4, 8), (channels, 8), (channels, 8), (8, 4))
    return EquinoxUNet(*(eqx.nn.Linear(*size, key=key) for size, key in zip(sizes, keys, strict=True)))


def plain_unet(key, channels: int) -> PlainUNet:
    keys = jax.random.split(key, 3)
    shapes = ((4, 8), (2, channels, 8), (8, 4))
    return PlainUNet(*(0.3 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)))
