"""Sizes of the demo model's networks: under 9 million parameters, 18 MB in half precision."""

from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig

LATENT_CHANNELS = 12  # with 4, as in Stable Diffusion, 64 × 64 pixels lose what tells a copy from its original

VAE = VAEConfig(
    sample_size=64,
    latent_channels=LATENT_CHANNELS,
    block_out_channels=(16, 32, 64),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=8,
    scaling_factor=1.0,  # the latents are whitened
)

UNET = UNetConfig(
    sample_size=16,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    block_out_channels=(64, 128, 128),
    down_block_types=("CrossAttnDownBlock2D",) * 3,
    up_block_types=("CrossAttnUpBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=16,
    attention_head_dim=(2, 4, 4),  # heads of 32 channels; the key means heads in Stable Diffusion
    cross_attention_dim=128,
)


def text_config(vocabulary: int) -> CLIPTextConfig:
    """The text encoder for a vocabulary of this size."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
    )
