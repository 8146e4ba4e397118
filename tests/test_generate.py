"""The command as its user meets it."""

import json
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plans import compiled
from safetensors.numpy import load_file, save_file

from memattn_jax import __version__, detectors, mitigations
from memattn_jax.commands import command as commands
from memattn_jax.commands import generate
from memattn_jax.report import results
from memattn_jax.report.plots import plot_entropy

LONG = "the cat and the hat " * 10


def run(monkeypatch, *arguments: object) -> int:
    """`python -m memattn_jax.generate`, in this process."""
    monkeypatch.setattr(sys, "argv", ["generate", *map(str, arguments)])
    warnings.simplefilter("always")  # as outside pytest, which restores the filters after each test
    with pytest.raises(SystemExit) as stopped:
        commands.run_command("generate", generate.Options, generate.main)
    return stopped.value.code


def read_results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def out(model, tmp_path_factory):
    """One run of five pictures in batches of two, as a stranger would start it."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("a cat", "日 dog", LONG, "x", "the")),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "memattn_jax.generate", "--model", model, "--steps", "4"]
    command += ["--prompts", folder / "prompts.jsonl", "--seed", "3", "--batch-size", "2", "--out", folder / "out"]
    command += ["--mitigation", "attention_mask", "--mitigation-options", "mask=summary", "begin_scale=1.1", "--report"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_results(out, sd):
    folder, _ = out
    rows = read_results(folder)
    assert [row["prompt"] for row in rows] == ["a cat", "日 dog", LONG, "x", "the"]
    assert [row["file"] for row in rows] == [f"{i:05d}.png" for i in range(5)]
    for row in rows:
        assert row["seed"] == 3
        assert row["error"] is None
        assert row["cut"] == (row["prompt"] == LONG)
        assert row["settings"]["steps"] == 4
        assert row["settings"]["mitigation_options"]["mask"] == "summary"
        assert row["mitigated"] is True
        assert set(row["versions"]) >= {"memattn_jax", "jax", "flax"}
        assert row["versions"]["memattn_jax"] == __version__
    assert rows[4]["tokens"][0] == "<|startoftext|>"
    assert rows[4]["tokens"][-1] == "<|endoftext|>"
    assert len(rows[0]["tokens"]) == len(rows[0]["attention"]) == 6
    assert "5 images." in (folder / "report.html").read_text(encoding="utf-8")

    mitigation = mitigations.AttentionMask(begin_scale=1.1, mask="summary")
    expected = sd.sample(["the"], seeds=3, steps=4, mitigation=mitigation)
    assert rows[4]["E"] == pytest.approx(float(detectors.entropy_e(expected)[0]), abs=1e-4)
    assert rows[4]["D"] == pytest.approx(float(detectors.entropy_d(expected)[0]), abs=1e-4)
    picture = np.asarray(Image.open(folder / "00004.png"))
    assert picture.shape == (8, 8, 3)
    assert np.abs(picture.astype(int) - expected.images[0]).max() <= 1


def test_pictures_carry_their_parameters(out):
    folder, _ = out
    with Image.open(folder / "00001.png") as picture:
        text = picture.text
    assert text["prompt"] == "日 dog"
    assert json.loads(text["settings"])["mitigation_options"]["begin_scale"] == 1.1
    assert text["seed"] == "3"
    with Image.open(folder / "entropy.png") as plot:
        assert plot.size == (960, 600)


def test_what_it_prints(out):
    _, done = out
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert "report.html" in done.stdout
    assert lines[6] == "E reads up_blocks.0.attentions.1.transformer_blocks.0.attn2"
    assert lines[5].startswith("1 prompt cut to 77 tokens")
    assert lines[0].startswith("00000.png  E ")
    assert lines[0].endswith("  a cat  (mitigated)")
    assert lines[-1].startswith("5 images, Parquet files, results.jsonl and entropy.png in ")
    metrics = json.loads(done.stderr.splitlines()[-1])
    assert (metrics["event"], metrics["rows"], metrics["errors"]) == ("done", 5, 0)
    (warning,) = (line for line in done.stderr.splitlines() if line.startswith("warning:"))
    assert "prompt cut at 77 tokens" in warning
    assert "Traceback" not in done.stderr


def test_one_compile_for_all_batches(model, tmp_path, monkeypatch):
    from memattn_jax.diffusion.sampling import denoise

    before = compiled(denoise)
    arguments = ["--model", model, "--out", tmp_path, "--steps", 5, "--batch-size", 2]
    assert run(monkeypatch, "a", "b", "c", *arguments) == 0
    assert len(read_results(tmp_path)) == 3
    assert compiled(denoise) == before + 1


def test_images_per_prompt_take_the_next_seeds(model, tmp_path, monkeypatch):
    arguments = ["--model", model, "--out", tmp_path, "--steps", 5, "--batch-size", 2]
    assert run(monkeypatch, "a", *arguments, "--images-per-prompt", 2, "--seed", 7) == 0
    assert [(row["seed"], row["mitigated"]) for row in read_results(tmp_path)] == [(7, False), (8, False)]
    first, second = (np.asarray(Image.open(tmp_path / f"0000{i}.png")).astype(int) for i in range(2))
    assert np.abs(first - second).max() > 10


def test_rows_that_are_not_finite_are_reported(model, tmp_path, monkeypatch, capsys):
    """A weight of infinity at one token poisons the prompts that hold it, and no other."""
    model = Path(shutil.copytree(model, tmp_path / "model"))
    path = model / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    vocabulary = json.loads((model / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    weights["text_model.embeddings.token_embedding.weight"][vocabulary["z</w>"]] = np.inf
    save_file(weights, path)
    arguments = ["--model", model, "--out", tmp_path / "out", "--steps", 5, "--batch-size", 2]
    assert run(monkeypatch, "a", "z", *arguments) == 0
    good, bad = read_results(tmp_path / "out")
    assert good["error"] is None
    assert (tmp_path / "out" / good["file"]).exists()
    assert bad["file"] is None
    assert bad["E"] is None
    assert "NaN or infinity" in bad["error"]
    assert f"no image: {bad['error']}" in capsys.readouterr().out
    assert (tmp_path / "out" / "entropy.png").exists()


MASKED = ("--mitigation", "attention_mask", "--mitigation-options")
BAD = {
    "no-such-model": (["--model", "nowhere"], "no such model: nowhere"),
    "dtype": (["--model", "MODEL", "--dtype", "int4"], "unknown dtype 'int4'"),
    "steps": (["--model", "MODEL", "--steps", "0"], "--steps 0: "),
    "too-many-steps": (["--model", "MODEL", "--steps", "1001"], "--steps 1001: at most 1000"),
    "height": (["--model", "MODEL", "--height", "101"], "--height 101: "),
    "scheduler": (["--model", "MODEL", "--scheduler", "heun"], "unknown scheduler 'heun'"),
    "mitigation": (
        ["--model", "MODEL", "--mitigation", "hope"],
        "--mitigation: unknown mitigation 'hope'",
    ),
    "mask": (["--model", "MODEL", *MASKED, "mask=x"], "--mitigation-options: unknown mask 'x'"),
    "field": (
        ["--model", "MODEL", *MASKED, "maks=none"],
        "--mitigation-options: unknown option of attention_mask 'maks'; did you mean 'mask'?",
    ),
    "number": (["--model", "MODEL", *MASKED, "begin_scale=x"], "--mitigation-options begin_scale=x: "),
    "pair": (["--model", "MODEL", *MASKED, "mask"], "--mitigation-options mask: expected KEY=VALUE"),
    "batch-size": (["--model", "MODEL", "--batch-size", "0"], "--batch-size 0: "),
    "seed": (["--model", "MODEL", "--seed", "-1"], "--seed -1: "),
    "last-seed": (["--model", "MODEL", "--seed", 2**32 - 1, "--images-per-prompt", 2], f"--seed {2**32 - 1}: "),
    "guidance": (["--model", "MODEL", "--guidance-scale", "nan"], "--guidance-scale nan: "),
    "out": (["--model", "MODEL", "--out", "FILE/out"], "Not a directory"),
    "type": (["--model", "MODEL", "--steps", "x"], "--steps 'x': "),
    "unknown": (
        ["--model", "MODEL", "--stepz", "3"],
        "--stepz, 3; did you mean --steps?",
    ),
    "useless": (
        ["--model", "MODEL", "--mitigation-options", "mask=none"],
        "--mitigation-options has no effect",
    ),
    "no-guard": (["--model", "MODEL", "--calibration", "FILE"], "--calibration has no effect"),
    "mesh": (["--model", "MODEL", "--mesh", "rows=2"], "--mesh rows=2: unknown axis 'rows'"),
    "both": (
        ["--model", "MODEL", "--prompts", "FILE"],
        "--prompts: ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_2(model, tmp_path, monkeypatch, capsys, case):
    arguments, message = BAD[case]
    (tmp_path / "file").write_text("text")
    places = {"MODEL": str(model), "FILE": str(tmp_path / "file")}
    arguments = [next((a.replace(k, v) for k, v in places.items() if k in a), a) for a in map(str, arguments)]
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "a prompt", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out" / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.txt", b"", "prompts.txt: has no prompts"),
        ("prompts.txt", "caf\xe9".encode("latin-1"), "line 1 is not UTF-8"),
        ("prompts.jsonl", b'"a\\ud800b"', "not valid UTF-8 text"),
    ],
)
def test_bad_prompt_files(model, tmp_path, monkeypatch, capsys, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert run(monkeypatch, "--prompts", path, "--model", model, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert run(monkeypatch, "--model", model, "--out", tmp_path / "out") == 2
    assert "no prompts" in capsys.readouterr().err


@pytest.mark.slow
def test_results_are_not_overwritten_unasked(model, tmp_path, monkeypatch, capsys):
    arguments = ["a", "--model", model, "--out", tmp_path, "--steps", 5, "--batch-size", 2]
    assert run(monkeypatch, *arguments, "--images-per-prompt", 2) == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    assert run(monkeypatch, *arguments) == 2
    assert "images_per_prompt 2 is now 1" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert run(monkeypatch, *arguments, "--overwrite", "--steps", 0) == 2
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert run(monkeypatch, *arguments, "--images-per-prompt", 2, "--overwrite", "--seed", 5) == 0
    assert [row["seed"] for row in read_results(tmp_path)] == [5, 6]
    assert run(monkeypatch, *arguments, "--overwrite", "--batch-size", 1) == 0
    assert [path.name for path in sorted(tmp_path.glob("0*.png"))] == ["00000.png"]


def test_the_entropy_plot_tells_rows_apart(monkeypatch):
    """Equal prompts with equal seeds too, and mitigated ones, whose entropy masked tokens lower."""
    drawn = {}
    monkeypatch.setattr(results, "plot_entropy", lambda path, *arguments: drawn.update(enumerate(arguments)))
    rows = [
        {"row": row, "prompt": "a cat", "seed": 0, "entropy": [1.0, 2.0], "mitigated": row == 1} for row in range(3)
    ]
    results.plot_rows(types.SimpleNamespace(write=lambda name, content: None), rows, None)
    entropy, labels, mitigated, band = drawn.values()
    assert entropy.shape == (2, 3)
    assert labels == ["00000  a cat  (seed 0)", "00001  a cat  (seed 0, mitigated)", "00002  a cat  (seed 0)"]
    assert mitigated.tolist() == [False, True, False]
    assert band is None


@pytest.mark.parametrize("rows", [3, 12])
def test_entropy_plots_are_drawn(tmp_path, rows):
    """Of few and of many, of which some are mitigated, some not finite; and beside a band."""
    entropy = np.linspace(1, 2, 4 * rows, dtype=np.float32).reshape(4, rows)
    entropy[:, 0] = np.nan
    plot_entropy(tmp_path / "a.png", entropy, ["$a"] * rows, np.arange(rows) % 2 > 0, np.array([[1.0] * 4, [2.0] * 4]))
    with Image.open(tmp_path / "a.png") as plot:
        assert plot.size == (960, 600)
