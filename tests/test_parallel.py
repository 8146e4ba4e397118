"""Several devices against one: the same numbers, by programs that are really split.

A process has the devices it starts with, so one with eight virtual ones, eight_devices.py, makes all measurements, and
the tests judge them.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import micro
import numpy as np
import pytest
from eight_devices import BLOCK, DEVICES, MESHES, PROMPTS, detectors_on
from quick import xla_flags

pytestmark = pytest.mark.slow

UNET = dataclasses.replace(  # a layer down, with attention, and two up without: what is split takes long to compile
    micro.UNET, attention_head_dim=4, mid_block_type=None, up_block_types=("UpBlock2D",)
)
VAE = dataclasses.replace(
    micro.VAE,
    sample_size=4,
    block_out_channels=(8,),
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
)
SEED = 6  # the weights of other draws lose digits of derivatives from one batch size to another


@pytest.fixture(scope="module")
def folder(random_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    micro.write_model(path, random_model, unet=UNET, vae=VAE, seed=SEED)
    return path


@pytest.fixture(scope="module")
def facts(folder, tmp_path_factory) -> dict:
    scratch = tmp_path_factory.mktemp("facts")
    path = os.pathsep.join(str(Path(__file__).parents[1] / place) for place in (".", "tests", "scripts"))
    environment = os.environ | {"XLA_FLAGS": xla_flags(DEVICES), "PYTHONPATH": path}
    command = [sys.executable, "-c", "import sys, eight_devices; eight_devices.main(*sys.argv[1:])"]
    done = subprocess.run([*command, folder, scratch], env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((scratch / "facts.json").read_text())


def assert_same(facts: dict, mesh: str, *path: str) -> None:
    """1e-5 of the largest value."""
    one, several = facts["None"], facts[mesh]
    for key in path:
        one, several = one[key], several[key]
    one, several = np.asarray(one), np.asarray(several)
    np.testing.assert_allclose(several, one, rtol=0, atol=1e-5 * np.abs(one).max(), err_msg=" ".join(path))


@pytest.mark.parametrize("mesh", MESHES)
def test_scores_are_those_of_one_device(facts, mesh):
    """Five prompts, which divide among neither four devices nor eight."""
    names = [name if isinstance(name, str) else type(name).__name__ for name in detectors_on(mesh)]
    assert list(facts[mesh]["scores"]) == names
    for name in names:
        assert_same(facts, mesh, "scores", name)
    assert_same(facts, mesh, "attention")
    assert_same(facts, mesh, "gradients")


@pytest.mark.parametrize("mesh", MESHES)
def test_samples_are_those_of_one_device(facts, mesh):
    assert_same(facts, mesh, "latents")
    assert_same(facts, mesh, "tokens")
    assert_same(facts, mesh, "peak")
    one, several = (np.asarray(facts[name]["images"]) for name in ("None", mesh))
    assert several.shape == (len(PROMPTS), 4, 4, 3)
    assert np.abs(one - several).max() <= 1


def test_a_guard_finds_the_same_rows(facts):
    assert_same(facts, "data=8", "guard scores")
    assert_same(facts, "data=8", "guarded")
    assert facts["data=8"]["mitigated"] == facts["None"]["mitigated"]
    assert 0 < sum(facts["None"]["mitigated"]) < len(PROMPTS)


def test_detectors_are_split_and_exchange_nothing(facts):
    """The empty prompt's part, which all rows share, each device computes: a forward beside five to six a prompt."""
    one, eight = facts["None"]["programs"], facts["data=8"]["programs"]
    assert eight["first step"]["collectives"] == eight["entropy_e of 8"]["collectives"] == 0
    assert eight["entropy_e of 8"]["flops"] == pytest.approx(one["entropy_e of 8"]["flops"] / 8, rel=0.01)
    assert eight["first step"]["flops"] < 0.26 * one["first step"]["flops"]
    assert eight["entropy_e of 5"]["flops"] == pytest.approx(one["entropy_e of 5"]["flops"], rel=0.01)  # not filled up
    one, eight = facts["full size"]
    assert eight["collectives"] == 0
    assert eight["flops"] == pytest.approx(one["flops"] / 8, rel=0.001)


@pytest.mark.parametrize("mesh", MESHES)
def test_sampling_is_split(facts, mesh):
    """Eight rows on eight devices, against five on one; a prompt's two rows of guidance lie on one device."""
    for name in ("sample", "run"):
        one, several = (facts[text]["programs"][name] for text in ("None", mesh))
        assert several["flops"] == pytest.approx(one["flops"] / 5, rel=0.05)
        assert mesh != "data=8" or several["collectives"] == 0


@pytest.mark.parametrize("mesh", MESHES)
def test_loading_reads_each_slice_once(facts, mesh):
    one, several = facts["None"]["reads"], facts[mesh]["reads"]
    assert {name: sum(read) for name, read in one.items()} == {name: sum(read) for name, read in several.items()}
    assert {facts["None"][key] == facts[mesh][key] for key in ("model", "half")} == {True}
    pieces = 2 if "model" in mesh else 1
    query = several[f"{BLOCK}.attn1.to_q.weight"]
    assert len(query) == pieces
    assert facts[mesh]["kernel"] == [[16, 16 // pieces]] * DEVICES


def test_training_on_a_mesh(facts):
    one, four = facts["training None"], facts["training data=2,model=2"]
    assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for slope, expected in zip(four["gradient"], one["gradient"], strict=True):
        np.testing.assert_allclose(slope, expected, atol=1e-6)
    assert four["kept"]
    assert four["restored"]
    assert four["split"] > 100
