"""detect, its calibration, evaluate and the guard, as their users meet them."""

import csv
import dataclasses
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from memattn_jax import Calibration, Guard, InputError, StableDiffusion, commands, demo, detect, evaluate, generate
from memattn_jax.calibration import calibrate, clean_attention, fingerprint
from memattn_jax.detectors import Scorer
from memattn_jax.detectors.attribution import attention_excess
from memattn_jax.metrics import auroc, threshold_at_fpr
from memattn_jax.mitigations import AttentionMask

VERBS = {"detect": detect, "evaluate": evaluate, "generate": generate}
CLEAN = tuple(f"the {letter} and {other}" for letter in "abcdef" for other in ("hat", "o", "x y z"))
NEW = ("the cat", "Zebra 7", "an odd and long line on the hill in the land")
FAST = ("--steps", 4, "--batch-size", 4)


def run(monkeypatch, capsys, verb: str, *arguments: object) -> tuple[int, list[str], list[str]]:
    """`python -m memattn_jax.<verb>`, in this process: exit status, lines of standard output, and of standard error
    but for the metrics."""
    monkeypatch.setattr(sys, "argv", [verb, *map(str, arguments)])
    warnings.simplefilter("always")  # as outside pytest, which restores the filters after each test
    with pytest.raises(SystemExit) as stopped:
        commands.run_command(verb, VERBS[verb].Options, VERBS[verb].main)
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if not line.startswith("{")]
    return stopped.value.code, captured.out.splitlines(), errors


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tiny(model) -> StableDiffusion:
    return StableDiffusion.from_pretrained(model)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """clean.txt and new.txt."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, prompts in (("clean", CLEAN), ("new", NEW)):
        (folder / f"{name}.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


@pytest.fixture
def calibrated(command, model, files, tmp_path) -> Path:
    """A folder with calibration.json, thresholds at 10 %, and results of the new prompts."""
    out = tmp_path / "calibrated"
    status, _, errors = command(
        "detect", "--model", model, "--calibrate", files / "clean.txt", "--fpr", 0.1, "--prompts", files / "new.txt",
        "--out", out, *FAST,
    )  # fmt: skip
    assert (status, errors) == (0, [])
    return out


def test_calibration_and_results(calibrated, tiny):
    """Every number of the files follows from the scores that the package gives."""
    scores = tiny.detect(CLEAN, steps=4)
    new = tiny.detect(NEW, steps=4, attribute=True)
    calibration = Calibration.load(calibrated / "calibration.json")
    assert calibration.fpr == 0.1
    assert calibration.model == fingerprint(tiny)
    rows = read(calibrated / "results.jsonl")
    assert [row["prompt"] for row in rows] == list(NEW)
    for name in ("entropy_e", "noise_norm"):
        expected = threshold_at_fpr(scores[name], 0.1)
        assert calibration.thresholds[name].negatives == len(CLEAN)
        np.testing.assert_allclose(calibration.thresholds[name].value, expected.value, rtol=1e-5)
        np.testing.assert_allclose([row[name] for row in rows], new[name], rtol=1e-5)
        over = new[name] > expected.value
        assert [name in row["over"] for row in rows] == over.tolist()
    for row, length, attention, gradient in zip(rows, new.lengths, new.attention, new.gradients, strict=True):
        assert len(row["tokens"]) == length
        np.testing.assert_allclose(row["attention"], attention[:length], rtol=1e-4)
        np.testing.assert_allclose(row["gradient"], gradient[:length], rtol=1e-3, atol=1e-6)
        excess = attention_excess(attention[None], calibration.attention, np.array([length]))[0, :length]
        np.testing.assert_allclose(row["attention_excess"], excess, rtol=1e-4)
        assert row["attention_excess"][0] == row["attention_excess"][-1] == 0
        assert row["error"] is None
        assert row["length"] == length
        assert row["verdict"] == ("memorized" if row["over"] else "clean")
    manifest = json.loads((calibrated / "manifest.json").read_text())
    assert manifest["identity"]["settings"]["steps"] == 4
    assert manifest["identity"]["model"] == fingerprint(tiny)
    assert manifest["rows"] == len(NEW)
    assert pq.read_table(calibrated / "00000.parquet").to_pylist() == rows


def test_a_calibration_is_used_and_guarded(command, calibrated, model, files, tmp_path):
    """Its settings are taken over; another setting, dtype or model is refused."""
    use = ("--model", model, "--calibration", calibrated / "calibration.json", "--batch-size", 4)
    status, printed, _ = command("detect", "the cat", *use, "--out", tmp_path / "a", "--no-explain")
    assert status == 0
    (row,) = read(tmp_path / "a" / "results.jsonl")
    first = read(calibrated / "results.jsonl")[0]
    assert row["over"] == first["over"]
    np.testing.assert_allclose(row["noise_norm"], first["noise_norm"], rtol=1e-5)
    assert "attention" not in row
    assert printed[-1] == f"1 prompts in {tmp_path / 'a'}, as Parquet files and results.jsonl"
    for options, message in (
        (("--steps", 5), "fitted with steps 4, not 5"),
        (("--per-prompt-noise",), "fitted with seed 0, not None"),
        (("--dtype", "bfloat16"), "fitted on another model"),
        (("--calibrate", files / "clean.txt"), "mutually exclusive"),
    ):
        status, _, errors = command("detect", "the cat", *use, "--out", tmp_path / "b", *options)
        assert status == 2
        assert len(errors) == 1
        assert message in errors[0]


def test_verdicts_ignore_scores_that_are_not_finite(tiny):
    scorer = Scorer(tiny, ("noise_norm",), steps=4, attribute=True)
    clean = scorer(CLEAN[:4])
    broken = dataclasses.replace(clean, scores={"noise_norm": np.array([1, math.nan, 3, 2], np.float32)})
    calibration = calibrate(scorer, [broken], 0.5)
    assert calibration.thresholds["noise_norm"].negatives == 3
    assert calibration.memorized(broken)["noise_norm"].tolist() == [False, False, True, False]


def test_mean_attention_of_clean_prompts():
    attention = np.array([[0.5, 0.2, 0.3, 0.0], [0.5, 0.4, 0.06, 0.04]], np.float32)
    shares = clean_attention(attention, np.array([3, 4]))  # prompt tokens: 1 of the first row, 1 and 2 of the second
    overall = (0.2 + 0.4 + 0.06) / 3
    np.testing.assert_allclose(shares, [overall, 0.3, 0.06, overall], rtol=1e-6)
    excess = attention_excess(attention, shares, np.array([3, 4]))
    np.testing.assert_allclose(excess, [[0, 0.2 / 0.3, 0, 0], [0, 0.4 / 0.3, 1, 0]], rtol=1e-6)


def test_own_noise_depends_on_the_prompt_alone(command, model, tmp_path):
    own = ("--model", model, "--per-prompt-noise", "--no-explain", *FAST)
    command("detect", *NEW, *own, "--out", tmp_path / "a")
    command("detect", *NEW[::-1], *own, "--out", tmp_path / "b")
    a, b = read(tmp_path / "a" / "results.jsonl"), read(tmp_path / "b" / "results.jsonl")[::-1]
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one["noise_norm"], other["noise_norm"], rtol=1e-5)


def test_a_messy_log(command, model, tmp_path):
    """Each record has its row, with what is kept; equal prompts are scored once; nothing printed steers a terminal."""
    path = tmp_path / "log.csv"
    long = "the cat " * 60
    lines = [
        "id;prompt;length",
        "1;the cat;x",
        "2;\x1b[2J\u202ecat\x07;y",
        '3;"a "b" c";z',
        "4;the hat;",
        "5;the cat;w",
    ]
    path.write_text("\n".join([*lines, "6;;v", f"7;{long};u", f"8;{long}cat;t", '9;"two\nlines";s']), encoding="utf-8")
    own = ("--model", model, "--prompts", path, "--no-explain", *FAST)
    status, printed, errors = command("detect", *own, "--keep", "id,length", "--out", tmp_path / "out")
    rows = read(tmp_path / "out" / "results.jsonl")
    assert status == 0
    assert [row["row"] for row in rows] == list(range(9))
    assert [row["id"] for row in rows] == ["1", "2", None, "4", "5", "6", "7", "8", "9"]
    assert [row["kept_length"] for row in rows] == ["x", "y", None, "", "w", "v", "u", "t", "s"]
    assert [row["prompt"] for row in rows][::8] == ["the cat", "two\nlines"]
    assert [row["source"].partition(": ")[2] for row in rows][2::6] == ["line 4", "lines 10 to 11"]
    assert [row["cut"] for row in rows] == [False, False, None, False, False, None, True, True, False]
    assert [row["row"] for row in rows if row["error"] is not None] == [2, 5]
    assert rows[4] == rows[0] | {name: rows[4][name] for name in ("row", "id", "kept_length", "source")}
    assert errors[0] == f"note: {path}: its fields are separated by semicolons"
    assert [line.startswith("warning: prompt cut at 77 tokens") for line in errors[1:]] == [True]
    assert "2 prompts were longer than 77 tokens and cut there; the column cut says which" in printed
    assert all(line.isprintable() for line in (*printed, *errors))
    assert any(r"\x1b[2J\u202ecat\x07" in line for line in printed)
    for options, message in (
        (("--keep", "id"), "holds a run with other settings"),
        (("--keep", "user"), "no column 'user'; there are id, prompt, length"),
        (("--keep", "id,id"), "--keep id,id: a column is named twice"),
    ):
        status, _, errors = command("detect", *own, *options, "--out", tmp_path / "out")
        assert status == 2
        assert message in errors[-1]
    status, _, errors = command("detect", "a", "--model", model, "--keep", "id", "--out", tmp_path / "b")
    assert (status, len(errors)) == (2, 1)
    assert "--keep: carries columns of a prompt file through; give one with --prompts FILE" in errors[0]


BAD = [
    ((), "no prompts"),
    (("a", "--detectors", "vibes"), "unknown detector 'vibes'; expected one of entropy_e"),
    (("a", "--batch-size", 0), "--batch-size 0"),
    (("a", "--noise-norm-steps", "one"), "--noise-norm-steps one: whole numbers"),
    (("a", "--calibration", "none.json"), "--calibration none.json: no such file"),
    (("--calibrate", "none.txt"), "--calibrate none.txt: no such file"),
    (("a", "--prompts", "x.txt"), "not both"),
    (("a", "--fpr", 2), "--fpr 2.0: a rate between 0 and 1"),
    (("a", "--probes", 0), "--probes 0: at least 1"),
    (("a", "--site", "attic"), "--site: unknown cross-attention layer 'attic'"),
    (("a", "--steps", 2000), "--steps 2000: at most 1000"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[:20] for _, message in BAD])
def test_bad_input(command, model, tmp_path, arguments, message):
    status, _, errors = command("detect", *arguments, "--model", model, "--out", tmp_path)
    assert status == 2
    assert len(errors) == 1
    assert message in errors[0]


def test_files_that_hold_no_calibration(tmp_path):
    for content in ("{", "[]", '{"model": "x"}'):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(InputError, match="no calibration; detect --calibrate writes one"):
            Calibration.load(tmp_path / "c.json")


def test_infinite_bounds_survive_a_file(tiny, tmp_path):
    """Four clean prompts determine no threshold."""
    scorer = Scorer(tiny, ("text_baseline",), steps=4, attribute=True)
    calibration = calibrate(scorer, [scorer(CLEAN[:4])], 0.01)
    (tmp_path / "c.json").write_text(calibration.to_json())
    assert "Infinity" not in (tmp_path / "c.json").read_text()
    loaded = Calibration.load(tmp_path / "c.json")
    assert loaded.thresholds == calibration.thresholds
    assert loaded.thresholds["text_baseline"].high == math.inf
    np.testing.assert_array_equal(loaded.attention, calibration.attention)


def test_too_few_clean_prompts_warn(command, model, files, tmp_path):
    status, _, errors = command(
        "detect", "--model", model, "--calibrate", files / "clean.txt", "--out", tmp_path, "--detectors",
        "text_baseline", *FAST,
    )  # fmt: skip
    assert status == 0
    assert errors == [
        f"warning: {len(CLEAN)} clean prompts cannot resolve a false-positive rate of 0.01; at least 100 are needed"
    ]


def test_a_guard_mitigates_whom_its_detector_finds(tiny):
    """Rows below the threshold are the same bits as without a guard, rows above as with the mitigation."""
    plain = tiny.sample(NEW, steps=4, seeds=[1, 2, 3])
    mitigation = AttentionMask(mask="summary")
    masked = tiny.sample(NEW, steps=4, seeds=[1, 2, 3], mitigation=mitigation)
    scores = tiny.sample(NEW, steps=4, seeds=[1, 2, 3], guard=Guard(math.inf, mitigation=mitigation)).guard_scores
    middle = float(np.median(scores))
    guarded = tiny.sample(NEW, steps=4, seeds=[1, 2, 3], guard=Guard(middle, mitigation=mitigation))
    assert guarded.mitigated.tolist() == (scores > middle).tolist()
    assert guarded.mitigated.sum() == 1
    for row, mitigated in enumerate(guarded.mitigated):
        same, other = (masked, plain) if mitigated else (plain, masked)
        assert np.abs(guarded.latents[row] - other.latents[row]).max() > 1e-3
        np.testing.assert_array_equal(guarded.latents[row], same.latents[row])
        np.testing.assert_array_equal(guarded.images[row], same.images[row])
    own = tiny.detect(NEW, ["noise_norm"], seeds=[1, 2, 3])["noise_norm"]
    np.testing.assert_allclose(guarded.guard_scores, own, rtol=1e-5)


def test_guard_refusals(tiny):
    with pytest.raises(InputError, match="unknown first-step detector 'entropy_d'; did you mean 'entropy_e'"):
        Guard(1.0, "entropy_d")
    with pytest.raises(InputError, match="a guard brings its own mitigation"):
        tiny.sample(["a"], guard=Guard(1.0), mitigation=AttentionMask())


def test_generate_with_a_guard(command, calibrated, model, tmp_path):
    use = ("--model", model, "--steps", 4, "--guard", "noise_norm")
    path = calibrated / "calibration.json"
    status, _, errors = command("generate", *NEW, *use, "--calibration", path, "--out", tmp_path / "a")
    assert (status, errors) == (0, [])
    threshold = Calibration.load(path).thresholds["noise_norm"].value
    for row in read(tmp_path / "a" / "results.jsonl"):
        assert row["mitigated"] == (row["guard_score"] > threshold)
        assert row["settings"]["guard"] == "noise_norm"
    for options, message in (
        ((), "--guard needs --calibration FILE"),
        (("--calibration", path, "--mitigation", "attention_mask"), "mutually exclusive"),
        (
            ("--calibration", path, "--guard", "sharpness"),
            "no threshold for 'sharpness', only for entropy_e, noise_norm",
        ),
        (("--calibration", path, "--dtype", "bfloat16"), "fitted on another model"),
    ):
        status, _, errors = command("generate", "a", *use, "--out", tmp_path / "b", *options)
        assert status == 2
        assert message in errors[-1]


def test_evaluate(command, model, files, tiny, tmp_path):
    names = ["entropy_e", "noise_norm", "latent_step_norm", "text_baseline"]
    status, printed, errors = command(
        "evaluate", "--model", model, "--memorized", files / "new.txt", "--clean", files / "clean.txt",
        "--detectors", ",".join(names[:3]), "--out", tmp_path / "e", *FAST,
    )  # fmt: skip
    assert status == 0
    assert errors == [
        f"warning: {len(CLEAN)} clean prompts cannot resolve a false-positive rate of 1 %, 3 %, 5 %; 100 can"
    ]
    result = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert (result["memorized"], result["clean"], result["nan"]) == (len(NEW), len(CLEAN), 0)
    assert list(result["detectors"]) == names
    scores = tiny.detect(NEW + CLEAN, names, steps=4)
    for name in names:
        found = result["detectors"][name]
        assert found["auroc"] == pytest.approx(auroc(scores[name][:3], scores[name][3:]))
        assert found["auroc_low"] <= found["auroc"] <= found["auroc_high"]
        assert list(found["tpr"]) == list(found["tpr_nearest"]) == ["0.01", "0.03", "0.05", "0.1"]
    forwards = {name: found["forwards_per_prompt"] for name, found in result["detectors"].items()}
    assert forwards["entropy_e"] < forwards["noise_norm"] == pytest.approx(1, rel=0.01)
    assert forwards["latent_step_norm"] == 8
    assert forwards["text_baseline"] == 0
    assert all(found["seconds_per_prompt"] > 0 for found in result["detectors"].values())
    assert (tmp_path / "e" / "evaluation.md").read_text().splitlines() == printed[:6]
    with (tmp_path / "e" / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [*NEW, *CLEAN]
    assert [row["memorized"] for row in rows] == ["1"] * len(NEW) + ["0"] * len(CLEAN)
    np.testing.assert_allclose([float(row["noise_norm"]) for row in rows], scores["noise_norm"], rtol=1e-4)
    with Image.open(tmp_path / "e" / "roc.png") as picture:
        assert picture.width > 500
    status, _, errors = command(
        "evaluate", "--model", model, "--memorized", files / "new.txt", "--clean", files / "clean.txt",
        "--out", tmp_path / "e",
    )  # fmt: skip
    assert status == 2
    assert "holds an evaluation already" in errors[0]


def test_evaluate_refuses_an_empty_class(command, model, files, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    for arguments, message in (
        (("--memorized", tmp_path / "empty.txt", "--clean", files / "clean.txt"), "empty.txt: holds no prompt"),
        (("--memorized", files / "new.txt"), "--clean FILE is needed too"),
        ((), "no prompts: give --memorized FILE and --clean FILE"),
    ):
        status, _, errors = command("evaluate", "--model", model, *arguments, "--out", tmp_path / "e")
        assert status == 2
        assert message in errors[0]


def test_not_finite_scores_are_left_out_and_counted(tmp_path):
    from memattn_jax.report.evaluation import Evaluated, write_evaluation

    some, none = np.array([2.0, 3.0]), np.array([])
    table = write_evaluation(
        tmp_path, {"one": Evaluated(some, some - 1, 1, 1.0, 0.1), "two": Evaluated(none, some, 2, 1.0, 0.1)}, 2, 2, {}
    )
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["nan"] == 3
    assert result["detectors"]["one"]["auroc"] == 0.875
    assert result["detectors"]["two"]["auroc"] is None
    assert "–" in table


def test_the_built_in_model_has_thresholds(command, tmp_path):
    """Of the model that it lies beside: without arguments, detect tells a memorized prompt from a clean one."""
    status, printed, errors = command("detect", "--out", tmp_path)
    assert (status, errors) == (0, [])
    assert printed[0] == demo.NOTE
    memorized, clean = read(tmp_path / "results.jsonl")
    assert (memorized["verdict"], clean["verdict"]) == ("memorized", "clean")
    assert "noise_norm" in memorized["over"]
    assert "noise_norm: 1 of 2 prompts over the threshold (*)" in printed
