"""What a stranger may bring works in every place that is meant for it; see extensions.py."""

import dataclasses
import re
from pathlib import Path

import extensions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extensions import (
    Clamped,
    CloserEmbedding,
    LargestDifference,
    LateGuidance,
    MirroredNoise,
    Peak,
    PeakDrift,
    QuietEndToken,
    QuietLater,
    Repeated,
    Weaker,
    equinox_unet,
    linen_unet,
    noisy_ddim,
    plain_unet,
)
from plans import compiled

from memattn_jax import InputError, StableDiffusion
from memattn_jax.interceptors import Interceptor, TokenMeans
from memattn_jax.mitigations import AttentionMask, Mitigation, compose
from memattn_jax.mitigations.guard import Guard

PROMPTS = ["the cat", "a"]
STEPS = 3
DOCS = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def base(sd):
    return sd.sample(PROMPTS, steps=STEPS, seeds=[0, 1])


def test_the_documentation_shows_these_classes():
    parts = dict(re.findall(r"^# \[([\w ]+)\]\n(.*?)^# \[end\]", Path(extensions.__file__).read_text(), re.M | re.S))
    page = DOCS.read_text()
    assert len(parts) == 8
    for name, code in parts.items():
        assert re.sub(r"  # noqa: \w+", "", code).strip() in page, name


@pytest.mark.slow
def test_taps_of_ones_own(sd, base):
    """Several by name, beside a plain function."""
    taps = {"tokens": TokenMeans(), "peak": Peak(sites=sd.sites[:1]), "mean": lambda probs, context: probs.mean((1, 2))}
    run = sd.sample(PROMPTS, steps=STEPS, seeds=[0, 1], taps=taps)
    assert list(run.taps) == ["tokens", "peak", "mean"]
    assert list(run.taps["peak"]) == [sd.sites[0]]
    assert run.taps["peak"][sd.sites[0]].shape == (STEPS, 2, 2, 77)
    for site, tokens in run.tokens.items():
        np.testing.assert_allclose(run.taps["mean"][site], tokens.mean(2), atol=1e-6)
    np.testing.assert_allclose(run.latents, base.latents, atol=1e-5 * np.abs(base.latents).max())


@pytest.mark.slow
def test_an_edit_under_jit_vmap_and_grad(sd):
    """The end token's attention as a function of the edit's number: monotone, batched and differentiable."""
    (latents, context), lengths = (sd.noise([0]), sd.encode(PROMPTS[:1])[0]), jnp.asarray([5])

    @jax.jit
    def end_attention(factor):
        interceptor = Interceptor((QuietEndToken(factor, after=0),), {"tokens": TokenMeans()}, lengths=lengths)
        tokens = sd.unet(latents, jnp.float32(981), context, interceptor)[1]["tokens"]
        return tokens[sd.sites[0]][0, :, lengths[0] - 1].mean()

    factors = jnp.asarray([0.25, 0.5, 1.0])
    attention = jax.vmap(end_attention)(factors)
    assert (jnp.diff(attention) > 0).all()
    step = 1e-2
    slope = (end_attention(0.5 + step) - end_attention(0.5 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(end_attention)(0.5), slope, rtol=1e-2)


MITIGATIONS = {
    "edits": QuietLater(),
    "embeddings": CloserEmbedding(),
    "noise": MirroredNoise(),
    "guidance": LateGuidance(),
    "update": Clamped(0.5),
    "prompts": Repeated(),
    "weights": Weaker(),
    "two": compose(QuietLater(), Clamped(0.5)),
}


ON_A_UNET = [pytest.param(name, marks=pytest.mark.slow) if name == "edits" else name for name in MITIGATIONS]


@pytest.mark.parametrize("name", ON_A_UNET)
def test_mitigations_of_ones_own(sd, matrices, name):
    """Each changes the run; under a guard, the memorized row alone; a row does not depend on its batch."""
    settings = {"steps": STEPS, "seeds": [0, 1], "taps": None}
    model = sd if name == "edits" else matrices
    base = model.sample(PROMPTS, **settings)
    run = model.sample(PROMPTS, mitigation=MITIGATIONS[name], **settings)
    size = np.abs(base.latents).max()
    changed = np.abs(run.latents - base.latents).max(axis=(1, 2, 3)) / size
    assert (changed > 1e-4).all()
    scores = model.detect(PROMPTS, LargestDifference(), seeds=[0, 1])["LargestDifference"]
    threshold = float(np.mean(scores))
    guard = Guard(threshold, detector=LargestDifference(), mitigation=MITIGATIONS[name])
    guarded = model.sample(PROMPTS, guard=guard, **settings)
    np.testing.assert_allclose(guarded.guard_scores, scores, rtol=1e-5)
    assert guarded.mitigated.tolist() == (scores > threshold).tolist()
    expected = np.where(guarded.mitigated[:, None, None, None], run.latents, base.latents)
    np.testing.assert_allclose(guarded.latents / size, expected / size, atol=1e-5)


def test_a_mitigations_numbers_compile_nothing(sd):
    from memattn_jax.diffusion.sampling import denoise

    for mitigation, other in ((QuietLater(0.2), QuietLater(0.3)), (LateGuidance(1), LateGuidance(2))):
        sd.sample(PROMPTS, steps=STEPS, mitigation=mitigation, taps=None)
        before = compiled(denoise)
        sd.sample(PROMPTS, steps=STEPS, mitigation=other, taps=None)
        assert compiled(denoise) == before


@pytest.mark.slow
def test_detectors_of_ones_own(sd):
    """Beside named ones in the same programs; alone they score the same."""
    mine = {"largest": LargestDifference(), "drift": PeakDrift(2.0)}
    detectors = ["noise_norm", *mine.values(), "noise_norm_steps"]
    found = sd.detect(PROMPTS, detectors, steps=STEPS)
    assert list(found.scores) == ["noise_norm", "LargestDifference", "PeakDrift", "noise_norm_steps"]
    alone = sd.detect(PROMPTS, mine, steps=STEPS)
    np.testing.assert_allclose(alone["largest"], found["LargestDifference"], rtol=1e-5)
    np.testing.assert_allclose(alone["drift"], found["PeakDrift"], rtol=1e-4)
    run = sd.sample(PROMPTS, steps=STEPS, taps={"peak": Peak()})
    peaks = np.stack([tap[..., 0].mean(2) for tap in run.taps["peak"].values()]).mean(0)  # [steps, batch]
    np.testing.assert_allclose(found["PeakDrift"], 2 * np.abs(peaks[-1] - peaks[0]), rtol=1e-3)


def test_a_scheduler_of_ones_own(matrices):
    """A row's noise follows from its seed alone, whichever rows are beside it."""
    run = matrices.sample(PROMPTS, steps=STEPS, seeds=[3, 4], scheduler=noisy_ddim, taps=None)
    size = np.abs(run.latents).max()
    alone = matrices.sample(PROMPTS[1:], steps=STEPS, seeds=4, scheduler=noisy_ddim, taps=None)
    np.testing.assert_allclose(alone.latents[0] / size, run.latents[1] / size, atol=1e-5)
    again = matrices.sample(
        PROMPTS, steps=STEPS, seeds=[3, 5], scheduler=noisy_ddim(sd_config(matrices), STEPS), taps=None
    )
    np.testing.assert_array_equal(again.latents[0], run.latents[0])
    assert np.abs(again.latents[1] - run.latents[1]).max() / size > 1e-2


def sd_config(sd: StableDiffusion):
    from memattn_jax.schedulers import SchedulerConfig

    return SchedulerConfig.from_json(sd.scheduler_config, "ddim")


@pytest.mark.parametrize(
    "make",
    [pytest.param(plain_unet, marks=pytest.mark.slow), equinox_unet, linen_unet],
    ids=["jax", "equinox", "linen"],
)
def test_models_of_ones_own(sd, make):
    """Sampled, tapped, mitigated and scored, also by a detector that differentiates it."""
    mine = dataclasses.replace(sd, unet=make(jax.random.key(0), sd.encode(["a"])[0].shape[-1]))
    run = mine.sample(PROMPTS, steps=2, taps={"tokens": TokenMeans(), "peak": Peak()})
    assert run.taps["peak"]["attention"].shape == (2, 2, 1, 77)
    np.testing.assert_allclose(run.tokens["attention"].sum(-1), 1.0, atol=1e-5)
    masked = mine.sample(PROMPTS, steps=2, mitigation=AttentionMask())
    assert not np.asarray(masked.tokens["attention"][:, 0, :, run.lengths[0] :]).any()  # padding
    scores = mine.detect(PROMPTS, ["noise_norm", "sharpness"], attribute=True)
    assert all(np.isfinite(score).all() and score[0] != score[1] for score in scores.scores.values())
    assert len(mine.fingerprint()) == 32


@pytest.mark.slow
def test_embeddings_guidance_by_step_and_a_callback(sd, base):
    """Embeddings give what their prompts give; guidance of each step and row; latents between steps."""
    size = np.abs(base.latents).max()
    given = sd.sample(embeddings=sd.encode(PROMPTS)[0], steps=STEPS, seeds=[0, 1])
    np.testing.assert_allclose(given.latents, base.latents, atol=1e-5 * size)
    scales = np.full((STEPS, 2), 7.5)
    scales[1:, 1] = 1.0
    varied = sd.sample(PROMPTS, steps=STEPS, seeds=[0, 1], guidance_scale=scales)
    np.testing.assert_allclose(varied.latents[0], base.latents[0], atol=1e-5 * size)
    assert np.abs(varied.latents[1] - base.latents[1]).max() / size > 1e-3
    seen = []
    chunks = {"steps": STEPS, "seeds": [0, 1], "callback_steps": 2}
    followed = sd.sample(PROMPTS, callback=lambda between: seen.append((between.step, between.calls)), **chunks)
    assert seen == [(2, STEPS), (3, STEPS)]
    np.testing.assert_allclose(followed.latents, base.latents, atol=1e-5 * size)
    np.testing.assert_allclose(followed.tokens[sd.sites[0]], base.tokens[sd.sites[0]], atol=1e-5)
    zeroed = sd.sample(PROMPTS, callback=lambda between: 0 * between.latents, **chunks)
    assert not np.asarray(zeroed.latents).any()


def test_samples_and_detections_are_pytrees(sd, base):
    doubled = jax.tree.map(lambda leaf: 2 * leaf, base)
    np.testing.assert_array_equal(doubled.latents, 2 * base.latents)
    assert doubled.prompts == base.prompts
    found = sd.detect(PROMPTS, "entropy_e")
    assert jax.tree.map(np.shape, found).scores == {"entropy_e": (2,)}
    for value in (base, found, sd):
        assert len(repr(value).splitlines()) == 1
        assert len(repr(value)) < 120


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"taps": Peak()}, "taps"),
        ({"taps": {"x": Peak(sites=("attic",))}}, "attic"),
        ({"guidance_scale": np.ones((2, 3))}, "guidance_scale"),
        ({"embeddings": np.ones((3, 77, 32))}, "embeddings"),
        ({"callback_steps": 0}, "callback_steps"),
        ({"negative_prompts": []}, "negative prompts"),
        ({"embeddings": np.ones((2, 77, 32)), "mitigation": Repeated()}, "embeddings .* prompts"),
    ],
)
def test_what_does_not_fit_is_named(sd, options, named):
    with pytest.raises(InputError, match=named):
        sd.sample(PROMPTS, steps=STEPS, **options)


def test_a_network_that_lacks_a_member_is_named(sd):
    with pytest.raises(InputError, match="UNet function lacks config, sites, dtype"):
        dataclasses.replace(sd, unet=lambda *arguments: arguments)


def test_a_mitigation_knows_the_rows_that_a_guard_found(matrices):
    class Seen(Mitigation):
        def noise(self, start):
            return jnp.where(start.active[:, None, None, None], 7.0, start.noise)

        def update(self, step, moved):
            return jnp.where(step.active[:, None, None, None], step.latents, moved)

    scores = matrices.detect(PROMPTS, "noise_norm", seeds=[0, 1])["noise_norm"]
    run = matrices.sample(
        PROMPTS, seeds=[0, 1], steps=2, guard=Guard(float(scores.mean()), mitigation=Seen()), taps=None
    )
    latents = np.asarray(run.latents).reshape(2, -1)
    assert (latents == 7.0).all(axis=1).tolist() == run.mitigated.tolist() == (scores > scores.mean()).tolist()


def test_two_detectors_of_one_class_need_names(sd):
    with pytest.raises(InputError, match="PeakDrift"):
        sd.detect(PROMPTS, [PeakDrift(1.0), PeakDrift(2.0)], steps=STEPS)


def test_without_guidance_a_mitigation_still_sees_the_negative_prompts(matrices):
    """Noise that follows from them is another for other ones, though no step computes their half."""

    class FromNegative(Mitigation):
        def noise(self, start):
            return start.noise + start.negative[:, :, 0].mean(1)[:, None, None, None]

    settings = {"steps": 1, "guidance_scale": 1.0, "taps": None, "mitigation": FromNegative()}
    runs = [matrices.sample(PROMPTS, negative_prompts=text, **settings).latents for text in ("", "zebra")]
    assert np.abs(runs[0] - runs[1]).max() > 1e-4
