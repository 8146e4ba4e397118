"""Measures what the demo model does, and writes the tables of docs/built-in-model.md.

    python scripts/evaluate_demo.py evaluation --cache ~/.cache/demo-emoji --sscd sscd_disc_mixup.torchscript.pt

evaluation/ receives evaluation.md, evaluation.json, and pictures: reproduction.png, memorized pictures and what the
model makes of their captions, without and with each mitigation; clean.png, a row of each other group; and for a model
that was trained on the ladder, ladder.png with a row of its pictures and one of samples for each rung, and
duplication.png. Everything sampled is kept in evaluation/samples: the same command goes on where it stopped.

Everything reported is of the half of the prompts kept for it; what is chosen (site, step, sign, the text's weights) is
chosen on the other half. Without --sscd, correlation is the only measure of copies.
"""

import argparse
import json
import sys
from pathlib import Path
from textwrap import fill

from demo_data import DemoData, load_sprites
from demo_evaluation import sections
from demo_evaluation.evaluation import Evaluation
from demo_evaluation.graded import plot_series
from demo_evaluation.likeness import CORRELATION, sscd
from demo_evaluation.tables import plain, table

from memattn_jax import demo
from memattn_jax.errors import InputError
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.registries import PRESETS
from memattn_jax.report.plots import save_grid

WIDTH = 120  # of lines
GRID = 12  # pictures of each rung that are shown


def evaluate(evaluation: Evaluation, out: Path) -> str:
    """Writes all tables and pictures; returns the tables."""
    mitigated, pictures = sections.mitigation(evaluation)
    made = [sections.reproduction(evaluation, measure) for measure in evaluation.measures]
    made += [sections.objects(evaluation), mitigated, sections.guidance(evaluation)]
    if evaluation.levels:
        copies, detection, series = sections.ladder(evaluation)
        made += [copies, detection]
        rungs = [level for level in evaluation.levels if not level.is_template]
        plot_series(out / "duplication.png", [level.rate for level in rungs], series)
        samples = [evaluation.observe(level.name, level.texts).images[:, 0] for level in evaluation.levels]
        pairs = zip(evaluation.levels, samples, strict=True)
        save_grid(
            out / "ladder.png", [row for level, images in pairs for row in (level.pictures[:GRID], images[:GRID])]
        )
    made += [sections.scores(evaluation), sections.sites(evaluation)]
    text = "\n".join(
        f"## {title}\n\n{fill(note, WIDTH)}{chr(10) * 2 * bool(note)}{table(header, rows)}"
        for title, note, header, rows in made
    )
    (out / "evaluation.md").write_text(text, encoding="utf-8")
    rows = {title: [dict(zip(header, map(plain, row), strict=True)) for row in rows] for title, _, header, rows in made}
    (out / "evaluation.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    save_grid(out / "reproduction.png", [evaluation.targets, *(images[:, 0] for images in pictures.values())])
    save_grid(out / "clean.png", [evaluation.half(group).images[:, 0] for group in sections.CLEAN])
    return text


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(description="Measures what the demo model does.")
    parser.add_argument("out", type=Path, help="folder for the tables and the samples")
    parser.add_argument("--cache", type=Path, required=True, help="folder where the emoji package is kept (74 MB)")
    parser.add_argument("--model", type=Path, default=demo.MODEL, help="diffusers folder; by default the built-in one")
    parser.add_argument("--sscd", type=Path, help="file of SSCD's weights; see docs/copies.md")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="nemo", help="how SSCD's pictures are prepared")
    parser.add_argument("--data-seed", type=int, default=0, help="of the data the model was trained on")
    parser.add_argument("--seeds", type=int, default=4, help="pictures for each prompt")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        measures = [CORRELATION]
        if options.sscd is not None:
            measures.append(sscd(options.sscd, options.preset, options.out))
        evaluation = Evaluation(
            StableDiffusion.from_pretrained(options.model),
            DemoData(load_sprites(options.cache), options.data_seed),
            options.out,
            measures,
            graded=(options.model.parent / "prompts" / "truth.csv").exists(),
            seeds=options.seeds,
            steps=options.steps,
        )
        print(evaluate(evaluation, options.out))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
