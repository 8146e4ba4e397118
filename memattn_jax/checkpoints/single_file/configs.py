"""The configs of a model's networks, derived from the names and shapes of their tensors under diffusers' names.

They are what diffusers would write, but for the size of the pictures, which no tensor tells.
"""

from typing import Any

from memattn_jax.checkpoints.single_file.renaming import Tensors, below, numbered

HEAD_CHANNELS = 64  # per head, in Stable Diffusion 2 and in every text encoder of CLIP
HEADS = 8  # at every level of Stable Diffusion 1


def unet_config(tensors: Tensors) -> dict[str, Any]:
    """Of UNet2DConditionModel.

    No tensor tells the number of heads: Stable Diffusion 2, whose projections are linear, has heads of 64 channels,
    Stable Diffusion 1 eight heads at every level.

    Raises:
      KeyError, IndexError: a tensor that tells the geometry is missing.
    """
    down = numbered(below(tensors, "down_blocks."))
    up = numbered(below(tensors, "up_blocks."))
    channels = [level["resnets.0.conv2.weight"].shape[0] for level in down]
    attention = next(block for level in down for block in numbered(below(level, "attentions.")))
    linear = attention["proj_in.weight"].ndim == 2
    middle = any(name.startswith("mid_block.") for name in tensors)
    return {
        "in_channels": tensors["conv_in.weight"].shape[1],
        "out_channels": tensors["conv_out.weight"].shape[0],
        "block_out_channels": channels,
        "down_block_types": [f"{cross_attention(level)}DownBlock2D" for level in down],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "up_block_types": [f"{cross_attention(level)}UpBlock2D" for level in up],
        "layers_per_block": [len(numbered(below(level, "resnets."))) for level in down],
        "transformer_layers_per_block": [transformer_layers(level) for level in down],
        "cross_attention_dim": attention["transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "use_linear_projection": linear,
        "attention_head_dim": [count // HEAD_CHANNELS for count in channels] if linear else HEADS,
    }


def cross_attention(level: Tensors) -> str:
    """The prefix in the name of a level's block type."""
    return "CrossAttn" if below(level, "attentions.") else ""


def transformer_layers(level: Tensors) -> int:
    """Transformer layers in each attention of a level, 1 where it has none."""
    return len(numbered(below(level, "attentions.0.transformer_blocks."))) or 1


def vae_config(tensors: Tensors) -> dict[str, Any]:
    """Of AutoencoderKL.

    Raises:
      KeyError, IndexError: a tensor that tells the geometry is missing.
    """
    levels = numbered(below(tensors, "encoder.down_blocks."))
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [level["resnets.0.conv2.weight"].shape[0] for level in levels],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "layers_per_block": len(numbered(below(levels[0], "resnets."))),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def text_config(tensors: Tensors) -> dict[str, Any]:
    """Of CLIPTextModel, but for the activation function.

    Raises:
      KeyError: a tensor that tells the geometry is missing.
    """
    vocabulary, channels = tensors["text_model.embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": channels,
        "intermediate_size": tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(numbered(below(tensors, "text_model.encoder.layers."))),
        "num_attention_heads": channels // HEAD_CHANNELS,
        "max_position_embeddings": tensors["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": channels,
    }
