"""audit.json of a run of `memattn audit`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from memattn_jax import demo
from memattn_jax.audit import schema
from memattn_jax.audit.change import changes
from memattn_jax.audit.document import confirmation_block, detection_block, mitigated_rates, model_files
from memattn_jax.audit.folder import evidence
from memattn_jax.audit.rates import WHATS, rates_of, without_headlines
from memattn_jax.audit.truth import truth
from memattn_jax.audit.wording import limits, verdict, yield_of_search
from memattn_jax.checkpoints.checkpoint import Source
from memattn_jax.checkpoints.hub import locate
from memattn_jax.commands.auditing import mitigation_settings
from memattn_jax.detectors.calibration.verdicts import MEMORIZED
from memattn_jax.report.html import model_card
from memattn_jax.runs.versions import versions

if TYPE_CHECKING:
    from memattn_jax.commands.auditing import Audit, Found

Row = Mapping[str, Any]


def model_block(audit: "Audit") -> dict[str, Any]:
    """The model: its name, what loads it again, and the digests of its files."""
    options, sd = audit.options, audit.sd
    place = locate(options.model or demo.MODEL, Source(**options.source))
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.given.items()}
    source = {"model": options.model} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items()
    }
    return {
        "name": options.model_name,
        "source": source,
        "fingerprint": sd.fingerprint(pictures=True),
        "files": model_files(place),
        "dtype": sd.dtype,
        "lora": list(map(str, options.lora)),
        "embeddings": list(map(str, options.embedding)),
    }


def document(
    audit: "Audit",
    sources: dict[str, Any],
    found: "Found",
    items: Sequence[Row],
    measures: Sequence[Row],
    adversarial: Row | None,
) -> dict[str, Any]:
    """audit.json; raises InputError where it does not fit its schema, which would be a defect."""
    options, drawn = audit.options, found.drawn
    detected, seeds = found.detected, list(audit.seeds)
    assert detected.rule is not None
    pictures = options.pictures is not None
    unreadable = sources["training_pictures"]["unreadable"] if pictures else 0
    rates = rates_of(items, drawn.sizes, pictures)
    if options.search:
        rates = without_headlines(rates)
    scored = sum(drawn.sizes.values())
    log = sources["log"] | {"prompts": scored, "unreadable": drawn.unscored}
    calibration = audit.out / "detection" / "calibration.json"
    mitigation = None
    if options.named is not None:
        whats = WHATS if pictures else WHATS[:1]
        mitigation = {
            "name": options.mitigating,
            "settings": mitigation_settings(options),
            "rates": mitigated_rates(items, whats),
            "change": changes(audit.out, items),
        }
    made = {
        "schema": schema.VERSION,
        "times": audit.times.finished(),
        "versions": versions(),
        "profile": options.profile_name,
        "model": model_block(audit),
        "settings": {
            **audit.run,
            "seeds": seeds,
            "batch_size": options.batch_size,
            "device": jax.devices()[0].device_kind,
            "devices": 1 if audit.sd.mesh is None else audit.sd.mesh.size,
        },
        "prompts": {"log": log, "clean": sources["clean"]},
        "training_pictures": sources["training_pictures"],
        "detection": detection_block(detected.rule, tuple(detected.scorer.detectors), found.level, drawn, calibration),
        "confirmation": confirmation_block(drawn, items, measures, len(seeds), options.seed),
        "rates": rates,
        "mitigation": mitigation,
        "adversarial": adversarial,
        "truth": truth_of(found, items, rates) if options.built_in_log else None,
        "verdict": yield_of_search(items, pictures) if options.search else verdict(rates, len(seeds)),
        "limits": limits(facts_of(audit, items, measures, adversarial) | {"unreadable": unreadable}),
        "model_card": "",
        "files": evidence(audit.out),
    }
    made["model_card"] = model_card(made)
    schema.check(made, "audit.json")
    return made


def facts_of(audit: "Audit", items: Sequence[Row], measures: Sequence[Row], adversarial: Row | None) -> dict[str, Any]:
    """What the limits depend on; see `limits`."""
    texts = [item["prompt"] for item in items]
    images = [image for item in items for name in ("images", "mitigated") for image in item[name]]
    return {
        "pictures": audit.options.pictures is not None,
        "measures": {one["against"]: one for one in measures if one["decides"]},
        "adversarial": adversarial is not None,
        "repeated": len(texts) - len(set(texts)),
        "not_finite": sum(not image["finite"] for image in images),
        "built_in": audit.options.built_in_log,
    }


def truth_of(found: "Found", items: Sequence[Row], rates: Sequence[Row]) -> dict[str, Any]:
    """What is known of the built-in model."""
    log = [(row["prompt"], row[str(found.kind)], row["verdict"] == MEMORIZED) for row in found.every()]
    return truth(items, rates, log, set(demo.memorized_pictures()))
