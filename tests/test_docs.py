"""README and docs: their Python runs as it stands, and what they name exists."""

import re
import subprocess
import sys
import tomllib
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import get_type_hints
from unittest.mock import MagicMock

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

import memattn_jax
from memattn_jax.checkpoints.names import leaves
from memattn_jax.copies.sscd.network import SSCD, Geometry, Stage
from memattn_jax.models.abstract import abstract
from memattn_jax.models.configs import UNetConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.registries import DETECTORS, MITIGATIONS, SCHEDULERS

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
README = PAGES["README.md"]
EXTENDING = "docs/extending.md"
LORA = "docs/lora.md"
COPIES = "docs/copies.md"
ENGINES = "docs/engines.md"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.DOTALL | re.MULTILINE)


WITH_PYTHON = {page for page in PAGES if blocks(page, "python")}


def lines_of(page: str) -> list[str]:
    """The lines of a page's commands."""
    return "".join(blocks(page, "bash")).splitlines()


def run(page: str, model: Path) -> dict:
    """The names that a page's Python defines, run in order on a model that compiles quickly."""
    scope: dict = {"__name__": "page"}
    for block in blocks(page, "python"):
        for named in ('"PATH_OR_HUB_NAME"', "demo.MODEL"):
            block = block.replace(named, repr(str(model)))
        exec(block, scope)
    return scope


def option_names(options: type) -> set[str]:
    """What the options of a command are called on its command line, those of nested settings too."""
    hints, names = get_type_hints(options), set()
    for field in fields(options):
        kind = hints[field.name]
        names |= option_names(kind) if is_dataclass(kind) else {"--" + field.name.replace("_", "-")}
    return names


@pytest.mark.slow
def test_quickstart(model):
    scope = run("docs/quickstart.md", model)
    sampled, found = scope["run"], scope["found"]
    assert sampled.images.shape == (2, 8, 8, 3)
    assert sampled.images.dtype == np.uint8
    assert sampled.latents.shape == (2, 4, 4, 4)
    assert {tap.shape for tap in sampled.tokens.values()} == {(50, 2, 2, 77)}
    assert sampled.lengths.tolist() == [len(scope["sd"].tokenizer.clip(text).input_ids) for text in sampled.prompts]
    assert {name: score.shape for name, score in found.scores.items()} == {"entropy_e": (2,), "noise_norm": (2,)}
    assert all(np.isfinite(score).all() for score in found.scores.values())


@pytest.mark.slow
def test_readme(model):
    scope = run("README.md", model)
    peaks = scope["run"].taps["peak"]
    assert {peak.shape for peak in peaks.values()} == {(10, 2)}
    assert all(np.all((peak > 1 / 77) & (peak < 1)) for peak in peaks.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", sorted(WITH_PYTHON - {"README.md", "docs/quickstart.md", LORA, COPIES, EXTENDING, ENGINES})
)
def test_python_of_other_pages_runs(page, model):
    assert run(page, model)


@pytest.mark.slow
def test_engines(model, monkeypatch):
    """With names alone of the engines' packages; tests/engines/test_daft.py has Daft's own."""
    for name, module in {
        "ray": MagicMock(),
        "daft": MagicMock(),
        "apache_beam.ml.inference.base": SimpleNamespace(ModelHandler=object),
        "pyspark.ml.functions": SimpleNamespace(predict_batch_udf=lambda make, **settings: make),
    }.items():
        parts = name.split(".")
        for end in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), MagicMock())
        monkeypatch.setitem(sys.modules, name, module)
    scope = run(ENGINES, model)
    expected = scope["scored"]["noise_norm"]
    assert [error is None for error in scope["scored"]["error"]] == [True, False]
    handler = scope["Scores"]()
    rows = handler.run_inference(["a dog"], handler.load_model())
    np.testing.assert_allclose(rows[0]["noise_norm"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(scope["noise_norm"]()(["a dog"])["noise_norm"], expected[:1], rtol=1e-5)


@pytest.mark.slow
def test_lora(model, tmp_path, monkeypatch):
    """With files for a layer of the model, and for its text encoder's 32 channels."""
    layer = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {f"{layer}.lora_down.weight": np.ones((2, 16), "f4"), f"{layer}.lora_up.weight": np.ones((16, 2), "f4")}
    monkeypatch.chdir(tmp_path)
    for name in ("style", "character"):
        save_file(tensors, f"{name}.safetensors")
    for name in ("cat", "dog"):
        save_file({"emb_params": np.ones((2, 32), "f4")}, f"{name}.safetensors")
    scope = run(LORA, model)
    assert {"cat", "cat_1", "<dog>", "<dog>_1"} <= scope["sd"].tokenizer.clip.get_vocab().keys()
    assert scope["run"].images.shape == (1, 8, 8, 3)


@pytest.mark.slow
def test_copies(model, tmp_path, monkeypatch):
    """With a network of a few channels, and pictures of which the generated ones are training pictures, almost."""
    monkeypatch.chdir(tmp_path)
    network = SSCD(Geometry(8, (Stage(1, 8, 16),), groups=1, dimensions=12), rngs=nnx.Rngs(0))
    tensors = {leaf.name: leaf.to_torch(np.asarray(leaf.param[...])) for leaf in leaves(network)}
    save_file(tensors, "sscd_disc_mixup.torchscript.pt")  # whose name does not matter
    training = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    for folder, pictures in (("training", training), ("generated", training[[0, 2]] // 2 * 2)):
        Path(folder).mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(f"{folder}/{number}.png")
    scope = run(COPIES, model)
    assert scope["found"].index.tolist() == scope["mine"].index.tolist() == [0, 2]
    assert str(scope["found"].measure) == "sscd_disc_mixup (preset nemo)"
    assert (scope["found"].scores > 0.99).all()
    assert scope["best"].scores.shape == (2, 3)
    assert [path.name for path in scope["references"].equal_to(scope["best"].index[1, 0])] == ["2.png"]
    assert scope["files"].ranked(scope["seeds"]).index.ravel().tolist() == [0, 2]
    assert scope["agree"].measure == scope["found"].measure


@pytest.mark.slow
def test_what_extending_uses_is_defined_there():
    """Its classes are run by `test_extending.py`, which leaves out the lines that use them."""
    code = "\n".join(blocks(EXTENDING, "python"))
    command = ["ruff", "check", "--isolated", "--select=F821", "--quiet", "-"]
    checked = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
    assert not checked.returncode, checked.stdout


def test_the_fourth_site_is_called_what_the_pages_say():
    sites = abstract(UNet2DConditionModel, UNetConfig()).sites
    assert f"`{sites[3]}` is the fourth" in " ".join(PAGES["docs/seam.md"].split())
    block = sites[3].partition(".transformer")[0]
    assert f"fourth cross-attention layer, `{block}`" in PAGES["docs/detectors/entropy_e.md"]


def test_readme_is_short_and_begins_with_its_two_commands():
    assert len(README.splitlines()) <= 150
    assert lines_of("README.md")[:2] == [
        "pip install -e . && python -m memattn_jax.generate",
        'pip install -e ".[test,fleet]" && pytest',
    ]


def test_links_of_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_what_the_api_page_lists_is_what_there_is():
    table, _, others = PAGES["docs/api/index.md"].partition("Other public modules:")
    assert sorted(re.findall(r"^\| \[?`(\w+)`", table, re.MULTILINE)) == sorted(memattn_jax.__all__)
    for name in re.findall(r"\[`([\w.]+)`\]", others):
        import_module(f"memattn_jax.{name}")


def test_names_of_the_package_exist():
    named = set(re.findall(r"(?<![\w./-])memattn_jax(?:\.[a-zA-Z_]\w*)+", "\n".join(PAGES.values())))
    for name in named - {"memattn_jax.json"}:
        resolve_name(name)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_has_a_page(name):
    page = PAGES[f"docs/detectors/{name}.md"]
    headings = ("Formula", "Cost", "Source", "What the authors' code does differently")
    assert [heading for heading in headings if f"\n## {heading}\n" not in page] == []
    assert f"`{name}`" in PAGES["docs/detectors/index.md"]


def test_each_row_of_what_loads_is_a_test():
    _, _, loads = PAGES["docs/supported.md"].partition("\n## What loads\n")
    rows = [line for line in loads.splitlines() if line.startswith("|")]
    rows = [row for row in rows if not row.startswith(("| container", "| what |", "|---"))]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)` \|$", row)
        assert named, row
        for path, name in named:
            assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), row


def test_names_of_the_command_line_are_listed():
    assert [name for name in (*SCHEDULERS, *MITIGATIONS) if f"`{name}`" not in PAGES["docs/supported.md"]] == []
    assert [name for name in MITIGATIONS if f"docs/mitigations/{name}.md" not in PAGES] == []


@pytest.mark.parametrize("page", sorted(page for page in PAGES if blocks(page, "bash")))
def test_commands_have_the_options_that_are_shown(page):
    for line in lines_of(page):
        for verb, arguments in re.findall(r"python -m memattn_jax\.(\w+)([^#]*)", line):
            known = option_names(import_module(f"memattn_jax.commands.{verb}").Options)
            assert set(re.findall(r"--[a-z-]+", arguments)) <= known, line


@pytest.mark.parametrize("page", sorted(page for page in PAGES if "pip install -e" in PAGES[page]))
def test_extras_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r'pip install -e "\.\[([\w,-]+)\]"', PAGES[page]):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
