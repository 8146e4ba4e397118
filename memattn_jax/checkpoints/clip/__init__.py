"""CLIP's own tokenizer, for checkpoints that come without one."""

import gzip
from pathlib import Path
from typing import Any

MERGES = Path(__file__).parent / "merges.txt.gz"  # of OpenAI's CLIP, see NOTICE.md
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def byte_characters() -> list[str]:
    """A printable character for each byte, in the order in which the vocabulary lists them.

    Source: openai/CLIP, clip/simple_tokenizer.py, bytes_to_unicode. Printable Latin-1 characters stand for themselves
    and come first; the other bytes follow, as the characters from 256 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in (*printable, *range(256, 256 + others))]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's 49,408 tokens with their ids, and its 48,894 merges in order."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    merges = [(first, second) for first, second in map(str.split, lines)]
    characters = byte_characters()
    words = [*characters, *(character + WORD_END for character in characters), *map("".join, merges), BEGIN, END]
    return {word: index for index, word in enumerate(words)}, merges


def clip_tokenizer(pad: str = END, length: int = 77) -> Any:
    """CLIPTokenizer of transformers with CLIP's vocabulary.

    Args:
      pad: the padding token: the end token in Stable Diffusion 1, "!" in Stable Diffusion 2.
      length: tokens of a prompt, its `model_max_length`.
    """
    from transformers import CLIPTokenizer

    tokens, merges = vocabulary()
    return CLIPTokenizer(vocab=tokens, merges=merges, pad_token=pad, model_max_length=length)
