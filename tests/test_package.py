"""What importing and starting cost, and what they must not touch."""

import resource
import subprocess
import sys

import memattn_jax


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def processor_seconds(*command: str) -> float:
    """Of the processor's time, which others at work lengthen less than the clock's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


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


def test_help_is_quick():
    """Within four times what NumPy takes to import beside it, as machines differ; with JAX it would be over six times.

    Three may try, since the first one reads files that no one has read before.
    """
    verbs = ("generate", "detect", "evaluate", "copies", "finetune", "convert")
    for command in (*(("-m", f"memattn_jax.{verb}", "--help") for verb in verbs), ("-c", "import memattn_jax")):
        assert any(processor_seconds(*command) < 4 * processor_seconds("-c", "import numpy") for _ in range(3)), command


def test_public_names():
    for name in memattn_jax.__all__:
        assert getattr(memattn_jax, name) is not None
    assert set(memattn_jax.__all__) <= set(dir(memattn_jax))
