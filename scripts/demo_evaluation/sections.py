"""The tables of the evaluation; what a table cannot say stands before it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from demo_evaluation.evaluation import PLAIN, Evaluation
from demo_evaluation.graded import background_likeness
from demo_evaluation.likeness import CORRELATION, Likeness
from demo_evaluation.sampling import Observed, Run
from demo_evaluation.separation import auroc_interval, choose, share, text_scores
from memattn_jax import demo
from memattn_jax.entropy import METRIC_E_SITE
from memattn_jax.mitigations import AttentionMask
from memattn_jax.registries import FIRST_STEP

CLEAN = ("control", "unseen", "decoys")
SHOWN_STEPS = (1, 5, 10, 25, 50)
MITIGATIONS = {
    "none": PLAIN,
    "mask padding, begin × 1": Run(AttentionMask(begin_scale=1.0, mask="padding")),
    "mask padding, begin × 1.25": Run(AttentionMask(begin_scale=1.25, mask="padding")),
    "mask summary, begin × 1": Run(AttentionMask(begin_scale=1.0, mask="summary")),
    "mask summary, begin × 1.25": Run(AttentionMask(begin_scale=1.25, mask="summary")),
}
GUIDANCE = (PLAIN, Run(guidance_scale=3.0), Run(guidance_scale=1.0), Run(guided=0.3))


class Section(NamedTuple):
    """A table with its title and what is to be known of it."""

    title: str
    note: str
    header: Sequence[str]
    rows: list[list[object]]


def reproduction(evaluation: Evaluation, measure: Likeness) -> Section:
    """How like a training picture the samples of each group are, and renderings that training never showed."""
    count = len(evaluation.references)
    note = (
        f"Measure: {measure.name}{', of pixels at 64 × 64, without shifts' * (measure is CORRELATION)}. Reference: a "
        f"memorized prompt's own picture; for the other groups the nearest of the {count} pictures that training "
        "showed more than once. Renderings of the same prompts, which training never showed, say what a model that "
        "copies nothing would reach."
    )
    rows: list[list[object]] = []
    for group in demo.GROUPS:
        row: list[object] = [group]
        for images in (evaluation.half(group).images, evaluation.fresh(evaluation.captions(group))):
            if group == "memorized":
                alike = measure.own(images, evaluation.targets)
            else:
                alike = measure.nearest(images, evaluation.references)
            row += [*(share(alike >= limit) for limit in measure.thresholds), float(np.median(alike))]
        rows.append(row)
    columns = [*(f"≥ {limit:g}" for limit in measure.thresholds), "median"]
    header = ["prompts", *columns, *(f"renderings, {column}" for column in columns)]
    return Section(f"Reproduction, by {measure.name}", note, header, rows)


def objects(evaluation: Evaluation) -> Section:
    """Whether samples show what their prompts name."""
    note = "By a classifier that was trained on renderings."
    rows: list[list[object]] = []
    for group in demo.GROUPS:
        captions = evaluation.captions(group)
        pictures = (evaluation.half(group).images, evaluation.fresh(captions))
        rows.append([group, *(share(evaluation.found(captions, images)) for images in pictures)])
    return Section("Objects", note, ["prompts", "objects found", "in renderings"], rows)


def mitigation(evaluation: Evaluation) -> tuple[Section, dict[str, np.ndarray]]:
    """Reproduction of memorized and objects of memorized and unseen prompts; and the former's samples."""
    rows: list[list[object]] = []
    pictures = {}
    for name, method in MITIGATIONS.items():
        images = {}
        for group in ("memorized", "unseen"):
            label = f"{group}-report" if method is PLAIN else f"{group}-report, {name}"
            images[group] = evaluation.observe(label, evaluation.texts(group), method).images
        own = [measure.own(images["memorized"], evaluation.targets) for measure in evaluation.measures]
        copies = [share(x >= measure.thresholds[0]) for x, measure in zip(own, evaluation.measures, strict=True)]
        found = [share(evaluation.found(evaluation.captions(group), images[group])) for group in images]
        rows.append([name, *copies, *found])
        pictures[name] = images["memorized"]
    limits = [f"{measure.name} ≥ {measure.thresholds[0]:g}" for measure in evaluation.measures]
    note = "Reference: the prompt's own picture."
    header = ["mitigation", *limits, "objects, memorized", "objects, unseen"]
    return Section("Mitigation", note, header, rows), pictures


def guidance(evaluation: Evaluation) -> Section:
    """Reproduction of memorized prompts and objects by guidance: its scale, and the steps that are guided."""
    rows: list[list[object]] = []
    for how in GUIDANCE:
        label = f", guidance {how.guidance_scale:g} in {how.guided:g}" * (how is not PLAIN)
        groups = ("memorized", "unseen", "decoys")
        images = {
            group: evaluation.observe(f"{group}-report{label}", evaluation.texts(group), how).images for group in groups
        }
        cells: list[object] = []
        for measure in evaluation.measures:
            own = measure.own(images["memorized"], evaluation.targets)
            cells += [share(own >= measure.thresholds[0]), float(np.median(own))]
        found = [share(evaluation.found(evaluation.captions(group), images[group])) for group in groups]
        steps = "all" if how.guided == 1 else f"the first {100 * how.guided:.0f} %"
        rows.append([f"{how.guidance_scale:g}", steps, *cells, *found])
    of_copies = [
        title for one in evaluation.measures for title in (f"{one.name} ≥ {one.thresholds[0]:g}", f"median {one.name}")
    ]
    note = (
        "Reference: the prompt's own picture. Guidance 1 is none; where only the first steps are guided, the others "
        "have none."
    )
    header = ["guidance", "in steps", *of_copies, *(f"objects, {group}" for group in groups)]
    return Section("Guidance", note, header, rows)


def scores(evaluation: Evaluation) -> Section:
    """AUROC of each score of the reported half, memorized against each other group."""
    memorized, control = (evaluation.half(group, "choose").entropy for group in ("memorized", "control"))
    report: dict[str, Observed] = {group: evaluation.half(group) for group in demo.GROUPS}
    rows: list[list[object]] = []

    def add(name: str, values: dict[str, np.ndarray]) -> None:
        rows.append([name, *(auroc_interval(values["memorized"], values[group]) for group in CLEAN)])

    for steps, name in (((0,), "at the first step"), (range(evaluation.steps), "at any step")):
        choice = choose(memorized, control, steps)
        label = (
            f"entropy, chosen {name}: {'−' if choice.sign < 0 else '+'} `{short(choice.site)}`, step {choice.step + 1}"
        )
        add(label, {g: choice.sign * o.entropy[choice.site][..., choice.step] for g, o in report.items()})
    site = evaluation.sd.unet.sites[METRIC_E_SITE]
    add(f"metric E (paper's site, `{short(site)}`)", {g: o.entropy[site][..., 0] for g, o in report.items()})
    add("metric D", {g: o.metric_d for g, o in report.items()})
    add("noise norm, first step", {g: o.noise_norm for g, o in report.items()})
    memorized_texts = [evaluation.texts("memorized", half) for half in demo.HALVES]
    by_text = []
    for group in CLEAN:
        texts = [evaluation.texts(group, half) for half in demo.HALVES]
        by_text.append(text_scores((memorized_texts[0], texts[0]), [memorized_texts[1], texts[1]]))
    rows.append(["text alone", *(auroc_interval(*some) for some in by_text)])
    note = "Intervals are 95 %, by bootstrap over prompts."
    header = ["score", *(f"against {group}" for group in CLEAN)]
    return Section("Scores, AUROC of memorized prompts against each other group", note, header, rows)


def sites(evaluation: Evaluation) -> Section:
    """AUROC of the entropy at each site and some steps, memorized against control, of the reported half."""
    memorized, control = (evaluation.half(group).entropy for group in ("memorized", "control"))
    steps = [step for step in SHOWN_STEPS if step <= evaluation.steps]
    rows: list[list[object]] = [
        [f"`{short(site)}`"]
        + [auroc_interval(memorized[site][..., step - 1], control[site][..., step - 1]) for step in steps]
        for site in evaluation.sd.unet.sites
    ]
    title = "Entropy at each site and step, AUROC of memorized against control prompts"
    return Section(title, "", ["site", *(f"step {step}" for step in steps)], rows)


def short(site: str) -> str:
    """A site without the part that all of this model's sites share."""
    return site.removesuffix(".transformer_blocks.0.attn2")


def ladder(evaluation: Evaluation) -> tuple[Section, Section, dict[str, list[float]]]:
    """Reproduction and detection by how often training showed the picture, and the series to plot."""
    clean_texts = evaluation.texts("control") + evaluation.texts("unseen")
    clean = evaluation.sd.detect(clean_texts, FIRST_STEP).scores
    copies: list[list[object]] = []
    detection: list[list[object]] = []
    series: dict[str, list[float]] = {}
    for level in evaluation.levels:
        images = evaluation.observe(level.name, level.texts).images
        found = evaluation.sd.detect(level.texts, FIRST_STEP).scores
        own = {measure.name: measure.own(images, level.pictures) for measure in evaluation.measures}
        shares = {
            f"{measure.name} ≥ {measure.thresholds[0]:g}": share(own[measure.name] >= measure.thresholds[0])
            for measure in evaluation.measures
        }
        medians = [float(np.median(alike)) for alike in own.values()]
        background: object = ""
        if level.is_template:
            background = float(np.median(background_likeness(evaluation.data, level, images)))
        copies.append([level.title, f"{level.rate:.3g}", *shares.values(), *medians, background])
        areas = {name: auroc_interval(found[name][:, None], clean[name][:, None]) for name in FIRST_STEP}
        detection.append([level.title, f"{level.rate:.3g}", *areas.values()])
        if not level.is_template:
            for name, value in (shares | areas).items():
                series.setdefault(name, []).append(value.value)
    medians_of = [f"median {measure.name}" for measure in evaluation.measures]
    limits = [f"{measure.name} ≥ {measure.thresholds[0]:g}" for measure in evaluation.measures]
    note = (
        "Times shown are for 256 of a memorized picture. Reference: the prompt's own picture; of a template, the "
        "template with that object. The background is compared, by correlation, where that picture does not "
        "show the object."
    )
    first = Section(
        "Reproduction by duplication", note, ["prompts", "times shown", *limits, *medians_of, "background"], copies
    )
    note = (
        "Against the control and unseen prompts of the reported half, one noise for all. The words of a rung's names "
        "occur in its captions alone, so they are rarer on lower rungs too."
    )
    second = Section("Detection by duplication, AUROC", note, ["prompts", "times shown", *FIRST_STEP], detection)
    return first, second, series
