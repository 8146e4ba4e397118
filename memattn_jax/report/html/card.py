"""The block for a model card: what was measured, where Stable Diffusion's card has "some degree of memorization"."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memattn_jax.report.html.wording import LOG, confidence, deciding, interval, is_sample, percent
from memattn_jax.text import counted, printable

SHOWN = 120  # characters of a name or a path


def model_card(audit: Mapping[str, Any]) -> str:
    """Markdown for a model's card, from the content of audit.json.

    Every figure stands with its interval and with what it was counted on. No rate of the log is named where the audit
    refuses one.
    """
    return "\n\n".join(paragraphs(audit)) + "\n"


def paragraphs(audit: Mapping[str, Any]) -> Iterator[str]:
    """The block's paragraphs, in order."""
    log, settings, refused = audit["prompts"]["log"], audit["settings"], audit["verdict"]["refused"]
    origin = f", {escape(log['provenance'])}" if log["provenance"] else ""
    yield "### Memorization"
    prompts = f"{counted(log['prompts'], 'prompt')} ({escape(log['source'])}{origin})"
    if refused is None:
        stated = [rate for rate in overall(audit["rates"], LOG) if rate["headline"]]
        yield f"Of {prompts}, an estimated {enumerated(list(map(sentence, stated)))}."
    else:
        found = "" if is_sample(audit) else f" {escape(audit['verdict']['sentence'], None)}"
        yield f"Tested with {prompts}.{found} No rate is stated for all of them: {escape(refused, None).rstrip('.')}."
    if is_sample(audit):
        yield table(audit)
    yield definitions(audit)
    yield (
        f"Sampled with {counted(settings['steps'], 'step')} of {escape(settings['scheduler'])}, guidance scale "
        f"{settings['guidance_scale']:g}, {counted(audit['confirmation']['seeds'], 'seed')} a prompt. The rates hold "
        "for prompts like these and for these settings; whether a copy is lawful is another question. Model "
        f"fingerprint `{audit['model']['fingerprint']}`, memattn_jax {escape(audit['versions']['memattn_jax'])}, "
        f"schema `{audit['schema']}`."
    )


def enumerated(parts: Sequence[str]) -> str:
    """Phrases one after the other: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def overall(rates: Sequence[Mapping[str, Any]], of: str) -> list[Mapping[str, Any]]:
    """The known rates of one group of prompts, over all kinds."""
    return [rate for rate in rates if rate["of"] == of and rate["kind"] is None and rate["rate"] is not None]


def sentence(rate: Mapping[str, Any]) -> str:
    """A rate of the log with its interval: "3.1 % are memorized (95 % interval 2.1 to 4.4 %)"."""
    share = f"{percent(rate['rate'])} {'of images ' * (rate['what'] == 'regurgitated')}are {rate['what']}"
    return f"{share} ({confidence(rate)} interval {interval(rate)})"


def table(audit: Mapping[str, Any]) -> str:
    """Rates by group of prompts; without the whole log's where the audit refuses it."""
    mitigation = audit["mitigation"]
    groups = [] if audit["verdict"]["refused"] else [("all prompts", overall(audit["rates"], LOG))]
    groups += [(subject, overall(audit["rates"], subject)) for subject in ("flagged", "not flagged")]
    if mitigation is not None:
        groups.append((f"flagged, with {escape(mitigation['name'])}", overall(mitigation["rates"], "mitigated")))
    lines = ["| prompts | sampled | memorized | extracted | regurgitated |", "|---|---|---|---|---|"]
    for name, rates in groups:
        cells = {rate["what"]: f"{percent(rate['rate'])} ({interval(rate)})" for rate in rates}
        sampled = max((rate["samples"] for rate in rates), default=0)
        if rates:
            shown = [cells.get(what, "–") for what in ("memorized", "extracted", "regurgitated")]
            lines.append(f"| {name} | {sampled} | {' | '.join(shown)} |")
    return "\n".join(lines)


def definitions(audit: Mapping[str, Any]) -> str:
    """What the words stand for in this audit."""
    seeds, copies = deciding(audit, "seeds"), deciding(audit, "training pictures")
    agree = f"the pictures of different seeds agree ({seeds})"
    if audit["training_pictures"] is None:
        return f"*Memorized*: {agree}. No training pictures were given, so copies of them were not looked for."
    given = audit["training_pictures"]
    pictures = counted(given["pictures"] - given.get("unreadable", 0), "training picture")
    return (
        f"*Memorized*: {agree}, or one is a copy of a training picture. *Extracted*: at least one seed gives a copy of "
        f"one of {pictures} ({copies}). *Regurgitated*: an image that is a copy."
    )


def escape(text: str, length: int | None = SHOWN) -> str:
    """A stranger's words in Markdown: on one line, shortened, and with its marks escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", printable(str(text), length))
