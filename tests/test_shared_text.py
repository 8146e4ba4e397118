"""Text that several rows share: given once, never repeated, since XLA multiplies by repeated keys wrongly."""

import dataclasses

import jax
import jax.numpy as jnp
import make_random_model
import micro
import numpy as np
import pytest

from memattn_jax.interceptors import (
    AttentionMaps,
    Interceptor,
    MaskTokens,
    ScaleBeginToken,
    TokenMeans,
    cross_attention,
)
from memattn_jax.mitigations.guard import Guard
from memattn_jax.models.abstract import abstract
from memattn_jax.models.unet import UNet2DConditionModel

TEXTS, SHARED, PIXELS, TOKENS, HEADS, HEAD_DIM = 2, 3, 64, 77, 1, 48
RIGHT_AGAIN = (0, 12)  # the first versions of JAX that multiply by repeated keys rightly; 0.10.2 and 0.11 do not


def inputs(texts: int = TEXTS):
    rng = np.random.default_rng(0)
    shapes = [(texts * SHARED, PIXELS, HEADS, HEAD_DIM), *[(texts, TOKENS, HEADS, HEAD_DIM)] * 2]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_the_smallest_program_that_goes_wrong():
    """docs/xla-repeated-keys.md: the product is right in a program of its own, and so is what is not repeated."""
    query, keys, _ = inputs(1)
    query, keys = query[:, :, 0], keys[0, :, 0]
    expected = np.einsum("bqd,kd->bqk", query, keys).max(-1)

    @jax.jit
    def repeated(query, keys):
        keys = jnp.broadcast_to(keys, (SHARED, TOKENS, HEAD_DIM))
        return jnp.einsum("bqd,bkd->bqk", query, keys).max(-1)

    @jax.jit
    def given_once(query, keys):
        together = query.reshape(1, SHARED * PIXELS, HEAD_DIM)
        return jnp.einsum("bqd,bkd->bqk", together, keys[None]).max(-1).reshape(SHARED, PIXELS)

    np.testing.assert_allclose(given_once(query, keys), expected, atol=1e-4)
    right = np.allclose(repeated(query, keys), expected, atol=1e-4)
    assert right or jax.__version_info__ < RIGHT_AGAIN  # where it is right in all versions allowed, repeat again


@pytest.mark.parametrize("stage", ["inputs", "logits"])
@pytest.mark.parametrize("edited", [False, True], ids=["plain", "edited"])
def test_given_once_is_as_repeated(stage, edited):
    """One text for three rows each, and its repetition made beforehand; edits and taps stay those of rows."""
    query, keys, values = inputs()
    rows = len(query)
    edits = (MaskTokens(jnp.arange(5, 5 + rows)), ScaleBeginToken(jnp.linspace(1, 2, rows), stage=stage))
    taps = {"maps": AttentionMaps(), "means": TokenMeans()}
    interceptor = Interceptor(edits if edited else (), taps, conditional=jnp.arange(rows) % 2 == 0)
    once = jax.jit(cross_attention, static_argnames="site")
    out, taps = once(query, keys, values, interceptor, site="here")
    repeated = [np.repeat(x, SHARED, axis=0) for x in (keys, values)]
    expected, expected_taps = cross_attention(jnp.asarray(query), *map(jnp.asarray, repeated), interceptor, "here")
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for name, tap in taps["here"].items():
        np.testing.assert_allclose(tap, expected_taps["here"][name], atol=1e-6)
    np.testing.assert_allclose(taps["here"]["means"], taps["here"]["maps"].mean(2), atol=1e-6)


@pytest.fixture(scope="module")
def one_head(sd):
    """Of the models whose products of 16 rows go wrong where text is repeated, as small a one as can be.

    One head, as its dimension is then dropped, 16 × 16 latents, and the fourth layer that metric E reads.
    """
    config = dataclasses.replace(micro.UNET, sample_size=16, block_out_channels=(HEAD_DIM,), attention_head_dim=HEADS)
    unet = abstract(UNet2DConditionModel, config)
    make_random_model.fill_randomly(unet, np.random.default_rng(0))
    return dataclasses.replace(sd, unet=unet)


PROMPTS = tuple(f"the {letter} on {letter}" for letter in "abcdefghijklmnop")


@pytest.fixture(scope="module")
def alone(one_head):
    """Prompts one at a time, each with its number as seed."""
    return one_head.detect(PROMPTS, seeds=range(16), batch_size=1)


def test_sixteen_rows_with_noise_of_their_own(one_head, alone):
    batch = one_head.detect(PROMPTS, seeds=range(16), batch_size=16)
    for name, scores in batch.scores.items():
        np.testing.assert_allclose(scores, alone[name], rtol=1e-5, err_msg=name)


def test_sixteen_probes_without_the_empty_prompts_part(one_head):
    """Beside sixteen rows of the prompt, each with a probe's seed."""
    probes = one_head.detect(PROMPTS[:1], seeds=[0], probes=16)
    rows = one_head.detect(PROMPTS[:1] * 16, seeds=range(16), batch_size=16)
    for name, scores in probes.scores.items():
        np.testing.assert_allclose(scores, rows[name].mean(keepdims=True), rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_guard_of_sixteen_rows(one_head, alone):
    middle = float(np.median(alone["noise_norm"]))
    run = one_head.sample(PROMPTS, seeds=range(16), steps=1, guard=Guard(middle), taps=None)
    np.testing.assert_allclose(run.guard_scores, alone["noise_norm"], rtol=1e-5)
    assert run.mitigated.sum() == 8


@pytest.mark.slow
def test_in_half_precision_a_batch_changes_a_row_within_rounding(one_head, alone):
    """Alone and in a batch a score is off by its rounding, so the two differ by twice that at most."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (one_head.unet, one_head.text_encoder))
    sd = dataclasses.replace(one_head, unet=half[0], text_encoder=half[1])
    one, batch = (sd.detect(PROMPTS, seeds=range(16), batch_size=size) for size in (1, 16))
    for name, scores in batch.scores.items():
        rounding = np.abs(one[name] - alone[name]).max()
        assert np.abs(scores - one[name]).max() < 2 * rounding, name
