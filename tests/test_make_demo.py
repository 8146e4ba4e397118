"""The order in which the built-in model's files are made, and that it goes on where it stopped; nothing is computed."""

import make_demo
import pytest

from memattn_jax import InputError, demo


@pytest.fixture
def built_in(tmp_path, monkeypatch):
    """A folder in the place of memattn_jax/demo."""
    folder = tmp_path / "built-in"
    write_demo(folder, b"old")
    monkeypatch.setattr(demo, "FOLDER", folder)
    monkeypatch.setattr(demo, "MODEL", folder / "model")
    return folder


def write_demo(folder, weights: bytes) -> None:
    (folder / "model" / "unet").mkdir(parents=True)
    (folder / "prompts").mkdir()
    (folder / "model" / "model_index.json").touch()
    (folder / "model" / "unet" / "weights.safetensors").write_bytes(weights)
    (folder / "prompts" / f"{weights.decode()}.txt").touch()
    for name in ("NOTICE.md", *make_demo.MADE):
        (folder / name).touch()


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """The steps that ran; all but the first do nothing."""
    names: list[str] = []

    def noting(name, step):
        def note(options):
            names.append(name)
            step(options)

        return note

    for name in make_demo.STEPS:
        monkeypatch.setitem(make_demo.STEPS, name, noting(name, lambda options: None))
    return names


def run(tmp_path, *more: object) -> int:
    return make_demo.main([str(tmp_path / "work"), "--cache", "unused", *map(str, more)])


def test_what_is_done_is_not_done_again_until_the_model_is_another(tmp_path, built_in, called):
    assert run(tmp_path) == 0
    assert called == list(make_demo.STEPS)
    assert called[:2] == ["install", "site"]
    assert run(tmp_path) == 0
    assert len(called) == len(make_demo.STEPS)
    assert run(tmp_path, "--only", "tables") == 0
    assert called[len(make_demo.STEPS) :] == ["tables"]
    (built_in / "model" / "unet" / "weights.safetensors").write_bytes(b"new")
    assert run(tmp_path) == 0
    assert called[len(make_demo.STEPS) + 1 :] == list(make_demo.STEPS)


def test_it_goes_on_with_the_step_that_failed(tmp_path, built_in, called, monkeypatch, capsys):
    def fail(options):
        raise InputError("no calibration today")

    with monkeypatch.context() as patch:
        patch.setitem(make_demo.STEPS, "calibration", fail)
        assert run(tmp_path) == 2
    assert capsys.readouterr().err == "error: no calibration today\n"
    assert called == ["install", "site"]
    assert run(tmp_path) == 0
    assert called[2:] == list(make_demo.STEPS)[2:]


def test_install_replaces_the_model_and_what_was_made_from_it(tmp_path, built_in, capsys):
    write_demo(tmp_path / "new", b"new")
    assert run(tmp_path, "--demo", tmp_path / "new", "--only", "install") == 0
    assert (built_in / "model" / "unet" / "weights.safetensors").read_bytes() == b"new"
    assert [path.name for path in (built_in / "prompts").iterdir()] == ["new.txt"]
    assert not any((built_in / name).exists() for name in make_demo.MADE)
    assert run(tmp_path, "--demo", tmp_path / "elsewhere", "--only", "install") == 2
    assert str(tmp_path / "elsewhere") in capsys.readouterr().err
    assert (built_in / "model" / "unet" / "weights.safetensors").read_bytes() == b"new"
