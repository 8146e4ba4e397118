"""What detectors promise besides their numbers: independence of rows, no recompilation, clear refusals."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from plans import compiled

from memattn_jax import InputError, StableDiffusion
from memattn_jax.detectors import DETECTORS, Scorer, entropy_d
from memattn_jax.detectors.bottleneck_spikiness import BottleneckSpikiness, score_images
from memattn_jax.detectors.first_step import noise_levels
from memattn_jax.detectors.latent_step_deviation import LatentStepDeviation, latent_step_deviation
from memattn_jax.detectors.programs import score_first_step, score_trajectory
from memattn_jax.detectors.scorer import named_detectors, score_batches
from memattn_jax.detectors.text_baseline import text_baseline
from memattn_jax.pytree import pytree
from memattn_jax.schedulers import SchedulerConfig, alphas_cumprod

PROMPTS = ("the cat", "an odd and long line on the hill in the land", "Zebra 7", "", "in the and on")
ALL = tuple(DETECTORS)
CLEAN = {
    "mean": np.linspace(1, 2, 10, dtype=np.float32),
    "deviation": np.linspace(0.1, 0.3, 10, dtype=np.float32),
}  # of 10 steps
SETTINGS = {"probes": 2, "steps": 10, "guidance_scale": 3.0, **CLEAN}
BATCH = 3
EMPTY = PROMPTS.index("")
OF_DIFFERENCES = (
    "noise_norm",
    "sharpness",
    "anisotropy",
    "hessian_difference",
    "noise_norm_steps",
    "bright_ending",
    "condition_jacobian",
)
OF_DERIVATIVES = ("sharpness", "hessian_difference", "condition_jacobian")
RELATIVE = 1e-5
RELATIVE_OF_DERIVATIVES = 1e-4  # float32, here and in PyTorch, is 1e-5 to 2e-5 from float64


@pytest.fixture(scope="module")
def tiny(model):
    return StableDiffusion.from_pretrained(model)


@pytest.fixture(scope="module")
def five(tiny):
    """All detectors, one seed; the second batch of three is padded."""
    return tiny.detect(PROMPTS, ALL, seeds=4, batch_size=BATCH, **SETTINGS)


def check_equal(scores, five, rows=range(5), names=ALL):
    """Scores of some rows of `five`, in that order."""
    for name in names:
        # The empty prompt's differences from itself are rounding, and so is the angle that anisotropy makes of them.
        kept = [place for place, row in enumerate(rows) if row != EMPTY or name not in OF_DIFFERENCES]
        expected = five[name][list(rows)]
        tolerance = RELATIVE_OF_DERIVATIVES if name in OF_DERIVATIVES else RELATIVE
        np.testing.assert_allclose(scores[name][kept], expected[kept], rtol=tolerance, err_msg=name)


@pytest.mark.slow
def test_shapes_and_the_empty_prompt(five):
    assert list(five.scores) == list(ALL)
    assert five.prompts == PROMPTS
    assert five.attention is None
    assert five.gradients is None
    assert five.lengths.tolist() == [3 + len("cat"), *five.lengths[1:3], 2, 6]
    for name, scores in five.scores.items():
        assert scores.shape == (len(PROMPTS),)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all(), name
    for name in set(OF_DIFFERENCES) - {"anisotropy"}:
        assert five[name][EMPTY] < 1e-4 * np.delete(five[name], EMPTY).min(), name


@pytest.mark.slow
def test_a_score_does_not_depend_on_its_batch(tiny, five):
    order = [4, 3, 1]
    check_equal(tiny.detect([PROMPTS[i] for i in order], ALL, seeds=4, **SETTINGS), five, order)


@pytest.mark.slow
def test_alone_and_one_probe_at_a_time(tiny, five):
    """Probes have consecutive seeds, and the score is their mean.

    Derivatives take long to compile; tests/parity has PyTorch's of one prompt and one probe at a time.
    """
    names = tuple(name for name in ALL if name not in OF_DERIVATIVES)
    for row in (1, 2):
        settings = SETTINGS | {"probes": 1}
        runs = [tiny.detect(PROMPTS[row], names, seeds=seed, **settings) for seed in (4, 5)]
        check_equal({name: (runs[0][name] + runs[1][name]) / 2 for name in names}, five, [row], names)


@pytest.mark.slow
def test_own_seeds(tiny, five):
    """Equal to the shared seed, they change nothing; other seeds do, of their own rows alone."""
    check_equal(tiny.detect(PROMPTS, ALL, seeds=[4] * 5, batch_size=BATCH, **SETTINGS), five)
    mixed = tiny.detect(PROMPTS, ALL, seeds=[4, 9, 4, 9, 9], batch_size=BATCH, **SETTINGS)
    model = [name for name in ALL if name != "text_baseline"]
    check_equal({name: mixed[name][[0, 2]] for name in ALL}, five, [0, 2])
    for name in model:
        assert np.abs(mixed[name][[1, 4]] / five[name][[1, 4]] - 1).min() > 1e-4, name


@pytest.mark.slow
def test_latents_instead_of_seeds(tiny, five):
    """The noise that the seeds stand for, for all prompts and for each, in batches that are filled up."""
    one, each = tiny.noise([4]), np.asarray(tiny.noise([4, 9, 4, 9, 9]))
    settings = {"batch_size": BATCH, "steps": SETTINGS["steps"]}
    for latents, seeds in ((one, 4), (each, [4, 9, 4, 9, 9])):
        given = tiny.detect(PROMPTS, latents=latents, seeds=7, **settings)
        expected = tiny.detect(PROMPTS, seeds=seeds, **settings)
        for name, scores in expected.scores.items():
            np.testing.assert_array_equal(given[name], scores, err_msg=name)


@pytest.mark.slow
def test_the_empty_prompts_gradients_are_nothing(tiny):
    """Of its difference from itself, which is rounding; those of other prompts are not."""
    gradients = tiny.detect(PROMPTS, attribute=True, batch_size=5).gradients
    assert not gradients[EMPTY].any()
    assert gradients[[0, 1, 2, 4]].max(axis=1).min() > 0


@pytest.mark.slow
def test_numbers_compile_nothing(tiny, five):
    before = compiled(score_first_step), compiled(score_trajectory)
    for seed, scale, prompts, chosen in (
        (0, 7.5, ["a", "", "the cat on the hill"], None),
        (2**32 - 2, 1, ["the " * 75, "x", "y z"], (0,)),
        (17, np.float64(2.5), ["b", "c", "d", "e"], (1, 4)),
    ):
        settings = SETTINGS | {"guidance_scale": scale, "noise_norm_steps": chosen}
        tiny.detect(prompts, ALL, seeds=seed, batch_size=BATCH, **settings)
    assert (compiled(score_first_step), compiled(score_trajectory)) == before


def test_a_scorer_keeps_what_its_weights_decide_as_long_as_they_stay(tiny):
    sd = dataclasses.replace(tiny, unet=nnx.clone(tiny.unet))
    scorer = Scorer(sd, ("noise_norm",), seed=4, steps=10)
    jax.eval_shape(lambda: scorer.start(PROMPTS[:1]).scores)  # what it computes while traced is not kept
    before = scorer(PROMPTS[:1])["noise_norm"]
    kernel = sd.unet.conv_out.kernel
    kernel[...] = 2 * kernel[...]
    np.testing.assert_allclose(scorer(PROMPTS[:1])["noise_norm"], 2 * before, rtol=RELATIVE)


@pytest.mark.slow
def test_a_nan_row_stays_alone(tiny, five):
    """Both programs as `detect` calls them, with the embeddings of the second prompt replaced."""
    detectors = named_detectors(ALL, **CLEAN)
    scorer = Scorer(tiny, detectors, 4, *(SETTINGS[name] for name in ("probes", "steps", "guidance_scale")))
    context, tokens = tiny.encode(PROMPTS[:BATCH])
    context, lengths = context.at[1].set(jnp.nan), jnp.asarray(tokens.lengths)
    probes = scorer.probes_for(None)
    scores, _ = score_first_step(scorer.inputs(probes, context, lengths), scorer.first_step)
    followed, _ = score_trajectory(scorer.plan(probes, context, lengths), scorer.trajectory, probes=2)
    scores |= followed
    assert scores.keys() == set(ALL) - {"text_baseline"}
    for name, score in scores.items():
        assert np.isnan(score[1]), name
    others = {name: np.asarray(score)[[0, 2]] for name, score in scores.items()}
    check_equal(others, five, [0, 2], tuple(scores))


BAD = [
    ({"detectors": ("noise_norm", "vibes")}, "unknown detector 'vibes'; expected one of "),
    ({"detectors": "vibes"}, "unknown detector 'vibes'"),
    ({"detectors": ()}, "no detectors"),
    ({"prompts": []}, "no prompts"),
    ({"site": "mid_block.attn9"}, r"unknown cross-attention layer 'mid_block.attn9'; expected one of down_blocks"),
    ({"probes": 0}, "probes is 0"),
    ({"steps": 2}, "steps is 2; .* 3"),
    ({"detectors": "noise_norm_steps", "steps": 5, "noise_norm_steps": (5,)}, "noise_norm_steps: step 5 .* 4"),
    ({"detectors": "noise_norm_steps", "steps": 5, "noise_norm_steps": (0, -1)}, "noise_norm_steps: step -1 .* 4"),
    ({"seeds": -1}, "seeds .* -1 to -1"),
    ({"seeds": 2**32 - 1, "probes": 2}, "not 4294967295 to 4294967296"),
    ({"seeds": [1, 2, 3]}, "3 seeds for 2 prompts"),
    ({"seeds": [1, 2**32]}, "not 1 to 4294967296"),
    ({"latents": np.zeros((3, 4, 4, 4))}, r"latents .*\(3, 4, 4, 4\).*\(2, 4, 4, 4\)"),
    ({"latents": np.zeros((1, 4, 4, 4)), "probes": 2}, "latents .* probes is 2"),
    ({"probess": 2}, "setting of detect 'probess'"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"detectors": "noise_norm_steps", "noise_norm_steps": []}, "noise_norm_steps: no steps"),
    ({"detectors": "entropy_d", "guidance_scale": float("nan")}, "guidance_scale is nan"),
    ({"detectors": "latent_step_deviation"}, "latent_step_deviation must be fitted"),
    ({"detectors": "latent_step_deviation", **CLEAN}, "latent_step_deviation was fitted .*10 steps, .*50"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_input(tiny, options, message):
    options = {"prompts": ["a", "b"]} | options
    with pytest.raises(InputError, match=message):
        tiny.detect(**options)


@pytest.mark.parametrize(
    ("prediction_type", "message"),
    [
        ("v_prediction", "first timestep, 999, .*no signal .*rescale_betas_zero_snr"),
        ("epsilon", "timestep 999 has no signal under rescale_betas_zero_snr"),
    ],
)
def test_a_first_timestep_without_signal(tiny, prediction_type, message):
    """No prompt changes the noise there; with other timesteps the same model is scored."""
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": prediction_type}
    sd = dataclasses.replace(tiny, scheduler_config=tiny.scheduler_config | zero)
    with pytest.raises(InputError, match=message):
        sd.detect("a", "noise_norm")
    levels = noise_levels(sd.scheduler_config | {"timestep_spacing": "leading"}, 50)
    assert [float(level.timestep) for level in levels] == [981, 961, 41]
    assert all(level.output > 0 for level in levels)


def test_layers_that_a_detector_needs(tiny):
    """A model with too few cross-attention layers, or with none at the finest level."""

    def with_sites(*sites: str) -> StableDiffusion:
        config = SimpleNamespace(in_channels=4, sample_size=4)
        return dataclasses.replace(
            tiny, unet=SimpleNamespace(sites=sites, config=config, dtype="float32", __call__=None)
        )

    with pytest.raises(InputError, match="this model has 3"):
        Scorer(with_sites("down_blocks.0.a", "b", "c"), ("entropy_e",))
    Scorer(with_sites("down_blocks.0.a", "b", "c"), ("entropy_e",), site="b")
    with pytest.raises(InputError, match=r"down_blocks\.0"):
        Scorer(with_sites("down_blocks.1.a", "b", "c", "d"), ("bright_ending",))
    with pytest.raises(InputError, match=r"bottleneck .* which SimpleNamespace lacks"):
        Scorer(with_sites("down_blocks.1.a", "b", "c", "d"), ("bottleneck_spikiness",))
    with pytest.raises(InputError, match="timestep 1000"):
        Scorer(tiny, BottleneckSpikiness(timestep=1000))


@pytest.mark.slow
def test_latent_step_deviation_is_the_largest_deviation_of_a_step(tiny, five):
    """Of a run's own moves, on both sides of the mean; clean prompts' mean and deviation are theirs at each step."""
    settings = {name: SETTINGS[name] for name in ("probes", "steps", "guidance_scale")}
    scorer = Scorer(tiny, ("latent_step_deviation",), 4, **settings, calibrating=True)
    (found,) = score_batches(scorer, ((prompt, 0) for prompt in PROMPTS), len(PROMPTS))
    assert np.isnan(found["latent_step_deviation"]).all()
    moves = found.kept["latent_step_deviation"]  # [prompts, probes, steps]
    score = np.max(np.abs(moves - CLEAN["mean"]) / CLEAN["deviation"], axis=-1).mean(axis=1)
    np.testing.assert_allclose(five["latent_step_deviation"], score, rtol=1e-5)
    fitted = LatentStepDeviation().fit(moves.reshape(-1, 10).T)
    np.testing.assert_allclose(fitted.mean, moves.mean(axis=(0, 1)), rtol=1e-6)
    np.testing.assert_allclose(fitted.deviation, moves.reshape(-1, 10).std(axis=0), rtol=1e-4)
    moves = jnp.array([[4.0, 5.0, 9.0], [3.0, -1.0, 2.0], [1.0, 6.0, 2.0], [jnp.nan, 5.0, 2.0]])
    score = latent_step_deviation(moves.T, np.array([3.0, 5.0, 2.0]), np.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(score, [1, 3, 2, np.nan])


@pytree
class Cells:
    """In place of an autoencoder: means of two by two pixels; and of a UNet, whose bottleneck is its input."""

    config = SimpleNamespace(scaling_factor=0.5)

    def encode(self, images):
        return SimpleNamespace(mean=(images[:, ::2, ::2] + images[:, 1::2, 1::2]) / 2)

    def bottleneck(self, latents, timestep, context):
        return latents + timestep * context.mean()


def test_spikiness_of_images():
    """Without prompts: of the images' latents with noise, for the empty prompt."""
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)
    noise = np.random.default_rng(1).normal(size=(2, 4, 4, 3)).astype(np.float32)
    model = SimpleNamespace(unet=Cells(), vae=Cells(), scheduler_config={"beta_schedule": "scaled_linear"})
    model.encode = lambda prompts: (jnp.ones((1, 3, 2)), prompts)
    model.noise = lambda seeds, height, width: noise
    found = score_images(model, images, seeds=(3, 4), detector=BottleneckSpikiness())
    signal = alphas_cumprod(SchedulerConfig.from_json(model.scheduler_config, "ddim"))[50]
    latents = Cells().encode(images / np.float32(127.5) - 1).mean * 0.5
    noisy = np.sqrt(signal) * latents + np.sqrt(1 - signal) * noise
    np.testing.assert_allclose(found, noisy.reshape(2, -1).std(axis=1), rtol=1e-4)


def test_text_baseline():
    """Two of four words begin with a capital, and 3 of 15 characters are no letters, white space being none of them."""
    prompts = ["The cat, Or a_1", "all of it small", ""]
    expected = [2 / 4 + 2 * 3 / 15, 0, 0]
    np.testing.assert_allclose(text_baseline(prompts), expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, -2.0])
def test_guidance_of_one_or_less_is_none_as_where_images_are_sampled(matrices, scale):
    run = {"prompts": ["the a", "the b"], "steps": 3, "seeds": [0, 1], "guidance_scale": scale}
    found, sampled = matrices.detect(detectors="entropy_d", **run)["entropy_d"], entropy_d(matrices.sample(**run))
    np.testing.assert_allclose(found, sampled, rtol=1e-5)
