"""How far a mitigation changes images, on the same seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memattn_jax.audit.evidence import DIGITS
from memattn_jax.copies.correlation import normalized_correlation
from memattn_jax.copies.search import decoded

MEASURE = "1 - correlation with the plain image of the same seed"


def changes(out: Path, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mean change of mitigated images by stratum, entries of audit.json; of strata without any there is none."""
    found: dict[str, list[float]] = {}
    for item in items:
        plain = {image["seed"]: image["file"] for image in item["images"]}
        for image in item["mitigated"]:
            pair = plain.get(image["seed"]), image["file"]
            if None not in pair:
                first, second = (np.asarray(decoded(out / str(name)))[None] for name in pair)
                found.setdefault(item["stratum"], []).append(1 - float(normalized_correlation(first, second)[0, 0]))
    return [
        {"of": of, "measure": MEASURE, "mean": round(float(np.mean(values)), DIGITS), "images": len(values)}
        for of, values in sorted(found.items())
    ]
