"""`detect`, as its users meet it."""

import dataclasses
import json
import math
import zlib

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from scipy import stats
from verb_runs import CLEAN, FAST, NEW, command, read

from memattn_jax import InputError
from memattn_jax.commands import detect
from memattn_jax.commands.scoring import load_scorer
from memattn_jax.detectors import Detection, Scorer
from memattn_jax.detectors.calibration.attention_excess import listed
from memattn_jax.detectors.calibration.file import load_calibration
from memattn_jax.detectors.calibration.verdicts import Joint, Rule


def test_calibration_and_results(calibrated, sd):
    """Every number of the files follows from the scores that the package gives."""
    scores = sd.detect(CLEAN, steps=4, batch_size=4)
    new = sd.detect(NEW, steps=4, batch_size=4, attribute=True)
    calibration = load_calibration(calibrated / "calibration.json")
    assert calibration.fpr == 0.1
    assert calibration.model == sd.fingerprint()
    rows = read(calibrated / "results.jsonl")
    assert sorted(row["row"] for row in rows) == [0, 1, 2]
    assert [row["prompt"] for row in rows] == list(NEW)
    joint = Joint.fit(calibration.scores)
    judged = Rule(joint, 0.1).judge({name: np.array([row[name] for row in rows]) for name in new.scores})
    own = sd.detect(CLEAN, "noise_norm", seeds=[zlib.crc32(text.encode()) for text in CLEAN], batch_size=4, steps=4)
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
        assert row["site"] == sd.unet.sites[3]
    manifest = json.loads((calibrated / "manifest.json").read_text())
    assert manifest["identity"]["settings"]["steps"] == 4
    assert manifest["identity"]["settings"]["site"] == calibration.settings["site"] == sd.unet.sites[3]
    assert manifest["identity"]["settings"]["fpr"] == 0.1
    assert manifest["identity"]["settings"]["thresholds"] == joint.thresholds(0.1)
    assert manifest["identity"]["model"] == sd.fingerprint()
    assert manifest["rows"] == len(NEW)
    assert pq.read_table(calibrated / "00000.parquet").to_pylist() == rows


def test_a_calibration_is_used_and_guarded(calibrated, model, prompt_files, tmp_path):
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
        (("--calibrate", prompt_files / "clean.txt"), "--calibration and --calibrate"),
        (("--fpr", 0.1, "--fdr", 0.1), "--fpr and --fdr"),
        (("--fdr", 1), "--fdr 1.0: "),
        (("--detectors", "latent_step_deviation"), "latent_step_deviation"),
    ):
        status, _, errors = command("detect", "the cat", *use, "--out", tmp_path / "b", *options)
        assert status == 2
        assert len(errors) == 1
        assert message in errors[0]


def test_a_score_that_is_not_finite_is_an_unknown_row(calibrated, model, tmp_path, monkeypatch):
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


@pytest.mark.slow
def test_own_noise_depends_on_the_prompt_alone(model, tmp_path):
    own = ("--model", model, "--per-prompt-noise", "--no-explain", *FAST)
    command("detect", *NEW, *own, "--out", tmp_path / "a")
    command("detect", *NEW[::-1], *own, "--out", tmp_path / "b")
    a, b = read(tmp_path / "a" / "results.jsonl"), read(tmp_path / "b" / "results.jsonl")[::-1]
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one["noise_norm"], other["noise_norm"], rtol=1e-5)


def test_a_messy_log(model, tmp_path):
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
    assert command("detect", *own, "--keep", "id,length", "--out", tmp_path / "out")[0] == 0
    assert not (tmp_path / "out" / "report.html").exists()  # what it says may be of other rows now
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
    (("--calibrate", __file__, "--detectors", "text_baseline"), "--calibrate: text_baseline reads the prompt alone"),
    (("--calibrate", __file__, "--column", "x\udce9"), "--column: the text is not valid UTF-8"),
    (("a", "--prompts", "x.txt"), "--prompts: "),
    (("a", "--fpr", 2), "--fpr 2.0: "),
    (("a", "--probes", 0), "--probes 0: "),
    (("a", "--site", "attic"), "--site: unknown cross-attention layer 'attic'"),
    (("a", "--steps", 2000), "--steps 2000: at most 1000"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message[:20] for _, message in BAD])
def test_bad_input(model, tmp_path, arguments, message):
    status, _, errors = command("detect", *arguments, "--model", model, "--out", tmp_path)
    assert status == 2
    assert len(errors) == 1
    assert message in errors[0]


def test_a_worker_of_an_engine_loads_the_model_of_the_table(model, sd):
    """Of a dtype that its own machine would not choose; a folder with another model is refused."""
    options = detect.Options(prompt=("a",), model=str(model), detectors="noise_norm", explain=False, dtype="float32")
    assert load_scorer(options, None, sd.fingerprint())(["a"])["noise_norm"].shape == (1,)
    with pytest.raises(InputError, match="another model there"):
        load_scorer(dataclasses.replace(options, dtype="bfloat16"), None, sd.fingerprint())


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


def test_false_discovery_rate_of_a_log(calibrated, model, prompt_files, tmp_path):
    """Verdicts follow from all p-values, in a file beside the rows; another rate computes no row anew."""
    calibration = load_calibration(calibrated / "calibration.json")
    use = ("--model", model, "--calibration", calibrated / "calibration.json", "--batch-size", 4)
    for fdr in (0.3, 0.8):
        status, printed, errors = command(
            "detect", "--prompts", prompt_files / "new.txt", *use, "--out", tmp_path / "a", "--no-explain", "--fdr", fdr
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
            "detect", "--prompts", prompt_files / "new.txt", *use, "--out", tmp_path / "two", "--no-explain",
            "--fdr", fdr, "--num-processes", 2, "--process-id", process, "--shard-rows", 1,
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
