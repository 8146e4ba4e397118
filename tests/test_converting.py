"""A checkpoint from one container to the next and back: the same bits, the same fingerprint, little memory."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from memattn_jax import InputError, StableDiffusion, demo
from memattn_jax.checkpoints import orbax_part
from memattn_jax.checkpoints.checkpoint import PARTS, Source
from memattn_jax.checkpoints.opening import open_checkpoint
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.commands import convert
from memattn_jax.commands.converting import convert as convert_checkpoint
from memattn_jax.diffusion import loading
from memattn_jax.sharding.placement import make_mesh

CONFIG = ["--config", str(demo.MODEL)]  # the built-in model's tokenizer is its own


def run(*arguments: object) -> int:
    """Exit status of `memattn convert`."""
    import sys

    sys.argv = ["memattn convert", *map(str, arguments)]
    with pytest.raises(SystemExit) as stop:
        convert.cli()
    return stop.value.code or 0


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, Path]:
    """The built-in model in each container, each made from the one before."""
    folder = tmp_path_factory.mktemp("converted")
    places = {"orbax": folder / "orbax", "single-file": folder / "model.safetensors", "diffusers": folder / "again"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [])
        source, options = demo.MODEL, []
        for container, place in places.items():
            assert run(source, place, "--to", container, *options) == 0
            source, options = place, CONFIG if container == "single-file" else []
    return places


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {
        f"{part}.{name.removeprefix('text_model.')}": value
        for part in PARTS
        for path in (folder / part).glob("*.safetensors")
        for name, value in load_file(path).items()
    }


def test_round_trip_is_bit_equal(converted):
    """Through Orbax and a single file; the tokenizer, the scheduler and the layer of metric E come along."""
    before, after = tensors(demo.MODEL), tensors(converted["diffusers"])
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert value.tobytes() == after[name].tobytes(), name
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "memattn_jax.json"):
        assert (converted["orbax"] / name).is_file()
    opened = [open_checkpoint(place) for place in (demo.MODEL, *converted.values())]
    assert {checkpoint.entropy_site for checkpoint in opened} == {opened[0].entropy_site}
    assert opened[0].entropy_site is not None
    for part in PARTS:
        assert len({str(checkpoint.parts[part].config) for checkpoint in opened}) == 1


def test_one_fingerprint_for_all_containers(converted):
    expected = StableDiffusion.from_pretrained(demo.MODEL, "float32").fingerprint(pictures=True)
    for container, place in converted.items():
        source = {"config": demo.MODEL} if container == "single-file" else {}
        assert StableDiffusion.from_pretrained(place, "float32", **source).fingerprint(pictures=True) == expected, (
            container
        )


def test_a_single_file_keeps_the_tokenizers_length(tmp_path, monkeypatch):
    """CLIP's vocabulary has a place of its own, and 77 tokens by default."""
    folder = Path(shutil.copytree(demo.MODEL, tmp_path / "folder"))
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 9}))
    assert run(folder, tmp_path / "model.safetensors", "--to", "single-file") == 0
    made = []
    monkeypatch.setattr(loading, "Tokenizer", lambda *arguments: made.append(Tokenizer(*arguments)) or made[0])
    with pytest.raises(InputError, match="--config"):  # this model's own vocabulary has no place in the file
        StableDiffusion.from_pretrained(tmp_path / "model.safetensors")
    assert made[0](["a"]).input_ids.shape == (1, 9)


def test_another_vocabulary_is_asked_for(converted, tmp_path, capsys):
    """Also where an embedding makes the token table as large as CLIP's vocabulary."""
    save_file({"<new>": np.ones((1, 128), np.float32)}, tmp_path / "new.safetensors")
    for embeddings in ([], [tmp_path / "new.safetensors"]):
        with pytest.raises(InputError, match=r"49408 tokens, but .* are expected; add --config"):
            StableDiffusion.from_pretrained(converted["single-file"], embeddings=embeddings)
    assert run(converted["single-file"], tmp_path / "folder") == 2
    assert "add --config FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()


def test_a_checkpoint_is_checked_as_for_loading(tmp_path):
    """Its configs and its variant."""
    folder = Path(shutil.copytree(demo.MODEL, tmp_path / "model"))
    for path in (folder / "vae").glob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.warns(UserWarning, match=r"no plain weights, taking those of vae \(fp16\)"):
        convert_checkpoint(folder, Source(), tmp_path / "out", "diffusers", None)
    (folder / "memattn_jax.json").write_text('{"entropy_site": "nowhere"}')
    with pytest.raises(InputError, match="cross-attention layer 'nowhere'"):
        convert_checkpoint(folder, Source(), tmp_path / "out", "diffusers", None)


def test_orbax_is_restored_to_its_shardings(converted):
    mesh = make_mesh("data=1", jax.devices()[:1])
    sd = StableDiffusion.from_pretrained(converted["orbax"], "float32", mesh)
    assert sd.unet.conv_in.kernel[...].sharding.mesh == mesh
    plain = StableDiffusion.from_pretrained(demo.MODEL, "float32")
    np.testing.assert_array_equal(sd.unet.conv_in.kernel[...], plain.unet.conv_in.kernel[...])


def test_another_dtype(tmp_path):
    assert run(demo.MODEL, tmp_path / "half", "--dtype", "bfloat16") == 0
    for name, value in tensors(tmp_path / "half").items():
        assert value.dtype.name == "bfloat16", name
    again = StableDiffusion.from_pretrained(tmp_path / "half", "bfloat16").fingerprint()
    assert again == StableDiffusion.from_pretrained(demo.MODEL, "bfloat16").fingerprint()


def test_an_embedding_leaves_the_token_table_its_type(tmp_path):
    """Half precision, in which the built-in model is stored; loaded in float32, the vectors are as in their file."""
    vectors = np.full((2, 128), 1 / 3, np.float32)
    save_file({"<new>": vectors}, tmp_path / "new.safetensors")
    assert run(demo.MODEL, tmp_path / "out", "--embedding", tmp_path / "new.safetensors") == 0
    before, after = tensors(demo.MODEL), tensors(tmp_path / "out")
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    name = "text_encoder.embeddings.token_embedding.weight"
    np.testing.assert_array_equal(after[name], np.concatenate([before[name], vectors.astype(np.float16)]))
    sd = StableDiffusion.from_pretrained(demo.MODEL, "float32", embeddings=tmp_path / "new.safetensors")
    np.testing.assert_array_equal(sd.text_encoder.text_model.embeddings.token_embedding.embedding[-2:], vectors)


def test_an_embedding_has_no_place_in_a_single_file(tmp_path, capsys):
    save_file({"<new>": np.ones((1, 128), np.float32)}, tmp_path / "new.safetensors")
    given = ("--embedding", tmp_path / "new.safetensors")
    assert run(demo.MODEL, tmp_path / "out.safetensors", "--to", "single-file", *given) == 2
    assert "use --to diffusers" in capsys.readouterr().err


def test_destinations_are_kept(converted, tmp_path, capsys):
    """Nothing is replaced unasked, and a conversion that fails leaves what was there."""
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"mine")
    assert run(demo.MODEL, target, "--to", "single-file") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(demo.MODEL, tmp_path / "model.zip", "--to", "single-file") == 2
    assert run(demo.MODEL, target, "--to", "orbax") == 2
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    assert run(demo.MODEL, tmp_path / "home", "--overwrite") == 2
    assert (tmp_path / "home" / "letter.txt").is_file()
    assert run(demo.MODEL) == 2
    assert run(demo.MODEL, tmp_path / "x", "--to", "gguf") == 2
    assert "'gguf'" in capsys.readouterr().err
    assert run(demo.MODEL, tmp_path / "x", "--platforms", "cpu") == 2
    assert "--platforms is for exporting detectors" in capsys.readouterr().err
    assert run("--to", "orbax") == 2
    assert "--to orbax converts a checkpoint" in capsys.readouterr().err
    broken = Path(shutil.copytree(demo.MODEL, tmp_path / "broken"))
    path = next((broken / "vae").glob("*.safetensors"))
    save_file({name: value for name, value in load_file(path).items() if name != "encoder.conv_in.bias"}, path)
    assert run(broken, target, "--to", "single-file", "--overwrite") == 2
    assert "encoder.conv_in.bias" in capsys.readouterr().err
    assert target.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_is_read_is_not_replaced(converted, tmp_path, capsys):
    """A file in the folder that is to be replaced; the model itself may be replaced by what it becomes."""
    folder = Path(shutil.copytree(demo.MODEL, tmp_path / "model"))
    inside = folder / "new.safetensors"
    save_file({"<new>": np.ones((1, 128), np.float32)}, inside)
    (tmp_path / "link").symlink_to("model", target_is_directory=True)
    for target in (folder, tmp_path / "link"):
        assert run(demo.MODEL, target, "--embedding", inside, "--overwrite") == 2
        assert "new.safetensors, which is read" in capsys.readouterr().err
        assert run(demo.MODEL, target, "--vae", folder / "vae", "--overwrite") == 2
    single = Path(shutil.copy(converted["single-file"], folder / "model.safetensors"))
    assert run(single, folder, *CONFIG, "--overwrite") == 2
    assert single.is_file()
    assert inside.is_file()
    assert run(folder, folder, "--dtype", "float32", "--overwrite") == 0
    assert not inside.exists()


def test_damaged_orbax(converted, tmp_path):
    folder = Path(shutil.copytree(converted["orbax"], tmp_path / "orbax"))
    (folder / "vae" / "orbax" / "000" / "_METADATA").unlink()
    with pytest.raises(InputError, match="Orbax"):
        StableDiffusion.from_pretrained(folder)
    shutil.rmtree(folder / "vae" / "orbax")
    orbax_part.write_orbax(folder / "vae" / "orbax", [("encoder.wings", np.zeros(2, np.float32))])
    with pytest.raises(InputError, match=r"unexpected encoder\.wings"):
        StableDiffusion.from_pretrained(folder)


def test_a_destination_has_a_name_and_may_be_a_link(converted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (".", "/", ".."):
        assert run(demo.MODEL, place, "--overwrite") == 2
        assert "name the file or folder to write" in capsys.readouterr().err
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk", target_is_directory=True)
    assert run(demo.MODEL, "link") == 0
    assert (tmp_path / "link").is_symlink()
    assert tensors(tmp_path / "disk").keys() == tensors(converted["diffusers"]).keys()
