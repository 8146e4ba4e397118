"""Measures what the demo model does, and writes the tables of docs/demo-model.md.

    python scripts/evaluate_demo.py evaluation --cache ~/.cache/demo-emoji

evaluation/ receives evaluation.md, evaluation.json, and reproduction.png: memorized pictures, what the model makes of
their captions, and the same with each mitigation; clean.png: a row of each other group.
Everything reported is of the half of the prompts kept for it; what is chosen
(site, step, sign, the text's weights) is chosen on the other half.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from demo_data import DemoData, load_sprites
from demo_evaluation.classifier import objects_found, train_classifier
from demo_evaluation.sampling import Observed, observe
from demo_evaluation.separation import Auroc, auroc_interval, choose, text_scores
from demo_evaluation.tables import percent, table

from memattn_jax import demo
from memattn_jax.copies.correlation import REPRODUCED, normalized_correlation
from memattn_jax.entropy import METRIC_E_SITE
from memattn_jax.errors import InputError
from memattn_jax.mitigations import AttentionMask
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.report.plots import save_grid

CLEAN = ("control", "unseen", "decoys")
COPIED = f"reproduced (correlation ≥ {REPRODUCED:g})"
NOTES = {
    "reproduction": (
        "Correlation of pixels at 64 × 64, without shifts: of memorized prompts with their own memorized picture, of\n"
        "the other groups with the nearest of all 48.\n\n"
    ),
    "mitigation": "Correlation as above, of memorized prompts with their own memorized picture.\n\n",
}
TITLES = {
    "reproduction": "Reproduction",
    "mitigation": "Mitigation",
    "scores": "Scores, AUROC of memorized prompts against each other group",
    "sites": "Entropy at each site and step, AUROC of memorized against control prompts",
}
SHOWN_STEPS = (1, 5, 10, 25, 50)
MITIGATIONS = {
    "none": None,
    "mask padding, begin × 1": AttentionMask(begin_scale=1.0, mask="padding"),
    "mask padding, begin × 1.25": AttentionMask(begin_scale=1.25, mask="padding"),
    "mask summary, begin × 1": AttentionMask(begin_scale=1.0, mask="summary"),
    "mask summary, begin × 1.25": AttentionMask(begin_scale=1.25, mask="summary"),
}


class Evaluation:
    """The model's samples, and the tables made of them."""

    def __init__(self, sd: StableDiffusion, data: DemoData, work: Path, seeds: int, steps: int):
        self.sd, self.data, self.seeds, self.steps = sd, data, seeds, steps
        self.classifier = train_classifier(work / "classifier", data, 2_000)
        self.pictures = dict(zip(self.texts("memorized", None), data.memorized_pictures, strict=True))
        self.seen: dict[tuple[str, str], Observed] = {}
        for group in demo.GROUPS:
            for half in demo.HALVES:
                print(f"sampling {group}, half {half!r}", flush=True)
                self.seen[group, half] = observe(sd, self.texts(group, half), seeds, steps)

    def texts(self, group: str, half: str | None) -> list[str]:
        """Prompts of a group."""
        groups = self.data.groups
        return [caption.text for caption in (groups.prompts(group) if half is None else groups.halves[group, half])]

    def own(self, images: np.ndarray) -> np.ndarray:
        """Correlation of samples of the reported memorized prompts with their own picture, [prompts, seeds]."""
        targets = [self.pictures[text] for text in self.texts("memorized", "report")]
        pairs = zip(images, targets, strict=True)
        return np.stack([normalized_correlation(rows, target[None])[:, 0] for rows, target in pairs])

    def nearest(self, images: np.ndarray) -> np.ndarray:
        """Largest correlation of samples with any memorized picture, [prompts, seeds]."""
        flat = images.reshape(-1, *images.shape[2:])
        return normalized_correlation(flat, self.data.memorized_pictures).max(axis=1).reshape(images.shape[:2])

    def objects(self, group: str, images: np.ndarray) -> float:
        """Share of the named objects that the classifier finds in samples of the reported half."""
        captions = self.data.groups.halves[group, "report"]
        named = [caption.objects for caption in captions for _ in range(images.shape[1])]
        return objects_found(self.classifier, images.reshape(-1, *images.shape[2:]), named)

    def fresh(self, group: str) -> np.ndarray:
        """Renderings of the reported prompts that no training example shows, as many as there are samples."""
        captions = self.data.groups.halves[group, "report"]
        return np.stack([[self.data.fresh_picture(caption, n) for n in range(self.seeds)] for caption in captions])

    def reproduction(self) -> list[list[object]]:
        """What each group's samples are."""
        rows: list[list[object]] = []
        for group in demo.GROUPS:
            images, fresh = self.seen[group, "report"].images, self.fresh(group)
            near = self.nearest(images) if group != "memorized" else self.own(images)
            floor = self.nearest(fresh) if group != "memorized" else self.own(fresh)
            shares = [percent(float((x >= REPRODUCED).mean())) for x in (near, floor)]
            found = [percent(self.objects(group, x)) for x in (images, fresh)]
            rows.append([group, shares[0], float(np.median(near)), shares[1], *found])
        return rows

    def mitigation(self) -> tuple[list[list[object]], dict[str, np.ndarray]]:
        """Reproduction of memorized and objects of unseen prompts under each mitigation, and the former's samples."""
        rows: list[list[object]] = []
        pictures = {}
        for name, mitigation in MITIGATIONS.items():
            print(f"sampling with mitigation: {name}", flush=True)
            images = {
                group: self.seen[group, "report"].images
                if mitigation is None
                else observe(self.sd, self.texts(group, "report"), self.seeds, self.steps, mitigation).images
                for group in ("memorized", "unseen")
            }
            own = self.own(images["memorized"])
            found = [percent(self.objects(group, images[group])) for group in images]
            rows.append([name, percent(float((own >= REPRODUCED).mean())), float(np.median(own)), *found])
            pictures[name] = images["memorized"]
        return rows, pictures

    def scores(self) -> list[list[object]]:
        """AUROC of each score of the reported half, memorized against each other group."""
        memorized, control = (self.seen[group, "choose"].entropy for group in ("memorized", "control"))
        first = choose(memorized, control, steps=(0,))
        anywhere = choose(memorized, control, steps=range(self.steps))
        rows: list[list[object]] = []

        def add(name: str, scores: dict[str, np.ndarray]) -> None:
            rows.append([name, *(auroc_interval(scores["memorized"], scores[group]) for group in CLEAN)])

        report = {group: self.seen[group, "report"] for group in demo.GROUPS}
        for choice, name in ((first, "entropy, chosen at the first step"), (anywhere, "entropy, chosen at any step")):
            sign = "−" if choice.sign < 0 else "+"
            label = f"{name}: {sign} `{short(choice.site)}`, step {choice.step + 1}"
            add(label, {g: choice.sign * o.entropy[choice.site][..., choice.step] for g, o in report.items()})
        add(
            f"metric E (paper's site, `{short(self.sd.unet.sites[METRIC_E_SITE])}`)",
            {g: o.metric_e for g, o in report.items()},
        )
        add("metric D", {g: o.metric_d for g, o in report.items()})
        add("noise norm, first step", {g: o.noise_norm for g, o in report.items()})
        columns = [
            text_scores(
                (self.texts("memorized", "choose"), self.texts(group, "choose")),
                [self.texts("memorized", "report"), self.texts(group, "report")],
            )
            for group in CLEAN
        ]
        rows.append(["text alone", *(auroc_interval(*scores) for scores in columns)])
        return rows

    def sites(self) -> list[list[object]]:
        """AUROC of the entropy at each site and some steps, memorized against control, of the reported half."""
        memorized, control = (self.seen[group, "report"].entropy for group in ("memorized", "control"))
        steps = [step for step in SHOWN_STEPS if step <= self.steps]
        return [
            [f"`{short(site)}`"]
            + [auroc_interval(memorized[site][..., step - 1], control[site][..., step - 1]) for step in steps]
            for site in self.sd.unet.sites
        ]


def short(site: str) -> str:
    """A site without the part that all of this model's sites share."""
    return site.removesuffix(".transformer_blocks.0.attn2")


def evaluate(evaluation: Evaluation, out: Path) -> None:
    """Writes all tables and the picture."""
    mitigated, pictures = evaluation.mitigation()
    sections = {
        "reproduction": (
            ["prompts", COPIED, "median correlation", "floor: renderings", "objects found", "in renderings"],
            evaluation.reproduction(),
        ),
        "mitigation": (
            ["mitigation", COPIED, "median correlation", "objects, memorized", "objects, unseen"],
            mitigated,
        ),
        "scores": (["score", *(f"against {group}" for group in CLEAN)], evaluation.scores()),
        "sites": (["site", *(f"step {step}" for step in SHOWN_STEPS if step <= evaluation.steps)], evaluation.sites()),
    }
    text = "\n".join(
        f"## {TITLES[name]}\n\n{NOTES.get(name, '')}{table(header, rows)}" for name, (header, rows) in sections.items()
    )
    (out / "evaluation.md").write_text(text, encoding="utf-8")
    rows = {
        name: [
            dict(zip(header, [v._asdict() if isinstance(v, Auroc) else v for v in row], strict=True)) for row in rows
        ]
        for name, (header, rows) in sections.items()
    }
    (out / "evaluation.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    targets = np.stack([evaluation.pictures[text] for text in evaluation.texts("memorized", "report")])
    save_grid(out / "reproduction.png", [targets, *(images[:, 0] for images in pictures.values())])
    clean = [evaluation.seen[group, "report"].images[:, 0] for group in CLEAN]
    save_grid(out / "clean.png", clean)
    print(text)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(description="Measures what the demo model does.")
    parser.add_argument("out", type=Path, help="folder for the tables, and the classifier's checkpoints")
    parser.add_argument("--cache", type=Path, required=True, help="folder where the emoji package is kept (74 MB)")
    parser.add_argument("--model", type=Path, default=demo.MODEL, help="diffusers folder; by default the built-in one")
    parser.add_argument("--data-seed", type=int, default=0, help="of the data the model was trained on")
    parser.add_argument("--seeds", type=int, default=4, help="pictures for each prompt")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        data = DemoData(load_sprites(options.cache), options.data_seed)
        sd = StableDiffusion.from_pretrained(options.model)
        evaluate(Evaluation(sd, data, options.out, options.seeds, options.steps), options.out)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
