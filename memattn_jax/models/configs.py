"""Configurations of the three networks, read from the `config.json` files that diffusers and transformers write."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from memattn_jax.errors import InputError
from memattn_jax.models.config import ANY, Config, check_count, check_heads, per_block
from memattn_jax.models.families import refuse_other_text_encoders, refuse_other_unets
from memattn_jax.text import printable

HOUSEKEEPING = (  # of transformers, and of text generation, which old versions wrote into every config
    "architectures attention_dropout bad_words_ids begin_suppress_tokens chunk_size_feed_forward "
    "cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype early_stopping "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id gradient_checkpointing id2label initializer_factor initializer_range is_encoder_decoder "
    "label2id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams "
    "num_return_sequences output_attentions output_hidden_states output_scores prefix problem_type "
    "remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens "
    "task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k "
    "top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache"
)
AVERAGE = (  # of the moving average of weights that diffusers' EMAModel saved
    "decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup"
)
MEMORY = "split_head_dim use_memory_efficient_attention"  # how Flax's classes computed attention
OFF = (False, None)
PER_BLOCK = (  # keys of a UNet that have one value for each down block, or one for all
    "down_block_types up_block_types only_cross_attention layers_per_block transformer_layers_per_block "
    "attention_head_dim num_attention_heads"
)


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Config):
    """UNet2DConditionModel of Stable Diffusion 1.x and 2.x; the defaults are Stable Diffusion 1's.

    Attributes:
      attention_head_dim: heads per attention layer, one number or one per down block. The name is diffusers' own
        mistake, kept because every checkpoint has it.
      num_attention_heads: the same, under the right name; wins where both are given.
      mid_block_type: None is a model without a middle block, as BK-SDM and tiny-sd are.
      only_cross_attention: whether `attn1` attends to the text as well, one flag or one per down block.
      sample_size: height and width of the latents the model was trained on; see `from_json`.
    """

    class_name = "UNet2DConditionModel"
    missing: ClassVar = {"sample_size": None, "cross_attention_dim": 1280}
    kept = ("upcast_attention", "attention_head_dim", "num_attention_heads")

    sample_size: int | tuple[int, int] | None = 64
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 768
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    upcast_attention: bool = False  # here the softmax is in float32 either way

    def __post_init__(self) -> None:
        blocks = len(self.block_out_channels)
        check_count("len(block_out_channels)", blocks)
        size = (1, 1) if self.sample_size is None else per_block(self.sample_size, 2)
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"sample_size is {self.sample_size}; expected the positive height and width of latents")
        for key in PER_BLOCK.split():
            value = getattr(self, key)
            if isinstance(value, tuple) and len(value) != blocks:
                raise InputError(f"cannot build a model with {len(value)} values of {key} for {blocks} blocks")
        check_count("layers_per_block", *self.layers)
        check_count("transformer_layers_per_block", *self.transformer_layers)
        known = {
            "down_block_types": {"CrossAttnDownBlock2D", "DownBlock2D"},
            "mid_block_type": {"UNetMidBlock2DCrossAttn"},
            "up_block_types": {"CrossAttnUpBlock2D", "UpBlock2D"},
        }
        for key, supported in known.items():
            value = getattr(self, key)
            named = {value} - {None} if key == "mid_block_type" else set(value)
            if unknown := named - supported:
                raise InputError(
                    f"{key} {printable(', '.join(sorted(unknown)), 60)} is not supported; "
                    f"Stable Diffusion 1.x and 2.x have {' and '.join(sorted(supported))}"
                )
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            check_heads(channels, heads)

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = "config.json") -> Self:
        """See `Config.from_json`.

        Before diffusers 0.9 Stable Diffusion's files held a `sample_size` of 32 although it was trained on 64; a whole
        number below 64 in a file of that age is read as 64, as by diffusers' StableDiffusionPipeline.
        """
        refuse_other_unets(config, where)
        size, version = config.get("sample_size"), str(config.get("_diffusers_version", ""))
        release = re.match(r"v?(\d{1,9})(?:\.(\d{1,9}))?", version)
        if release and (int(release[1]), int(release[2] or 0)) < (0, 9) and isinstance(size, int) and size < 64:
            config = {**config, "sample_size": 64}
        return super().from_json(config, where)

    @classmethod
    def neutral(cls) -> Mapping[str, Any]:
        """See `Config.neutral`."""
        return dict.fromkeys(f"{AVERAGE} {MEMORY}".split(), ANY) | {
            "act_fn": ("silu", "swish"),
            "addition_embed_type": (None,),
            "addition_embed_type_num_heads": ANY,  # read only with addition_embed_type
            "addition_time_embed_dim": ANY,  # likewise
            "attention_type": ("default",),
            "center_input_sample": OFF,
            "class_embed_type": (None,),
            "class_embeddings_concat": OFF,
            "conv_in_kernel": (3,),
            "conv_out_kernel": (3,),
            "cross_attention_norm": (None,),
            "downsample_padding": (1,),
            "dropout": ANY,
            "dual_cross_attention": OFF,
            "encoder_hid_dim": (None,),
            "encoder_hid_dim_type": (None,),
            "mid_block_only_cross_attention": OFF,
            "mid_block_scale_factor": (1,),
            "num_class_embeds": (None,),
            "projection_class_embeddings_input_dim": ANY,  # read only with addition_embed_type or class_embed_type
            "resnet_out_scale_factor": (1,),
            "resnet_skip_time_act": OFF,
            "resnet_time_scale_shift": ("default",),
            "reverse_transformer_layers_per_block": (None,),
            "time_cond_proj_dim": (None,),
            "time_embedding_act_fn": (None,),
            "time_embedding_dim": (None,),
            "time_embedding_type": ("positional",),
            "timestep_post_act": (None,),
        }

    def computed(self) -> dict[str, Any]:
        """See `Config.computed`; what may be one number or one per down block is the latter."""
        one_per_block = {
            "heads": self.heads,
            "layers_per_block": self.layers,
            "transformer_layers_per_block": self.transformer_layers,
            "only_cross_attention": self.cross_only,
            "sample_size": None if self.sample_size is None else per_block(self.sample_size, 2),
        }
        return super().computed() | one_per_block

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each down block."""
        return per_block(self.num_attention_heads or self.attention_head_dim, len(self.block_out_channels))

    @property
    def layers(self) -> tuple[int, ...]:
        """ResNet layers of each down block."""
        return per_block(self.layers_per_block, len(self.block_out_channels))

    @property
    def transformer_layers(self) -> tuple[int, ...]:
        """Transformer layers in each attention of each down block."""
        return per_block(self.transformer_layers_per_block, len(self.block_out_channels))

    @property
    def cross_only(self) -> tuple[bool, ...]:
        """Whether `attn1` of each down block attends to the text."""
        return per_block(self.only_cross_attention, len(self.block_out_channels))


@dataclass(frozen=True, kw_only=True)
class VAEConfig(Config):
    """AutoencoderKL; the defaults are Stable Diffusion's."""

    class_name = "AutoencoderKL"
    missing: ClassVar = {
        "sample_size": 32,
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "block_out_channels": (64,),
        "layers_per_block": 1,
    }
    kept = ("sample_size", "force_upcast")

    sample_size: int | tuple[int, int] = 512
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    force_upcast: bool = True  # its advice on fp16

    def __post_init__(self) -> None:
        check_count("len(block_out_channels)", len(self.block_out_channels))
        check_count("layers_per_block", self.layers_per_block)
        for key, supported in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            if unknown := set(getattr(self, key)) - {supported}:
                shown = printable(", ".join(sorted(unknown)), 80)
                raise InputError(f"{key} {shown} is not supported, only {supported}")

    @classmethod
    def neutral(cls) -> Mapping[str, Any]:
        """See `Config.neutral`."""
        return {
            "act_fn": ("silu", "swish"),
            "latents_mean": (None,),
            "latents_std": (None,),
            "shift_factor": (None,),
        }

    @property
    def scale(self) -> int:
        """Pixels per latent, along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(Config):
    """CLIPTextModel; the defaults are Stable Diffusion 1's."""

    class_name = "CLIPTextModel"
    missing: ClassVar = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    kept = ("projection_dim", "bos_token_id", "eos_token_id", "pad_token_id")

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407
    pad_token_id: int | None = 1

    def __post_init__(self) -> None:
        check_count("num_hidden_layers", self.num_hidden_layers)
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise InputError(f"hidden_act={self.hidden_act!r} is not supported, only 'quick_gelu' and 'gelu'")

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = "config.json") -> Self:
        """See `Config.from_json`."""
        refuse_other_text_encoders(config, where)
        return super().from_json(config, where)

    @classmethod
    def neutral(cls) -> Mapping[str, Any]:
        """See `Config.neutral`."""
        return dict.fromkeys(HOUSEKEEPING.split(), ANY) | {
            "model_type": ("clip_text_model",),
            "is_decoder": OFF,
            "add_cross_attention": OFF,
            "pruned_heads": ({}, None),
        }

    def to_json(self) -> dict[str, Any]:
        """See `Config.to_json`; transformers stores the class under another key than diffusers."""
        fields = super().to_json()
        return {"architectures": [fields.pop("_class_name")], "model_type": "clip_text_model"} | fields
