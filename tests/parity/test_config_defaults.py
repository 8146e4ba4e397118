"""What a config means that lacks a key, or that an old version wrote, as diffusers and transformers read it."""

from copy import copy as shallow_copy

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.configuration_utils import FrozenDict
from transformers import CLIPTextConfig as TheirCLIPTextConfig

from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig

pytestmark = pytest.mark.slow


def test_keys_that_a_config_lacks_have_the_values_of_pytorch():
    with torch.device("meta"):
        defaults = [
            (UNetConfig, dict(UNet2DConditionModel().config)),
            (VAEConfig, dict(AutoencoderKL().config)),
            (CLIPTextConfig, TheirCLIPTextConfig().to_dict()),
        ]
    for config_class, expected in defaults:
        for key, value in config_class.from_json({}).to_json().items():
            if key not in ("_class_name", "architectures", "model_type"):
                assert value == (list(expected[key]) if isinstance(expected[key], tuple) else expected[key]), key


@pytest.mark.filterwarnings("ignore:The configuration file of the unet:FutureWarning")  # it is the point here
@pytest.mark.parametrize("checkpoint", ["sd1"], indirect=True)
@pytest.mark.parametrize("version", ["0.4.0", "0.8.1", "0.9.0.dev0", "0.9.0", "0.42.1", None])
@pytest.mark.parametrize("size", [32, 96, None, [32, 32]])
def test_sample_size_of_old_configs(checkpoint, version, size):
    """Below 64 it is a mistake of diffusers before 0.9, which the pipeline mends on loading."""
    config = {"sample_size": size} | ({} if version is None else {"_diffusers_version": version})
    unet = shallow_copy(checkpoint.torch.unet)
    unet._internal_dict = FrozenDict(config)
    StableDiffusionPipeline(**checkpoint.torch.components | {"unet": unet}, requires_safety_checker=False)
    theirs = unet.config.sample_size
    assert UNetConfig.from_json(config).sample_size == (tuple(theirs) if isinstance(theirs, list) else theirs)
