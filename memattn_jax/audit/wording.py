"""What an audit says in words: its verdict, how sure it is, and what it cannot say."""

from collections.abc import Mapping, Sequence
from typing import Any

from memattn_jax.audit.rates import WIDTH
from memattn_jax.copies.search import PIXELS
from memattn_jax.report.html.wording import LOG, OF, digits
from memattn_jax.text import counted

MEANING = {
    "memorized": "are memorized",
    "extracted": "returned a training picture",
}


def percent(share: float) -> str:
    """A share as a percentage, with the digits that the report's page shows."""
    return f"{digits(share)} %"


def headline_of(rates: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The rate that the verdict states: extracted where training pictures were given, else memorized."""
    of_log = {one["what"]: one for one in rates if one["of"] == "log" and one["kind"] is None}
    return of_log.get("extracted", of_log["memorized"])


def verdict(rates: Sequence[Mapping[str, Any]], seeds: int) -> dict[str, Any]:
    """The block of audit.json: one sentence, how sure it is, and why there is no headline where there is none."""
    rate = headline_of(rates)
    found = f"between {percent(rate['low'])} and {percent(rate['high'])}"
    sampled = f"{counted(rate['samples'], 'prompt')} sampled with {counted(seeds, 'seed')} each"
    sure = (
        f"Exact 95 % interval over prompts, strata combined by Bonferroni; {sampled}. At most 5 % of such intervals "
        "miss the rate that they are about."
    )
    if rate["headline"]:
        share = percent(rate["rate"])
        sentence = f"{share} of the log's prompts {MEANING[rate['what']]} ({found}, with 95 % confidence; {sampled})."
        return {"sentence": sentence, "sure": sure, "refused": None}
    if rate["rate"] is None:
        strata = [one for one in rates if (one["what"], one["kind"]) == (rate["what"], None) and one["of"] != LOG]
        unjudged = " or ".join(OF[one["of"]] for one in strata if not one["samples"])
        refused = (
            f"none of the sampled {unjudged} gave images that could be judged, so the log's rate is not known; "
            f"it lies {found}"
        )
    else:
        refused = (
            f"{sampled} leave the rate {found}, wider than {100 * WIDTH:g} percentage points; "
            f"{rate['needed']} prompts are needed at the rates found"
        )
    return {"sentence": f"No headline: {refused}.", "sure": sure, "refused": refused}


def yield_of_search(items: Sequence[Mapping[str, Any]], pictures: bool) -> dict[str, Any]:
    """The block of audit.json where a search found the prompts, which are no sample of any log.

    Args:
      items: lines of items.jsonl.
      pictures: whether they were compared with training images.
    """
    name = "extracted" if pictures else "memorized"
    count = sum(bool(item[name]) for item in items)
    of = f"{counted(count, 'prompt')} of the {len(items)} that were sampled"
    sentence = f"The search found prompts that nobody gave: {of} {MEANING[name]}."
    refused = "The prompts were found by a search and are no sample of any log, so no rate follows from them."
    sure = "Each of these is shown below with its images. How many more there are is not known."
    return {"sentence": sentence, "sure": sure, "refused": refused}


def limits(facts: Mapping[str, Any]) -> list[str]:
    """What the audit cannot say.

    Args:
      facts: "pictures", whether there are training pictures; "measures", the deciding ones by what they compare with;
        "unreadable", number of training pictures that no image was compared with; "adversarial"; "repeated", number of
        sampled prompts that repeat another one; "not_finite", number of sampled images that are not; "built_in".
    """
    said = [
        "Rates hold for prompts like those of the log, with these settings of the sampler; other prompts and settings "
        "may return more or less.",
        "Flagged is the detector's verdict and nothing more: what is flagged need not be memorized, and what is not "
        "may be. The rates rest on sampled images.",
    ]
    measure = facts["measures"].get("training pictures")
    if facts["pictures"]:
        by = f"{measure['name']} of {measure['threshold']:g} or more" if measure else "no image that could be compared"
        said.append(
            f"Extracted means a copy of one of the given training pictures by {by}; copies of other pictures, and "
            "copies that are cropped, mirrored or changed in style, are not found."
        )
        if facts["unreadable"]:
            number = counted(facts["unreadable"], "training picture")
            said.append(f"{number} could not be read; copies of what cannot be read are not found.")
    else:
        said.append(
            "Without training pictures, nothing is known to be extracted: seeds that agree are evidence of "
            "memorization, not of what was memorized."
        )
    deciding = facts["measures"].values()
    if deciding and all(one["name"] in PIXELS for one in deciding):
        said.append("Images were compared by their pixels, without SSCD, which most papers use.")
    if not facts["adversarial"]:
        said.append("No adversarial test was made: a mitigation that hides a picture need not have removed it.")
    if facts["repeated"]:
        said.append(
            f"{counted(facts['repeated'], 'sampled prompt')} repeated another one of the log; intervals take prompts "
            "to be independent."
        )
    if facts["not_finite"]:
        said.append(f"{counted(facts['not_finite'], 'sampled image')} with NaN or infinity: in no rate.")
    if facts["built_in"]:
        said.append(
            "The built-in model names the layer that entropy_e reads, chosen on half of these prompts: how well they "
            "are flagged is flattered, the rates of what is sampled are not."
        )
        said.append(
            "Decoys share the distinctive words of a memorized prompt: where all seeds of one give the same mixture of "
            "the memorized picture and other objects, it counts as memorized, and not as extracted."
        )
    return said
