"""Heatmaps: on arrays, and of runs that keep means or whole maps."""

import math

import jax
import make_random_model
import numpy as np
import pytest
from PIL import Image
from plans import make_plan

from memattn_jax import InputError
from memattn_jax.diffusion.sampling import denoise
from memattn_jax.heatmaps import finest, grid_shape, picture_heatmap, step_mask, token_mask
from memattn_jax.interceptors import AttentionMaps, MeanMaps, TokenMeans
from memattn_jax.interceptors.taps import step_weights
from memattn_jax.models.abstract import abstract
from memattn_jax.models.configs import UNetConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.report.heatmaps import encode_png, overlay
from memattn_jax.schedulers import make_schedule

LENGTHS, TOKENS, STEPS = np.array([4, 6]), 8, 5
LATENTS, SIZE = (4, 6), (8, 12)


@pytest.fixture(scope="module")
def maps() -> dict[str, np.ndarray]:
    """Two layers, the second of half the resolution and with more heads."""
    rng = np.random.default_rng(0)
    shapes = {"fine": (STEPS, 2, 2, 24, TOKENS), "coarse": (STEPS, 2, 3, 6, TOKENS)}
    return {site: np.asarray(jax.nn.softmax(3 * rng.standard_normal(shape), axis=-1)) for site, shape in shapes.items()}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("begin", [[0], [0]]),
        ("words", [[1, 2], [1, 2, 3, 4]]),
        ("end", [[3], [5]]),
        ("padding", [[4, 5, 6, 7], [6, 7]]),
        ("summary", [[3, 4, 5, 6, 7], [5, 6, 7]]),
        (2, [[2], [2]]),
        ([1, 7], [[1, 7], [1, 7]]),
        (np.eye(2, TOKENS, dtype=bool), [[0], [1]]),
    ],
)
def test_tokens_by_role_and_by_place(tokens, expected):
    mask = token_mask(tokens, LENGTHS, TOKENS)
    assert [np.flatnonzero(row).tolist() for row in mask] == expected


@pytest.mark.parametrize("tokens", ["padded", -1, TOKENS, [], 1.5, np.ones((3, TOKENS), bool)])
def test_tokens_that_are_not_there(tokens):
    with pytest.raises(InputError, match="tokens"):
        token_mask(tokens, LENGTHS, TOKENS)


def test_shapes_of_layers_are_known_from_their_pixels():
    assert [grid_shape(pixels, 64, 96) for pixels in (6144, 1536, 384)] == [(64, 96), (32, 48), (16, 24)]
    assert grid_shape(6, 9, 5) == (3, 2)  # odd sides are rounded up
    with pytest.raises(InputError, match="halved"):
        grid_shape(7, 4, 4)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(None, [0, 1, 2, 3, 4]), (1, [1]), (-1, [4]), ((0, 2), [0, 1]), ((-2, None), [3, 4])],
)
def test_steps_by_number_and_by_range(steps, expected):
    weights = step_mask(steps, STEPS)
    np.testing.assert_allclose(weights[expected], 1 / len(expected))
    assert weights.sum() == pytest.approx(1)
    for wrong in (STEPS, (3, 3)):
        with pytest.raises(InputError, match="steps"):
            step_mask(wrong, STEPS)


def test_a_heatmap_is_a_mean_over_layers_heads_and_steps(maps):
    mask = token_mask("words", LENGTHS, TOKENS)
    heat = picture_heatmap(maps, mask, LATENTS, SIZE, steps=(1, 3))
    expected = np.zeros((2, *SIZE))
    for own in maps.values():
        for row in range(2):
            share = own[1:3, row][..., mask[row]].sum(-1).mean(axis=(0, 1)).reshape(grid_shape(own.shape[3], *LATENTS))
            # Pillow's bilinear filter enlarges in the same way
            expected[row] += np.asarray(Image.fromarray(share.astype(np.float32)).resize(SIZE[::-1], 2)) / 2
    np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_all_tokens_together_give_one_at_every_pixel(maps):
    everything = sum(picture_heatmap(maps, token_mask(t, LENGTHS, TOKENS), LATENTS, SIZE) for t in range(TOKENS))
    np.testing.assert_allclose(everything, 1, atol=1e-5)


def test_one_head_of_one_layer(maps):
    coarse = {"coarse": maps["coarse"]}
    mask = token_mask(0, LENGTHS, TOKENS)
    heads = [picture_heatmap(coarse, mask, LATENTS, SIZE, head=head) for head in range(3)]
    np.testing.assert_allclose(np.mean(heads, axis=0), picture_heatmap(coarse, mask, LATENTS, SIZE), atol=1e-6)
    with pytest.raises(InputError, match="head 2: fine"):
        picture_heatmap(maps, mask, LATENTS, SIZE, head=2)
    with pytest.raises(InputError, match="taps"):
        picture_heatmap({}, mask, LATENTS, SIZE)


def test_steps_of_a_tap_are_checked():
    weights = step_weights({"last": MeanMaps(over_steps=(-2, None)), "tokens": TokenMeans()}, STEPS)
    assert list(weights) == ["last"]
    np.testing.assert_array_equal(weights["last"], [0, 0, 0, 0.5, 0.5])
    with pytest.raises(InputError, match="tap 'late'"):
        step_weights({"late": MeanMaps(over_steps=(5, 9))}, STEPS)
    with pytest.raises(InputError, match="heads of MeanMaps 'all'; expected one of mean, each"):
        MeanMaps(heads="all")


def test_an_overlay_is_lightest_where_the_heat_is():
    image = np.full((*SIZE, 3), 128, np.uint8)
    heat = np.zeros(SIZE)
    heat[2, 3] = 0.04
    drawn = overlay(image, heat)
    assert (drawn.shape, drawn.dtype) == ((*SIZE, 3), np.uint8)
    assert np.unravel_index(drawn.sum(axis=-1).argmax(), SIZE) == (2, 3)
    np.testing.assert_array_equal(overlay(image, 5 * heat), drawn)
    assert overlay(image, heat, highest=1.0)[2, 3].sum() < drawn[2, 3].sum()
    assert np.ptp(overlay(image, np.full(SIZE, np.nan))) < 128  # of a row that is not finite
    assert encode_png(drawn)[:4] == b"\x89PNG"


@pytest.fixture(scope="module")
def run(matrices):
    """Whole maps, and means that the program makes, in one run of two prompts."""
    taps = {"tokens": TokenMeans(), "maps": AttentionMaps(), "heatmaps": MeanMaps()}
    taps["late"] = MeanMaps(sites=list(matrices.sites[:1]), heads="each", over_steps=[-2, None])
    return matrices.sample(["a cat", "the dog and a"], seeds=[0, 1], steps=4, taps=taps)


def test_means_are_made_in_the_program(run, matrices):
    """They keep one step; numbers are those of the whole maps."""
    site = matrices.sites[0]
    whole, mean, late = (run.taps[name][site] for name in ("maps", "heatmaps", "late"))
    np.testing.assert_allclose(mean, whole.mean(axis=(0, 2), keepdims=True), atol=1e-6)
    np.testing.assert_allclose(late, whole[-2:].mean(axis=0, keepdims=True), atol=1e-6)
    for tokens in (0, "words", "end", "padding"):
        np.testing.assert_allclose(run.heatmap(tokens), run.heatmap(tokens, tap="heatmaps"), atol=1e-6)
    late = run.heatmap("end", site, head=0, tap="late")
    np.testing.assert_allclose(late, run.heatmap("end", site, head=0, steps=(-2, None)), atol=1e-6)
    assert run.heatmap(1).shape == run.images.shape[:3]


def test_what_was_not_kept_is_named(run):
    for arguments, said in (
        ({"steps": 1, "tap": "heatmaps"}, "mean over steps"),
        ({"head": 1}, "head 1"),
        ({"head": 0, "tap": "heatmaps"}, "mean over heads"),
        ({"tap": "gone"}, "no tap 'gone'"),
        ({"site": "attic"}, "attic"),
    ):
        with pytest.raises(InputError, match=said):
            run.heatmap("begin", **arguments)


def test_a_run_in_chunks_makes_the_same_means(run, matrices):
    taps = {"heatmaps": MeanMaps(), "tokens": TokenMeans()}
    settings = {"seeds": [0, 1], "steps": 4, "taps": taps, "callback": lambda between: None, "callback_steps": 3}
    chunked = matrices.sample(list(run.prompts), **settings)
    for name in taps:
        for site, own in chunked.taps[name].items():
            np.testing.assert_allclose(own, run.taps[name][site], atol=1e-6)


def test_the_finest_layers():
    assert finest(["down_blocks.0.a", "down_blocks.1.b", "mid"]) == ("down_blocks.0.a",)
    assert finest(["attention"]) == ("attention",)


@pytest.mark.slow
def test_means_of_a_full_size_run_are_small():
    """What docs/visualizing.md says of Stable Diffusion 1 at 512 × 512; nothing is compiled."""
    unet = abstract(UNet2DConditionModel, UNetConfig())
    schedule = make_schedule(make_random_model.SCHEDULER, "ddim", 50)
    noise, context = np.zeros((1, 64, 64, 4), np.float32), np.zeros((2, 77, 768), np.float32)
    sizes = {}
    for name, tap in {"heatmaps": MeanMaps(), "maps": AttentionMaps()}.items():
        plan = make_plan(unet, schedule, noise, context, lengths=np.array([9]), taps={name: tap})
        sizes[name] = sum(4 * math.prod(own.shape) for own in jax.eval_shape(denoise, plan)[1][name].values())
    assert sizes["heatmaps"] == 77 * 26_944 * 4
    assert sizes["maps"] == 400 * sizes["heatmaps"]
