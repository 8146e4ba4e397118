"""Textual inversion files as PyTorch's tools write them, against diffusers' `load_textual_inversion`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from memattn_jax import StableDiffusion
from memattn_jax.checkpoints.textual_inversion import read_embedding
from memattn_jax.commands import convert
from memattn_jax.errors import InputError

CHANNELS = 32  # of the random model's text encoder
PROMPTS = ["the <cat> on", "<cat>", "a", "on <cat>, the <cat> in", "the <cat> " * 40, "cat <cat>s"]


def vectors(count: int, channels: int = CHANNELS) -> torch.Tensor:
    return torch.randn((count, channels), generator=torch.Generator().manual_seed(count))


class Original(torch.nn.ParameterDict):
    """What the original code saves."""


def write(kind: str, folder: Path) -> tuple[Path, torch.Tensor]:
    """A file whose token is <cat>, and its vectors."""
    three, one = vectors(3), vectors(1)
    contents: dict[str, tuple[str, Any, torch.Tensor]] = {
        "diffusers": ("learned_embeds.bin", {"<cat>": one[0]}, one),
        "diffusers, several": ("learned_embeds.bin", {"<cat>": three}, three),
        "diffusers, safetensors": ("learned_embeds.safetensors", {"<cat>": three}, three),
        "A1111": (
            "other.pt",
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": torch.nn.Parameter(three)},
                "name": "<cat>",
                "step": 500,
                "sd_checkpoint": None,
            },
            three,
        ),
        "original": (
            "<cat>.pt",
            {
                "string_to_token": {"*": torch.tensor(265)},
                "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(three)}),
            },
            three,
        ),
        "emb_params": ("<cat>.safetensors", {"emb_params": three.half()}, three.half().float()),
        "clip_l": ("<cat>.safetensors", {"clip_l": three}, three),
        "a tensor": ("<cat>.pt", three, three),
    }
    name, content, expected = contents[kind]
    if name.endswith("safetensors"):
        save_file(content, folder / name)
    else:
        torch.save(content, folder / name)
    return folder / name, expected


KINDS = ("diffusers", "diffusers, several", "diffusers, safetensors", "A1111", "original", "emb_params", "clip_l")


@pytest.mark.parametrize("kind", [*KINDS, "a tensor"])
def test_files(kind: str, tmp_path: Path):
    path, expected = write(kind, tmp_path)
    embedding = read_embedding(path)
    assert embedding.token == "<cat>"
    np.testing.assert_array_equal(embedding.vectors, expected.numpy())


@pytest.mark.parametrize("kind", ["diffusers", "A1111"])
def test_as_diffusers(kind: str, model: Path, tmp_path: Path):
    """Token ids and text embeddings; and the saved folder loads in diffusers."""
    path, _ = write(kind, tmp_path)
    sd = StableDiffusion.from_pretrained(model, embeddings=[path])
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.load_textual_inversion(str(path))
    with pytest.warns(UserWarning, match="prompt cut at"):
        tokens = sd.tokenizer(PROMPTS)
    converted = pipe.maybe_convert_prompt(PROMPTS, pipe.tokenizer)
    theirs = pipe.tokenizer(converted, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    np.testing.assert_array_equal(tokens.input_ids, theirs.input_ids.numpy())
    with torch.no_grad():
        reference = pipe.text_encoder(theirs.input_ids)[0].numpy()
    np.testing.assert_allclose(sd.embed(tokens), reference, atol=1e-4)
    assert sd.text_encoder.config.vocab_size == pipe.text_encoder.config.vocab_size
    sd.save_pretrained(tmp_path / "saved")
    saved = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", safety_checker=None)
    again = saved.tokenizer(saved.maybe_convert_prompt(PROMPTS[0], saved.tokenizer))["input_ids"]
    assert again == tokens.input_ids[0, : len(again)].tolist()
    reloaded = StableDiffusion.from_pretrained(tmp_path / "saved")
    assert reloaded.fingerprint() == sd.fingerprint()


def test_capital_letters(model: Path, tmp_path: Path):
    """CLIP's tokenizer ignores case; a placeholder of several vectors expands all the same."""
    path, _ = write("A1111", tmp_path)
    tokenizer = StableDiffusion.from_pretrained(model, embeddings=[(path, "EasyCat")]).tokenizer
    first = tokenizer.clip.convert_tokens_to_ids("EasyCat")
    assert tokenizer.ids("easycat")[1:-1] == tokenizer.ids("EasyCat")[1:-1] == [first, first + 1, first + 2]


def test_fingerprint(model: Path, tmp_path: Path):
    """Weights and tokens count."""
    path, _ = write("A1111", tmp_path)
    chosen: list[list] = [[], [path], [(path, "<dog>")]]
    assert len({StableDiffusion.from_pretrained(model, embeddings=each).fingerprint() for each in chosen}) == 3


def test_clashes(model: Path, tmp_path: Path):
    path, _ = write("A1111", tmp_path)
    for embeddings in (
        [path, path],
        [(path, "the</w>")],
        [path, (path, "<cat>_1")],
        [path, (path, "<CAT>")],
        [(path, "THE</w>")],
    ):
        with pytest.raises(InputError, match=r"is (a token|one but for its case) already"):
            StableDiffusion.from_pretrained(model, embeddings=embeddings)
    for first, second in (("<cat>", "<cat>_3"), ("<cat>_3", "<cat>")):  # <cat>, <cat>_1 and <cat>_2 are one
        with pytest.raises(InputError, match="another for this embedding"):
            StableDiffusion.from_pretrained(model, embeddings=[(path, first), (path, second)])
    save_file({"<cat>": vectors(2, 1024)}, tmp_path / "2.safetensors")
    with pytest.raises(InputError, match=r"2\.safetensors: has 1024 channels"):
        StableDiffusion.from_pretrained(model, embeddings=[tmp_path / "2.safetensors"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": vectors(1), "b": vectors(1)}, "it has 2"),
        ({"clip_l": vectors(1), "clip_g": vectors(1)}, "SDXL"),
        ({"<cat>": vectors(76)}, "76, 32"),
        ({"<cat>": vectors(0)}, "0, 32"),
        ({"<cat>": torch.ones((2, 32), dtype=torch.int32)}, "int32"),
        ({" ": vectors(1)}, "blank"),
        ({"string_to_param": {}, "name": "x"}, "it has 0"),
        ({}, "it has 0"),
        ([1, 2], "not a textual inversion"),
    ],
)
@pytest.mark.parametrize("pickled", [True, False])
def test_other_files(content: Any, message: str, pickled: bool, tmp_path: Path):
    plain = isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values())
    path = tmp_path / ("x.pt" if pickled or not plain else "x.safetensors")
    if path.suffix == ".pt":
        torch.save(content, path)
    else:
        save_file(content, path)
    with pytest.raises(InputError, match=message):
        read_embedding(path)


def test_export_needs_one_vector_a_token(model: Path, tmp_path: Path):
    path, _ = write("A1111", tmp_path)
    given = {"model": str(model), "embedding": (f"{path}:<dog>",), "out": tmp_path / "x.zip"}
    with pytest.raises(InputError, match="'<dog>' stands for several"):
        convert.main(convert.Options(detectors="noise_norm", **given))
