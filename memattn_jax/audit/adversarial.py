"""Whether optimised embeddings bring extracted training images back, without and with a mitigation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memattn_jax.copies.search import decoded, fitted
from memattn_jax.evaluation.adversarial import Attack, retriggered

if TYPE_CHECKING:
    from memattn_jax.mitigations import Mitigation
    from memattn_jax.pipeline import StableDiffusion


def bring_back(
    sd: "StableDiffusion",
    items: Sequence[Mapping[str, Any]],
    out: Path,
    pictures: Sequence[Path],
    mitigations: Mapping[str, "Mitigation"],
    seed: int,
    run: dict[str, Any],
    batch: int,
) -> dict[str, Any]:
    """The block of audit.json: an entry of `retriggered` for each mitigation.

    Args:
      sd: the model.
      items: lines of items.jsonl, of prompts that were extracted.
      out: folder of the audit.
      pictures: the training image of each item.
      mitigations: fitted, by name.
      seed: of the optimisation and of the images.
      run: settings of a sampling run.
      batch: images sampled at once.
    """
    first = decoded(out / next(image["file"] for image in items[0]["images"] if image["file"] is not None))
    images = np.stack([fitted(picture, first.height, first.width) for picture in pictures])
    texts, attack = [item["prompt"] for item in items], Attack(seed=seed)
    return {name: retriggered(sd, texts, images, one, attack, run, batch=batch) for name, one in mitigations.items()}
