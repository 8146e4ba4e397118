"""Audit a checkpoint for memorization: `memattn audit`.

Scores a prompt log by calibrated detectors, samples the flagged prompts and as many others as a control, compares the
images with the training images and the seeds of each prompt with each other, and repeats them with a mitigation. Writes
to --out: audit.json with rates and exact intervals, by the schema memattn_jax/audit/audit.schema.json; items.jsonl, one
line per sampled prompt; the images; report.html and model-card.md. An interrupted audit resumes when the same command
is run again. Without a model and prompts, the built-in model is audited, of which the truth is known. --verify checks a
finished audit.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from memattn_jax import demo
from memattn_jax.commands.audit_options import Options
from memattn_jax.commands.command import FORMAT, run_command
from memattn_jax.commands.mitigating import make_mitigation
from memattn_jax.commands.own import file_of, load_own
from memattn_jax.errors import InputError
from memattn_jax.pictures.decoding import decode
from memattn_jax.pictures.files import image_files, read_image
from memattn_jax.pictures.skipped import UnusableError
from memattn_jax.prompts import read_prompts, stream_prompts
from memattn_jax.text import counted

if TYPE_CHECKING:
    from memattn_jax.commands.auditing import Audit
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.search import Proposals


def main(options: Options) -> None:
    """Audits the model, or verifies a finished audit."""
    if options.verify is not None:
        from memattn_jax.commands.verifying import verify

        verify(options)
        return
    if options.named is not None:
        make_mitigation(options.named.name, options.named.options)  # a wrong field is refused before a model is loaded
    if options.sscd is not None and options.preset is not None:
        from memattn_jax.copies.sscd import load_sscd

        load_sscd(options.sscd, options.preset)  # a file that is no SSCD is refused likewise
    proposals = load_proposals(options)
    sources = read_sources(options)
    from memattn_jax.pipeline import StableDiffusion
    from memattn_jax.sharding.placement import make_mesh

    mesh = make_mesh(options.mesh)
    options.check_schedule(options.scheduler, options.chosen.steps)
    sd = StableDiffusion.from_pretrained(
        demo.locate(options.model), dtype=options.model_dtype, mesh=mesh, **options.source
    )
    audit_model(sd, options, sources, proposals)


def load_proposals(options: Options) -> "Proposals | None":
    """The user's proposals of a search; None without any."""
    if options.proposals is None:
        return None
    return load_own(options.proposals, "--proposals", "start", "candidates", "text")


def audit_model(
    sd: "StableDiffusion", options: Options, sources: dict[str, Any], proposals: "Proposals | None"
) -> None:
    """Audits a loaded model, with what `read_sources` and `load_proposals` return.

    Raises:
      InputError: a model that does not say how large its images are, or a folder with another audit.
    """
    from memattn_jax.audit.folder import Times, claim
    from memattn_jax.commands.auditing import Audit, StoppedError

    if None in sd.latent_shape():
        raise InputError("the model's config has no sample_size, which audit needs")
    plan = plan_of(options, sd, sources)
    store = claim(options.out, plan, options.overwrite)
    if options.search:
        from memattn_jax.commands.searching import search_log

        options = search_log(sd, options, proposals)
        sources = read_sources(options)
    identity = {"command": "audit", "format": FORMAT, "model": plan["model"], "settings": plan["sampling"]}
    audit = Audit(options, sd, options.out, Times(store), identity)
    print_cost(audit, sources)
    try:
        document = carry_out(audit, sources)
    except StoppedError:
        print("stopped; the same command resumes")
        return
    print(document["verdict"]["sentence"])
    print(f"report.html, model-card.md, audit.json and {counted(len(document['files']), 'file')} in {options.out}")


def read_sources(options: Options) -> dict[str, Any]:
    """The blocks of audit.json on prompts and training images.

    Everything is read, so that what is wrong with it is found before a model is loaded.

    Raises:
      InputError: a file that cannot be read, a log without a prompt or with too many kinds, or no usable image.
    """
    from memattn_jax.audit.folder import digest_of_all, digest_of_prompts, file_digest

    def block(source: str | None, texts: Iterable[str], about: dict[str, Any]) -> dict[str, Any]:
        digest, number = digest_of_prompts(texts)
        found = {"source": source or "built-in", "sha256": digest, "hashed": "prompts"}
        if source is not None and Path(source).is_file():
            found |= {"sha256": file_digest(Path(source)), "hashed": "file"}
        return found | {"prompts": number, "unreadable": 0, "kind_column": None} | about

    from memattn_jax.commands.auditing import built_in_log

    named = {"provenance": "see docs/demo-model.md", "licence": "MIT"}
    log: dict[str, Any] = {"provenance": options.provenance, "licence": options.licence, "kind_column": options.kind}
    clean = {"provenance": options.clean_provenance, "licence": options.clean_licence}
    texts: Iterable[str] = [record.text for record in built_in_log()] if options.built_in_log else []
    if options.built_in_log:
        log = named | {"kind_column": "kind"}
    clean_texts = demo.clean_prompts() if options.clean is None else read_prompts(options.clean, options.column)
    found: dict[str, Any] = {
        "log": block(options.prompts, texts if options.prompts is None else log_texts(options), log),
        "clean": block(options.clean, clean_texts, named if options.clean is None else clean),
        "training_pictures": None,
    }
    if options.pictures is not None:
        paths = image_files([options.pictures])
        if not any(map(is_image, paths)):
            raise InputError(f"{options.pictures}: none of {counted(len(paths), 'image')} can be read")
        found["training_pictures"] = {
            "source": "built-in" if options.training_pictures is None else str(options.training_pictures),
            "pictures": len(paths),
            "sha256": digest_of_all(options.pictures, paths),
        }
    return found


def log_texts(options: Options) -> Iterator[str]:
    """The text of every record of --prompts; those that are unreadable stop no audit.

    Raises:
      InputError: no record is a prompt, or --kind has too many values.
    """
    from memattn_jax.audit.strata import check_kinds

    kept = () if options.kind is None else (options.kind,)
    kinds: set[str | None] = set()
    good = False
    for record in stream_prompts(str(options.prompts), options.column, kept):
        if record.error is None:
            good = True
            kinds.update(record.kept)
            check_kinds(str(options.kind), kinds)
        yield record.text
    if not good:
        raise InputError(f"{options.prompts}: none of its records is a prompt; the last one: {record.error}")


def is_image(path: Path) -> bool:
    """Whether a file is an image that can be compared."""
    try:
        decode(read_image(path))
    except UnusableError:
        return False
    return True


def plan_of(options: Options, sd: "StableDiffusion", sources: dict[str, Any]) -> dict[str, Any]:
    """Everything that an audit depends on; a run resumes only a folder with the same plan."""
    from memattn_jax.audit.folder import file_digest
    from memattn_jax.commands.auditing import mitigation_settings

    pictures, searching = sources["training_pictures"], options.searching
    if searching is not None and options.proposals is not None and (own := file_of(options.proposals)) is not None:
        searching["proposals_sha256"] = file_digest(own)
    detecting = {"detectors": options.detectors, options.control[0]: options.control[1], "kind": options.kind}
    comparing = {"sscd": None if options.sscd is None else file_digest(options.sscd), "preset": options.preset}
    return {
        "command": "audit",
        "format": FORMAT,
        "model": sd.fingerprint(pictures=True),
        "prompts": {name: sources[name]["sha256"] for name in ("log", "clean")},
        "training_pictures": None if pictures is None else pictures["sha256"],
        "sampling": {
            "steps": options.chosen.steps,
            "guidance_scale": options.guidance_scale,
            "scheduler": options.scheduler,
            "dtype": sd.dtype,
        },
        "settings": {
            **options.chosen._asdict(),
            **detecting,
            **comparing,
            "mitigation": options.mitigating,
            "mitigation_settings": mitigation_settings(options),
            "search": searching,
            "seed": options.seed,
            "batch_size": options.batch_size,
            "column": options.column,
        },
    }


def print_cost(audit: "Audit", sources: dict[str, Any]) -> None:
    """Prints what the audit costs at most, in forward passes and time on this device."""
    import jax

    from memattn_jax.audit.cost import forwards_to_score, seconds_of_forward, table_of
    from memattn_jax.commands.scoring import given_calibration, make_scorer

    options, profile = audit.options, audit.options.chosen
    asked = audit.detect_options()
    scorer = make_scorer(audit.sd, asked, given_calibration(asked))
    prompts = sources["log"]["prompts"]
    image = 2 * profile.steps
    flagged = min(prompts, profile.prompts)
    fitting = 0 if asked.calibrate is None else sources["clean"]["prompts"]
    parts = {
        "calibration": fitting * forwards_to_score(scorer),
        "detection": prompts * forwards_to_score(scorer),
        "confirmation, at most": min(prompts, 2 * flagged) * profile.images_per_prompt * image,
        "heatmaps, at most": flagged * image,
    }
    if options.named is not None:
        others = min(prompts - flagged, flagged)
        parts["mitigation, at most, without passes of its own"] = (flagged * profile.images_per_prompt + others) * image
    if profile.adversarial:
        runs = 2 if options.named is not None else 1
        parts["adversarial test, at most"] = 2 * runs * profile.adversarial * (50 * 8 * 3 + image)
    print(f"profile {options.profile_name}: {counted(prompts, 'prompt')}, {profile.images_per_prompt} seeds, ", end="")
    print(f"{profile.steps} steps")
    seconds = seconds_of_forward(audit.sd, options.batch_size)
    print(*table_of(parts, seconds, jax.devices()[0].device_kind), sep="\n", flush=True)


def carry_out(audit: "Audit", sources: dict[str, Any]) -> dict[str, Any]:
    """Runs the stages, writes everything, and returns audit.json."""
    from memattn_jax.audit.folder import AUDIT, ITEMS, to_json, write_side_file
    from memattn_jax.commands.audit_document import document
    from memattn_jax.report.html import write_report

    times, store = audit.times, audit.times.store
    with times.add("detection"):
        found = audit.detection()
    print(f"sampling {counted(len(found.rows), 'prompt')} with {counted(len(audit.seeds), 'seed')} each")
    with times.add("confirmation"):
        shots = audit.confirmation(found)
    with times.add("mitigation"):
        mitigation = audit.mitigation(found)
        mitigated = audit.mitigated(found, mitigation)
    with times.add("heatmaps"):
        heatmaps = audit.heatmaps(found)
    with times.add("comparison"):
        facts, measures = audit.compare(shots, mitigated)
        facts.heatmaps = heatmaps
    items = audit.items(found, shots, mitigated, facts)
    if sources["training_pictures"] is not None:
        sources["training_pictures"]["unreadable"] = facts.unreadable
    with times.add("adversarial"):
        adversarial = audit.adversarial(items, facts, mitigation)
    lines = "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in items)
    store.write(ITEMS, lines.encode())
    made = document(audit, sources, found, items, measures, adversarial)
    store.write(AUDIT, to_json(made))
    store.write("model-card.md", made["model_card"].encode())
    write_report(audit.out)
    write_side_file(audit.out, store)
    return made


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn audit`; for `alone` see `run_command`."""
    run_command("audit", Options, main, kept="what --out holds is kept; the same command resumes", alone=alone)
