"""The noise that a prompt is scored with, where each has its own."""

import zlib


def noise_seed(prompt: str, first: int, probes: int) -> int:
    """Seed of a prompt's first noise sample of `probes`, derived from its text and the seed of the command line."""
    return (zlib.crc32(prompt.encode()) + first) % (2**32 - probes)
