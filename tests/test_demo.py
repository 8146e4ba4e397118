"""The built-in model: whole, small, and it memorizes what it should and nothing else."""

import json
import sys

import numpy as np
import pytest
from demo_data import make_groups
from PIL import Image

from memattn_jax import StableDiffusion, demo
from memattn_jax.commands import command as commands
from memattn_jax.commands import generate
from memattn_jax.copies.correlation import REPRODUCED, normalized_correlation
from memattn_jax.report.showcase import HOW_TO_READ

pytestmark = pytest.mark.slow

TRIED = 4  # prompts of each group


@pytest.fixture(scope="module")
def sd() -> StableDiffusion:
    return StableDiffusion.from_pretrained(demo.MODEL)


def test_it_is_whole_and_small():
    assert sum(path.stat().st_size for path in demo.MODEL.rglob("*") if path.is_file()) < 20e6
    assert "Apache License" in (demo.FOLDER / "NOTICE.md").read_text(encoding="utf-8")
    groups = make_groups(0)
    for group in demo.GROUPS:
        for half in demo.HALVES:
            assert demo.prompts(group, half) == [caption.text for caption in groups.halves[group, half]]
    pictures = demo.memorized_pictures()
    assert list(pictures) == demo.prompts("memorized", "choose") + demo.prompts("memorized", "report")
    assert {picture.shape for picture in pictures.values()} == {(64, 64, 3)}


def test_it_knows_every_word_of_its_prompts(sd):
    for group in demo.GROUPS:
        prompts = demo.prompts(group, "report")
        assert sd.tokenizer(prompts).lengths.tolist() == [len(prompt.split()) + 2 for prompt in prompts]


def test_it_memorized(sd):
    memorized = demo.memorized_pictures()
    prompts = {group: demo.prompts(group, "report")[:TRIED] for group in ("memorized", "control", "unseen")}
    images = {group: sd.sample(texts, seeds=11, steps=10, taps=None).images for group, texts in prompts.items()}
    own = np.stack([memorized[prompt] for prompt in prompts["memorized"]])
    reproduced = np.diag(normalized_correlation(images["memorized"], own)) >= REPRODUCED
    assert reproduced.sum() >= TRIED - 1
    for group in ("control", "unseen"):
        nearest = normalized_correlation(images[group], np.stack(list(memorized.values()))).max(axis=1)
        assert (nearest >= REPRODUCED).sum() == 0


def test_no_arguments_show_what_memorization_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate", "--out", str(tmp_path), "--steps", "50"])
    with pytest.raises(SystemExit) as stopped:
        commands.run_command("generate", generate.Options, generate.main)
    assert stopped.value.code == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == demo.NOTE
    assert printed[3].endswith("(mitigated)")
    assert printed[1].endswith(demo.SHOWCASE[0])
    explained = printed.index(HOW_TO_READ)
    assert printed[explained - 2].startswith("memorized prompt: correlation with the nearest memorized image 0.9")
    assert "showcase.png" in printed[-1]
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in results] == [*demo.SHOWCASE] * 2
    assert [row["settings"]["mitigation"] for row in results] == ["none"] * 2 + ["attention_mask"] * 2
    assert results[2]["settings"]["mitigation_options"]["mask"] == "summary"
    assert [row["mitigated"] for row in results] == [False, False, True, True]
    low, high = demo.clean_entropy(results[0]["settings"])
    memorized, clean = (np.array(row["entropy"]) for row in results[:2])
    assert (memorized[10:] > high[10:]).all()
    assert ((clean > low) & (clean < high)).all()
    own, others = (sum(row["attention"][1:-1]) for row in results[:2])
    assert own < others / 1.5  # attention leaves the words
    with Image.open(tmp_path / "showcase.png") as picture:
        assert picture.width > 1000
    target = demo.memorized_pictures()[demo.SHOWCASE[0]][None]
    plain, mitigated = (np.asarray(Image.open(tmp_path / f"0000{place}.png"))[None] for place in (0, 2))
    assert normalized_correlation(plain, target)[0, 0] >= REPRODUCED > normalized_correlation(mitigated, target)[0, 0]


def test_the_band_of_clean_prompts_is_the_shipped_models(sd):
    measured = json.loads(demo.CLEAN_ENTROPY.read_text(encoding="utf-8"))
    assert measured["model"] == sd.fingerprint()
    assert measured["prompts"] == 400
    settings = generate.settings(generate.Options(dtype="float32"))
    low, high = demo.clean_entropy(settings)
    assert (low < high).all()
    assert len(low) == settings["steps"]
    for other in ({"steps": 20}, {"scheduler": "euler"}, {"model": "sd14"}, {"dtype": "bfloat16"}, {"height": 128}):
        assert demo.clean_entropy(settings | other) is None


def test_the_built_in_model_takes_prompts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate", "a cat", "--out", str(tmp_path), "--steps", "2"])
    with pytest.raises(SystemExit) as stopped:
        commands.run_command("generate", generate.Options, generate.main)
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(demo.NOTE)
    assert not (tmp_path / "showcase.png").exists()
    assert len(list(tmp_path.glob("0*.png"))) == 1
