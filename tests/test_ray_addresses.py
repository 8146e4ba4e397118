"""What is said where Ray, of which a stand-in has the names, is not installed or refuses an address."""

import sys
from types import SimpleNamespace

import pytest
from verb_runs import command

from memattn_jax import InputError
from memattn_jax.commands import detect, options
from memattn_jax.runs.ray_engine import RayActors

VERSIONS = "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1\nThis process …"


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("head", ValueError("Invalid address format: head"), "--ray-address head: Invalid address format: head"),
        ("auto", RuntimeError(VERSIONS), "--ray-address auto: Version mismatch: The cluster was started with: Ray: "),
        ("auto", ConnectionError("Could not find any running Ray instance."), "--ray-address auto: no Ray cluster"),
        (
            None,
            RuntimeError("The current node timed out\nduring startup"),
            "--engine ray: The current node timed out d",
        ),
    ],
)
def test_an_address_that_ray_refuses_is_one_line(monkeypatch, address, error, message):
    def init(*arguments, **settings):
        raise error

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(InputError) as refused:
        RayActors(object, address)
    assert str(refused.value).startswith(message)
    assert str(refused.value).isprintable()


def test_ray_that_is_not_installed_is_missed_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^ray is not installed: .*memattn-jax\[ray\]"):
        detect.Options(prompt=("a",), engine="ray").check()


def test_a_mesh_is_of_the_actors_devices(model, tmp_path, monkeypatch):
    """The machine that gives the command may have none of them."""

    def init(*arguments, **settings):
        raise ConnectionError

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    monkeypatch.setattr(options, "find_spec", lambda name: name)
    arguments = ("--model", model, "--engine", "ray", "--ray-address", "auto", "--mesh", "data=64")
    status, _, errors = command("detect", "a", *arguments, "--detectors", "noise_norm", "--out", tmp_path / "out")
    assert (status, "--ray-address auto: no Ray cluster" in errors[-1]) == (2, True)
