"""Every mitigation against its formula in PyTorch, each row alone there: updates through a UNet, the rest on arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_mitigations as theirs
from diffusers import DDIMScheduler
from diffusers import UNet2DConditionModel as TorchUNet

from memattn_jax import StableDiffusion
from memattn_jax.checkpoints.names import leaves
from memattn_jax.diffusion.mitigation import Prediction, Start, Step
from memattn_jax.diffusion.noise import fold, row_keys
from memattn_jax.interceptors import Attention, Context, Interceptor
from memattn_jax.keys import draw_rows
from memattn_jax.mitigations.clip_embedding import ClipEmbedding
from memattn_jax.mitigations.embedding_optimization import EmbeddingOptimization
from memattn_jax.mitigations.guard_guidance import GuardGuidance
from memattn_jax.mitigations.guidance_transition import FALLBACK, GuidanceTransition, first_minimum
from memattn_jax.mitigations.neuron_search import ScaleValues
from memattn_jax.mitigations.noise_optimization import NoiseOptimization
from memattn_jax.mitigations.noise_perturbation import NoisePerturbation
from memattn_jax.mitigations.paraphrase_guidance import ParaphraseGuidance
from memattn_jax.mitigations.pruned_weights import PrunedWeights
from memattn_jax.mitigations.spike_attenuation import attenuate
from memattn_jax.mitigations.stability_clamp import StabilityClamp
from memattn_jax.mitigations.value_neurons import ValueNeurons
from memattn_jax.schedulers import make_schedule
from memattn_jax.ssim import multiscale_ssim, rescaled

PROMPTS = ("the cat", "an odd and long line on the hill", "Z")
ROWS, CALLS, SHAPE = len(PROMPTS), 8, (4, 4, 4)
LIMIT = 0.3  # of the agreement of noises, so that some prompts of a random model have neurons
RNG = np.random.default_rng(0)


def first(tensor) -> torch.Tensor:
    """[..., h, w, channels] to PyTorch's [..., channels, h, w]."""
    return torch.from_numpy(np.moveaxis(np.asarray(tensor), -1, -3).copy())


def last(tensor: torch.Tensor) -> np.ndarray:
    return np.moveaxis(tensor.numpy(), -3, -1)


def draws(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


class Pair:
    """One UNet on both sides, with the inputs of a run's start."""

    def __init__(self, folder):
        self.sd = StableDiffusion.from_pretrained(folder)
        self.unet = TorchUNet.from_pretrained(folder / "unet").requires_grad_(False)
        self.schedule = make_schedule(self.sd.scheduler_config, "ddim", CALLS)
        self.time = float(self.schedule.timesteps[0])
        self.context, tokens = self.sd.encode(PROMPTS)
        self.lengths, self.noise = jnp.asarray(tokens.lengths), self.sd.noise(range(ROWS))
        self.negative = self.sd.encode([""] * ROWS)[0]

    def start(self, unet) -> Start:
        def call(latents, row, context, edits=()):
            return unet(latents, row.timestep, context, Interceptor(edits))[0]

        def predict(noise, context):
            return call(noise, jax.tree.map(lambda x: x[0], self.schedule.rows()), context)

        text, keys = (self.context, self.negative, self.lengths), row_keys(jnp.arange(ROWS, dtype=jnp.uint32))
        active = jnp.ones(ROWS, bool)
        return Start(self.noise, *text, jnp.full(ROWS, 7.5), keys, self.schedule, active, predict, call)

    def predict(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return self.unet(x, self.time, e).sample

    def rows(self):
        """Noise, embedding and the empty one, of each row for PyTorch."""
        for x, e, empty in zip(self.noise, self.context, self.negative, strict=True):
            yield first(x[None]), torch.from_numpy(np.array(e[None])), torch.from_numpy(np.array(empty[None]))


@pytest.fixture(scope="module")
def pair(model) -> Pair:
    return Pair(model)


def close(ours, wanted, bound: float = 1e-4) -> None:
    """The largest difference, against what the values spread by."""
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=bound * max(1.0, float(np.std(wanted))))


@pytest.mark.slow
def test_embeddings_are_optimised_until_each_row_is_there(pair):
    """One target is met at once, one after an update or two, one never; updates stop row by row."""
    norms = [
        float(torch.linalg.vector_norm(pair.predict(x, e) - pair.predict(x, empty))) for x, e, empty in pair.rows()
    ]
    update = jax.jit(lambda unet, mitigation: mitigation.embeddings(pair.start(unet)))
    for target in (0.0, float(np.sort(norms)[1]) * 0.99):
        ours = update(pair.sd.unet, EmbeddingOptimization(target, 0.02, 3))
        settings = {"target": target, "rate": 0.02, "iterations": 3}
        wanted = [theirs.optimise_embedding(pair.predict, *row, **settings)[0].numpy() for row in pair.rows()]
        moved = [np.abs(new - np.asarray(old)).max() > 0 for new, old in zip(wanted, pair.context, strict=True)]
        assert moved == [norm > target for norm in norms]
        close(ours, np.stack(wanted))
    assert update._cache_size() == 1


@pytest.mark.slow
def test_noise_is_optimised(pair):
    update = jax.jit(lambda unet, mitigation: mitigation.noise(pair.start(unet)))
    ours = update(pair.sd.unet, NoiseOptimization(0.0, 0.05, 0.05, 2))
    settings = {"threshold": 0.0, "weight": 0.05, "rate": 0.05, "iterations": 2}
    close(ours, np.stack([last(theirs.optimise_noise(pair.predict, *row, **settings))[0] for row in pair.rows()]))


@pytest.mark.slow
def test_noise_is_perturbed(pair):
    def update(mitigation):
        return jax.jit(lambda unet, mitigation: mitigation.noise(pair.start(unet)))(pair.sd.unet, mitigation)

    rows = list(pair.rows())
    wanted = [last(theirs.perturb_noise(pair.predict, *row, radius=5.0, step=0.7, repeats=2))[0] for row in rows]
    close(update(NoisePerturbation(radius=5.0)), np.stack(wanted))
    wanted = [last(theirs.descend_noise(pair.predict, *row, target=0.0, rate=0.01, iterations=3))[0] for row in rows]
    close(update(NoisePerturbation("per-sample", target=0.0, iterations=3)), np.stack(wanted))


def steps(predict=None, calls: int = CALLS, timesteps=None):
    """Steps of a run whose latents and times are drawn here."""
    timesteps = np.linspace(951, 1, calls, dtype=np.float32) if timesteps is None else timesteps
    for number in range(calls):
        row = make_row(timesteps[number])
        yield Step(jnp.int32(number), calls, row, draws(ROWS, *SHAPE), None, None, None, None, None, predict)


def make_row(timestep: float):
    from memattn_jax.schedulers import Row

    return Row(jnp.float32(timestep), jnp.float32(1), {})


@pytest.mark.parametrize("when", ["static", "dynamic"])
def test_guidance_transition(when):
    mitigation = GuidanceTransition(when, before=-2.0 if when == "static" else 1.0, until=600.0)
    # falls, rises at a step of its own for each row, and goes on
    sizes = np.array([[4, 3, 2, 3, 4, 3, 2, 1], [1, 2, 3, 2, 1, 2, 3, 4], [8, 7, 6, 5, 4, 3, 2, 1]], np.float32).T
    u = draws(CALLS, ROWS, *SHAPE)
    d = draws(CALLS, ROWS, *SHAPE)
    c = (
        u
        + d / np.linalg.norm(d.reshape(CALLS, ROWS, -1), axis=-1)[..., None, None, None] * sizes[..., None, None, None]
    )
    memory = mitigation.begin(Start(jnp.zeros((ROWS, *SHAPE)), *[None] * 9))
    ours = []
    for i, step in enumerate(steps()):
        prediction = Prediction(jnp.asarray(c[i]), jnp.asarray(u[i]), jnp.full(ROWS, 7.5))
        changed, memory = mitigation.guidance(step, prediction, memory)
        ours.append(changed.guided())
    for row in range(ROWS):
        pairs = [(torch.from_numpy(c[i, row]), torch.from_numpy(u[i, row])) for i in range(CALLS)]
        if when == "static":
            times = np.linspace(951, 1, CALLS)
            wanted = theirs.transition_static(pairs, times, before=-2.0, until=600.0, scale=7.5)
        else:
            wanted = theirs.transition_dynamic(pairs, before=1.0, scale=7.5)
        close([each[row] for each in ours], np.stack([each.numpy() for each in wanted]))


def test_the_opposite_transition(pair):
    """Minima of curves; and a run away from the prompt with a predictor that both sides can write."""
    curves = np.array([[3, 1, 2, 1, 3, 4], [1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 6]], np.float32)
    wanted = [theirs.first_minimum(list(curve), FALLBACK) for curve in curves]
    assert first_minimum(jnp.asarray(curves.T)).tolist() == wanted == [3, FALLBACK, 4]

    def call(latents, row, context):
        return jnp.tanh(latents * context.mean((1, 2))[:, None, None, None]) + row.timestep / 1000

    start = pair.start(None)._replace(call=call, context=pair.context + 1, guidance_scale=jnp.full(ROWS, 3.0))
    curve = []
    x = pair.noise
    for i in range(CALLS):
        row = jax.tree.map(lambda values, i=i: values[i], pair.schedule.rows())
        c, u = call(x, row, start.context), call(x, row, start.negative)
        moved, _ = pair.schedule.step(row, (), u - 3.0 * (c - u), x)
        flat = (torch.from_numpy(np.array(each.reshape(ROWS, -1))) for each in (x, moved))
        curve.append((1 - torch.cosine_similarity(*flat)).numpy())
        x = moved
    wanted = [theirs.first_minimum(list(own), FALLBACK) for own in np.stack(curve).T]
    assert GuidanceTransition("opposite").begin(start).tolist() == wanted


def test_spikes_are_attenuated():
    logits = draws(2, 3, 16, 77) * 4
    ours = attenuate(jnp.asarray(logits), 0.5, 0.3)
    wanted = [theirs.attenuate_spikes(torch.from_numpy(row), threshold=0.5, strength=0.3).numpy() for row in logits]
    close(ours, np.stack(wanted), 1e-6)
    assert 0.1 < np.mean(np.asarray(ours) != logits) < 0.9


def test_guard_guidance():
    attenuated, plain, u = draws(3, ROWS, *SHAPE)
    for i, step in enumerate(steps(lambda context: jnp.asarray(plain), calls=3)):
        prediction = Prediction(jnp.asarray(attenuated), jnp.asarray(u), jnp.full(ROWS, 7.5))
        ours = GuardGuidance().guidance(step, prediction, ())[0].guided()
        for row in range(ROWS):
            parts = (torch.from_numpy(each[row]) for each in (attenuated, plain, u))
            close(ours[row], theirs.guard(*parts, scale=7.5, repulsion=2.0, progress=i / 3).numpy(), 1e-5)


def test_paraphrase_guidance():
    """Norms under, between and over the two limits, in rows whose own wording passes and does not."""
    limits = {"limit": 3.0, "margin": 5.0}
    mitigation = ParaphraseGuidance({"a": ["b"]}, **limits)
    u, plain, direction = draws(3, 6, *SHAPE)
    sizes = np.array([1, 4, 9, 1, 4, 9], np.float32)[:, None, None, None]
    other = u + sizes * direction / np.linalg.norm(direction.reshape(6, -1), axis=1)[:, None, None, None]
    triggered = np.arange(6) < 3
    (step,) = steps(lambda context: jnp.asarray(other), calls=1)
    prediction = Prediction(jnp.asarray(plain), jnp.asarray(u), jnp.full(6, 7.5))
    ours = mitigation.guidance(step, prediction, (None, jnp.asarray(triggered)))[0].guided()
    for row in range(6):
        parts = (torch.from_numpy(each[row]) for each in (plain, other, u))
        close(ours[row], theirs.prss(*parts, bool(triggered[row]), scale=7.5, **limits).numpy(), 1e-5)


def test_the_wording_is_chosen():
    """The first within the limit; else the nearest."""
    contexts = jnp.asarray([[5, 3, 0.5, 0.2], [0.9, 0.1, 0.1, 0.1], [5, 4, 3, 4]], jnp.float32)[:, :, None, None]
    start = Start(jnp.zeros((3, *SHAPE)), contexts[:, 0], jnp.zeros((3, 1, 1)), *[None] * 5, None, None)
    start = start._replace(
        predict=lambda noise, context: jnp.pad(context[:, :, :, None], ((0, 0), (0, 3), (0, 3), (0, 3))),
        alternatives=contexts[:, 1:],
    )
    wording, triggered = ParaphraseGuidance({"a": ["b"]}).begin(start)
    np.testing.assert_allclose(wording[:, 0, 0], [0.5, 0.9, 3])
    assert triggered.tolist() == [True, False, True]


@pytest.mark.parametrize("variant", ["a", "b", "c"])
def test_clip_embeddings(pair, variant):
    """The padding's ids, and which embeddings are zero."""
    mitigation = ClipEmbedding(variant)
    tokens = pair.sd.tokenizer(PROMPTS)
    changed = mitigation.tokens(tokens, range(ROWS), pair.sd.tokenizer.size)
    ours = mitigation.embeddings(pair.start(None))
    for row, length in enumerate(tokens.lengths):
        padding = changed.input_ids[row, length:]
        assert (padding == (tokens.input_ids[row, length:] if variant == "c" else 0)).all()
        assert (changed.input_ids[row, :length] == tokens.input_ids[row, :length]).all()
        wanted = theirs.zero_tokens(torch.from_numpy(np.array(pair.context[row])), variant, int(length))
        close(ours[row], wanted.numpy(), 1e-7)


def test_the_stability_clamp():
    """The mild stage, then the strong one; norms under, in and over each region."""
    width, x = 2.0, draws(ROWS, *SHAPE)
    output, moved = draws(2, ROWS, *SHAPE)
    length = float(np.linalg.norm(output[1]))
    regions = np.array([[length, 0.01], [5.0, 0.2], [length, 0.05 * length]], np.float32)
    to_clean = np.array([0.3, -0.9], np.float32)
    mitigation = StabilityClamp(
        width=width,
        mild_calls=1,
        regions=regions[None, None].repeat(2, 1),
        to_clean=(to_clean[None, None].repeat(2, 1)),
    )
    mild, strong = (step._replace(latents=jnp.asarray(x)) for step in steps(calls=2))
    prediction = Prediction(jnp.asarray(output), jnp.asarray(output), jnp.full(ROWS, 7.5))
    ours = mitigation.guidance(mild, prediction, ())[0].guided()
    clamped = mitigation.update(strong, jnp.asarray(moved))
    close(mitigation.update(mild, jnp.asarray(moved)), moved, 1e-7)
    close(mitigation.guidance(strong, prediction, ())[0].guided(), output, 1e-6)
    for row in range(ROWS):
        latents, out, after = (torch.from_numpy(each[row]) for each in (x, output, moved))
        region = tuple(map(float, regions[2]))
        wanted = theirs.mild(latents, out, *region, of_latents=0.3, of_output=-0.9, width=width)
        close(ours[row], wanted.numpy())
        stepped = latents + theirs.clamp(after - latents, *map(float, regions[1]), width)
        close(clamped[row], theirs.clamp(stepped, *map(float, regions[0]), width).numpy())


@pytest.mark.parametrize(("size", "kernel", "scales"), [(64, 11, 3), (16, 11, 1), (4, 3, 1)])
def test_structural_similarity(size, kernel, scales):
    x = rescaled(jnp.asarray(draws(2, size, size, 4)))
    y = rescaled(x + 0.3 * draws(2, size, size, 4))
    wanted = [theirs.structural_similarity(first(a), first(b), kernel, scales) for a, b in zip(x, y, strict=True)]
    close(multiscale_ssim(x, y), wanted, 1e-5)
    assert 0.1 < min(wanted) < max(wanted) < 0.95


@pytest.mark.slow
def test_value_neurons(pair):
    """The neurons that each prompt's search ends with; a prompt whose noises do not agree has none."""
    clean = ("the sun", "an odd line", "hill of the land", "cat")
    fitted = ValueNeurons(clean, limit=LIMIT, noises=3).fit(pair.sd)
    ours = jax.jit(lambda unet, mitigation: mitigation.begin(pair.start(unet)))(pair.sd.unet, fitted)
    keys = pair.start(None).keys
    noises = [pair.noise, *(draw_rows(fold(keys, i), SHAPE) for i in (1, 2))]
    texts = [torch.from_numpy(np.array(pair.sd.encode([text])[0])) for text in clean]
    found = []
    for row, (_, e, _) in enumerate(pair.rows()):
        own = torch.stack([first(noise[row]) for noise in noises])
        time = float(pair.schedule.timesteps[1])
        wanted = theirs.Nemo(pair.unet, time, e, own, texts, limit=LIMIT, kernel=3).search()
        got = {f"{site}.to_v": set(np.flatnonzero(chosen[row]).tolist()) for site, chosen in ours.items()}
        assert got == wanted
        found.append(sum(map(len, wanted.values())))
    assert len(set(found)) > 1


def test_values_are_scaled():
    values = jnp.asarray(draws(4, 5, 2, 3))
    neurons = {"down": jnp.asarray(RNG.random((2, 6)) < 0.5)}
    edit = ScaleValues(neurons, 0.25)
    ours = edit(Attention(values, values, values), Context("down")).values.reshape(4, 5, 6)
    wanted = np.where(np.tile(neurons["down"], (2, 1))[:, None], 0.25, 1.0) * values.reshape(4, 5, 6)
    close(ours, wanted, 1e-7)
    assert edit(Attention(values, values, values), Context("up")).values is values


@pytest.mark.slow
def test_pruned_weights(pair, model):
    """The weights that two runs name, and a UNet without them."""
    settings = {"steps": 3, "guidance_scale": 3.0}
    fitted = PrunedWeights(PROMPTS, share=0.05, calls=2, batch=2).fit(pair.sd, **settings)
    scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
    rows = list(pair.rows())
    wanted = theirs.weights_to_prune(pair.unet, scheduler, rows, share=0.05, calls=2, scale=3.0, steps=3)
    assert fitted.pruned.keys() == wanted.keys()
    for layer, mask in wanted.items():
        assert np.mean(mask.numpy() != fitted.pruned[layer][0].T) < 2e-3, layer  # ties up to rounding
        assert 0.01 < mask.float().mean() < 0.1
    changed = jax.jit(lambda mitigation, unet: mitigation.weights(unet))(fitted, pair.sd.unet)
    before, after = (
        {leaf.name: np.asarray(leaf.param[...]) for leaf in leaves(unet)} for unet in (pair.sd.unet, changed)
    )
    for name, value in after.items():
        layer = name.removesuffix(".weight")
        kept = 1 - fitted.pruned[layer][0] if layer in fitted.pruned else 1
        np.testing.assert_array_equal(value, before[name] * kept)
