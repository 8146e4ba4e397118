"""Mitigations on arrays, against their formulas in PyTorch, each row alone there."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_mitigations as theirs
from arrays import RNG, ROWS, SHAPE, close, draws, first

from memattn_jax.diffusion.mitigation import Prediction, Start, Step
from memattn_jax.interceptors import Attention, Context
from memattn_jax.mitigations.guard_guidance import GuardGuidance
from memattn_jax.mitigations.guidance_transition import GuidanceTransition
from memattn_jax.mitigations.neuron_search import ScaleValues
from memattn_jax.mitigations.paraphrase_guidance import ParaphraseGuidance
from memattn_jax.mitigations.spike_attenuation import attenuate
from memattn_jax.mitigations.stability_clamp import StabilityClamp
from memattn_jax.schedulers import Row
from memattn_jax.ssim import multiscale_ssim, rescaled

CALLS = 8


def steps(predict=None, calls: int = CALLS, timesteps=None):
    """Steps of a run whose latents and times are drawn here."""
    timesteps = np.linspace(951, 1, calls, dtype=np.float32) if timesteps is None else timesteps
    for number in range(calls):
        row = make_row(timesteps[number])
        yield Step(jnp.int32(number), calls, row, draws(ROWS, *SHAPE), None, None, None, None, None, predict)


def make_row(timestep: float):
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


def test_values_are_scaled():
    values = jnp.asarray(draws(4, 5, 2, 3))
    neurons = {"down": jnp.asarray(RNG.random((2, 6)) < 0.5)}
    edit = ScaleValues(neurons, 0.25)
    ours = edit(Attention(values, values, values), Context("down")).values.reshape(4, 5, 6)
    wanted = np.where(np.repeat(neurons["down"], 2, axis=0)[:, None], 0.25, 1.0) * values.reshape(4, 5, 6)
    close(ours, wanted, 1e-7)
    assert edit(Attention(values, values, values), Context("up")).values is values
