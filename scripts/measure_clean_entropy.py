"""Measures how spread the built-in model's attention is for clean prompts: the band that its plots show.

    python scripts/measure_clean_entropy.py

Writes memattn_jax/demo/clean_entropy.json: quantiles over the prompts of demo/prompts/clean.txt, each sampled once with
a seed of its own and the defaults of `generate`, of the attention entropy at each sampling step.
"""

import argparse
import json

import numpy as np

from memattn_jax import demo
from memattn_jax.commands.generate import Options, settings
from memattn_jax.entropy import mean_over_sites, token_entropy
from memattn_jax.pipeline import StableDiffusion

BATCH = 16
QUANTILES = (0.05, 0.5, 0.95)
SAMPLED = ("steps", "guidance_scale", "scheduler")


def entropy_of(sd: StableDiffusion, prompts: list[str], first_seed: int, options: Options) -> np.ndarray:
    """Attention entropy of each step, mean over sites and heads, float32 [steps, prompts]."""
    named = {name: getattr(options, name) for name in SAMPLED}
    run = sd.sample(prompts, seeds=range(first_seed, first_seed + len(prompts)), **named)
    return np.asarray(token_entropy(mean_over_sites(run.tokens)))


def main() -> None:
    """Samples every clean prompt, and writes the quantiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    options = Options(dtype="float32")
    sd = StableDiffusion.from_pretrained(demo.MODEL, options.dtype)
    prompts = (demo.FOLDER / "prompts" / "clean.txt").read_text(encoding="utf-8").splitlines()
    parts = []
    for first in range(0, len(prompts), BATCH):
        parts.append(entropy_of(sd, prompts[first : first + BATCH], first, options))
        print(f"{first + parts[-1].shape[1]} of {len(prompts)} prompts", flush=True)
    entropy = np.concatenate(parts, axis=1)
    bands = np.quantile(entropy, QUANTILES, axis=1)
    content = {
        "model": sd.fingerprint(),
        "settings": {name: value for name, value in settings(options).items() if name not in ("mitigation", "guard")},
        "prompts": len(prompts),
        "quantiles": {f"{q:g}": [round(float(x), 4) for x in band] for q, band in zip(QUANTILES, bands, strict=True)},
    }
    demo.CLEAN_ENTROPY.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
