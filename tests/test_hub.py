"""Finding models: offline, in a cache laid out as the hub's client lays it out; and by the client, from a stub."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from fake_hub import COMMIT, Hub, served

from memattn_jax import InputError
from memattn_jax.checkpoints.checkpoint import Source
from memattn_jax.checkpoints.hub import Repository, locate, needed, parse
from memattn_jax.checkpoints.opening import open_checkpoint

SURPLUS = (
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/diffusion_flax_model.msgpack",
    "vae/diffusion_pytorch_model.fp16.bin",
    "safety_checker/model.safetensors",
    "feature_extractor/preprocessor_config.json",
    "v1-5-pruned.ckpt",
    "README.md",
)
HALF = {name for name in SURPLUS if ".fp16." in name}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def repository(tmp_path, model) -> Path:
    """What "owner/name" holds: a model, the same in a folder of it, and what nobody needs."""
    folder = tmp_path / "repository"
    for place in (folder, folder / "sub" / "folder"):
        shutil.copytree(model, place)
    for name in SURPLUS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def online(cache, monkeypatch):
    """Makes the client ask a stub."""

    def use(address: str) -> None:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return use


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_model_by_name(cache, model):
    cached = cache / "models--owner--name"
    shutil.copytree(model, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    for name in ("owner/name", "hf://owner/name", f"owner/name@{COMMIT}"):
        assert locate(name) == cached / "snapshots" / COMMIT
    with pytest.raises(FileNotFoundError, match="owner/name@v1, "):
        locate("owner/name@v1")


def test_a_name_that_is_not_there(cache):
    for name in ("owner/nothing", "owner/a b", "hf://owner/nothing/model.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"{name}, .*Hugging Face Hub") as error:
            locate(name)
        assert "\n" not in str(error.value)


def test_a_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert locate("owner/name") == Path("owner/name")
    assert locate("./owner") == Path("owner")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("owner/name", ("owner/name", None, "")),
        ("owner/name@v1", ("owner/name", "v1", "")),
        ("owner/name/sub/folder@v1", ("owner/name", "v1", "sub/folder")),
        ("hf://owner/name", ("owner/name", None, "")),
        ("hf://owner/name/sub/folder", ("owner/name", None, "sub/folder")),
        ("hf://owner/name/sub/folder@refs/pr/7", ("owner/name", "refs/pr/7", "sub/folder")),
        ("hf://owner/name@refs/pr/7/sub", ("owner/name", "refs/pr/7", "sub")),
        ("hf://owner/name@v1/sub/file.ckpt", ("owner/name", "v1", "sub/file.ckpt")),
        ("hf://owner/name/file.safetensors@v1", ("owner/name", "v1", "file.safetensors")),
        ("/owner/name", None),
        ("./owner", None),
        ("~/name", None),
        ("name", None),
        ("some/where/else", None),
    ],
)
def test_names_of_places(name, place):
    assert parse(name) == (None if place is None else Repository(*place))


@pytest.mark.parametrize("name", ["hf://", "hf://owner", "hf:///name", "https://example.com/owner/name", "s3://a/b"])
def test_names_of_no_place(name):
    with pytest.raises(InputError, match="hf://owner/name"):
        parse(name)


def test_only_what_is_read_is_needed(repository, model):
    names = sorted(files(repository))
    assert sorted(needed(names, "", None)) == sorted(files(model))
    assert sorted(needed(names, "sub/folder", None)) == sorted(f"sub/folder/{name}" for name in files(model))
    half = set(needed(names, "", "fp16"))
    assert half - files(model) == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.bin",
    }
    assert "unet/diffusion_pytorch_model.safetensors" not in half


def test_weights_in_orbax_are_needed():
    names = ["unet/config.json", "unet/orbax/000/_METADATA", "unet/orbax/000/d/0", "safety_checker/orbax/000/_METADATA"]
    assert needed(names, "", None) == names[:3]


def test_downloads(repository, model, online, cache):
    """Only what is needed, once; afterwards the cache will do."""
    hub = Hub(repository)
    with served(hub) as address:
        online(address)
        folder = locate("owner/name")
        assert hub.sent == files(model) == files(folder)
        hub.sent.clear()
        assert locate("hf://owner/name@v1") == folder
        assert hub.sent == set()
        assert locate("owner/name", Source(variant="fp16")) == folder
        assert hub.sent == HALF
    assert open_checkpoint(folder).parts["unet"].variant == ""
    assert open_checkpoint(folder, Source(variant="fp16")).parts["unet"].variant == "fp16"
    assert locate("owner/name") == folder  # nobody answers any more
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    assert locate("owner/name") == folder


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("hf://owner/name/sub/folder", {}),
        ("owner/name/sub/folder@refs/pr/7", {}),
        ("owner/name", {"subfolder": "sub/folder"}),
        ("hf://owner/name/sub", {"subfolder": "folder", "revision": "v1"}),
    ],
    ids=str,
)
def test_a_folder_in_a_repository(repository, name, source, online):
    hub = Hub(repository)
    with served(hub) as address:
        online(address)
        folder = locate(name, Source(**source))
    assert folder.parts[-3:] == (COMMIT, "sub", "folder")
    assert {name.split("/")[0] for name in hub.sent} == {"sub"}
    open_checkpoint(folder)


def test_progress_is_for_terminals(repository, online, capfd):
    with served(Hub(repository)) as address:
        online(address)
        locate("owner/name")
    assert capfd.readouterr().err == ""


def test_a_file_in_a_repository(repository, online):
    """With the .yaml beside it, which says what it predicts."""
    (repository / "v1-5-pruned.yaml").write_text("a config")
    hub = Hub(repository)
    with served(hub) as address:
        online(address)
        file = locate("hf://owner/name/v1-5-pruned.ckpt")
    assert file.read_text() == "v1-5-pruned.ckpt"
    assert file.with_suffix(".yaml").read_text() == "a config"
    assert hub.sent == {"v1-5-pruned.ckpt", "v1-5-pruned.yaml"}


def test_a_repository_that_is_not_public(repository, online, monkeypatch):
    hub = Hub(repository, token="hf_secret")
    with served(hub) as address:
        online(address)
        with pytest.raises(FileNotFoundError, match="owner/name") as error:
            locate("owner/name")
        source = Source(token="hf_secret")
        open_checkpoint(locate("owner/name", source))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert locate("hf://owner/name/v1-5-pruned.ckpt").is_file()
    assert "hf_secret" not in f"{error.value}{source}"


def test_what_the_hub_does_not_have(repository, online):
    with served(Hub(repository)) as address:
        online(address)
        for model in ("owner/other", "owner/name@v9", "hf://owner/name/none.safetensors"):
            with pytest.raises(FileNotFoundError, match="not found on the Hugging Face Hub"):
                locate(model)
        with pytest.raises(InputError, match=r"no model in nowhere; .* sub/folder, .*v1-5-pruned\.ckpt"):
            locate("hf://owner/name/nowhere")
        with pytest.raises(InputError, match="names one already"):
            locate("owner/name@v1", Source(revision="v1"))
    with pytest.raises(InputError, match=r"revision v1: .* local path"):
        locate("./here", Source(revision="v1"))
