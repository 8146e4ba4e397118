"""detect, its calibration, evaluate and the guard, as their users meet them."""

import csv
import dataclasses
import io
import json
import math
import os
import subprocess
import sys
import warnings
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

from memattn_jax import Calibration, Guard, InputError, StableDiffusion, demo
from memattn_jax.commands import command as commands
from memattn_jax.commands import detect, evaluate, generate
from memattn_jax.detectors import Detection, Scorer
from memattn_jax.detectors.calibration.attention_excess import KINDS, CleanAttention, kinds, labels, listed
from memattn_jax.detectors.calibration.conformal import threshold
from memattn_jax.detectors.calibration.file import load_calibration, to_json
from memattn_jax.detectors.calibration.fit import calibrate
from memattn_jax.detectors.calibration.verdicts import Joint, Rule, fitting_rows
from memattn_jax.detectors.detection import concatenate
from memattn_jax.detectors.scorer import score_batches
from memattn_jax.evaluation.metrics import auroc
from memattn_jax.mitigations import AttentionMask
from memattn_jax.report.results import GUARD_BLIND, format_row, image_row, measure

VERBS = {"detect": detect, "evaluate": evaluate, "generate": generate}
CLEAN = tuple(f"the {letter} and {other}" for letter in "abcdef" for other in ("hat", "o", "x y z"))
NEW = ("the cat", "Zebra 7", "an odd and long line on the hill in the land")
FAST = ("--steps", 4, "--batch-size", 4)


def run(verb: str, *arguments: object) -> tuple[int, list[str], list[str]]:
    """`python -m memattn_jax.<verb>`, in this process: exit status, lines of standard output, and of standard error
    but for the metrics."""
    printed, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(errors):
        patch.setattr(sys, "argv", [verb, *map(str, arguments)])
        warnings.simplefilter("always")  # as outside pytest, which restores the filters after each test
        with pytest.raises(SystemExit) as stopped:
            commands.run_command(verb, VERBS[verb].Options, VERBS[verb].main)
    lines = [line for line in errors.getvalue().splitlines() if not line.startswith("{")]
    return stopped.value.code, printed.getvalue().splitlines(), lines


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


@pytest.fixture(scope="module")
def command():
    return run


@pytest.fixture(scope="module")
def calibrated(command, model, files, tmp_path_factory) -> Path:
    """A folder with calibration.json, at 10 %, and results of the new prompts."""
    out = tmp_path_factory.mktemp("calibrated") / "out"
    status, _, errors = command(
        "detect", "--model", model, "--calibrate", files / "clean.txt", "--fpr", 0.1, "--prompts", files / "new.txt",
        "--out", out, *FAST,
    )  # fmt: skip
    assert status == 0
    others = [error for error in errors if "unlike the calibration's" not in error]
    assert others == []
    return out


def test_calibration_and_results(calibrated, tiny):
    """Every number of the files follows from the scores that the package gives."""
    scores = tiny.detect(CLEAN, steps=4, batch_size=4)
    new = tiny.detect(NEW, steps=4, batch_size=4, attribute=True)
    calibration = load_calibration(calibrated / "calibration.json")
    assert calibration.fpr == 0.1
    assert calibration.model == tiny.fingerprint()
    rows = read(calibrated / "results.jsonl")
    assert sorted(row["row"] for row in rows) == [0, 1, 2]
    assert [row["prompt"] for row in rows] == list(NEW)
    joint = Joint.fit(calibration.scores)
    judged = Rule(joint, 0.1).judge({name: np.array([row[name] for row in rows]) for name in new.scores})
    own = tiny.detect(CLEAN, "noise_norm", seeds=[zlib.crc32(text.encode()) for text in CLEAN], batch_size=4, steps=4)
    np.testing.assert_allclose(calibration.own_noise["noise_norm"], own["noise_norm"], rtol=1e-5)
    for name in ("entropy_e", "noise_norm"):
        np.testing.assert_allclose(calibration.scores[name], scores[name], rtol=1e-5)
        np.testing.assert_allclose([row[name] for row in rows], new[name], rtol=1e-5)
    for row, length, attention, gradient in zip(rows, new.lengths, new.attention, new.gradients, strict=True):
        assert row | judged[row["row"]] == row
        assert row["verdict"] == ("memorized" if row["over"] else "clean")
        assert len(row["tokens"]) == length + 1
        assert row["tokens"][0] == "<begin>"
        assert row["tokens"][-2:] == ["<end>", f"<padding ×{77 - length}>"]
        assert sum(row["attention"]) == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(row["attention"], [*attention[:length], attention[length:].sum()], rtol=1e-4)
        np.testing.assert_allclose(row["gradient"][:-1], gradient[:length], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(row["gradient"][-1], np.linalg.norm(gradient[length:]), rtol=1e-3, atol=1e-6)
        excess = calibration.attention.excess(listed(attention, length), length)
        np.testing.assert_allclose(row["attention_excess"], excess, rtol=1e-4)
        blamed = [row["tokens"][entry] for entry in calibration.attention.stand_out(excess, length)]
        assert row["blamed"] == blamed
        assert row["error"] is None
        assert row["length"] == length
        assert row["site"] == tiny.unet.sites[3]
    manifest = json.loads((calibrated / "manifest.json").read_text())
    assert manifest["identity"]["settings"]["steps"] == 4
    assert manifest["identity"]["settings"]["site"] == calibration.settings["site"] == tiny.unet.sites[3]
    assert manifest["identity"]["settings"]["fpr"] == 0.1
    assert manifest["identity"]["settings"]["thresholds"] == joint.thresholds(0.1)
    assert manifest["identity"]["model"] == tiny.fingerprint()
    assert manifest["rows"] == len(NEW)
    assert pq.read_table(calibrated / "00000.parquet").to_pylist() == rows


def test_a_calibration_is_used_and_guarded(command, calibrated, model, files, tmp_path):
    """Its settings are taken over; another setting, dtype or model is refused."""
    use = ("--model", model, "--calibration", calibrated / "calibration.json", "--batch-size", 4)
    status, printed, _ = command("detect", "the cat", *use, "--out", tmp_path / "a", "--no-explain")
    assert status == 0
    (row,) = read(tmp_path / "a" / "results.jsonl")
    first = read(calibrated / "results.jsonl")[0]
    assert row["verdict"] == first["verdict"]
    np.testing.assert_allclose(row["noise_norm"], first["noise_norm"], rtol=1e-5)
    assert "attention" not in row
    assert printed[-1].startswith(f"1 prompt in {tmp_path / 'a'}, ")
    for options, message in (
        (("--steps", 5), "steps 4, not 5"),
        (("--per-prompt-noise",), "seed 0, not None"),
        (("--dtype", "bfloat16"), "another model"),
        (("--calibrate", files / "clean.txt"), "--calibration and --calibrate"),
        (("--fpr", 0.1, "--fdr", 0.1), "--fpr and --fdr"),
        (("--fdr", 1), "--fdr 1.0: "),
        (("--detectors", "latent_step_deviation"), "latent_step_deviation"),
    ):
        status, _, errors = command("detect", "the cat", *use, "--out", tmp_path / "b", *options)
        assert status == 2
        assert len(errors) == 1
        assert message in errors[0]


def test_clean_prompts_without_a_finite_score_are_left_out(tiny):
    """With all their scores, so that the detectors' rows still belong together."""
    scorer = Scorer(tiny, ("noise_norm", "entropy_e", "text_baseline"), steps=4, attribute=True)
    clean = scorer(CLEAN[:4])
    other = np.arange(4, dtype=np.float32)
    broken = {"noise_norm": np.array([1, math.nan, 3, 2], np.float32), "entropy_e": other, "text_baseline": other}
    calibration = calibrate(scorer, [dataclasses.replace(clean, scores=broken)], 0.5)
    assert calibration.scores["noise_norm"].tolist() == [1, 3, 2]
    assert calibration.scores["entropy_e"].tolist() == [0, 2, 3]
    assert calibration.judged(broken) == ("noise_norm", "entropy_e")  # no verdict from the text alone
    assert list(calibration.memorized(clean)) == ["noise_norm", "entropy_e"]
    none = {name: np.full(4, math.nan, np.float32) for name in broken}
    with pytest.raises(InputError, match=r"^0 of 4 .*finite"):
        calibrate(scorer, [dataclasses.replace(clean, scores=none)], 0.5)


def test_a_score_that_is_not_finite_is_an_unknown_row(command, calibrated, model, tmp_path, monkeypatch):
    """Of two detectors, one with a NaN for the second prompt, and for the third, which the other calls memorized."""
    fetch = Detection.fetch

    def broken(self: Detection) -> Detection:
        found = fetch(self)
        scores = {name: np.array(score) for name, score in found.scores.items()}
        scores["entropy_e"][1:3] = math.nan, math.inf
        scores["noise_norm"][:3] = 0, 0, 1e6
        return dataclasses.replace(found, scores=scores)

    monkeypatch.setattr(Detection, "fetch", broken)
    use = ("--model", model, "--calibration", calibrated / "calibration.json", "--batch-size", 4)
    status, printed, _ = command("detect", *NEW, *use, "--out", tmp_path / "a", "--no-explain")
    assert status == 0
    rows = read(tmp_path / "a" / "results.jsonl")
    assert [row["verdict"] for row in rows][1:] == ["unknown", "memorized"]
    assert [row["error"] for row in rows] == [None, "not finite: entropy_e", "not finite: entropy_e"]
    assert [row["entropy_e"] is None for row in rows] == [False, True, True]
    assert any(line.startswith("unknown: 1 of 3 prompts") for line in printed)
    assert any(line.startswith("2 prompts without a score") for line in printed)
    (shown,) = [line for line in printed if NEW[1] in line]
    assert shown.endswith("[unknown]  not finite: entropy_e")


def test_attention_of_clean_prompts():
    """Two clean prompts of one and two words; the padding is one entry, and shorter prompts have more of it."""
    attention = np.array([[0.5, 0.2, 0.1, 0.15, 0.05], [0.4, 0.3, 0.06, 0.2, 0.04]], np.float32)
    lengths = np.array([3, 4])
    clean = CleanAttention.fit(attention, lengths)
    means = {"begin": 0.45, "prompt": (0.2 + 0.3 + 0.06) / 3, "end": 0.15, "padding": (0.2 + 0.04) / 2}
    assert clean.means == pytest.approx(means)
    np.testing.assert_allclose(clean.positions, [means["prompt"], 0.25, 0.06, means["prompt"], means["prompt"]])
    rows = [listed(row, length) for row, length in zip(attention, lengths, strict=True)]
    np.testing.assert_allclose(rows[0], [0.5, 0.2, 0.1, 0.2])
    expected = [[0.5 / 0.45, 0.8, 0.1 / 0.15, 0.2 / 0.12], [0.4 / 0.45, 1.2, 1, 0.2 / 0.15, 0.04 / 0.12]]
    for row, length, ratios in zip(rows, lengths, expected, strict=True):
        np.testing.assert_allclose(clean.excess(row, length), ratios, rtol=1e-5)
        assert clean.stand_out(clean.excess(row, length), length).tolist() == []
    largest = {"begin": 0.5 / 0.45, "prompt": 1.2, "end": 0.2 / 0.15, "padding": 0.2 / 0.12}
    assert clean.margins == pytest.approx(largest)
    other = np.array([0.2, 0.31, 0.02, 0.47], np.float32)
    assert clean.stand_out(clean.excess(other, 3), 3).tolist() == [3, 1]
    assert [KINDS[kind] for kind in kinds(3, 4)] == ["begin", "prompt", "end", "padding"]
    assert labels(["<s>", "cat", "</s>"], 2) == ["<begin>", "cat", "<end>", "<padding ×2>"]
    full = np.array([0.4, 0.1, 0.1, 0.2, 0.2], np.float32)
    np.testing.assert_array_equal(listed(full, 5), full)
    assert len(clean.excess(full, 5)) == 5


def test_only_an_excess_stands_out():
    """Neither less attention than in clean prompts, nor as much more as one in twenty clean prompts has."""
    rng = np.random.default_rng(0)
    attention = rng.dirichlet([40, 5, 5, 5, 10, 10], 400).astype(np.float32)
    clean = CleanAttention.fit(attention, np.full(400, 5))
    assert min(clean.margins.values()) >= 1
    new = rng.dirichlet([40, 5, 5, 5, 10, 10], 400).astype(np.float32)
    found = [clean.stand_out(clean.excess(row, 5), 5) for row in new]
    for kind in range(4):
        share = np.mean([np.isin(kinds(5, 6)[entries], kind).any() for entries in found])
        assert 0.02 < share < 0.09, KINDS[kind]
    assert clean.stand_out(np.full(6, 0.9, np.float32), 5).tolist() == []
    assert clean.stand_out(np.full(6, 1.0, np.float32), 5).tolist() == []


@pytest.mark.slow
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
    status, printed, errors = command("detect", *own, "--keep", "id,length", "--report", "--out", tmp_path / "out")
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
    assert errors[0].startswith(f"note: {path}: ")
    assert "semicolons" in errors[0]
    assert ["cut at 77 tokens" in line for line in errors[1:]] == [True]
    assert any(line.startswith("2 prompts cut to 77 tokens") for line in printed)
    assert all(line.isprintable() for line in (*printed, *errors))
    assert any(r"\x1b[2J\u202ecat\x07" in line for line in printed)
    assert "report.html with 9 prompts" in printed
    assert "9 prompts were scored" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for options, message in (
        (("--keep", "id"), "keep"),
        (("--keep", "user"), "no column 'user'; "),
        (("--keep", "id,id"), "--keep id,id: "),
    ):
        status, _, errors = command("detect", *own, *options, "--out", tmp_path / "out")
        assert status == 2
        assert message in errors[-1]
    status, _, errors = command("detect", "a", "--model", model, "--keep", "id", "--out", tmp_path / "b")
    assert (status, len(errors)) == (2, 1)
    assert "--keep" in errors[0]
    assert "--prompts FILE" in errors[0]


BAD = [
    ((), "no prompts"),
    (("a", "--detectors", "vibes"), "unknown detector 'vibes'; expected one of "),
    (("a", "--batch-size", 0), "--batch-size 0"),
    (("a", "--noise-norm-steps", "one"), "--noise-norm-steps one: "),
    (("a", "--calibration", "none.json"), "--calibration none.json: "),
    (("--calibrate", "none.txt"), "--calibrate none.txt: "),
    (("a", "--prompts", "x.txt"), "--prompts: "),
    (("a", "--fpr", 2), "--fpr 2.0: "),
    (("a", "--probes", 0), "--probes 0: "),
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
    for content in ("{", "[]", "{}", '{"format": 3, "model": "x"}'):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(InputError, match=r"c\.json.*`detect --calibrate`"):
            load_calibration(tmp_path / "c.json")
    (tmp_path / "c.json").write_text('{"model": "x", "settings": {}, "fpr": 0.01, "thresholds": {}, "attention": []}')
    with pytest.raises(InputError, match=r"c\.json.*version"):
        load_calibration(tmp_path / "c.json")


@pytest.fixture(scope="module")
def plain(tiny) -> Calibration:
    scorer = Scorer(tiny, ("entropy_e", "noise_norm"), steps=4, attribute=True)
    clean = list(score_batches(scorer, ((prompt, 0) for prompt in CLEAN), 4))
    return calibrate(scorer, clean, 0.1, clean)


def test_a_calibration_survives_its_file(plain, tmp_path):
    fits = {"latent_step_deviation": {"mean": np.float32([1 / 3, 2]), "deviation": np.float32([0.1, 1e-9])}}
    calibration = dataclasses.replace(plain, fits=fits)
    (tmp_path / "c.json").write_text(to_json(calibration))
    loaded = load_calibration(tmp_path / "c.json")
    assert to_json(loaded) == to_json(calibration)
    for part in ("scores", "own_noise"):
        for name, row in getattr(calibration, part).items():
            np.testing.assert_array_equal(getattr(loaded, part)[name], row)
    for name, row in fits["latent_step_deviation"].items():
        np.testing.assert_array_equal(loaded.fits["latent_step_deviation"][name], row)
    np.testing.assert_array_equal(loaded.attention.positions, calibration.attention.positions)


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "null", "1e999"])
@pytest.mark.parametrize("part", ["scores", "own_noise", "attention", "statistics", "fits"])
def test_a_number_that_is_not_finite_is_refused(plain, tmp_path, bad, part):
    fits = {"latent_step_deviation": {"mean": np.ones(4, np.float32), "deviation": np.ones(4, np.float32)}}
    content = json.loads(to_json(dataclasses.replace(plain, fits=fits)))

    def spoil(value):
        if isinstance(value, dict):
            key = next(iter(value))
            return value | {key: spoil(value[key])}
        return [*value[:-1], "BAD"] if isinstance(value, list) else "BAD"

    content[part] = spoil(content[part])
    (tmp_path / "c.json").write_text(json.dumps(content).replace('"BAD"', bad))
    with pytest.raises(InputError, match=r"c\.json: .* not finite"):
        load_calibration(tmp_path / "c.json")


@pytest.mark.slow
def test_too_few_clean_prompts_warn(command, model, files, tmp_path):
    """And no prompt is called clean at that rate."""
    status, _, errors = command(
        "detect", *NEW, "--model", model, "--calibrate", files / "clean.txt", "--out", tmp_path, "--no-explain",
        *FAST,
    )  # fmt: skip
    assert status == 0
    kept = len(CLEAN) - fitting_rows(len(CLEAN)).sum()
    (warning,) = errors
    assert warning.startswith("warning: too few clean prompts for a rate of 0.01")
    assert f" {kept}, and 99 " in warning
    assert [row["verdict"] for row in read(tmp_path / "results.jsonl")] == ["unknown"] * len(NEW)


def test_the_same_command_on_a_longer_log(model, tmp_path, monkeypatch, capsys):
    """Only what is new is scored, the summary is about all, and a record that has changed is refused."""
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    fixed = {"model": str(model), "prompts": str(path), "out": str(out), "detectors": "text_baseline"}
    options = detect.Options(**fixed, keep="id", explain=False, shard_rows=4, batch_size=2)
    lines = [json.dumps({"prompt": f"the {word}", "id": n}) for n, word in enumerate("abcdefghi")]

    def again(lines: list[str]) -> list[str]:
        path.write_text("\n".join(lines))
        scored: list[str] = []
        start = Scorer.start
        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "start", lambda self, texts, seeds: scored.extend(texts) or start(self, texts, seeds))
            detect.main(options)
        return scored

    again(lines[:6])
    full = (out / "00000.parquet").stat().st_mtime_ns
    assert set(again(lines)) == {"the g", "the h", "the i"}
    assert (out / "00000.parquet").stat().st_mtime_ns == full
    printed = capsys.readouterr().out
    assert "(9 of 9)" in printed
    assert "9 prompts in " in printed
    rows = [row for name in sorted(out.glob("*.parquet")) for row in pq.read_table(name).to_pylist()]
    assert [(row["prompt"], row["id"]) for row in rows] == [
        (f"the {word}", str(n)) for n, word in enumerate("abcdefghi")
    ]
    assert np.isfinite([row["text_baseline"] for row in rows]).all()
    assert again(lines) == []
    for place, changed in ((1, {"prompt": "the b", "id": 12}), (7, {"prompt": "the z", "id": 7})):
        with pytest.raises(InputError, match=rf"row {place} .*--overwrite"):
            again([*lines[:place], json.dumps(changed), *lines[place + 1 :]])


def test_false_discovery_rate_of_a_log(command, calibrated, model, files, tmp_path):
    """Verdicts follow from all p-values, in a file beside the rows; another rate computes no row anew."""
    calibration = load_calibration(calibrated / "calibration.json")
    use = ("--model", model, "--calibration", calibrated / "calibration.json", "--batch-size", 4)
    for fdr in (0.3, 0.8):
        status, printed, errors = command(
            "detect", "--prompts", files / "new.txt", *use, "--out", tmp_path / "a", "--no-explain", "--fdr", fdr
        )
        assert status == 0
        p = np.array([row["p"] for row in pq.read_table(tmp_path / "a" / "00000.parquet").to_pylist()])
        found = stats.false_discovery_control(p) <= fdr + 1e-9
        rows = pq.read_table(tmp_path / "a" / "_verdicts.parquet").to_pylist()
        assert [row["p"] for row in rows] == p.tolist()
        assert [row["verdict"] for row in rows] == ["memorized" if one else "clean" for one in found]
        repeated = read(tmp_path / "a" / "results.jsonl")
        assert [row["verdict"] for row in repeated] == [row["verdict"] for row in rows]
        assert [row["over"] for row in repeated] == [row["over"] for row in rows]
        number = found.sum()
        total = f"memorized: {number} of 3 prompts, at --fdr {fdr:g}: at most {fdr * number:.1f} of "
        assert any(line.startswith(total) for line in printed)
    scores = np.array([row["noise_norm"] for row in repeated])
    np.testing.assert_array_equal(p, calibration.joint(("entropy_e", "noise_norm")).p_values(
        {"noise_norm": scores, "entropy_e": np.array([row["entropy_e"] for row in repeated])}
    ))  # fmt: skip
    for process in (0, 1):  # the last one to finish has all p-values
        status, printed, _ = command(
            "detect", "--prompts", files / "new.txt", *use, "--out", tmp_path / "two", "--no-explain", "--fdr", fdr,
            "--num-processes", 2, "--process-id", process, "--shard-rows", 1,
        )  # fmt: skip
        assert status == 0
        waits = "verdicts at --fdr 0.8 need all rows; the process that finishes last writes _verdicts.parquet"
        assert (waits in printed) == (process == 0)
        assert (tmp_path / "two" / "_verdicts.parquet").exists() == (process == 1)
    assert pq.read_table(tmp_path / "two" / "_verdicts.parquet").to_pylist() == rows
    whole = pyarrow.dataset.dataset(tmp_path / "a", exclude_invalid_files=True).to_table()
    assert whole.num_rows == len(NEW)
    status, _, errors = command("detect", "the cat", "--model", model, "--fdr", 0.1, "--out", tmp_path / "b")
    assert status == 2
    assert len(errors) == 1
    assert "--fdr" in errors[0]
    assert "--calibration FILE" in errors[0]


@pytest.mark.slow
def test_a_guard_mitigates_whom_its_detector_finds(matrices):
    """Rows below the threshold are as without a guard, rows above as with the mitigation."""
    unmitigated = matrices.sample(NEW, steps=4, seeds=[1, 2, 3])
    mitigation = AttentionMask(mask="summary")
    masked = matrices.sample(NEW, steps=4, seeds=[1, 2, 3], mitigation=mitigation)
    scores = matrices.sample(NEW, steps=4, seeds=[1, 2, 3], guard=Guard(math.inf, mitigation=mitigation)).guard_scores
    middle = float(np.median(scores))
    guarded = matrices.sample(NEW, steps=4, seeds=[1, 2, 3], guard=Guard(middle, mitigation=mitigation))
    assert guarded.mitigated.tolist() == (scores > middle).tolist()
    assert guarded.mitigated.sum() == 1
    for row, mitigated in enumerate(guarded.mitigated):
        same, other = (masked, unmitigated) if mitigated else (unmitigated, masked)
        assert np.abs(guarded.latents[row] - other.latents[row]).max() > 1e-3
        scale = np.abs(same.latents[row]).max()
        np.testing.assert_allclose(guarded.latents[row] / scale, same.latents[row] / scale, atol=1e-5)
    own = matrices.detect(NEW, "noise_norm", seeds=[1, 2, 3], batch_size=4)["noise_norm"]
    np.testing.assert_allclose(guarded.guard_scores, own, rtol=1e-5)
    for limit in (math.nan, math.inf, -math.inf):  # what tells nothing calls no row clean
        assert matrices.sample(NEW, steps=4, seeds=[1, 2, 3], guard=Guard(limit, mitigation=mitigation)).mitigated.all()


UNTOUCHED = """
import sys
import numpy as np
from memattn_jax import Guard, StableDiffusion
sd = StableDiffusion.from_pretrained(sys.argv[1])
prompts, options = ["the cat", "zebra on the hill", "a"], {"steps": 4, "seeds": [1, 2, 3]}
plain = sd.sample(prompts, **options)
middle = float(np.median(sd.sample(prompts, guard=Guard(0.0), **options).guard_scores))
guarded = sd.sample(prompts, guard=Guard(middle), **options)
below = ~guarded.mitigated
assert below.sum() == 2
guarded, plain = (np.asarray(run.latents)[below] for run in (guarded, plain))
np.testing.assert_allclose(guarded, plain, atol=1e-5 * np.abs(plain).max())
"""


@pytest.mark.slow
def test_rows_below_a_guards_threshold_stay_as_they_are(model):
    """In programs compiled as users compile them."""
    command = [sys.executable, "-c", UNTOUCHED, str(model)]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_guard_mitigates_what_it_cannot_score(matrices):
    """A row whose score is NaN, since its latents are, beside two that are clean; the table says so."""
    noise = np.array(matrices.noise((1, 2, 3)))
    noise[1] = math.nan
    run = matrices.sample(NEW, steps=4, latents=noise, guard=Guard(1e6))
    assert run.mitigated.tolist() == [False, True, False]
    assert np.isnan(run.guard_scores).tolist() == [False, True, False]
    blind = dataclasses.replace(run, finite=np.ones(3, bool))
    rows = [image_row(i, measure(blind), i, matrices.tokenizer, {}, {}) for i in range(3)]
    assert [row["error"] for row in rows] == [None, GUARD_BLIND, None]
    assert [row["mitigated"] for row in rows] == [False, True, False]
    assert format_row(rows[1] | {"E": 1.0, "D": 2.0}) == f"00001.png  E 1.0000  D 2.0000  {NEW[1]}  ({GUARD_BLIND})"


def test_guard_refusals(tiny):
    with pytest.raises(InputError, match="first-step detector 'entropy_d'; did you mean 'entropy_e'"):
        Guard(1.0, "entropy_d")
    with pytest.raises(InputError, match="guard"):
        tiny.sample(["a"], guard=Guard(1.0), mitigation=AttentionMask())


@pytest.mark.slow
def test_generate_with_a_guard(command, calibrated, model, tmp_path):
    use = ("--model", model, "--steps", 4, "--guard", "noise_norm")
    path = calibrated / "calibration.json"
    status, _, errors = command("generate", *NEW, *use, "--calibration", path, "--out", tmp_path / "a")
    assert (status, errors) == (0, [])
    calibration = load_calibration(path)
    limit = threshold(np.sort(calibration.own_noise["noise_norm"]), 0.1)
    for row in read(tmp_path / "a" / "results.jsonl"):
        assert row["mitigated"] == (row["guard_score"] > limit)
        assert row["settings"]["guard"] == "noise_norm"
    with pytest.raises(InputError, match=r"0\.01 .*99 .*18"):
        Guard.from_calibration(calibration, fpr=0.01)
    many = dataclasses.replace(calibration, settings=calibration.settings | {"probes": 4, "seed": 7})
    assert Guard.from_calibration(many).threshold == limit  # clean prompts seen as a guard sees: one noise, their own
    for options, message in (
        ((), "--guard needs --calibration FILE"),
        (("--calibration", path, "--guard", "sharpness"), "'sharpness'"),
        (("--calibration", path, "--dtype", "bfloat16"), "another model"),
    ):
        status, _, errors = command("generate", "a", *use, "--out", tmp_path / "b", *options)
        assert status == 2
        assert message in errors[-1]


@pytest.mark.slow
def test_evaluate(command, model, files, tiny, tmp_path):
    names = ["entropy_e", "noise_norm", "latent_step_deviation", "text_baseline"]
    status, _, _ = command(
        "detect", "--model", model, "--calibrate", files / "clean.txt", "--detectors", ",".join(names[:3]),
        "--fpr", 0.1, "--out", tmp_path / "c", *FAST,
    )  # fmt: skip
    assert status == 0
    fit = load_calibration(tmp_path / "c" / "calibration.json").fits["latent_step_deviation"]
    scorer = Scorer(tiny, names[2], steps=4, calibrating=True)
    clean = concatenate(list(score_batches(scorer, ((prompt, 0) for prompt in CLEAN), 4)))
    runs = clean.kept["latent_step_deviation"][fitting_rows(len(CLEAN))]
    np.testing.assert_allclose(fit["mean"], runs.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(fit["deviation"], runs.std(axis=(0, 1)), rtol=1e-3)
    status, printed, errors = command(
        "evaluate", "--model", model, "--memorized", files / "new.txt", "--clean", files / "clean.txt",
        "--detectors", ",".join(names[:3]), "--out", tmp_path / "e", *FAST, "--report",
        "--calibration", tmp_path / "c" / "calibration.json",
    )  # fmt: skip
    assert status == 0
    (warning,) = errors
    assert warning.startswith("warning: too few clean prompts for a false-positive rate of 1 %, 3 %, 5 %")
    assert f" {len(CLEAN)}, and 100 " in warning
    result = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert (result["memorized"], result["clean"], result["nan"]) == (len(NEW), len(CLEAN), 0)
    assert list(result["detectors"]) == names
    scores = tiny.detect(NEW + CLEAN, names, steps=4, batch_size=4, **fit)
    for name in names:
        found = result["detectors"][name]
        assert found["auroc"] == pytest.approx(auroc(scores[name][:3], scores[name][3:]))
        assert found["auroc_low"] <= found["auroc"] <= found["auroc_high"]
        assert list(found["tpr"]) == list(found["tpr_nearest"]) == ["0.01", "0.03", "0.05", "0.1"]
    forwards = {name: found["forwards_per_prompt"] for name, found in result["detectors"].items()}
    assert forwards["entropy_e"] < forwards["noise_norm"] == pytest.approx(1, rel=0.01)
    assert forwards["latent_step_deviation"] == 8
    assert forwards["text_baseline"] == 0
    assert all(found["seconds_per_prompt"] > 0 for found in result["detectors"].values())
    assert (tmp_path / "e" / "evaluation.md").read_text().splitlines() == printed[:6]
    with (tmp_path / "e" / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == [*NEW, *CLEAN]
    assert [row["memorized"] for row in rows] == ["1"] * len(NEW) + ["0"] * len(CLEAN)
    np.testing.assert_allclose([float(row["noise_norm"]) for row in rows], scores["noise_norm"], rtol=1e-4)
    assert all(f">{name}<" in (tmp_path / "e" / "report.html").read_text(encoding="utf-8") for name in names)
    with Image.open(tmp_path / "e" / "roc.png") as picture:
        assert picture.width > 500
    status, _, errors = command(
        "evaluate", "--model", model, "--memorized", files / "new.txt", "--clean", files / "clean.txt",
        "--out", tmp_path / "e",
    )  # fmt: skip
    assert status == 2
    assert f"{tmp_path / 'e'}: " in errors[0]
    assert "--overwrite" in errors[0]


def test_evaluate_refuses_an_empty_class(command, model, files, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    for arguments, message in (
        (("--memorized", tmp_path / "empty.txt", "--clean", files / "clean.txt"), "empty.txt: "),
        (("--memorized", files / "new.txt"), "--clean FILE"),
        ((), "--memorized FILE"),
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


@pytest.mark.slow
def test_the_built_in_model_has_thresholds(command, tmp_path):
    """Of the model that it lies beside: without arguments, detect distinguishes a memorized prompt from a clean one."""
    status, printed, errors = command("detect", "--out", tmp_path)
    assert (status, errors) == (0, [])
    assert printed[0] == demo.NOTE
    memorized, clean = read(tmp_path / "results.jsonl")
    assert (memorized["verdict"], clean["verdict"]) == ("memorized", "clean")
    assert "noise_norm" in memorized["over"]
    assert "noise_norm: 1 of 2 prompts over the threshold (*)" in printed
    assert any(line.startswith("memorized: 1 of 2 prompts, at --fpr 0.01: 0.0 expected") for line in printed)
    assert "[<" in printed[3] or "no token stands out" in printed[3]
