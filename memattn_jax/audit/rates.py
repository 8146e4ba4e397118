"""Rates with exact intervals, for a log and each kind of its prompts, and whether they are precise enough to be stated.

Prompts are the trials. Within a stratum (flagged, not flagged, unknown) the interval is that of Clopper and Pearson
(Biometrika 26, 1934). A rate of the log weighs the strata by their shares of its prompts, wₕ = Nₕ / N, of which nₕ were
sampled at random:

    p = Σ wₕ p̂ₕ,   from Σ wₕ lowₕ to Σ wₕ highₕ,

each stratum's interval at confidence 1 − α / strata, so that all hold together with 1 − α (Bonferroni), and with them
any weighted sum. The interval is wider than it need be, never narrower. Where all of a stratum was sampled, it still
counts as a sample: of prompts like these, and of the model's noise.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memattn_jax.evaluation.shares import share_interval

CONFIDENCE = 0.95
WIDTH = 0.2  # of an interval at most, for a rate that is stated as a headline: ± 10 percentage points
CONTROL = 0.1  # width at most that a stratum may add of which nothing is memorized
FLAGGED, NOT_FLAGGED, UNKNOWN = STRATA = ("flagged", "not flagged", "unknown")
WHATS = ("memorized", "extracted", "regurgitated")
EXACT, STRATIFIED = "Clopper–Pearson", "stratified, Clopper–Pearson with Bonferroni"


@dataclass(frozen=True)
class Share:
    """What was found in a stratum, or in the part of it that is of one kind.

    Attributes:
      prompts: in the log.
      samples: of them that were sampled, and could be judged.
      count: of those that are what is asked for; a sum of shares where a prompt has one.
    """

    prompts: int
    samples: int
    count: float

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Of Clopper and Pearson; [0, 1] without samples."""
        return share_interval(self.count / self.samples, self.samples, confidence) if self.samples else (0.0, 1.0)


def combined(shares: Sequence[Share], confidence: float = CONFIDENCE) -> tuple[float | None, float, float]:
    """The rate over all strata, None where one with prompts has no samples, and its interval; see the module."""
    present = [share for share in shares if share.prompts]
    total = sum(share.prompts for share in present)
    if not total:
        return None, 0.0, 1.0
    each = 1 - (1 - confidence) / len(present)
    weighted = [(share.prompts / total, share, *share.interval(each)) for share in present]
    rate = None
    if all(share.samples for share in present):
        rate = sum(weight * share.count / share.samples for weight, share, _, _ in weighted)
    low, high = (
        sum(weight * low for weight, _, low, _ in weighted),
        sum(weight * high for weight, _, _, high in weighted),
    )
    return rate, min(low, 1.0), min(high, 1.0)


def width(shares: Sequence[Share]) -> float:
    """Of the interval of the rate over all strata."""
    _, low, high = combined(shares)
    return high - low


def needed(shares: Sequence[Share], most: float = WIDTH) -> int:
    """How many prompts must be sampled for an interval of this width, at the rates found so far.

    The allocation to strata stays as it is; a stratum without samples counts as one with a single prompt that is not.
    """

    def scaled(factor: float) -> list[Share]:
        return [
            replace(share, samples=(n := math.ceil(factor * share.samples)), count=share.count / share.samples * n)
            for share in (one if one.samples else replace(one, samples=1) for one in shares if one.prompts)
        ]

    low, high = 1.0, 1.0
    while width(scaled(high)) > most:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if width(scaled(middle)) > most else (low, middle)
    return sum(share.samples for share in scaled(high))


def fewest_control() -> int:
    """Prompts to sample of those that are not flagged, so that they add at most `CONTROL` where none is memorized."""
    tail = (1 - CONFIDENCE) / 4  # two strata, two sides
    return math.ceil(math.log(tail) / math.log(1 - CONTROL))


def found(item: Mapping[str, Any], what: str) -> float | None:
    """How far a line of items.jsonl is what is asked for, from 0 to 1; None where it could not be judged."""
    if what != "regurgitated":
        return None if item[what] is None else float(item[what])
    copies = [image["copy"] for image in item["images"] if image["copy"] is not None]
    return sum(copies) / len(copies) if copies else None


def share_of(items: Iterable[Mapping[str, Any]], what: str, prompts: int) -> Share:
    """What was found in the sampled items of a stratum with this number of prompts."""
    values = [value for item in items if (value := found(item, what)) is not None]
    return Share(prompts, len(values), sum(values))


def rates_of(
    items: Sequence[Mapping[str, Any]], sizes: Mapping[tuple[str, str | None], int], pictures: bool
) -> list[dict[str, Any]]:
    """The rates of audit.json: of the log and of each stratum, over all kinds and for each.

    Args:
      items: lines of items.jsonl; of each, stratum, kind, memorized, extracted and images are read.
      sizes: number of the log's prompts by stratum and kind.
      pictures: whether there are training pictures, without which nothing is known to be extracted or regurgitated.
    """
    kinds = sorted({kind for _, kind in sizes if kind is not None})
    entries = []
    for what in WHATS if pictures else WHATS[:1]:
        for kind in (None, *kinds):
            shares = {}
            for stratum in STRATA:
                prompts = sum(n for (name, own), n in sizes.items() if name == stratum and kind in (None, own))
                own = [one for one in items if one["stratum"] == stratum and kind in (None, one["kind"])]
                if prompts:
                    shares[stratum] = share_of(own, what, prompts)
            if shares:
                entries.append(log_rate(what, kind, list(shares.values())))
                entries += [stratum_rate(what, name, kind, share) for name, share in shares.items()]
    return entries


def without_headlines(rates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rates of prompts that a search found, which are no sample of any log."""
    return [{**rate, "headline": False, "needed": None} for rate in rates]


def log_rate(what: str, kind: str | None, shares: Sequence[Share]) -> dict[str, Any]:
    """An entry for the whole log; that over all kinds is a headline where it is precise enough."""
    rate, low, high = combined(shares)
    precise = rate is not None and high - low <= WIDTH
    return {
        **entry_of(what, "log", kind, sum(share.count for share in shares), sum(share.samples for share in shares)),
        "rate": rate,
        "low": low,
        "high": high,
        "method": STRATIFIED,
        "headline": precise and kind is None,
        "needed": None if precise else needed(shares),
    }


def stratum_rate(what: str, of: str, kind: str | None, share: Share) -> dict[str, Any]:
    """An entry for a stratum, or for mitigated prompts."""
    low, high = share.interval()
    entry = entry_of(what, of, kind, share.count, share.samples)
    rate = share.count / share.samples if share.samples else None
    return {**entry, "rate": rate, "low": low, "high": high, "method": EXACT, "headline": False, "needed": None}


def entry_of(what: str, of: str, kind: str | None, count: float, samples: int) -> dict[str, Any]:
    """What all entries begin with."""
    whole = {"count": int(count) if count == int(count) else count, "samples": samples}
    return {"what": what, "of": of, "kind": kind, **whole, "confidence": CONFIDENCE}
