"""What `StableDiffusion` does beside sampling: encodes no prompt twice, decodes what fits, chooses a dtype."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memattn_jax import InputError, StableDiffusion, pipeline
from memattn_jax.commands.model_options import ModelOptions
from memattn_jax.diffusion import model as networks
from memattn_jax.sharding.placement import take_rows


@pytest.fixture(scope="module")
def small(matrices) -> StableDiffusion:
    """The UNet is not looked at here."""
    return matrices


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Rows of every call of the text encoder."""
    calls: list[int] = []
    encode = networks.embed

    def counted(text_encoder, ids):
        calls.append(len(ids))
        return encode(text_encoder, ids)

    monkeypatch.setattr(networks, "embed", counted)
    return calls


def test_prompts_alike_are_encoded_once_in_a_run(small, encoded):
    sd = dataclasses.replace(small)
    prompts = ["a cat", "the dog", "a a a"]
    for _ in range(2):
        sd.sample(prompts, steps=2)
    assert encoded == [3, 1]
    sd.sample(["another", *prompts[1:]], steps=2, negative_prompts=["", "dog", ""])
    assert encoded == [3, 1, 3, 3]


def test_an_encoding_found_again_is_the_same(small):
    sd = dataclasses.replace(small)
    alone = np.concatenate([sd.encode([prompt])[0] for prompt in ("a cat", "the dog")])
    np.testing.assert_allclose(sd.encode(["a cat", "the dog"])[0], alone, atol=1e-5)
    np.testing.assert_array_equal(sd.encode(["the dog"] * 3)[0], np.repeat(sd.encode(["the dog"])[0], 3, axis=0))


def test_few_encodings_are_kept(small, monkeypatch, encoded):
    monkeypatch.setattr(networks, "KEPT_EMBEDDINGS", 4)
    sd = dataclasses.replace(small)
    for word in ("a", "b", "a", "c", "d", "e", "a", "b"):
        sd.encode([word])
    assert len(encoded) == 6  # b alone was not asked for between its leaving and the end
    sd.encode(["a", "b", "c", "d", "e"])  # more than are kept: nothing stays
    assert sum(len(kept) for kept in sd._embeddings.values.values()) <= 4


def test_another_text_encoder_finds_nothing(small):
    sd = dataclasses.replace(small)
    sd.encode(["a cat"])
    assert not dataclasses.replace(sd, text_encoder=small.text_encoder)._embeddings.values


def test_encodings_follow_the_weights(small, encoded):
    sd = dataclasses.replace(small, text_encoder=nnx.clone(small.text_encoder))
    before, _ = sd.encode(["a cat"])
    bias = sd.text_encoder.text_model.final_layer_norm.bias
    bias[...] = bias[...] + 1
    np.testing.assert_allclose(sd.encode(["a cat"])[0], before + 1, atol=1e-6)
    nnx.update(sd.text_encoder, nnx.state(small.text_encoder))
    np.testing.assert_array_equal(sd.encode(["a cat"])[0], before)
    assert encoded == [1, 1, 1]


def test_encodings_in_a_traced_function_are_not_kept(small):
    sd = dataclasses.replace(small)
    expected = small.encode(["a cat"])[0].sum()
    for traced in (
        jax.jit(lambda x: x + sd.encode(["a cat"])[0].sum())(0.0),
        jax.vmap(lambda x: x + sd.encode(["a cat"])[0].sum())(jnp.zeros(2))[1],
        jax.grad(lambda x: x * sd.encode(["a cat"])[0].sum())(1.0),
        jax.jit(lambda text: dataclasses.replace(sd, text_encoder=text).encode(["a cat"])[0].sum())(sd.text_encoder),
        sd.encode(["a cat"])[0].sum(),
    ):
        np.testing.assert_allclose(traced, expected, rtol=1e-5)


def test_pictures_decoded_in_turn_are_the_same(small, monkeypatch):
    latents = small.noise(range(3))
    at_once = small.decode(latents)
    monkeypatch.setattr(networks, "DECODED_PIXELS", 1)
    in_turn = small.decode(latents)
    assert in_turn.shape == at_once.shape
    assert np.abs(in_turn.astype(int) - at_once).max() <= 1


def test_pictures_that_are_not_finite_are_told(small):
    """A decoder that overflows leaves a black picture, and latents that tell nothing."""
    latents = np.array(small.noise(range(3)))
    latents[1] = 2e38  # the decoder divides it by the scaling factor, 0.18
    assert small.start_decoding(latents)[1].tolist() == [True, False, True]
    broken = dataclasses.replace(small, vae=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), small.vae))
    run = broken.sample(["a", "b"], steps=1, taps=None)
    assert np.isfinite(run.latents).all()
    assert run.finite.tolist() == [False, False]


def test_rows_of_any_mitigation():
    """What has a place for each row is taken, however it is called; what all rows share stays."""
    tree = {"strength": np.array([1.0, 2.0, 3.0]), "tokens": jnp.ones((3, 5)), "all": 7.0, "table": np.ones(4)}
    taken = take_rows(tree, 3, np.array([0, 1, 2, 2]))
    assert taken["strength"].tolist() == [1, 2, 3, 3]
    assert taken["tokens"].shape == (4, 5)
    assert taken["all"] == 7.0
    assert taken["table"].shape == (4,)


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_dtype_by_device(model, monkeypatch, platform, dtype):
    monkeypatch.setattr(pipeline.jax, "default_backend", lambda: platform)
    assert StableDiffusion.from_pretrained(model).dtype == dtype
    assert StableDiffusion.from_pretrained(model, "float16").dtype == "float16"


def test_the_built_in_model_keeps_the_dtype_of_its_thresholds():
    assert ModelOptions().model_dtype == "float32"
    assert ModelOptions(model="folder").model_dtype is None
    assert ModelOptions(dtype="bfloat16").model_dtype == "bfloat16"


@pytest.mark.parametrize("name", ["seed", "options", "model"])
def test_fields_that_detect_fills_itself_are_no_settings(matrices, name):
    with pytest.raises(InputError, match=f"setting of detect '{name}'"):
        matrices.detect(["a"], "noise_norm", **{name: 1})
