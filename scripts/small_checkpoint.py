"""What the small Stable Diffusion 1 checkpoints of these scripts share: scheduler and tokenizer."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

BEGIN, END = "<|startoftext|>", "<|endoftext|>"

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,
}


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


def write_tokenizer(folder: Path, words: Iterable[str], pad_token: str = END) -> int:
    """Writes a CLIP tokenizer; returns the size of its vocabulary.

    Args:
      folder: where to; made if missing.
      words: those that are one token; all others are split, down to single characters.
      pad_token: the end token in Stable Diffusion 1, "!" in Stable Diffusion 2.
    """
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = learn_merges(words)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *dict.fromkeys("".join(pair) for pair in merges)]
    tokens += [BEGIN, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return len(tokens)
