"""Every network and every kind of layer equals PyTorch's, on the same weights, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel as TorchUNet
from flax import nnx

from memattn_jax.checkpoints.diffusers_folder import load_part
from memattn_jax.interceptors import Interceptor, TokenMeans

LAYER, MODEL = 1e-5, 1e-4  # tolerances


def randn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def assert_close(ours: jax.Array, theirs: np.ndarray, tolerance: float) -> None:
    """Within a tolerance of the largest value, so that it means the same at every scale."""
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1.0, np.abs(theirs).max()))


def unet_inputs(checkpoint, height: int, width: int):
    return randn(2, height, width, 4), np.float32([981.0, 21.0]), randn(2, 77, 32, seed=1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("checkpoint", "height", "width"),
    [("sd1", 16, 16), ("sd1", 13, 19), ("sd2", 24, 8)],
    indirect=["checkpoint"],
    ids=["sd1-square", "sd1-odd", "sd2-tall"],
)
def test_unet(checkpoint, height, width):
    latents, timesteps, context = unet_inputs(checkpoint, height, width)
    theirs = checkpoint.torch.unet(nchw(latents), torch.from_numpy(timesteps), torch.from_numpy(context)).sample
    ours, taps = jax.jit(lambda unet, *args: unet(*args))(checkpoint.ours.unet, latents, timesteps, context)
    assert_close(ours, nhwc(theirs), MODEL)
    assert taps == {}


@pytest.mark.slow
@torch.no_grad()
def test_every_layer_of_the_unet(checkpoint):
    """Resnets, attentions, feed-forwards, samplers and norms one by one, on what PyTorch feeds them."""
    seen: dict[str, tuple[tuple, torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, kwargs, out, name=name: seen.update({name: ((*args, *kwargs.values()), out)}),
            with_kwargs=True,
        )
        for name, module in checkpoint.torch.unet.named_modules()
        if not list(module.children()) or name.endswith((".ff", ".net.0"))
    ]
    latents, timesteps, context = unet_inputs(checkpoint, 16, 16)
    checkpoint.torch.unet(nchw(latents), torch.from_numpy(timesteps), torch.from_numpy(context))
    for hook in hooks:
        hook.remove()

    compared = 0
    for path, module in nnx.iter_modules(checkpoint.ours.unet):
        name = ".".join(map(str, path))
        if name not in seen or isinstance(module, nnx.List):
            continue
        (x, *_), out = seen[name]
        image = x.ndim == 4
        ours = module(nhwc(x) if image else x.numpy())
        assert_close(ours, nhwc(out) if image else out.numpy(), LAYER)
        compared += 1
    assert compared > 300


@torch.no_grad()
def test_only_cross_attention(tmp_path):
    torch.manual_seed(0)
    theirs = TorchUNet(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=[2, 4],
        only_cross_attention=[True, False],
        transformer_layers_per_block=2,
        layers_per_block=1,
        cross_attention_dim=24,
    )
    theirs.save_pretrained(tmp_path / "unet")
    ours = load_part(tmp_path, "unet", "float32")
    latents, context = randn(1, 8, 8, 4), randn(1, 77, 24, seed=1)
    expected = theirs(nchw(latents), 500, torch.from_numpy(context)).sample
    interceptor = Interceptor(taps={"tokens": TokenMeans()})
    out, taps = jax.jit(lambda unet, *args: unet(*args))(ours, latents, jnp.float32(500), context, interceptor)
    assert_close(out, nhwc(expected), MODEL)
    taps = taps["tokens"]
    assert "down_blocks.0.attentions.0.transformer_blocks.1.attn1" in taps
    assert "down_blocks.1.attentions.0.transformer_blocks.1.attn1" not in taps
    assert set(taps) == set(ours.sites)


@torch.no_grad()
def test_vae(checkpoint):
    pictures, latents = randn(2, 32, 40, 3), randn(2, 4, 5, 4)
    theirs = checkpoint.torch.vae.encode(nchw(pictures)).latent_dist
    ours = jax.jit(lambda vae, x: vae.encode(x))(checkpoint.ours.vae, pictures)
    assert_close(ours.mean, nhwc(theirs.mean), MODEL)
    assert_close(ours.log_variance, nhwc(theirs.logvar), MODEL)
    decoded = jax.jit(lambda vae, x: vae.decode(x))(checkpoint.ours.vae, latents)
    assert_close(decoded, nhwc(checkpoint.torch.vae.decode(nchw(latents)).sample), MODEL)


def test_posterior_sample_has_its_moments():
    from memattn_jax.models.vae import Posterior

    mean, log_variance = jnp.full((1, 64, 64, 4), 2.0), jnp.full((1, 64, 64, 4), np.log(0.25))
    draw = Posterior(mean, log_variance).sample(jax.random.key(0))
    np.testing.assert_allclose([draw.mean(), draw.std()], [2.0, 0.5], atol=0.02)


@torch.no_grad()
def test_text_encoder(checkpoint):
    prompts = ["the cat and the hat", "", "z" * 60]
    embeddings, tokens = checkpoint.ours.encode(prompts)
    theirs = checkpoint.torch.tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")
    np.testing.assert_array_equal(tokens.input_ids, theirs.input_ids)
    assert_close(embeddings, checkpoint.torch.text_encoder(theirs.input_ids)[0].numpy(), MODEL)
    unpadded = [checkpoint.torch.tokenizer(prompt).input_ids for prompt in prompts]
    assert tokens.lengths.tolist() == [len(ids) for ids in unpadded]


def test_families_differ_where_they_should(checkpoint):
    pad = checkpoint.ours.tokenizer([""]).input_ids[0, -1]
    end = checkpoint.ours.tokenizer.clip.eos_token_id
    assert (pad == end) == (checkpoint.family == "sd1")
    assert len(checkpoint.ours.unet.sites) == 16


@jax.jit
def tapped(unet, *inputs):
    return unet(*inputs, Interceptor(taps={"tokens": TokenMeans()}))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("checkpoint", "dtype"),
    [("small-sd1", "bfloat16"), ("small-sd1", "float16")],
    indirect=["checkpoint"],
    ids=lambda x: x,
)
def test_half_precision(checkpoint, dtype):
    """Weights and activations in half precision stay within its rounding of float32.

    Of two resolutions, where it is nearly what it is in four: 0.0028 and 0.0033 in float16.
    """
    unet = load_part(checkpoint.folder, "unet", dtype)
    latents, timesteps, context = unet_inputs(checkpoint, 16, 16)
    exact, exact_taps = tapped(checkpoint.ours.unet, latents, timesteps, context)
    out, taps = tapped(unet, latents, timesteps, context)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol={"bfloat16": 0.1, "float16": 0.02}[dtype])
    for site, tap in taps["tokens"].items():
        assert tap.dtype == jnp.float32
        np.testing.assert_allclose(tap.sum(-1), 1.0, atol=1e-5)
        np.testing.assert_allclose(tap, exact_taps["tokens"][site], atol=0.02)
