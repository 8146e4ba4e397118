"""What Stable Diffusion 1.4 at full size would cost, counted from its shapes: no weights are allocated.

Counts are of programs lowered for an accelerator, whose attention has no loop: XLA counts a loop's body once.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from memattn_jax.detectors.first_step import Inputs, Levels, NoiseLevel, Unconditional
from memattn_jax.detectors.programs import score_first_step
from memattn_jax.detectors.scorer import DEFAULT, named_detectors
from memattn_jax.interceptors import Interceptor, MaskTokens, ScaleBeginToken, TokenMeans
from memattn_jax.models.abstract import abstract
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL
from memattn_jax.registries import FIRST_STEP

pytestmark = pytest.mark.slow


def shape(*dimensions: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dimensions, dtype)


@pytest.fixture(scope="module")
def unet():
    return abstract(UNet2DConditionModel, UNetConfig())


def inputs(rows: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    return shape(rows, 64, 64, 4), shape(), shape(rows, 77, 768)


def flops(traced: jax.stages.Traced) -> float:
    return traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]


def pair(unet, interceptor: Interceptor) -> float:
    return flops(jax.jit(lambda unet, *args: unet(*args)).trace(unet, *inputs(2), interceptor))


@pytest.fixture(scope="module")
def plain_pair(unet) -> float:
    return pair(unet, Interceptor())


def parameters(model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def test_parameters(unet):
    assert parameters(unet) == 859_520_964
    sd2 = UNetConfig(attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True)
    assert parameters(abstract(UNet2DConditionModel, sd2)) == 865_910_724
    assert parameters(abstract(AutoencoderKL, VAEConfig())) == 83_653_863
    assert parameters(abstract(CLIPTextModel, CLIPTextConfig())) == 123_060_480


def test_guidance_pair(plain_pair):
    assert plain_pair == pytest.approx(1.578e12, rel=0.01)


def test_detecting_at_one_layer_costs_a_tenth_of_a_guidance_pair(unet, plain_pair):
    assert first_step(unet, ("entropy_e",), rows=1) < 0.107 * plain_pair


def test_the_compiled_detector_is_pruned_too(unet):
    """On this machine, after optimisation: nothing beyond the site is left."""
    detectors = [named_detectors("entropy_e", site=unet.sites[i]) for i in (3, 15)]
    programs = [score_first_step.lower(look(unet, 1), one).compile() for one in detectors]
    early, late = (program.cost_analysis()["flops"] for program in programs)
    assert early < 0.25 * late


def test_tapping_every_layer_costs_next_to_nothing(unet, plain_pair):
    assert plain_pair < pair(unet, Interceptor(taps={"tokens": TokenMeans()})) < 1.005 * plain_pair


def test_the_mitigation_costs_next_to_nothing(unet, plain_pair):
    edits = (MaskTokens(shape(2, dtype=jnp.int32)), ScaleBeginToken(shape()))
    assert pair(unet, Interceptor(edits, conditional=shape(2, dtype=jnp.bool_))) < 1.001 * plain_pair


def test_text_keys_and_values_leave_the_loop(unet, plain_pair):
    """Given once for a prompt, they save this share of every step."""
    text = jax.eval_shape(lambda unet, context: unet.text_keys_values(context), unet, inputs(2)[2])
    latents, timesteps, _ = inputs(2)
    step = flops(jax.jit(lambda unet, *args: unet(*args)).trace(unet, latents, timesteps, text))
    projections = 2 * 2 * 2 * 77 * 768 * sum(keys.shape[2] * keys.shape[3] for keys, _ in text.values())
    assert plain_pair - step == pytest.approx(projections, rel=0.01)


ROWS = 8  # prompts a batch


def look(unet, rows: int = ROWS, tokens: int = 77, *, velocity: bool = False) -> Inputs:
    """What first-step detectors look at where all prompts share one probe, whose empty part is known."""
    noise, level = shape(1, 1, 64, 64, 4), NoiseLevel(shape(), shape(), shape(), shape())
    text, empty = shape(rows, tokens, 768), shape(1, tokens, 768)
    known = Unconditional(noise, noise, noise)
    return Inputs(unet, noise, text, empty, shape(rows, dtype=jnp.int32), Levels(level, level, level), known, velocity)


@functools.cache
def first_step(unet, names: tuple[str, ...], *, rows: int = ROWS, tokens: int = 77, **options) -> float:
    """FLOPs a prompt that detectors spend."""
    velocity, attribute = (options.get(name, False) for name in ("velocity", "attribute"))
    detectors = named_detectors(names, site=unet.sites[3])
    inputs = look(unet, rows, tokens, velocity=velocity)
    return flops(score_first_step.trace(inputs, detectors, attribute=attribute)) / rows


def test_first_step_detectors_share_their_forwards(unet, plain_pair):
    forward = plain_pair / 2
    assert first_step(unet, ("entropy_e",)) < 0.12 * plain_pair
    # noise_norm takes one forward, of which entropy_e reads a part
    assert first_step(unet, DEFAULT) == pytest.approx(forward, rel=0.01)


def test_all_first_step_detectors_together_take_eleven_forwards():
    """A twelfth attributes. Of two resolutions with a layer each: forwards are counted alike in any depth."""
    config = UNetConfig(
        block_out_channels=(320, 640),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
    )
    shallow = abstract(UNet2DConditionModel, config)
    forward = pair(shallow, Interceptor()) / 2
    assert first_step(shallow, FIRST_STEP) < 11 * forward
    assert first_step(shallow, FIRST_STEP, velocity=True, attribute=True) <= 12 * forward


def test_what_a_prompt_costs(unet):
    """The FLOPs of `detect` in docs/benchmarks.md, text encoder included."""
    encoder = abstract(CLIPTextModel, CLIPTextConfig())
    text = flops(jax.jit(lambda encoder, ids: encoder(ids)).trace(encoder, shape(1, 77, dtype=jnp.int32)))
    assert text + first_step(unet, ("entropy_e",)) == pytest.approx(0.178e12, rel=0.01)
    assert text + first_step(unet, DEFAULT) == pytest.approx(0.803e12, rel=0.01)
    assert text + first_step(unet, DEFAULT, attribute=True) == pytest.approx(1.653e12, rel=0.01)


def test_buckets_of_short_prompts_would_save_next_to_nothing(unet):
    """Why prompts are not sorted by length: attention to padding is part of what is measured, so the UNet needs all 77
    tokens, and even if it did not, 16 tokens instead of 77 would save the cheapest detector a fifteenth."""
    text_encoder = abstract(CLIPTextModel, CLIPTextConfig())

    def detect(tokens: int) -> float:
        ids = shape(1, tokens, dtype=jnp.int32)
        return first_step(unet, ("entropy_e",), rows=1, tokens=tokens) + flops(
            jax.jit(lambda encoder, ids: encoder(ids)).trace(text_encoder, ids)
        )

    whole, short = detect(77), detect(16)
    assert 1 - short / whole == pytest.approx(0.066, abs=0.005)
