"""The stages of an audit: calibrated detection, confirmation by sampling, comparison, mitigation."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memattn_jax import demo
from memattn_jax.audit.evidence import agreements, nearest, write_thumbnail
from memattn_jax.audit.folder import INDEX, Times, to_json
from memattn_jax.audit.heatmaps import draw_heatmaps
from memattn_jax.audit.items import Facts, item, shots_by_row
from memattn_jax.audit.masks import write_masks
from memattn_jax.audit.rates import FLAGGED, NOT_FLAGGED
from memattn_jax.audit.sampling import Camera, Shot, sample_shots
from memattn_jax.audit.strata import Drawn, draw, stratum_of
from memattn_jax.commands.audit_options import Options
from memattn_jax.commands.command import note
from memattn_jax.commands.detect_options import OneColumn
from memattn_jax.commands.evaluating_mitigations import texts_for
from memattn_jax.commands.mitigating import describe, make_mitigation
from memattn_jax.commands.model_options import ModelOptions
from memattn_jax.commands.scoring import Detected, Log, clean_prompts, given_calibration, score_log
from memattn_jax.copies.search import Search
from memattn_jax.pictures.files import image_files
from memattn_jax.prompts import Prompt, read_prompts, stream_prompts
from memattn_jax.registries import PRESETS
from memattn_jax.report.findings import Settle, in_parts, pick, summarize
from memattn_jax.runs.versions import versions
from memattn_jax.storage import Store

if TYPE_CHECKING:
    from memattn_jax.mitigations import Mitigation
    from memattn_jax.pipeline import StableDiffusion

Row = dict[str, Any]
KIND = "kind"  # column of the built-in log


class StoppedError(Exception):
    """The process was asked to stop; the same command resumes."""


@dataclass
class Found:
    """What detection found.

    Attributes:
      detected: the table with the scores of the log.
      settle: gives rows their final verdicts.
      level: of the joint p-value that the verdicts follow from.
      drawn: the prompts to sample.
      rows: their rows of the table, with final verdicts, ascending.
      kind: the table's column with the prompts' kind.
    """

    detected: Detected
    settle: Settle
    level: float
    drawn: Drawn
    rows: list[Row]
    kind: str | None

    def every(self) -> Iterator[Row]:
        """All rows of the log with their final verdicts, few of them in memory."""
        names = ["row", "prompt", "length", "p", "verdict", "over", *self.detected.scorer.detectors]
        for part in in_parts(self.detected.table.rows([*names, *([self.kind] if self.kind else [])])):
            yield from self.settle(part)


@dataclass
class Audit:
    """One audit on its way.

    Attributes:
      options: of the command.
      sd: the model.
      out: the folder.
      times: of its parts.
      identity: what images depend on besides prompt, seed and mitigation.
    """

    options: Options
    sd: "StableDiffusion"
    out: Path
    times: Times
    identity: dict[str, Any]

    @cached_property
    def run(self) -> dict[str, Any]:
        """Settings of a sampling run."""
        own = {name: getattr(self.options, name) for name in ("guidance_scale", "scheduler")}
        return {"steps": self.options.chosen.steps, **own}

    @property
    def seeds(self) -> range:
        """Of each prompt's images."""
        return range(self.options.seed, self.options.seed + self.options.chosen.images_per_prompt)

    def log(self) -> Log:
        """The prompts to audit."""
        options, size = self.options, 2 * self.options.batch_size
        if options.built_in_log:
            records = built_in_log()
            return Log(iter(records), min(size, len(records)), lambda: len(records))
        prompts = str(options.prompts)
        kept = () if options.kind is None else (options.kind,)
        records_ = stream_prompts(prompts, options.column, kept, note)
        return Log(records_, size, records_.total)

    def detect_options(self) -> OneColumn:
        """Options with which `detect` writes the same table."""
        own = self.options
        model = {field.name: getattr(own, field.name) for field in fields(ModelOptions)} | {"overwrite": False}
        kind, rate = own.control
        written = self.out / "detection" / "calibration.json"
        fitting = own.clean is not None and not written.is_file()
        if own.clean is None:
            (self.out / "detection").mkdir(exist_ok=True)
            Store(written.parent).write(written.name, demo.CALIBRATION.read_bytes())
        return OneColumn(
            **model,
            fdr=rate if kind == "fdr" else None,
            fpr=rate if kind == "fpr" else None,
            prompts=own.prompts,
            keep=KIND if own.built_in_log else own.kind,
            out=str(written.parent),
            detectors=own.detectors,
            calibrate=Path(str(own.clean)) if fitting else None,
            calibration=None if fitting else written,
            batch_size=2 * own.batch_size,
        )

    def detection(self) -> Found:
        """Scores the log, judges it, and draws what is to be sampled."""
        options = self.detect_options()
        if options.calibrate is not None:  # apart from scoring, so that a run that resumes does the same
            score_log(self.sd, options, None, None, Store(options.out), clean=clean_prompts(options))
            options = self.detect_options()
        detected = score_log(self.sd, options, self.log(), given_calibration(options), Store(options.out))
        if detected is None:
            raise StoppedError
        assert detected.rule is not None
        assert detected.calibration is not None
        kind = detected.calibration.kind
        settle, level = summarize(detected.table, detected.found, kind, detected.carried, listed=False)
        column = detected.carried.names[0] if detected.carried.names else None
        found = Found(detected, settle, level or 0.0, Drawn(), [], column)
        most, everything = self.options.chosen.prompts, self.options.search
        found.drawn = draw(found.every(), most, self.options.seed, column, everything=everything)
        chosen = pick(detected.table, found.drawn.sampled())
        found.rows = settle([chosen[row] for row in found.drawn.sampled()])
        return found

    def camera(self, mitigation: "Mitigation | None", folder: str) -> Camera:
        """What samples images into a folder."""
        about = {"model": self.options.model_name, **self.run, "mitigation": self.options.mitigating}
        if mitigation is None:
            del about["mitigation"]
        arguments = {**self.run, "mitigation": mitigation}
        return Camera(self.sd, arguments, self.options.batch_size, Store(self.out / folder), json.dumps(about))

    def sample(self, camera: Camera, shots: Sequence[Shot], table: str, own: dict[str, Any]) -> list[Row]:
        """Samples images into a table, and keeps how long an image takes."""
        rows, seconds = sample_shots(
            camera, shots, Store(self.out / table), self.identity | own, {"versions": versions()}
        )
        if seconds is not None:
            self.times.set("image_mitigated" if own else "image_plain", seconds)
        if rows is None:
            raise StoppedError
        return rows

    def confirmation(self, found: Found) -> list[Row]:
        """Samples every drawn prompt with every seed."""
        shots = [Shot(row["prompt"], seed, row["row"]) for row in found.rows for seed in self.seeds]
        return self.sample(self.camera(None, "images"), shots, "confirmation", {})

    def mitigation(self, found: Found) -> "Mitigation | None":
        """The mitigation, fitted; None without one, or where it would learn from flagged prompts, and none is."""
        named = self.options.named
        if named is None:
            return None
        flagged = [row["prompt"] for row in found.rows if stratum_of(row) == FLAGGED]
        options = self.options
        clean = demo.clean_prompts() if options.clean is None else read_prompts(options.clean, options.column)
        made = make_mitigation(named.name, named.options, texts_for(named, flagged, clean, built_in=False))
        return made.fit(self.sd, **self.run) if getattr(made, "memorized", True) else None

    def mitigated(self, found: Found, mitigation: "Mitigation | None") -> list[Row]:
        """The flagged prompts on the same seeds with the mitigation, and the others on the first seed."""
        if mitigation is None or self.options.named is None:
            return []
        shots = []
        for row in found.rows:
            stratum = stratum_of(row)
            seeds = self.seeds if stratum == FLAGGED else self.seeds[:1] if stratum == NOT_FLAGGED else ()
            shots += [Shot(row["prompt"], seed, row["row"]) for seed in seeds]
        own = {"mitigation": self.options.mitigating, "mitigation_settings": mitigation_settings(self.options)}
        return self.sample(self.camera(mitigation, "mitigated"), shots, "mitigation", own)

    def search(self) -> Search:
        """How images are compared: SSCD first where its weights are given."""
        embeddings = []
        if self.options.sscd is not None and self.options.preset is not None:
            from memattn_jax.copies.sscd import load_sscd

            embeddings.append((load_sscd(self.options.sscd, self.options.preset), PRESETS[self.options.preset]))
        return Search(self.out / INDEX, embeddings)

    def compare(self, shots: Sequence[Row], mitigated: Sequence[Row]) -> tuple[Facts, list[Row]]:
        """Compares all images with the training pictures, and the seeds of each prompt with each other."""
        folders = {"images": (self.out / "images").absolute(), "mitigated": (self.out / "mitigated").absolute()}
        facts, search = Facts(folders["images"], folders["mitigated"]), self.search()
        measures: list[Row] = []
        if self.options.pictures is not None:
            facts.pictures = self.options.pictures.absolute()
            every = [
                folders[name] / row["file"]
                for name, rows in (("images", shots), ("mitigated", mitigated))
                for row in rows
                if row["file"] is not None
            ]
            facts.nearest, measures = nearest(search, every, image_files([facts.pictures]))
            skipped = [own for (kind, _), own in search.skipped.items() if kind == "references"]
            facts.unreadable = max(map(len, skipped), default=0)
            for line in dict.fromkeys(line for own in skipped for line in own.lines()):
                print(f"training pictures: {line}")
            plain = {one.reference for path, one in facts.nearest.items() if path.parent == facts.images}
            store = Store(self.out / "references")
            masks = Store(self.out / "masks")
            facts.masks = write_masks(shots_by_row(shots), folders["images"], facts.nearest, masks)
            facts.thumbnails = {path: f"references/{write_thumbnail(path, store)}" for path in sorted(plain)}
        for name, rows in (("agreement", shots), ("mitigated_agreement", mitigated)):
            folder = folders["images" if name == "agreement" else "mitigated"]
            groups = {
                number: [folder / own["file"] for own in group if own["file"] is not None]
                for number, group in shots_by_row(rows).items()
            }
            groups = {number: group for number, group in groups.items() if len(group) > 1}
            agreed, used = agreements(search, list(groups.values()))
            setattr(facts, name, dict(zip(groups, agreed, strict=True)))
            measures += used if name == "agreement" else []
        return facts, measures

    def heatmaps(self, found: Found) -> dict[int, list[dict[str, Any]]]:
        """Heatmaps of the flagged prompts that are sampled."""
        flagged = [row for row in found.rows if stratum_of(row) == FLAGGED]
        return draw_heatmaps(self.camera(None, "images"), flagged, self.seeds[0], Store(self.out / "heatmaps"))

    def items(self, found: Found, shots: Sequence[Row], mitigated: Sequence[Row], facts: Facts) -> list[dict[str, Any]]:
        """The lines of items.jsonl."""
        plain, changed = shots_by_row(shots), shots_by_row(mitigated)
        names = tuple(found.detected.scorer.detectors)
        return [
            item(row, names, found.kind, plain[row["row"]], changed.get(row["row"], []), facts) for row in found.rows
        ]

    def adversarial(self, items: Sequence[Row], facts: Facts, mitigation: "Mitigation | None") -> dict[str, Any] | None:
        """Whether optimised embeddings bring extracted training images back, without and with the mitigation."""
        own = [one for one in items if one["extracted"]][: self.options.chosen.adversarial]
        if not own or facts.pictures is None:
            return None
        store = Store(self.out)
        if (stored := store.read("adversarial.json")) is not None:
            return json.loads(stored)
        from memattn_jax.audit.adversarial import bring_back
        from memattn_jax.mitigations import Mitigation

        tried = {"none": Mitigation()} | ({} if mitigation is None else {str(self.options.mitigating): mitigation})
        pictures, options = [facts.extracted(one) for one in own], self.options
        found = bring_back(self.sd, own, self.out, pictures, tried, options.seed, self.run, options.batch_size)
        store.write("adversarial.json", to_json(found))
        return found


def built_in_log() -> list[Prompt]:
    """The prompts of the built-in model, each with its group as its kind."""
    return [
        Prompt(text, None, f"{group}_{half}.txt:{number}", (group,))
        for group in demo.GROUPS
        for half in demo.HALVES
        for number, text in enumerate(demo.prompts(group, half), 1)
    ]


def mitigation_settings(options: Options) -> dict[str, Any]:
    """The fields of the mitigation, as a table records them."""
    named = options.named
    return {} if named is None else describe(make_mitigation(named.name, named.options))
