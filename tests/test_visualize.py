"""The figures of `memattn visualize`: from arrays, and once from a model that compiles at once."""

import json
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from memattn_jax import InputError, StableDiffusion
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.commands import command as commands
from memattn_jax.commands import visualize, visualizing
from memattn_jax.commands.visualize_options import FIGURES, FORMATS, Options, chosen_range
from memattn_jax.commands.visualizing import finite_or_null, group_entropies
from memattn_jax.report.figures import rendering
from memattn_jax.report.figures.over_steps import band_of, plot_entropies
from memattn_jax.report.figures.pages import PAGES, Seen
from memattn_jax.report.figures.rendering import as_label, percent, render, short_site
from memattn_jax.report.figures.separation import plot_separation, separation
from memattn_jax.report.figures.tokens import check_tokens, shown_tokens

STRANGE = "a $x$ <b>\u202ecat\x00 & \\frac{1}{2} 日本 😀 " + "long " * 30
PROMPT = "a cat and a big dog"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(None, 24)


def shown(tokenizer, wanted=None) -> dict[str, list[int]]:
    tokens = tokenizer([PROMPT])
    found = shown_tokens(tokenizer, tokens.input_ids[0], int(tokens.lengths[0]), wanted)
    return {f"{each.label}{' *' * each.summary}": np.flatnonzero(each.mask).tolist() for each in found}


def test_tokens_of_a_prompt_by_default(tokenizer):
    """Repeated words stand apart, as keys of a dict would not."""
    tokens = tokenizer([PROMPT])
    found = shown_tokens(tokenizer, tokens.input_ids[0], int(tokens.lengths[0]))
    assert [each.label for each in found] == ["begin", *PROMPT.split(), "end", "padding × 16"]
    assert [each.summary for each in found] == [False] * 7 + [True] * 2
    assert sum(each.mask.astype(int) for each in found).tolist() == [1] * 24  # every token once


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["cat", "end"], {"cat": [2], "end *": [7]}),
        (["big dog", "0", "7"], {"big dog": [5, 6], "begin": [0], "end *": [7]}),
        (["summary", "bird", "3", "30"], {"summary *": list(range(7, 24)), "and": [3]}),
    ],
)
def test_tokens_by_word_place_and_role(tokenizer, wanted, expected):
    assert shown(tokenizer, wanted) == expected
    with pytest.raises(InputError, match="--tokens bird"):
        check_tokens(tokenizer, [PROMPT, "a bird house"[:1]], ["cat", "bird"])
    check_tokens(tokenizer, [PROMPT, "a cat"], ["cat"])
    for prompt, names in (("a dog", ["cat"]), ("a cat", ["cat", "6"][1:]), ("a " * 22, ["padding"])):
        with pytest.raises(InputError, match=f"'{prompt[:3]}.*' has none of them"):
            check_tokens(tokenizer, ["a big cat and a bird", prompt], names)
    with pytest.raises(InputError, match="names no token"):
        Options(tokens=" , ").check()


def test_numbers_that_json_lacks_are_null():
    content = {"entropy": [1.0, float("nan")], "prompts": [{"share": float("inf"), "token": "a", "number": 3}]}
    expected = {"entropy": [1.0, None], "prompts": [{"share": None, "token": "a", "number": 3}]}
    assert finite_or_null(content) == expected


@pytest.mark.parametrize(
    ("text", "steps"), [(None, range(50)), ("40:50", range(40, 50)), ("-10:", range(40, 50)), (":5", range(5))]
)
def test_ranges_of_steps(text, steps):
    assert range(50)[slice(*chosen_range(text, 50))] == steps


@pytest.mark.parametrize("text", ["50:60", "5", "a:b", "3:3", "1:2:3"])
def test_ranges_that_hold_no_step(text):
    with pytest.raises(InputError, match="--over-steps"):
        chosen_range(text, 50)


def test_labels():
    assert as_label(STRANGE, 40).startswith(r"a \$x\$ <b>\u202ecat\x00 & ")
    assert short_site("down_blocks.1.attentions.0.transformer_blocks.0.attn2") == "down 1 · 0"
    assert short_site("mid_block.attentions.0.transformer_blocks.2.attn2") == "mid · 0.2"
    assert short_site("my layer") == "my layer"
    assert [percent(share) for share in (0.0004, 0.0312, 0.58, 0.998)] == ["0.04 %", "3.1 %", "58 %", "100 %"]


@pytest.fixture(scope="module")
def seen(tokenizer) -> Seen:
    """A prompt of a stranger."""
    rng = np.random.default_rng(0)
    tokens = tokenizer(["a $x$ <b>\u202ecat\x00"])
    drawn = shown_tokens(tokenizer, tokens.input_ids[0], int(tokens.lengths[0]))
    image = rng.integers(0, 256, (16, 24, 3), np.uint8)
    heads = rng.random((2, len(drawn), 16, 24), np.float32)
    shares = rng.dirichlet(np.ones(len(drawn)), 5).astype(np.float32)
    maps = {"heatmaps": heads[0], "heads": heads, "ending": heads[0, 0], "score": heads[1, 0]}
    known = {"entropy": np.arange(5.0), "nearest": image, "similarity": 0.5}
    return Seen(STRANGE, "", image, drawn, shares=shares, **maps, **known)


@pytest.mark.slow
def test_pages_are_drawn_without_a_warning(seen):
    """Whatever is in a prompt, and where a row is not finite; an SVG that is well-formed."""
    blank = seen._replace(heatmaps=np.full_like(seen.heatmaps, np.nan), score=None, nearest=None)
    figures = {name: draw([seen]) for name, draw in PAGES.items() if name not in ("heatmaps", "heads")}
    figures |= {"heatmaps": PAGES["heatmaps"]([blank], "mean over steps")}
    figures |= {"heads": PAGES["heads"]([seen._replace(shown=seen.shown[:2], heads=seen.heads[:, :2])], "")}
    for name, figure in figures.items():
        kind = "svg" if name == "tokens" else "png"
        drawn = render(figure, kind)
        assert ElementTree.fromstring(drawn).tag.endswith("svg") if kind == "svg" else drawn.startswith(b"\x89PNG")


def test_separation_and_bands():
    rng = np.random.default_rng(0)
    clean = {"one": rng.random((6, 4)), "two": rng.random((6, 4))}
    memorized = {"one": 2 + clean["one"], "two": clean["two"]}
    areas = separation(memorized, clean)
    np.testing.assert_allclose(areas, [[1] * 4, [0.5] * 4])
    render(plot_separation(areas, ("one", "two"), "one", (6, 6)), "png")
    band = band_of(clean["one"], "clean")
    assert ((band.low <= band.middle) & (band.middle <= band.high)).all()
    render(plot_entropies({"a prompt": np.ones(4)}, band, None), "png")


def test_prompts_whose_attention_is_not_finite_are_left_out(monkeypatch):
    rng, bar = np.random.default_rng(0), SimpleNamespace(update=lambda count: None)

    def sample(sd, prompts, options, size):
        sites = {site: rng.dirichlet(np.ones(5), (4, size, 2)).astype(np.float32) for site in sd.sites}
        sites["two"][3, [prompt == "bad" for prompt in prompts]] = np.nan  # at one site and one step
        return SimpleNamespace(tokens=sites)

    monkeypatch.setattr(visualizing, "sample", sample)
    sd = SimpleNamespace(sites=("one", "two"))
    with pytest.warns(UserWarning, match="left out 1 clean prompt with attention that is not finite"):
        means, by_site = group_entropies(sd, "clean", ["a", "bad", "b", "c"], Options(), 2, bar)
    assert (means.shape, {site: own.shape for site, own in by_site.items()}) == ((3, 4), {"one": (3, 4), "two": (3, 4)})
    assert np.isfinite([means, *by_site.values()]).all()
    with pytest.raises(InputError, match="every memorized prompt is not finite; load the model in float32"):
        group_entropies(sd, "memorized", ["bad"] * 2, Options(), 2, bar)


def test_figures_are_chosen():
    assert Options(prompt=("a",)).chosen == tuple(name for name in FIGURES if name != "separation")
    assert Options().chosen == FIGURES
    assert [len(group) for group in Options().groups] == [24, 24]
    assert Options(figures="copy").groups is None  # which would be sampled for nothing
    assert Options(prompt=("a",), figures="separation,heads").chosen == ("separation", "heads")
    assert rendering.FORMATS == FORMATS


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["visualize", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        commands.run_command("visualize", visualize.Options, visualize.main)
    return stopped.value.code


@pytest.mark.slow
def test_the_command(matrices, model, tmp_path, monkeypatch, capsys):
    """Five prompts on two pages, and groups from files, on a model that compiles at once."""
    monkeypatch.setattr(StableDiffusion, "from_pretrained", lambda *_, **__: matrices)
    (tmp_path / "memorized.txt").write_text("a cat\nthe a\n")
    (tmp_path / "clean.txt").write_text("the cat\na\nthe\n")
    out = tmp_path / "out"
    groups = ["--memorized", tmp_path / "memorized.txt", "--clean", tmp_path / "clean.txt"]
    chosen = ["--figures", "heatmaps,separation", "--tokens", "words,padding", "--over-steps", "-2:"]
    command = ["the cat", "a", "the", "a cat", "a the a", "--model", model, "--out", out, "--steps", 4]
    assert run(monkeypatch, *command, *groups, *chosen) == 0
    content = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    drawn = {each["file"]: each["prompts"] for each in content["figures"]}
    assert drawn == {"heatmaps-001.png": [0, 1, 2, 3], "heatmaps-002.png": [4], "separation.png": []}
    assert {path.name for path in out.iterdir()} == {*drawn, "figures.json"}
    with Image.open(out / "heatmaps-001.png") as picture:
        assert picture.width > 600
    assert [len(areas) for areas in content["separation"]["auroc"].values()] == [4]
    first = content["prompts"][0]
    assert [token["token"] for token in first["tokens"]] == ["words", "padding × 71"]
    assert 0.5 < sum(token["share"] for token in first["tokens"]) < 1
    assert len(first["entropy"]) == 4
    assert run(monkeypatch, *command) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_every_figure_of_a_model(model, tmp_path, monkeypatch):
    """With the score map, and one head of one layer."""
    site = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    arguments = ["a cat", "--model", model, "--out", tmp_path, "--steps", 3, "--site", site]
    arguments += ["--scheduler", "euler", "--head", 1]
    assert run(monkeypatch, *arguments) == 0
    assert {path.stem for path in tmp_path.glob("*.png")} == {*FIGURES} - {"separation"}
    assert run(monkeypatch, *arguments[:-1], 2, "--overwrite") == 2
