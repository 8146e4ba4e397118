"""Find the training image that each image is most like, or how far seeds of a prompt agree: `memattn copies`.

With --references, writes to --out: copies.csv, one row per image and measure, with the most similar reference; and
copies.png, the most similar pairs. Without: agreement.csv, one row per prompt and measure; and agreement.png. Prompts
are then read from the PNGs that `generate` writes. Every number stands with its measure and preset: correlation over
small shifts and the tiled l2 distance of Carlini et al., and with --sscd or --embedding similarities of vectors.
copies.json holds the settings. Vectors are kept in --index, where only new and changed files are embedded again.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro

from memattn_jax.commands.command import run_command
from memattn_jax.commands.options import BY_DEFAULT, at_least, check_sscd, files, finite, local_out, one_of
from memattn_jax.commands.own import check_own, load_own
from memattn_jax.errors import InputError
from memattn_jax.pictures.files import image_files, texts_of
from memattn_jax.registries import PRESETS
from memattn_jax.runs.versions import versions
from memattn_jax.text import counted, printable

if TYPE_CHECKING:
    from memattn_jax.copies.embedding import Embedding, Preparing
    from memattn_jax.copies.search import Search

LISTED = 5  # pairs of each measure on the terminal
PROMPTS = 10  # prompts on the terminal
THRESHOLD = 0.7  # of an embedding of a user's own


@dataclass(frozen=True, kw_only=True)
class Options:
    """Find the training image that each image is most like; without --references, how far seeds of a prompt agree."""

    images: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES …", help_behavior_hint="")
    ] = ()
    """Image files, and folders of them, searched recursively."""
    references: Annotated[Path | None, BY_DEFAULT] = None
    """Folder of training images of any size, searched recursively. Without it, images are compared with those that have
    the same prompt."""
    sscd: Annotated[Path | None, BY_DEFAULT] = None
    """Weights of SSCD: .torchscript.pt, .torchvision.pt, .classy.pt, .safetensors or .onnx."""
    preset: Annotated[str | None, one_of(*PRESETS), BY_DEFAULT] = None
    """How images are prepared for SSCD; papers differ, and so do their numbers. Required with --sscd."""
    embedding: Annotated[str | None, BY_DEFAULT] = None
    """An embedding of your own, FILE.py:NAME or MODULE:NAME: a function of uint8 images [n, h, w, 3], or a class to be
    called without arguments, with an attribute `measure`. The file is run."""
    threshold: Annotated[float | None, BY_DEFAULT] = None
    """Similarity by SSCD or --embedding from which two images are alike. Default: that of the preset (official 0.75,
    nemo and wen 0.7, dcr 0.5), else 0.7. Of correlation and tiled l2 it is 0.9."""
    shifts: int = 2
    """Pixels that images are shifted by at most, along each axis, to find their largest correlation."""
    same_prompt: bool = False
    """All images are of one prompt, whatever their files say."""
    batch_size: int = 32
    """Number of images embedded at once."""
    index: Annotated[Path | None, BY_DEFAULT] = None
    """Folder for the vectors of references and images; several runs may share one. Default: index in --out."""
    out: Path = Path("out/copies")
    """Output folder."""
    overwrite: bool = False
    """Replace existing results in the output folder."""

    def check(self) -> None:
        """Raises InputError or OSError for invalid options, without importing JAX."""
        if not self.images:
            raise InputError("no images: name files or folders of images")
        files(self, "references", "sscd")
        local_out(self)
        check_sscd(self)
        if self.embedding is not None:
            check_own(self.embedding, "--embedding")
        finite(self, "threshold")
        if self.threshold is not None and self.sscd is None and self.embedding is None:
            raise InputError("--threshold has no effect without --sscd or --embedding")
        if self.same_prompt and self.references is not None:
            raise InputError("--same-prompt has no effect with --references")
        at_least(self, 1, "batch_size")
        at_least(self, 0, "shifts")
        if (self.out / "copies.json").exists() and not self.overwrite:
            raise InputError(f"{self.out}: already holds results; choose another --out or add --overwrite")


def without_plots(images: list[Path]) -> list[Path]:
    """Leaves out the plots that commands write beside images, and says so.

    Raises:
      InputError: there is nothing else.
    """
    kept = [path for path in images if not texts_of(path).get("Software", "").startswith("Matplotlib")]
    if not kept:
        raise InputError(f"{printable(str(images[0]), 100)}: a plot; no other images to compare")
    if len(kept) < len(images):
        print(f"{counted(len(images) - len(kept), 'plot')} left out")
    return kept


def embeddings_of(options: Options) -> "list[tuple[Embedding | Preparing, float]]":
    """The embeddings that the options name, each with the similarity from which images are alike."""
    found: list[tuple[Embedding | Preparing, float]] = []
    if options.sscd is not None and options.preset is not None:
        from memattn_jax.copies.sscd import load_sscd

        sscd = load_sscd(options.sscd, options.preset)
        found.append((sscd, PRESETS[options.preset] if options.threshold is None else options.threshold))
    if options.embedding is not None:
        own = load_own(options.embedding, "--embedding", "measure")
        found.append((own, THRESHOLD if options.threshold is None else options.threshold))
    return found


def groups_of(options: Options, images: list[Path]) -> dict[str, list[Path]]:
    """The images of each prompt that has two or more; prints how many are left out.

    Raises:
      InputError: no prompt has two.
    """
    groups: dict[str, list[Path]] = {}
    unknown = 0
    for path in images:
        prompt = "" if options.same_prompt else texts_of(path).get("prompt")
        if prompt is None:
            unknown += 1
        else:
            groups.setdefault(prompt, []).append(path)
    several = {prompt: paths for prompt, paths in groups.items() if len(paths) > 1}
    if not several:
        raise InputError(
            f"no two of {counted(len(images), 'image')} have the same prompt in their PNG text; "
            "give --references DIR, or --same-prompt if all are seeds of one prompt"
        )
    if unknown:
        print(f"{counted(unknown, 'image')} left out, without a prompt in the file; --same-prompt compares all")
    if alone := len(groups) - len(several):
        print(f"{counted(alone, 'prompt')} left out, with a single image")
    return several


@contextmanager
def searching(options: Options, files: int, compared: int = 0) -> "Iterator[Search]":
    """A search of this number of files, and pixels of some, with a progress bar; prints what was skipped at its end."""
    from tqdm import tqdm

    from memattn_jax.copies.search import Search

    embeddings = embeddings_of(options)
    index = options.index or options.out / "index"
    with tqdm(total=files * (len(embeddings) + 1) + compared, unit="image", disable=None) as bar:
        search = Search(
            index, embeddings, options.shifts, options.batch_size, lambda number: bar.update(number) and None
        )
        yield search
    lines = dict.fromkeys(
        f"{kind}: {line}" for (kind, _), skipped in search.skipped.items() for line in skipped.lines()
    )
    print(*lines, sep="\n", end="\n" * bool(lines))


def main(options: Options) -> None:
    """Compares the images with the references, or with those of the same prompt."""
    images = without_plots(image_files(options.images))
    options.out.mkdir(parents=True, exist_ok=True)
    written, about = compare(options, images) if options.references is not None else agree(options, images)
    about |= {"settings": asdict(options), "versions": versions()}
    (options.out / "copies.json").write_text(json.dumps(about, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"{written} and copies.json in {options.out}")


def compare(options: Options, images: list[Path]) -> tuple[str, dict[str, Any]]:
    """Finds the most similar reference of every image; returns what was written, and a summary."""
    from memattn_jax.report.copies import draw_pairs, match_row, statistics, summary, write_csv

    references = image_files([options.references])  # type: ignore[list-item]
    if both := {path.resolve() for path in images} & {path.resolve() for path in references}:
        first = printable(str(min(both)), 100)
        raise InputError(f"{first}: is in --references too, and would be its own copy; keep the two apart")
    with searching(options, len(images) + len(references), len(images)) as search:
        matches = search.copies(images, references)
    if not matches:
        raise InputError(f"no image can be used, of {counted(len(images), 'image')} to compare")
    texts = {path: texts_of(path) for path in {one.picture for one in matches}}
    write_csv(options.out / "copies.csv", (match_row(one, texts[one.picture]) for one in matches))
    where = f"{counted(len(references), 'image')} in {options.references}"
    draw_pairs(options.out / "copies.png", matches, where)
    print(*summary(matches, where, LISTED), sep="\n")
    return "copies.csv, copies.png", {"references": len(references), "measures": statistics(matches)}


def agree(options: Options, images: list[Path]) -> tuple[str, dict[str, Any]]:
    """Measures how far the images of each prompt agree; returns what was written, and a summary."""
    from memattn_jax.report.copies import Agreeing, agreement_row, draw_agreement, write_csv

    groups = groups_of(options, images)
    count = sum(map(len, groups.values()))
    with searching(options, count, count) as search:
        agreed = search.agreements(list(groups.values()))
    found = [Agreeing(prompt, *one) for prompt, ones in zip(groups, agreed, strict=True) for one in ones]
    if not found:
        raise InputError(f"no prompt has two images that can be used, of {counted(count, 'image')}")
    if lost := sum(not ones for ones in agreed):
        print(f"{counted(lost, 'prompt')} left out, without two images that differ and can be read")
    write_csv(options.out / "agreement.csv", map(agreement_row, found))
    draw_agreement(options.out / "agreement.png", found)
    leading = found[0].found.measure.model
    first = sorted((one for one in found if one.found.measure.model == leading), key=lambda one: -one.found.mean)
    for one in first[:PROMPTS]:
        print(f"{printable(one.prompt, 60)}: {one.found}".removeprefix(": "))
    return "agreement.csv, agreement.png", {"prompts": len(groups), "images": count}


def cli(*, alone: bool = False) -> NoReturn:
    """Runs `memattn copies`; for `alone` see `run_command`."""
    kept = "the vectors computed so far are kept; the same command resumes"
    run_command("copies", Options, main, kept=kept, alone=alone)
