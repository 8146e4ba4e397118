"""Which of the files of weights beside each other are taken."""

import pytest

from memattn_jax.checkpoints.weight_names import choose_weights, variants

NAME = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("names", "variant", "taken"),
    [
        (["a.safetensors", f"{NAME}.bin", f"{NAME}.safetensors"], None, [f"{NAME}.safetensors"]),
        ([f"{NAME}.bin", f"{NAME}.fp16.safetensors"], None, [f"{NAME}.bin"]),
        (
            [f"{NAME}.fp16.bin", f"{NAME}.fp16.safetensors", f"{NAME}.bf16.safetensors"],
            None,
            [f"{NAME}.fp16.safetensors"],
        ),
        ([f"{NAME}.non_ema.safetensors", f"{NAME}.bf16.safetensors"], None, [f"{NAME}.bf16.safetensors"]),
        ([f"{NAME}.non_ema.bin", f"{NAME}.safetensors"], "non_ema", [f"{NAME}.non_ema.bin"]),
        ([f"{NAME}.mine.bin", f"{NAME}.safetensors"], "mine", [f"{NAME}.mine.bin"]),
        (["model.safetensors", "pytorch_model.bin"], None, ["model.safetensors"]),
        (["pytorch_model.safetensors"], None, ["pytorch_model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"], None, ["pytorch_model.bin"]),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], None, 2),
        (["model-00001-of-00002.fp16.bin", "model-00002-of-00002.fp16.bin"], "fp16", 2),
        ([f"{NAME}-00001-of-00002.bin", f"{NAME}-00002-of-00002.bin", f"{NAME}.fp16.bin"], None, 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_which_weights_are_taken(names, variant, taken):
    weights = choose_weights(names, variant)
    assert len(weights.files) == taken if isinstance(taken, int) else list(weights.files) == taken


def test_shards_beside_a_file_that_has_all():
    """As diffusers and transformers have it."""
    for name, with_index in ((NAME, [f"{NAME}-00001-of-00001.safetensors"]), ("model", ["model.safetensors"])):
        names = [f"{name}-00001-of-00001.safetensors", f"{name}.safetensors"]
        assert choose_weights(names).files == (names[1],)
        assert list(choose_weights([*names, f"{name}.safetensors.index.json"]).files) == with_index


@pytest.mark.parametrize(
    "index",
    [
        f"{NAME}.safetensors.index.json",
        f"{NAME}.safetensors.index.fp16.json",
        f"{NAME}.safetensors.fp16.index.json",
        "pytorch_model.bin.index.json",
    ],
)
def test_an_index_names_the_shards(index):
    weights = choose_weights([index, "unrelated.json", "config.json"])
    assert weights.index == index
    assert weights.variant == ("fp16" if "fp16" in index else "")


def test_names_that_are_none_of_weights():
    names = ["config.json", "model.onnx", "model.mine.safetensors", "xmodel.safetensors", "model.safetensors.part"]
    assert choose_weights(names) is None
    assert variants(names) == ["mine"]
