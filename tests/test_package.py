"""What importing and starting cost, and what they must not touch."""

import subprocess
import sys

import pytest

import memattn_jax
from memattn_jax.commands.verbs import VERBS

QUICK = {"PIL", "docstring_parser", "ml_dtypes", "numpy", "typeguard", "typing_extensions", "tyro"}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_lazy_and_light():
    heavy = "jax torch transformers flax matplotlib diffusers"
    assert python(f"import memattn_jax, sys; print([m for m in '{heavy}'.split() if m in sys.modules])") == "[]"


def test_using_the_library_starts_no_backend_and_imports_no_torch():
    code = (
        "import memattn_jax as m, sys; m.StableDiffusion, m.detectors, m.mitigations, m.schedulers, m.interceptors;"
        "m.heatmaps, m.Detection;"
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized(), 'torch' in sys.modules)"
    )
    assert python(code) == "False False"


def test_interceptors_and_schedulers_know_no_flax():
    code = (
        "import memattn_jax.interceptors, memattn_jax.entropy, memattn_jax.schedulers, memattn_jax.mitigations, sys;"
        "print('flax' in sys.modules)"
    )
    assert python(code) == "False"


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_only_what_is_quick(verb):
    """Half a second on most machines; with JAX it would be three times as long."""
    code = (
        f"import sys; before = set(sys.modules); sys.argv = ['{verb}', '--help']\n"
        "import runpy\n"
        f"try: runpy.run_module('memattn_jax.{verb}', run_name='__main__')\n"
        "except SystemExit: print(*{name.split('.')[0] for name in {*sys.modules} - before} - sys.stdlib_module_names)"
    )
    others = set(python(code).splitlines()[-1].split())
    assert others <= QUICK | {"memattn_jax"}


def test_public_names():
    for name in memattn_jax.__all__:
        assert getattr(memattn_jax, name) is not None
    assert set(memattn_jax.__all__) <= set(dir(memattn_jax))
