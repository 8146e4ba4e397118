"""The training step against PyTorch's: noise, target, loss, clipped gradient and AdamW."""

import diffusers
import jax.numpy as jnp
import micro
import numpy as np
import pytest
import torch
from flax import nnx
from one_step import ROWS, SETTINGS, batch, gradients, step

from memattn_jax import InputError, StableDiffusion
from memattn_jax.checkpoints.names import leaves
from memattn_jax.training.objective import add_noise, row_keys, training_target
from memattn_jax.training.step import draw

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_target_equal_diffusers(prediction_type):
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction_type)
    latents, noise = (np.random.default_rng(i).normal(size=(3, 4, 4, 4)).astype(np.float32) for i in range(2))
    timesteps = torch.tensor([0, 500, 999])
    signal = jnp.asarray(scheduler.alphas_cumprod[timesteps].numpy())
    tensors = [torch.from_numpy(x) for x in (latents, noise)]
    np.testing.assert_allclose(
        add_noise(latents, noise, signal), scheduler.add_noise(*tensors, timesteps).numpy(), atol=1e-6
    )
    expected = noise if prediction_type == "epsilon" else scheduler.get_velocity(*tensors, timesteps).numpy()
    np.testing.assert_allclose(training_target(prediction_type, latents, noise, signal), expected, atol=1e-6)
    with pytest.raises(InputError, match="prediction_type 'sample'"):
        training_target("sample", latents, noise, signal)


@pytest.mark.parametrize(
    ("prediction_type", "unet"), [("epsilon", micro.TWO_RESOLUTIONS), ("v_prediction", micro.UNET)]
)
def test_one_update_equals_pytorch(random_model, tmp_path, prediction_type, unet):
    """Loss, clipped gradient and AdamW, of the UNet, from the same draws."""
    folder = tmp_path / "model"
    micro.write_model(folder, random_model, prediction_type, unet=unet)
    sd = StableDiffusion.from_pretrained(folder)
    (state, metrics), setup = step(sd, SETTINGS)
    draws = draw(row_keys(setup.seed, jnp.int32(0), ROWS), (4, 4, 4), 1000, setup.dropout, setup.high_noise)
    assert draws.dropped.any()
    assert not draws.dropped.all()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)

    def nchw(x):
        return torch.from_numpy(np.moveaxis(np.asarray(x, np.float32), -1, 1).copy())

    data = batch(sd)
    with torch.no_grad():
        posterior = pipe.vae.encode(nchw(data.pictures / 127.5 - 1)).latent_dist
        latents = (posterior.mean + posterior.std * nchw(draws.posterior)) * pipe.vae.config.scaling_factor
        input_ids = np.where(draws.dropped[:, None], setup.empty_ids, data.input_ids)
        context = pipe.text_encoder(torch.from_numpy(input_ids))[0]
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    timesteps, noise = torch.from_numpy(np.array(draws.timesteps)), nchw(draws.noise)
    epsilon = scheduler.config.prediction_type == "epsilon"
    target = noise if epsilon else scheduler.get_velocity(latents, noise, timesteps)
    prediction = pipe.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, context).sample
    loss = torch.nn.functional.mse_loss(prediction, target)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(pipe.unet.parameters(), SETTINGS.gradient_clip)
    torch.optim.AdamW(pipe.unet.parameters(), lr=SETTINGS.learning_rate, weight_decay=SETTINGS.weight_decay).step()

    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert norm.item() > SETTINGS.gradient_clip
    graph = dict(setup.graphs)["unet"]
    updated, gradient = (nnx.merge(graph, tree["unet"]) for tree in (state.params, gradients(state)))
    expected = dict(pipe.unet.named_parameters())
    for ours, slope in zip(leaves(updated), leaves(gradient), strict=True):
        theirs = expected[ours.name]
        slope, exact = slope.to_torch(np.asarray(slope.param[...])), theirs.grad.numpy()
        np.testing.assert_allclose(slope, exact, atol=1e-6)
        clear = np.abs(exact) > 1e-4
        new = ours.to_torch(np.asarray(ours.param[...]))
        np.testing.assert_allclose(new[clear], theirs.detach().numpy()[clear], atol=1e-5)
