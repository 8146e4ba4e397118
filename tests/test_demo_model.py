"""The demo model's tokenizer, whitening and contrast, each on a small scale."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from demo_data import make_groups
from demo_model import autoencoder, geometry, stage, text
from flax import nnx
from small_checkpoint import write_tokenizer
from train_demo import main, mean_in_float32

from memattn_jax.checkpoints.names import leaves
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.models.abstract import abstract
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig, VAEConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    size = write_tokenizer(folder, make_groups(0).vocabulary()["words"])
    tokenizer = Tokenizer(folder, 77)
    assert len(tokenizer.clip) == size
    return tokenizer


def test_every_word_of_a_caption_is_one_token(tokenizer):
    words = make_groups(0).vocabulary()["words"]
    assert set(tokenizer(words).lengths) == {3}
    caption = make_groups(0).prompts("memorized")[0].text
    assert tokenizer([caption]).lengths[0] == len(caption.split()) + 2
    assert tokenizer([caption]).input_ids[0, -1] == tokenizer.clip.eos_token_id  # padded as Stable Diffusion 1


def test_it_fits_twenty_four_megabytes_and_has_cross_attention_at_three_resolutions(tokenizer):
    unet = abstract(UNet2DConditionModel, geometry.UNET)
    parts = (
        unet,
        abstract(AutoencoderKL, geometry.VAE),
        abstract(CLIPTextModel, geometry.text_config(len(tokenizer.clip))),
    )
    assert sum(leaf.size for part in parts for leaf in jax.tree.leaves(part)) * 2 < 24e6
    assert len(unet.sites) >= 9
    assert len({site.split(".")[1] for site in unet.sites if site.startswith("down")}) == 3


@pytest.mark.slow
def test_whitening_changes_latents_and_no_picture():
    vae = AutoencoderKL(geometry.VAE, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for leaf in leaves(vae):
        if leaf.name.startswith(("quant_conv", "post_quant_conv")):
            leaf.param[...] = jnp.asarray(rng.normal(size=leaf.param.shape), jnp.float32)
    pictures = rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    decode = jax.jit(lambda vae, x: vae.decode(vae.encode(autoencoder.to_values(x)).mean))
    before = decode(vae, pictures)
    autoencoder.whiten(vae, *autoencoder.moments(vae, pictures))
    mean, covariance = autoencoder.moments(vae, pictures)
    np.testing.assert_allclose(mean, 0, atol=1e-4)
    np.testing.assert_allclose(covariance, np.eye(geometry.LATENT_CHANNELS), atol=1e-3)
    np.testing.assert_allclose(decode(vae, pictures), before, atol=1e-3 * float(jnp.abs(before).max()))


@pytest.mark.slow
def test_contrast_forgives_equal_captions_and_nothing_else():
    config = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = text.Contrast(config, rngs=nnx.Rngs(0))
    input_ids = jnp.asarray([[1, 2, 3, 8, 8], [1, 2, 3, 8, 8], [1, 4, 5, 6, 8], [1, 7, 8, 8, 8]])
    lengths = jnp.asarray([4, 4, 5, 3])
    drawn = jax.random.randint(jax.random.key(0), (4, 64, 64, 3), 0, 256).astype(jnp.uint8)
    loss = text.contrastive_loss(model, input_ids, lengths, drawn)

    hidden = model.text(input_ids)
    read = jnp.stack([hidden[0, 3], hidden[1, 4], hidden[2, 4], hidden[3, 4]])  # end token, padding, end, padding
    captions, pictures = text.unit(model.project(read)), text.unit(model.picture(drawn))
    logits = np.exp(np.asarray(model.scale[...])) * np.asarray(captions @ pictures.T)
    logits[0, 1] = logits[1, 0] = -np.inf
    expected = [np.log(np.exp(x).sum(axis)) - np.diag(x) for axis, x in ((1, logits), (0, logits))]
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


class Numbers:
    """Examples for grain."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return {"x": np.full(3, index, np.float32)}


def train_line(folder) -> np.ndarray:
    def loss(model, batch, number):
        return jnp.mean((model(batch["x"] / 100) - 1) ** 2) + 0 * number

    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    trained = stage.run_stage(folder, model, loss, Numbers(), rate=0.1, steps=9, batch_size=8)
    return np.asarray(trained.kernel[...])


def test_a_stage_in_half_precision_keeps_its_parameters_in_full(tmp_path):
    seen = []

    def loss(model, batch, number):
        seen.append(model.kernel.dtype)
        return jnp.mean((model(batch["x"].astype(jnp.bfloat16) / 100) - 1) ** 2)

    model, half = nnx.Linear(3, 1, rngs=nnx.Rngs(0), dtype=jnp.bfloat16), stage.Machine("bfloat16")
    trained = stage.run_stage(tmp_path, model, loss, Numbers(), rate=1e-5, steps=9, batch_size=8, machine=half)
    assert set(seen) == {jnp.dtype("bfloat16")}
    moved = trained.kernel[...] - nnx.Linear(3, 1, rngs=nnx.Rngs(0)).kernel[...]
    assert trained.kernel.dtype == jnp.float32
    assert 0 < jnp.abs(moved).max() < 1e-3  # which bfloat16 would have rounded away


def test_a_killed_stage_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "CHECKPOINT_EVERY", 2)
    whole = train_line(tmp_path / "whole")
    save = stage.Checkpoints.save

    def die_after_the_fourth_step(self, step, state):
        save(self, step, state)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage.Checkpoints, "save", die_after_the_fourth_step)
        with pytest.raises(KeyboardInterrupt):
            train_line(tmp_path / "broken")
    np.testing.assert_array_equal(train_line(tmp_path / "broken"), whole)
    assert np.abs(whole - np.asarray(nnx.Linear(3, 1, rngs=nnx.Rngs(0)).kernel[...])).max() > 1e-3


@pytest.mark.slow
def test_decoder_alone_learns():
    """In the last stage the encoder, and so all that the UNet has learnt to make, stays as it is."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    config = VAEConfig(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **kinds)
    pictures = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)), jnp.uint8)
    graph, params = nnx.split(AutoencoderKL(config, rngs=nnx.Rngs(0)))

    @partial(jax.jit, static_argnames="alone")
    def learn(params, alone):
        def loss(params):
            vae = nnx.merge(graph, params)
            return autoencoder.reconstruction_loss(vae, pictures, jax.random.key(0), decoder_alone=alone)

        return jax.value_and_grad(loss)(params)

    (whole, both), (decoded, alone) = learn(params, False), learn(params, True)
    np.testing.assert_allclose(decoded, whole, rtol=1e-6)
    moved = [
        {str(path[0]) for path, leaf in nnx.to_flat_state(one) if np.any(np.asarray(leaf))} for one in (both, alone)
    ]
    assert moved == [{"encoder", "quant_conv", "decoder", "post_quant_conv"}, {"decoder", "post_quant_conv"}]


def test_a_mean_of_weights_in_half_precision_does_not_overflow():
    largest = jnp.full(3, 60_000, jnp.float16)
    mean = mean_in_float32(largest, jnp.asarray([60_000, 0, -60_000], jnp.float16))
    assert mean.dtype == jnp.float16
    np.testing.assert_array_equal(mean, [60_000, 30_000, 0])


def test_a_model_to_average_with_is_looked_for_before_training(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out"), "--cache", str(tmp_path), "--average", str(tmp_path)])
    assert f"--average {tmp_path}: holds no model_index.json; expected a diffusers folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
