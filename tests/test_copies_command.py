"""`memattn copies`: the nearest training images, and how far seeds agree."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from memattn_jax.checkpoints.names import leaves
from memattn_jax.commands import copies
from memattn_jax.copies.search import PIXELS
from memattn_jax.copies.sscd.network import SSCD, Geometry, Stage
from memattn_jax.copies.sscd.presets import PRESETS
from memattn_jax.registries import PRESETS as NAMES

OWN = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from memattn_jax.copies.embedding import Measure

@dataclass
class Embedding:
    name: str = "a class of a file of its own"
    measure = Measure("mean colour", "none")

    def __call__(self, pictures):
        colours = pictures.mean(axis=(1, 2)) - 127.5
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)

def blind(pictures):
    return pictures.mean(axis=(1, 2))
"""


def saved(path: Path, picture: np.ndarray, **texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.fromarray(picture).save(path, pnginfo=info)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Training images of several sizes, one of them twice; images of which the first two are copies."""
    rng = np.random.default_rng(0)
    training = [np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((4, 4, 1), np.uint8)) for _ in range(5)]
    for number, picture in enumerate(training):
        saved(tmp_path / f"training/{number}.png", picture)
    saved(tmp_path / "training/deep/again.png", training[1])
    wide = np.pad(training[2], ((0, 0), (8, 8), (0, 0)), mode="edge")  # whose middle is seen in training
    saved(tmp_path / "training/2.png", wide)
    (tmp_path / "training/broken.png").write_text("no image")
    noise = rng.integers(-9, 10, (2, *training[1].shape))
    made = np.clip(np.stack([np.roll(training[1], 1, axis=0), training[2]]) + noise, 0, 255).astype(np.uint8)
    for number, picture in enumerate([*made, rng.integers(0, 256, made[0].shape, np.uint8)]):
        saved(tmp_path / f"gen/{number}.png", picture, prompt="the $same$" if number < 2 else "another", seed="0")
    saved(tmp_path / "gen/plot.png", made[0], Software="Matplotlib version 3")
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["copies", *arguments])
        with pytest.raises(SystemExit) as stopped:
            copies.cli()
    found = capsys.readouterr()
    return stopped.value.code, found.out, found.err


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_nearest_training_images(here, capsys):
    network = SSCD(Geometry(4, (Stage(1, 4, 8),), groups=1, dimensions=6), rngs=nnx.Rngs(0))
    save_file({leaf.name: leaf.to_torch(np.asarray(leaf.param[...])) for leaf in leaves(network)}, "tiny.safetensors")
    sscd = ("--sscd", "tiny.safetensors", "--preset", "dcr", "--batch-size", "2")
    code, out, err = run(capsys, "gen", "--references", "training", *sscd, "--embedding", "own.py:Embedding")
    assert (code, [line for line in err.splitlines() if "error" in line]) == (0, [])
    rows = table(here / "out/copies/copies.csv")
    measures = {row["measure"]: row["preset"] for row in rows}
    size = "32 × 32"
    assert measures == {
        "tiny": "dcr",
        "mean colour": "none",
        "correlation": f"{size}, shifts up to 2",
        "1 - tiled l2": f"{size}, 4 × 4 tiles",
    }
    assert list(measures) == ["tiny", "mean colour", "correlation", "1 - tiled l2"]
    assert len(rows) == 12
    assert [(row["threshold"], Path(row["reference"]).name) for row in rows[1:2]] == [("0.5", "2.png")]
    by_correlation = [row for row in rows if row["measure"] == "correlation"]
    assert [Path(row["reference"]).name for row in by_correlation[:2]] == ["1.png", "2.png"]
    assert [row["equal_references"] for row in by_correlation[:2]] == ["2", "1"]
    assert [row["copy"] for row in by_correlation] == ["1", "1", "0"]
    assert [(row["prompt"], row["seed"]) for row in by_correlation[1:]] == [("the $same$", "0"), ("another", "0")]
    about = json.loads((here / "out/copies/copies.json").read_text())
    assert [one["copies"] for one in about["measures"] if one["model"] == "correlation"] == [2]
    for measure, preset in measures.items():
        assert f"{measure} (preset {preset}), nearest of 7 images in training" in out
    assert "1 plot left out" in out
    assert "references: 1 skipped, not an image: broken.png" in out
    assert "1.png and 1 equal" in out
    with Image.open(here / "out/copies/copies.png") as sheet:
        assert min(sheet.size) > 200


def test_images_of_several_sizes_are_one_group_that_says_so(here, capsys):
    code, out, _ = run(capsys, "training", "--references", "gen/0.png", "--shifts", "0")
    assert code == 0
    headings = [line for line in out.splitlines() if "nearest of 1 image in gen/0.png" in line]
    assert [line.partition(",")[0] for line in headings] == [f"{name} (preset 32 × 32" for name in PIXELS]
    assert all("and 1 more, by image size" in line for line in headings)
    presets = {row["preset"] for row in table(here / "out/copies/copies.csv")}
    assert {"32 × 32, shifts up to 0", "32 × 48, shifts up to 0"} < presets


def test_how_far_seeds_agree(here, capsys):
    saved(here / "gen/third.png", np.zeros((8, 8, 3), np.uint8), prompt="broken")
    cut = PngInfo()
    cut.add_text("prompt", "broken")
    Image.new("RGB", (64, 64)).save(here / "gen/cut.png", pnginfo=cut)
    (here / "gen/cut.png").write_bytes((here / "gen/cut.png").read_bytes()[:-40])
    for again in ("0", "2"):  # a log's prompt that comes twice has the same picture twice
        (here / f"gen/{again}-again.png").write_bytes((here / f"gen/{again}.png").read_bytes())
    code, out, _ = run(capsys, "gen", "--embedding", "own.py:Embedding", "--threshold", "0.5", "--out", "agree")
    assert code == 0
    assert "2 prompts left out, without two images that differ and can be read" in out
    rows = table(here / "agree/agreement.csv")
    assert [(row["prompt"], row["images"], row["measure"]) for row in rows] == [
        ("the $same$", "2", measure) for measure in ("mean colour", "correlation", "1 - tiled l2")
    ]
    assert [row["threshold"] for row in rows] == ["0.5", "0.9", "0.9"]
    assert all(float(row["mean"]) == float(row["highest"]) for row in rows)
    assert (rows[1]["alike"], rows[1]["clusters"]) == ("1", "1+1")
    assert "the $same$: 2 images agree at" in out
    assert "by mean colour (preset none)" in out
    with Image.open(here / "agree/agreement.png") as sheet:
        assert min(sheet.size) > 100


WRONG = {
    "--same-prompt": ["training"],
    "own.py:Gone": ["gen", "--embedding", "own.py:Gone"],
    "gone.py": ["gen", "--embedding", "gone.py:Embedding"],
    "measure": ["gen", "--embedding", "own.py:blind"],
    "no images": ["empty"],
    "no such file or folder": ["gone"],
    "a plot": ["gen/plot.png"],
    "is in --references too": ["training", "--references", "training"],
    "no image can be used, of 1 image": ["training/broken.png", "--references", "gen"],
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line(here, capsys, what):
    (here / "empty").mkdir()
    code, _, err = run(capsys, *WRONG[what])
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == 2
    assert what in line


def test_results_are_not_replaced_unless_asked_for(here, capsys):
    (here / "out/copies").mkdir(parents=True)
    (here / "out/copies/copies.json").write_text("{}")
    code, _, err = run(capsys, "gen")
    assert code == 2
    assert "--overwrite" in err


def test_presets_have_thresholds():
    assert NAMES.keys() == PRESETS.keys()
