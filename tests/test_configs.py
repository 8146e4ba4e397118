"""Configs of the networks in the dialects that diffusers and transformers have written since 2022, and of others."""

import json

import pytest

from memattn_jax import InputError
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig

UNET = {  # the keys of 2022, with Stable Diffusion 1's values
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "_name_or_path": "somewhere",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SINCE = {  # version of diffusers: the keys that it added
    "0.9": {"dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False}
    | {"use_linear_projection": False},
    "0.11": {"class_embed_type": None, "mid_block_type": "UNetMidBlock2DCrossAttn", "upcast_attention": False}
    | {"resnet_time_scale_shift": "default"},
    "0.13": {"conv_in_kernel": 3, "conv_out_kernel": 3, "projection_class_embeddings_input_dim": None}
    | {"time_cond_proj_dim": None, "time_embedding_type": "positional", "timestep_post_act": None},
    "0.17": {"addition_embed_type": None, "addition_embed_type_num_heads": 64, "class_embeddings_concat": False}
    | {"cross_attention_norm": None, "encoder_hid_dim": None, "mid_block_only_cross_attention": None}
    | {"resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "time_embedding_act_fn": None},
    "0.20": {"addition_time_embed_dim": None, "encoder_hid_dim_type": None, "num_attention_heads": None}
    | {"transformer_layers_per_block": 1, "time_embedding_dim": None},
    "0.31": {"attention_type": "default", "dropout": 0.0, "reverse_transformer_layers_per_block": None},
}
AVERAGE = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 7000, "power": 2 / 3}
AVERAGE |= {"update_after_step": 0, "use_ema_warmup": False}  # what diffusers' EMAModel leaves in a config
FLAX = {"_class_name": "FlaxUNet2DConditionModel", "split_head_dim": False, "use_memory_efficient_attention": True}
NULLS = {"upcast_attention": None, "dual_cross_attention": None, "center_input_sample": None, "not_invented_yet": None}
UNREAD = {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}  # without what reads them


def test_every_age_says_the_same():
    config = UNET
    assert UNetConfig.from_json(config) == UNetConfig()
    for version, keys in SINCE.items():
        config = config | keys | {"_diffusers_version": f"{version}.0"}
        assert UNetConfig.from_json(config) == UNetConfig(), version


@pytest.mark.parametrize("keys", [AVERAGE, FLAX, NULLS, UNREAD], ids=["average", "flax", "nulls", "unread"])
def test_keys_without_effect(keys):
    assert UNetConfig.from_json(UNET | keys) == UNetConfig()


OTHERS = {
    "inpainting": ({"in_channels": 9}, "inpainting"),
    "depth": ({"in_channels": 5}, "depth"),
    "pix2pix": ({"in_channels": 8}, "InstructPix2Pix"),
    "upscaler": ({"in_channels": 7, "num_class_embeds": 1000}, "upscaler"),
    "classes": ({"num_class_embeds": 10}, "num_class_embeds"),
    "lcm": ({"time_cond_proj_dim": 256}, "latent consistency"),
    "unclip": ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048}, "unCLIP"),
    "xl": ({"addition_embed_type": "text_time", "cross_attention_dim": 2048}, "Stable Diffusion XL"),
    "xl-inpainting": ({"addition_embed_type": "text_time", "in_channels": 9}, "Stable Diffusion XL"),
    "if": ({"addition_embed_type": "text", "encoder_hid_dim": 4096}, "DeepFloyd IF"),
    "kandinsky": ({"addition_embed_type": "image"}, "Kandinsky"),
    "unknown-embedding": ({"addition_embed_type": "smell"}, "addition_embed_type='smell'"),
    "audio": ({"cross_attention_dim": [128, 256, 384, 640], "class_embed_type": "simple_projection"}, "AudioLDM"),
    "gligen": ({"attention_type": "gated"}, "GLIGEN"),
    "versatile": ({"dual_cross_attention": True}, "Versatile Diffusion"),
    "video": ({"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel"),
    "animation": ({"_class_name": "UNetMotionModel"}, "UNetMotionModel"),
    "k-diffusion": ({"down_block_types": ["KDownBlock2D"] * 4}, "KDownBlock2D"),
    "if-blocks": ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "UNetMidBlock2DSimpleCrossAttn"),
    "fourier": ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
    "kernel": ({"conv_in_kernel": 1}, "conv_in_kernel=1"),
    "unknown-key": ({"wings": 2}, "unknown key 'wings'"),
}


@pytest.mark.parametrize(("changes", "what"), OTHERS.values(), ids=OTHERS)
def test_other_unets_are_refused_by_what_they_are(changes, what):
    with pytest.raises(InputError) as error:
        UNetConfig.from_json(UNET | changes, "unet/config.json")
    assert str(error.value).startswith("unet/config.json: ")
    assert what in str(error.value)
    assert len(str(error.value)) <= 200


WRONG = {
    "text-for-a-number": ({"in_channels": "4"}, "in_channels='4'; expected a whole number"),
    "number-for-a-list": ({"block_out_channels": 320}, "block_out_channels=320; expected a list"),
    "list-in-a-list": ({"block_out_channels": [[320]] * 4}, "block_out_channels"),
    "true-for-a-number": ({"norm_num_groups": True}, "norm_num_groups=True; expected a whole number"),
    "fraction": ({"layers_per_block": 2.5}, "layers_per_block=2.5; expected a whole number or a list"),
    "not-a-number": ({"norm_eps": float("nan")}, "norm_eps=nan; expected a number"),
    "object": ({"up_block_types": {}}, "up_block_types={}; expected a list, each item a text"),
    "null": ({"out_channels": None}, "out_channels=None; expected a whole number"),
    "too-large": ({"cross_attention_dim": 10**30}, "cross_attention_dim"),
    "a-billion-layers": ({"layers_per_block": 10**9}, "layers_per_block=1000000000"),
    "no-layers": ({"transformer_layers_per_block": 0}, "transformer_layers_per_block=0"),
    "a-billion-blocks": ({"down_block_types": ["DownBlock2D"] * 10_000}, "10000 values of down_block_types"),
    "no-blocks": ({"block_out_channels": []}, "block_out_channels"),
    "too-few": ({"attention_head_dim": [5, 10]}, "2 values of attention_head_dim for 4 blocks"),
    "no-heads": ({"attention_head_dim": 0}, "cannot build a model"),
    "minus-one-head": ({"attention_head_dim": -1}, "do not divide into -1 heads"),
    "heads": ({"attention_head_dim": 7}, "320 channels do not divide into 7 heads"),
    "no-pixels": (
        {"sample_size": 0, "_diffusers_version": "0.20.0"},
        "sample_size is 0; expected the positive height and width",
    ),
    "three-sides": ({"sample_size": [64, 64, 64]}, "sample_size is (64, 64, 64)"),
    "one-side": ({"sample_size": [64]}, "sample_size is (64,)"),
    "negative": ({"sample_size": [64, -3]}, "sample_size is (64, -3)"),
    "class": ({"_class_name": ["UNet2DConditionModel"]}, "is not supported, only UNet2DConditionModel"),
    "channels": ({"in_channels": [4]}, "in_channels=[4]; expected a whole number"),
    "long": ({"act_fn": "x" * 10_000}, "act_fn='xxx"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_values_that_cannot_be(changes, message):
    with pytest.raises(InputError) as error:
        UNetConfig.from_json(UNET | changes, "unet/config.json")
    assert str(error.value).startswith("unet/config.json: ")
    assert message in str(error.value)
    assert len(str(error.value)) <= 200


def test_a_model_without_a_middle():
    config = UNetConfig.from_json(UNET | {"mid_block_type": None})
    assert config.mid_block_type is None
    assert UNetConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


TEXT = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "torch_dtype": "float32",
    "vocab_size": 49408,
}
GENERATION = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "num_beams": 1}
GENERATION |= {"max_length": 20, "min_length": 0, "early_stopping": False, "repetition_penalty": 1.0}
GENERATION |= {"bad_words_ids": None, "forced_eos_token_id": None, "output_scores": False, "pruned_heads": {}}
GENERATION |= {"is_decoder": False, "add_cross_attention": False, "tie_encoder_decoder": False, "prefix": None}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        GENERATION,
        {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 512},
        {"architectures": ["FlaxCLIPTextModel"], "dtype": "float16"},
        {"_attn_implementation_autoset": True, "use_cache": True, "new": None},
    ],
    ids=["plain", "generation", "projection", "flax", "new"],
)
def test_text_encoders_of_every_age(keys):
    assert CLIPTextConfig.from_json(TEXT | keys) == CLIPTextConfig(projection_dim=512)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5", "d_ff": 10240}, "T5, as in DeepFloyd IF"),
        ({"model_type": "clap_text_model"}, "AudioLDM"),
        ({"model_type": "xlm-roberta"}, "AltDiffusion"),
        ({"model_type": 3}, "model_type=3"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"num_attention_heads": 5}, "768 channels do not divide into 5 heads"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"hidden_size": "768"}, "hidden_size='768'; expected a whole number"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"quantization_config": {"bits": 8}}, "unknown key 'quantization_config'"),
    ],
    ids=str,
)
def test_other_text_encoders(changes, message):
    with pytest.raises(InputError) as error:
        CLIPTextConfig.from_json(TEXT | changes, "text_encoder/config.json")
    assert message in str(error.value)
    assert len(str(error.value)) <= 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny is not supported"),
        ({"latents_mean": [0.1]}, "latents_mean=[0.1]"),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"layers_per_block": 10**9}, "layers_per_block"),
        ({"scaling_factor": "0.18215"}, "scaling_factor='0.18215'; expected a number"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "AttnUpDecoderBlock2D"),
    ],
    ids=str,
)
def test_other_autoencoders(changes, message):
    config = VAEConfig().to_json()
    assert VAEConfig.from_json(config | {"_class_name": "FlaxAutoencoderKL", "latents_std": None}) == VAEConfig()
    with pytest.raises(InputError) as error:
        VAEConfig.from_json(config | changes, "vae/config.json")
    assert message in str(error.value)
