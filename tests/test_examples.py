"""The notebooks of examples/ run as they stand, and the outputs that they are kept with are what they print."""

import contextlib
import io
import json
import re
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).parents[1] / "examples"
NOTEBOOKS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.ipynb"))}
NUMBER = re.compile(r"−?-?\d+\.\d+")


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


@pytest.fixture(params=NOTEBOOKS)
def run(request):
    """A notebook's name, what it defines, and what each code cell printed, beside what it is kept with."""
    from matplotlib import pyplot

    matplotlib.use("Agg")
    scope: dict = {"__name__": "__main__"}
    outputs = []
    with matplotlib.rc_context():
        for cell in code_cells(NOTEBOOKS[request.param]):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec("".join(cell["source"]), scope)
            outputs.append((out.getvalue(), printed(cell)))
            for number in pyplot.get_fignums():  # which a notebook would draw
                pyplot.figure(number).canvas.draw()
            pyplot.close("all")
    return request.param, scope, outputs


def check_detect_and_explain(scope):
    verdicts = scope["verdicts"]
    assert verdicts[:2] == ["memorized", "memorized"]
    assert verdicts[24:28] == ["clean"] * 4
    assert verdicts[24:].count("memorized") <= 4 < 12 < verdicts[:24].count("memorized")
    memorized, clean = (
        [names[entry] for entry in entries] for names, entries in zip(scope["names"], scope["suspicious"], strict=True)
    )
    assert (memorized, clean) == (["<end>", "<padding ×67>"], [])
    assert scope["correlations"][0].max() > 0.9 > scope["correlations"][1].max()


def check_mitigate(scope):
    likeness = scope["likeness"]
    assert (likeness(scope["plain"])[:2] > 0.9).all()
    assert (likeness(scope["masked"])[:2] < 0.5).all()
    assert scope["guarded"].mitigated.tolist() == [True, True, False, False]
    assert (scope["early"][-2] > 0.9).all()  # the last four steps bring the copy back
    assert (scope["early"][-1] < 0.5).all()


def check_your_own_detector(scope):
    assert list(scope["aurocs"]) == ["noise_norm", "entropy_e", "StrongestPixel", "SummaryShare"]
    assert scope["aurocs"]["StrongestPixel"] > 0.98
    assert scope["aurocs"]["SummaryShare"] > 0.95


CHECKS = {
    "detect_and_explain": check_detect_and_explain,
    "mitigate": check_mitigate,
    "your_own_detector": check_your_own_detector,
}


@pytest.mark.slow
def test_notebooks_run(run):
    """What is printed is what they are kept with, but for rounding."""
    name, scope, outputs = run
    CHECKS[name](scope)
    for now, kept in outputs:
        assert NUMBER.sub("", now) == NUMBER.sub("", kept)
        assert [float(n) for n in NUMBER.findall(now)] == pytest.approx(
            [float(n) for n in NUMBER.findall(kept)], abs=0.03
        )


def test_every_notebook_has_a_check():
    assert list(NOTEBOOKS) == list(CHECKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_with_outputs_alone(name):
    """Small, run in order, with figures, and without warnings, times, or paths of the machine that made them."""
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = NOTEBOOKS[name]
    assert len(text) < 600_000
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 2
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)
    assert not any(cell["metadata"] for cell in notebook["cells"])
    assert not re.search(r"(?i)/(home|work|tmp|root|users)/|warning", text)
