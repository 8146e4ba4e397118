"""What all tests share: settings of JAX, and one small random checkpoint written by our own script."""

import dataclasses
import gc
import os
import tempfile
from pathlib import Path

import jax
import pytest
from quick import xla_flags

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XLA_FLAGS"] = xla_flags()
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads wait for each other longer than a tiny model takes
SETTINGS = {
    # libtpu is installed to compile for TPUs, and JAX would look for one with it, at length and in vain
    "jax_platforms": os.environ.get("JAX_PLATFORMS", "cpu"),
    "jax_default_matmul_precision": "highest",
    "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR")
    or str(Path(tempfile.gettempdir(), "memattn_jax-tests-xla")),
    "jax_persistent_cache_min_compile_time_secs": 0.2,
}
gc.set_threshold(50_000, 50, 100)  # tracing makes many objects, most of them to stay
for name, value in SETTINGS.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)  # for the commands that tests start, which so find what is compiled here


MAPS = 10_000  # until then files share what they compile
LONG = ("test_aot", "test_convert", "test_detect", "test_evaluate", "test_examples", "test_extending", "test_finetune")
LONG += ("test_guard", "test_large_runs", "test_parallel", "test_step", "test_ray", "test_bench", "test_audit")
LONG += ("test_audit_search",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest go first, so that no worker is at one of them when the other has nothing left."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `scripts/make_random_model.py` writes."""
    import make_random_model

    folder = tmp_path_factory.mktemp("random") / "model"
    make_random_model.main(folder)
    return folder


@pytest.fixture(scope="session")
def model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller one; see `micro.write_model`."""
    import micro

    folder = tmp_path_factory.mktemp("micro")
    micro.write_model(folder, random_model)
    return folder


@pytest.fixture(scope="session")
def sd(model: Path):
    """That one, loaded."""
    from memattn_jax import StableDiffusion

    return StableDiffusion.from_pretrained(model)


@pytest.fixture(scope="session")
def matrices(sd):
    """With a UNet of three matrices, for what is a matter of the run: its programs compile at once."""
    from extensions import plain_unet

    width = sd.encode(["a"])[0].shape[-1]
    return dataclasses.replace(sd, unet=plain_unet(jax.random.key(0), width))


@pytest.fixture(scope="session")
def prompt_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clean.txt and new.txt."""
    from verb_runs import CLEAN, NEW

    folder = tmp_path_factory.mktemp("prompts")
    for name, prompts in (("clean", CLEAN), ("new", NEW)):
        (folder / f"{name}.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def calibrated(model: Path, prompt_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with calibration.json, at 10 %, and results of the new prompts."""
    from verb_runs import FAST, command

    out = tmp_path_factory.mktemp("calibrated") / "out"
    clean, new = prompt_files / "clean.txt", prompt_files / "new.txt"
    inputs = ("--model", model, "--calibrate", clean, "--fpr", 0.1, "--prompts", new)
    status, _, errors = command("detect", *inputs, "--out", out, *FAST)
    assert status == 0
    others = [error for error in errors if "unlike the calibration's" not in error]
    assert others == []
    return out


@pytest.fixture(scope="session")
def undisturbed_shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """What a run of 100 rows on a device made of Python leaves where nothing interrupts it."""
    import python_device

    folder = tmp_path_factory.mktemp("undisturbed")
    _, whole = python_device.fill(folder, 100)
    assert whole
    return python_device.contents(folder)


@pytest.fixture(scope="module", autouse=True)
def release_programs():
    """Lets go of compiled programs when they are many: each takes hundreds of memory maps; Linux grants 65,530."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()
