"""What a sampling run promises besides its numbers: independence of rows, no recompilation, no maps kept."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plans import compiled, make_plan

from memattn_jax import InputError, detectors
from memattn_jax.diffusion.noise import unit_noise
from memattn_jax.diffusion.run import without_filling
from memattn_jax.diffusion.sampling import denoise
from memattn_jax.diffusion.settings import Between
from memattn_jax.interceptors import Attention, Context, TokenMeans
from memattn_jax.mitigations import AttentionMask
from memattn_jax.schedulers import make_schedule

PROMPTS = ["the cat", "a", "an odd and long line on the hill in the land", "", "zebra", "in the and on", "x y z", "n"]
STEPS = 3
MITIGATION = AttentionMask(begin_scale=1.5, mask="summary")


@pytest.fixture(scope="module")
def eight(sd):
    return sd.sample(PROMPTS, seeds=range(8), steps=STEPS, mitigation=MITIGATION)


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_row_does_not_depend_on_its_batch(sd, eight, rows):
    order = [2, 0, 5][:rows]
    run = sd.sample([PROMPTS[i] for i in order], seeds=order, steps=STEPS, mitigation=MITIGATION)
    for row, i in enumerate(order):
        assert run.lengths[row] == eight.lengths[i]
        scale = np.abs(eight.latents[i]).max()  # a random model's latents grow, here to about 50
        np.testing.assert_allclose(run.latents[row] / scale, eight.latents[i] / scale, atol=1e-5)
        for site, tap in run.tokens.items():
            np.testing.assert_allclose(tap[:, row], eight.tokens[site][:, i], atol=1e-5)
        for metric in (detectors.entropy_e, detectors.entropy_d):
            np.testing.assert_allclose(metric(run)[row], metric(eight)[i], atol=1e-5)
        assert np.abs(run.images[row].astype(int) - eight.images[i]).max() <= 1


def test_seeds_make_the_noise():
    noise = unit_noise(jnp.asarray([3, 4, 3], jnp.uint32), (32, 32, 4))
    np.testing.assert_array_equal(noise[0], noise[2])
    assert np.abs(noise[0] - noise[1]).max() > 1
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.05)


def test_numbers_compile_nothing(sd):
    """One trace serves other prompts, lengths, seeds, guidance, begin-token scales, masks' lengths and noise."""
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(denoise.__wrapped__, n=1))
    for seed, scale, c, length in ((0, 7.5, 1.25, 5), (1, 3.0, 1.0, 9), (2**32 - 1, 1.5, 0.5, 77)):
        context, _ = sd.encode([PROMPTS[seed % 8], "the " * (seed % 5)])
        schedule = make_schedule(sd.scheduler_config, "ddim", 2)
        noise = unit_noise(jnp.asarray([seed], jnp.uint32), (4, 4, 4))
        changed = {"mitigation": AttentionMask(begin_scale=c), "taps": {"tokens": TokenMeans()}}
        latents, taps = traced(make_plan(sd.unet, schedule, noise, context, scale, [length], **changed))
        assert np.isfinite(latents).all()
        assert taps["tokens"][sd.unet.sites[0]].shape == (2, 1, 2, 77)


def test_guidance_of_one_or_less_runs_the_conditional_half_alone(matrices):
    """It equals the guided run at scale 1, where the unconditional half has weight 0."""
    schedule = make_schedule(matrices.scheduler_config, "ddim", STEPS)
    context, _ = matrices.encode(["", PROMPTS[0]])
    noise = unit_noise(jnp.asarray([0], jnp.uint32), (4, 4, 4))
    both, _ = denoise(make_plan(matrices.unet, schedule, noise, context, 1.0))
    run = matrices.sample(PROMPTS[:1], steps=STEPS, guidance_scale=1.0, taps=None)
    np.testing.assert_allclose(run.latents, both, atol=1e-4)
    mixed = matrices.sample([PROMPTS[0], "x"], steps=STEPS, guidance_scale=[0.5, 3.0], taps=None)
    np.testing.assert_allclose(mixed.latents[0], run.latents[0], atol=1e-4)
    half, pair = (
        denoise.lower(make_plan(matrices.unet, schedule, noise, text, 1.0)).cost_analysis()["flops"]
        for text in (context[1:], context)
    )
    assert half < 0.6 * pair


@pytest.mark.slow
def test_maps_only_where_asked_for(sd, eight):
    run = sd.sample(PROMPTS[:1], steps=STEPS, taps="maps")
    assert eight.maps == {}
    assert list(run.maps) == list(run.tokens) == list(sd.unet.sites)
    for site, maps in run.maps.items():
        assert maps.ndim == 5
        np.testing.assert_allclose(maps.mean(3), run.tokens[site], atol=1e-6)
    assert sd.sample(PROMPTS[:1], steps=STEPS, taps=None).tokens == {}


def test_the_scan_carries_no_maps(sd):
    """What leaves the loop with taps is as many floats as the taps' shapes say."""
    schedule = make_schedule(sd.scheduler_config, "ddim", STEPS)
    context, _ = sd.encode(["", "", *PROMPTS[:2]])
    noise = jnp.zeros((2, 4, 4, 4))
    plan = make_plan(sd.unet, schedule, noise, context, taps={"tokens": TokenMeans()})
    scans = find(jax.make_jaxpr(denoise.__wrapped__)(plan).jaxpr, "scan")
    (scan,) = (eqn for eqn in scans if eqn.params["length"] == STEPS)
    stacked = [var.aval.shape for var in scan.outvars if var.aval.shape[:1] == (STEPS,)]
    assert stacked == [(STEPS, 2, 2, 77)] * 4


def find(jaxpr, primitive: str):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == primitive:
            yield eqn
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                yield from find(value.jaxpr, primitive)


def test_a_row_of_nan_is_reported_and_the_others_kept(matrices):
    noise = np.array(unit_noise(jnp.asarray([0, 1, 2], jnp.uint32), (4, 4, 4)))
    clean = matrices.sample(PROMPTS[:3], latents=noise, steps=STEPS)
    noise[1] = np.nan
    run = matrices.sample(PROMPTS[:3], latents=noise, steps=STEPS)
    assert run.finite.tolist() == [True, False, True]
    np.testing.assert_array_equal(run.latents[0], clean.latents[0])
    np.testing.assert_array_equal(run.images[2], clean.images[2])
    assert np.isnan(detectors.entropy_e(run)).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"steps": 0}, "steps is 0; .*1000"),
        ({"steps": -5}, "steps is -5"),
        ({"scheduler": "heun"}, "unknown scheduler 'heun'; expected one of ddim, "),
        ({"height": 101}, "height 101 .*multiple of 2 "),
        ({"width": 0}, "width 0 .*multiple of 2 "),
        ({"seeds": [1, 2, 3]}, "3 seeds for 2 prompts"),
        ({"steps": 2.0}, "steps is 2.0; must be an integer"),
        ({"seeds": -1}, "seeds .* -1 to -1"),
        ({"seeds": [0, 1.7]}, r"seeds must be integers .*, not \[0, 1.7"),
        ({"seeds": "1"}, r"seeds must be integers .*, not \['1', '1'"),
        ({"negative_prompts": ["x"]}, "1 negative prompts for 2 prompts"),
        ({"negative_embeddings": np.zeros((77, 8))}, r"negative_embeddings have shape \(77, 8\); expected \[1 or 2, "),
        ({"negative_embeddings": np.zeros((3, 77, 8))}, r"negative_embeddings have shape \(3, 77, 8\)"),
        ({"negative_embeddings": np.zeros((1, 77, 8)), "negative_prompts": ""}, "mutually exclusive"),
        ({"guidance_scale": [1.0]}, "1 guidance scales for 2 prompts"),
        ({"latents": np.zeros((2, 4, 4, 3))}, r"latents .*\(2, 4, 4, 3\).*\(2, 4, 4, 4\)"),
        ({"latents": np.zeros((2, 4, 4, 4)), "height": 64}, r"latents .*\(2, 32, 4, 4\)"),
        ({"taps": "everything"}, "unknown taps 'everything'"),
        ({"guidance_scale": [7.5, np.nan]}, "guidance_scale .*finite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(sd, options, message):
    with pytest.raises(InputError, match=message):
        sd.sample(**{"prompts": ["a", "b"]} | options)


@pytest.mark.parametrize("shape", [(1, 154, 0), (1, 20, 0), (1, 77, -1)])
def test_embeddings_that_guidance_cannot_pair_are_refused(matrices, shape):
    """The empty prompt's have as many tokens and channels as the model says."""
    width = matrices.encode(["a"])[0].shape[-1]
    embeddings = np.zeros((*shape[:2], width + shape[2]), np.float32)
    with pytest.raises(InputError, match=rf"\({shape[1]}, {width + shape[2]}\) .*guidance \(77, {width}\)"):
        matrices.sample(embeddings=embeddings, steps=2)


def test_a_callback_sees_the_rows_that_were_asked_for():
    """On a mesh that has more, and what it returns is filled up as they are."""
    seen = []

    def callback(between):
        seen.append(between.latents.shape)
        return np.asarray(between.latents) + np.arange(3)[:, None, None, None] if between.step == 1 else np.zeros(4)

    call = without_filling(callback, 3, np.array([0, 1, 2, 2]))
    changed = call(Between(1, 2, jnp.zeros((4, 2, 2, 1))))
    assert (seen, changed[:, 0, 0, 0].tolist()) == ([(3, 2, 2, 1)], [0, 1, 2, 2])
    with pytest.raises(InputError, match=r"returned latents \(4,\), not \(3, 2, 2, 1\)"):
        call(Between(2, 2, jnp.zeros((4, 2, 2, 1))))


def test_prompts_may_be_an_array(matrices):
    assert matrices.sample(np.array(["the a", "the b"]), steps=1).prompts == ("the a", "the b")


def test_types_of_numbers_compile_nothing_either(matrices):
    prompts = ["a", "b"]
    matrices.sample(prompts, steps=2, mitigation=AttentionMask(begin_scale=1.5))
    before = compiled(denoise)
    for scale in (2, np.float32(1.5), np.float64(1.5), jnp.float32(1.5)):
        matrices.sample(prompts, steps=2, mitigation=AttentionMask(begin_scale=scale), guidance_scale=np.float64(3))
    assert compiled(denoise) == before


def test_a_begin_scale_for_each_prompt(matrices):
    prompts, scales = ["the cat", "zebra"], np.asarray([1.5, 0.5])
    both = matrices.sample(prompts, seeds=[0, 1], steps=2, mitigation=AttentionMask(begin_scale=scales))
    for row, scale in enumerate(scales):
        alone = matrices.sample(prompts[row], seeds=row, steps=2, mitigation=AttentionMask(begin_scale=scale))
        np.testing.assert_allclose(both.latents[row], alone.latents[0], atol=1e-4)


def test_unknown_mask():
    with pytest.raises(InputError, match="unknown mask 'eos'"):
        AttentionMask(mask="eos")


def test_mask_of_the_conditional_rows_alone():
    context = Context(conditional=jnp.asarray([False, True, False, True]))
    attention = Attention(*[jnp.zeros((4, 6, 1, 2)), *[jnp.zeros((4, 77, 1, 2))] * 2])

    def kept(**options):
        mask, _ = AttentionMask(**options).edits(SimpleNamespace(lengths=jnp.asarray([4, 9])))
        return (mask(attention, context).bias == 0).sum((1, 2, 3)).tolist()

    assert kept(mask_unconditional=False) == [77, 4, 77, 9]
    assert kept(mask="summary") == [3, 3, 8, 8]


def test_long_prompts_are_cut_with_a_warning_that_shows_what(sd):
    """One for all of a batch, short, without what steers a terminal."""
    long = "a " * 75 + "b c"
    with pytest.warns(UserWarning, match=r"77 tokens.* 'b c'$"):
        _, tokens = sd.encode([long, "short"])
    assert tokens.lengths.tolist() == [77, 7]
    assert [sd.tokenizer.cuts(text) for text in (long, "a " * 75, "short")] == [True, False, False]
    with pytest.warns(UserWarning, match="; and 1 more$") as warned:
        sd.encode([long + "\x1b[2J" * 1000, long, long])
    (message,) = (str(warning.message) for warning in warned)
    assert message.isprintable()
    assert len(message) <= 200
    assert tokens.input_ids[0, -1] == sd.tokenizer.clip.eos_token_id
