"""Mitigations that call the UNet, against their formulas in PyTorch, each row alone there."""

from copy import deepcopy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_mitigations as theirs
from arrays import RNG, ROWS, SHAPE, close, first, last
from diffusers import DDIMScheduler
from diffusers import UNet2DConditionModel as TorchUNet

from memattn_jax import StableDiffusion
from memattn_jax.checkpoints.names import leaves
from memattn_jax.diffusion.mitigation import Mitigation, Start
from memattn_jax.diffusion.noise import fold, row_keys, step_keys
from memattn_jax.evaluation.adversarial import (
    Attack,
    encode,
    find_embeddings,
    optimise_embeddings,
    optimised_through,
    retriggered,
)
from memattn_jax.interceptors import Interceptor
from memattn_jax.keys import draw_rows
from memattn_jax.mitigations.attention_mask import AttentionMask
from memattn_jax.mitigations.clip_embedding import ClipEmbedding
from memattn_jax.mitigations.compose import compose
from memattn_jax.mitigations.embedding_noise import EmbeddingNoise
from memattn_jax.mitigations.embedding_optimization import EmbeddingOptimization
from memattn_jax.mitigations.guidance_transition import FALLBACK, GuidanceTransition, first_minimum, opposite_run
from memattn_jax.mitigations.noise_optimization import NoiseOptimization
from memattn_jax.mitigations.noise_perturbation import NoisePerturbation
from memattn_jax.mitigations.pruned_weights import PrunedWeights
from memattn_jax.mitigations.random_words import RandomTokens
from memattn_jax.mitigations.value_neurons import ValueNeurons
from memattn_jax.schedulers import SchedulerConfig, alphas_cumprod, make_schedule

PROMPTS = ("the cat", "an odd and long line on the hill", "Z")
CALLS = 8
LIMIT = 0.3  # of the agreement of noises, so that some prompts of a random model have neurons


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


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral"])
def test_the_opposite_transition(pair, scheduler):
    """Minima of curves; and a run away from the prompt with a predictor that both sides can write."""
    curves = np.array([[3, 1, 2, 1, 3, 4], [1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 6]], np.float32)
    wanted = [theirs.first_minimum(list(curve), FALLBACK) for curve in curves]
    assert first_minimum(jnp.asarray(curves.T)).tolist() == wanted == [3, FALLBACK, 4]

    def call(latents, row, context):
        return jnp.tanh(latents * context.mean((1, 2))[:, None, None, None]) + row.timestep / 1000

    schedule = make_schedule(pair.sd.scheduler_config, scheduler, CALLS)
    start = pair.start(None)._replace(call=call, context=pair.context + 1, guidance_scale=jnp.full(ROWS, 3.0))
    start = start._replace(schedule=schedule)
    curve = []
    x = pair.noise * schedule.init_noise_sigma
    for i in range(CALLS):
        row = jax.tree.map(lambda values, i=i: values[i], schedule.rows())
        c, u = call(x, row, start.context), call(x, row, start.negative)
        moved, _ = schedule.step(row, (), u - 3.0 * (c - u), x, step_keys(start.keys, i))  # other noise at each step
        flat = (torch.from_numpy(np.array(each.reshape(ROWS, -1))) for each in (x, moved))
        curve.append((1 - torch.cosine_similarity(*flat)).numpy())
        x = moved
    close(opposite_run(start), np.stack(curve))
    wanted = [theirs.first_minimum(list(own), FALLBACK) for own in np.stack(curve).T]
    assert GuidanceTransition("opposite").begin(start).tolist() == wanted


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


def test_embeddings_are_optimised_through_what_changes_weights_or_attention():
    through = (AttentionMask(), compose(EmbeddingNoise(), PrunedWeights(memorized=("a",))))
    assert all(map(optimised_through, through))
    around = (Mitigation(), EmbeddingNoise(), NoiseOptimization(), compose(RandomTokens(), AttentionMask()))
    assert not any(map(optimised_through, around))


@pytest.mark.slow
def test_adversarial_embeddings(pair):
    """Two updates of each row, with the draws that ours made."""
    attack = Attack(steps=2, rate=0.01, draws=3)
    images = RNG.integers(0, 255, (ROWS, 8, 8, 3)).astype(np.uint8)
    ours = optimise_embeddings(pair.sd, list(PROMPTS), images, Mitigation(), attack, {"steps": CALLS})
    keys = row_keys(jnp.arange(attack.draws, dtype=jnp.uint32))
    signal = torch.from_numpy(alphas_cumprod(SchedulerConfig.from_json(pair.sd.scheduler_config, "ddim")))
    drawn = []
    for step in range(attack.steps):
        own = fold(keys, step)
        times = [int(jax.random.randint(key, (), 0, 1000, jnp.int32)) for key in fold(own, 0)]
        drawn.append((times, first(draw_rows(own, SHAPE))))
    x0 = first(encode(pair.sd.vae, jnp.asarray(images)))
    exact = deepcopy(pair.unet).double()  # where a slope is near 0, Adam divides its rounding error by itself
    for row, (_, e, _) in enumerate(pair.rows()):
        y = e.double().requires_grad_()
        optimizer = torch.optim.Adam([y], lr=attack.rate)
        for times, noise in drawn:
            loss = torch.zeros((), dtype=torch.float64)
            for draw in range(attack.draws):
                abar = signal[times[draw]]
                noisy = abar.sqrt() * x0[row] + (1 - abar).sqrt() * noise[draw]
                output = exact(noisy[None].double(), times[draw], y).sample[0]
                loss = loss + ((output - noise[draw]) ** 2).mean() / attack.draws
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        close(ours[row], y.detach()[0].numpy())
    study = (pair.sd, list(PROMPTS), images, Mitigation(), attack, {"steps": CALLS})
    plain = find_embeddings(*study)
    np.testing.assert_array_equal(plain[0], ours)
    assert np.abs(plain[1] - ours).max() > 1e-3  # of other images, the mirrored ones
    found = retriggered(*study, plain)
    assert (found["prompts"], found["bypassed"], found["retriggered"], found["control"]) == (ROWS, False, 0, 0)
    assert 0.5 < found["retriggered_high"] < 1
