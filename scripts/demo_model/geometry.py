"""Sizes of the demo model's networks, and its tokenizer: every word of the captions is one token."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig

BEGIN, END = "<|startoftext|>", "<|endoftext|>"

VAE = VAEConfig(
    sample_size=64,
    block_out_channels=(32, 64, 64),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=16,
    scaling_factor=1.0,  # the latents are whitened
)

UNET = UNetConfig(
    sample_size=16,
    block_out_channels=(48, 80, 96),
    down_block_types=("CrossAttnDownBlock2D",) * 3,
    up_block_types=("CrossAttnUpBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=16,
    attention_head_dim=4,
    cross_attention_dim=128,
)

SCHEDULER = {  # Stable Diffusion 1's
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


def text_config(vocabulary: int) -> CLIPTextConfig:
    """The text encoder for a vocabulary of this size."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=77,
    )


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al., arXiv 1508.07909) that make each word one token.

    The most frequent pair is merged until none is left; applying the merges in this order repeats what was done here.
    """
    split = {word: [*word[:-1], f"{word[-1]}</w>"] for word in words}
    merges = []
    while pairs := Counter(pair for parts in split.values() for pair in pairwise(parts)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = {word: merge(parts, best) for word, parts in split.items()}
    return merges


def merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Joins each occurrence of a pair, from the left."""
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def write_tokenizer(folder: Path, words: Iterable[str]) -> int:
    """Writes a CLIP tokenizer, which pads with the end token as Stable Diffusion 1's; returns the vocabulary's size."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = learn_merges(words)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *dict.fromkeys("".join(pair) for pair in merges)]
    tokens += [BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return len(tokens)
