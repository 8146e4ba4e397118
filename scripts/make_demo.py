"""Makes everything of the built-in model that is made from its weights, in order; goes on where it stopped.

    python scripts/make_demo.py work --cache ~/.cache/demo-emoji --demo demo-model/demo --sscd sscd_disc_mixup.pt

    install      puts --demo, which train_demo.py wrote, in the place of memattn_jax/demo's model, prompts and pictures
    site         memattn_jax.json: the layer that metric E is read at, chosen on the half of the prompts for choosing
    calibration  calibration.json: scores of the clean prompts, by every detector
    entropy      clean_entropy.json: their attention entropy at each step
    tables       docs/built-in-model.md and the pictures beside it in work/evaluation
    detectors    docs/built-in-detectors.md: the table of `memattn evaluate`
    mitigations  docs/built-in-mitigations.md: the table of `memattn evaluate --mitigations all`
    pointing     docs/pointing-game.md: whether heatmaps of words cover what they name
    showcase     docs/showcase.png, and the figures of docs/figures
    audit        docs/audit/report.html: the report of `memattn audit`

Without --demo it starts from the model that is there. Steps that are done for a model are noted in work/done.json, and
`--only STEP` repeats one. Texts that quote a number are not rewritten: `git diff` of the pages says which to look at.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from demo_data import DemoData, load_sprites
from demo_evaluation.evaluation import Evaluation
from demo_evaluation.separation import choose
from PIL import Image

from memattn_jax import demo
from memattn_jax.checkpoints.folder import OWN
from memattn_jax.errors import InputError
from memattn_jax.pipeline import StableDiffusion
from memattn_jax.registries import PRESETS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MADE = ("calibration.json", "clean_entropy.json")  # of one model, and refused by or wrong for another
ATTACKED = 8  # memorized prompts of the adversarial test
REPLACED = ("model", "prompts", "memorized", "ladder", "template")


class Options(NamedTuple):
    """See the command line."""

    work: Path
    cache: Path
    demo: Path | None
    sscd: Path | None
    preset: str
    only: str | None


def run(*command: object) -> None:
    """Runs Python on a script or module, after printing the command.

    Raises:
      InputError: it failed.
    """
    words = [str(word) for word in command]
    print("python", *words, flush=True)
    if status := subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode:
        raise InputError(f"python {words[0]} {words[1]} ended with status {status}; the same command goes on here")


def install(options: Options) -> None:
    """Replaces the built-in model, its prompts and its pictures."""
    if options.demo is None:
        return
    if not (options.demo / "model" / "model_index.json").exists():
        raise InputError(f"{options.demo}: holds no model; expected the demo/ that train_demo.py writes")
    for name in MADE:
        (demo.FOLDER / name).unlink(missing_ok=True)
    for name in REPLACED:
        shutil.rmtree(demo.FOLDER / name, ignore_errors=True)
        if (options.demo / name).exists():
            shutil.copytree(options.demo / name, demo.FOLDER / name)
    shutil.copy(options.demo / "NOTICE.md", demo.FOLDER)


def site(options: Options) -> None:
    """Chooses the layer for metric E at the first step; a detector reads it with the sign of the paper."""
    data = DemoData(load_sprites(options.cache))
    sd = StableDiffusion.from_pretrained(demo.MODEL)
    # with the defaults of evaluate_demo.py, which goes on with these samples
    evaluation = Evaluation(sd, data, evaluation_folder(options), [], graded=False, seeds=4, steps=50)
    memorized, control = (evaluation.half(group, "choose").entropy for group in ("memorized", "control"))
    chosen = choose(memorized, control, steps=(0,), signs=(1,))
    (demo.MODEL / OWN).write_text(json.dumps({"entropy_site": chosen.site}, indent=2) + "\n", encoding="utf-8")


def calibration(options: Options) -> None:
    """Scores the clean prompts."""
    clean = demo.FOLDER / "prompts" / "clean.txt"
    out = model_folder(options) / "calibration"
    asked = ("--calibrate", clean, "--detectors", "all", "--batch-size", 16)
    run("-m", "memattn_jax.detect", *asked, "--out", out, "--overwrite")
    shutil.copy(out / "calibration.json", demo.CALIBRATION)


def entropy(options: Options) -> None:
    """Measures the band that plots show."""
    run("scripts/measure_clean_entropy.py")


def tables(options: Options) -> None:
    """Writes the page of tables."""
    out = evaluation_folder(options)
    weights = [] if options.sscd is None else ["--sscd", options.sscd, "--preset", options.preset]
    run("scripts/evaluate_demo.py", out, "--cache", options.cache, *weights)
    command = " ".join(["python scripts/evaluate_demo.py evaluation --cache sprites", *["--sscd FILE"] * bool(weights)])
    head = (
        "# What the built-in model does\n\n"
        f"Written by `{command}`: the half\n"
        "of the prompts kept for reporting, four pictures a prompt, 50 DDIM steps, guidance 7.5 where none is given.\n"
        "Shares of pictures have exact 95 % intervals.\n\n"
    )
    text = (out / "evaluation.md").read_text(encoding="utf-8")
    (DOCS / "built-in-model.md").write_text(head + text, encoding="utf-8")


def detectors(options: Options) -> None:
    """Writes the table of all detectors."""
    out = model_folder(options) / "detectors"
    run("-m", "memattn_jax.evaluate", "--batch-size", 24, "--overwrite", "--out", out)
    head = (
        "# All detectors on the built-in model\n\n"
        "Written by `python -m memattn_jax.evaluate --batch-size 24`: the 24 memorized prompts of the reported half\n"
        "against its 48 control and unseen ones, one noise a prompt.\n\n"
    )
    text = (out / "evaluation.md").read_text(encoding="utf-8")
    (DOCS / "built-in-detectors.md").write_text(head + text, encoding="utf-8")


def mitigations(options: Options) -> None:
    """Writes the table of all mitigations."""
    out = model_folder(options) / "mitigations"
    weights = [] if options.sscd is None else ["--sscd", options.sscd, "--preset", options.preset]
    run("-m", "memattn_jax.evaluate", "--mitigations", "all", "--adversarial", ATTACKED, "--out", out, *weights)
    with Image.open(out / "mitigations.png") as picture:  # a fifth of the size, and alike to the eye
        picture.convert("RGB").save(DOCS / "figures" / "mitigations.jpg", quality=85, optimize=True)
    words = [
        "--mitigations all --adversarial",
        str(ATTACKED),
        *["--sscd FILE --preset", options.preset] * bool(weights),
    ]
    head = (
        "# All mitigations on the built-in model\n\n"
        f"Written by `python -m memattn_jax.evaluate {' '.join(words)}`\n"
        "on prompts of the reported half, each method with the settings of its authors but for those that its name\n"
        "shows. [Evaluating mitigations](evaluating-mitigations.md) says what the columns are. Clean prompts have no\n"
        "paraphrases here, so `paraphrase_guidance` leaves them as they are.\n\n"
        "![A training image, what the model makes of its prompt, and the same seed with each "
        "mitigation](figures/mitigations.jpg)\n\n"
    )
    text = (out / "mitigations.md").read_text(encoding="utf-8")
    (DOCS / "built-in-mitigations.md").write_text(head + text, encoding="utf-8")


def pointing(options: Options) -> None:
    """Writes the page of the pointing game."""
    command = ["scripts/measure_pointing_game.py", "--cache", str(options.cache)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{command[0]} ended with status {done.returncode}; the same command goes on here")
    page = DOCS / "pointing-game.md"
    text, _, _ = page.read_text(encoding="utf-8").partition("\n| prompts")
    page.write_text(f"{text.rstrip()}\n\n{done.stdout}", encoding="utf-8")


def showcase(options: Options) -> None:
    """Draws the picture of the first page, and the figures of `memattn visualize`."""
    out, figures = model_folder(options) / "showcase", model_folder(options) / "figures"
    run("-m", "memattn_jax.generate", "--out", out)
    shutil.copy(out / "showcase.png", DOCS)
    run("-m", "memattn_jax.visualize", "--overwrite", "--out", figures)
    for path in figures.glob("*.png"):
        shutil.copy(path, DOCS / "figures")


def audit(options: Options) -> None:
    """Audits the model, and keeps the report."""
    out = model_folder(options) / "audit"
    run("-m", "memattn_jax.audit", "--out", out)
    shutil.copy(out / "report.html", DOCS / "audit")


IN_ORDER = (install, site, calibration, entropy, tables, detectors, mitigations, pointing, showcase, audit)
STEPS: dict[str, Callable[[Options], None]] = {step.__name__: step for step in IN_ORDER}


def evaluation_folder(options: Options) -> Path:
    """Where samples are kept, of every model."""
    return options.work / "evaluation"


def model_folder(options: Options) -> Path:
    """Where commands write that would refuse another model's files."""
    return options.work / digest(demo.MODEL)[:12]


def digest(model: Path) -> str:
    """SHA-256 of a folder's weights."""
    found = hashlib.sha256()
    for path in sorted(model.rglob("*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(description="Makes everything that is made from the built-in model's weights.")
    parser.add_argument("work", type=Path, help="folder for samples and what is done")
    parser.add_argument("--cache", type=Path, required=True, help="folder where the emoji package is kept (74 MB)")
    parser.add_argument("--demo", type=Path, help="demo/ of train_demo.py, to replace the built-in model by")
    parser.add_argument("--sscd", type=Path, help="file of SSCD's weights; see docs/copies.md")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="nemo", help="how SSCD's pictures are prepared")
    parser.add_argument("--only", choices=tuple(STEPS), help="do this step, whether it is done or not")
    options = Options(**vars(parser.parse_args(arguments)))
    options.work.mkdir(parents=True, exist_ok=True)
    record = options.work / "done.json"
    try:
        for name, step in STEPS.items():
            if options.only not in (None, name):
                continue
            done = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
            source = options.demo / "model" if name == "install" and options.demo is not None else demo.MODEL
            if options.only is None and done.get(name) == digest(source):
                continue
            print(f"step {name}", flush=True)
            step(options)
            record.write_text(json.dumps(done | {name: digest(demo.MODEL)}, indent=1) + "\n", encoding="utf-8")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
