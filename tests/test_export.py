"""What an archive of an exported detector holds, and what its program computes."""

import dataclasses
import math
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import aot_programs
import jax
import micro
import numpy as np
import pytest
import safetensors.numpy
from exported import PROMPTS, call, check, gpu
from jax.export import deserialize
from transformers import CLIPTokenizer

from memattn_jax import InputError, StableDiffusion
from memattn_jax.detectors import Scorer, export
from memattn_jax.models.kernels import attention

pytestmark = pytest.mark.slow

LONG = "the cat and the hat " * 40


def test_derivatives_probes_and_any_number_of_prompts(sd):
    """One, where a batch has two, and three."""
    names = ("hessian_difference", "entropy_e")
    scorer = Scorer(sd, names, seed=3, probes=2, steps=4, site=sd.unet.sites[-1])
    artifact = export.export_detector(scorer, 2)
    assert artifact.platforms == (jax.default_backend(),)
    expected = scorer(PROMPTS)
    for count in (1, 3):
        first = {name: score[:count] for name, score in expected.scores.items()}
        check(call(artifact, expected.input_ids[:count]), first)


def test_half_precision_survives_the_archive(model, tmp_path):
    sd = StableDiffusion.from_pretrained(model, dtype="bfloat16")
    scorer = Scorer(sd, ("noise_norm",), steps=4)
    artifact = export.export_detector(scorer, 4)
    export.write_artifact(tmp_path / "d.zip", artifact, {}, sd.tokenizer)
    with zipfile.ZipFile(tmp_path / "d.zip") as archive:
        arrays = safetensors.numpy.load_file(archive.extract("arrays.safetensors", tmp_path))
    assert {str(arrays[name].dtype) for name in arrays if name.startswith("unet.")} == {"bfloat16"}
    expected = scorer(PROMPTS)
    # eight bits of a number: XLA may fuse, and so round, a program of another number of rows differently
    check(call(artifact._replace(arrays=arrays), expected.input_ids), expected.scores, 0.02)


def test_only_what_scores_depend_on_is_kept(sd):
    """Entropy at the first layer needs nothing after it; noise norm the whole UNet; each array counts."""
    site = sd.unet.sites[0]
    _, arrays = export.block_program(Scorer(sd, ("entropy_e",), site=site))
    entropy = export.export_detector(Scorer(sd, ("entropy_e",), site=site), 2)
    norm = export.export_detector(Scorer(sd, ("noise_norm",)), 2)
    parameters = {name for name in arrays if name.startswith("unet.")}
    assert len(parameters) == len(jax.tree.leaves(sd.unet))
    assert parameters <= set(norm.arrays)
    kept = parameters & set(entropy.arrays)
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.kernel" in kept
    for later in ("attn2.to_v", "attn2.to_out", ".ff.", "mid_block", "up_blocks", "conv_out"):
        assert not [name for name in kept if later in name]
        assert [name for name in parameters if later in name]
    assert not [
        name
        for name in (*entropy.arrays, *norm.arrays)
        if name.startswith(("vae", "empty", "levels.second", "levels.late"))
    ]
    assert 0 < entropy.flops < norm.flops
    input_ids = sd.tokenizer(PROMPTS).input_ids
    before = call(entropy, input_ids)["entropy_e"]
    for name in ("probes", "levels.first.timestep", "text_encoder.text_model.embeddings.token_embedding.embedding"):
        changed = entropy._replace(arrays=entropy.arrays | {name: np.sin(100 * entropy.arrays[name])})
        assert np.abs(call(changed, input_ids)["entropy_e"] - before).max() > 1e-6


@pytest.mark.parametrize(("names", "share"), [(("entropy_e",), 0.1525), (("entropy_e", "noise_norm"), 0.9216)])
def test_what_of_stable_diffusion_14_an_archive_holds(names, share):
    """The gigabytes of docs/serving.md, of shapes: no weights are allocated."""
    sd = aot_programs.model("sd14")
    programs = []

    def arrays_of(sd: StableDiffusion) -> dict[str, jax.Array]:
        score, arrays = export.block_program(Scorer(sd, names))
        programs.append(score)
        return arrays

    arrays = aot_programs.on_shapes(sd, arrays_of)
    block = jax.ShapeDtypeStruct((16, 77), np.int32)
    used = export.used_by(export.lower(programs[0], arrays, block, ("cpu", "cuda", "tpu")), arrays)

    def gigabytes(tree) -> float:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e9

    whole = gigabytes((sd.unet, sd.vae, sd.text_encoder))
    assert whole == pytest.approx(4.265, abs=0.001)
    assert gigabytes(used) / whole == pytest.approx(share, abs=0.001)


def test_the_archive_holds_data_alone(sd, tmp_path, monkeypatch):
    """Stored as it is, the same bytes each time, and no file name of the machine that made it."""
    scorer = Scorer(sd, ("noise_norm",))
    artifact = export.export_detector(scorer, 2)
    for name in ("a.zip", "b.zip"):
        export.write_artifact(tmp_path / name, artifact, {"detectors": ["noise_norm"]}, sd.tokenizer)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert {"metadata.json", "detector.jaxexport", "arrays.safetensors"} < set(names)
    assert {Path(name).suffix for name in names} <= {".json", ".txt", ".jaxexport", ".safetensors"}
    padded = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")(
        [*PROMPTS, LONG], padding="max_length", truncation=True, max_length=sd.tokenizer.tokens
    )
    with pytest.warns(UserWarning, match="prompt cut"):
        np.testing.assert_array_equal(padded["input_ids"], sd.tokenizer([*PROMPTS, LONG]).input_ids)

    assert b"programs.py" not in artifact.program
    monkeypatch.setattr(export, "no_locations", nullcontext)
    assert b"programs.py" in export.export_detector(scorer, 2).program


def test_input_that_does_not_fit_is_refused(sd):
    artifact = export.export_detector(Scorer(sd, ("noise_norm",)), 2)
    for shape, dtype in (((0, 77), np.int32), ((2, 76), np.int32), ((2, 77), np.float32)):
        with pytest.raises(ValueError, match=r"(?i)prompts|shape|dtype"):
            call(artifact, np.zeros(shape, dtype))


@pytest.fixture
def nvidia(monkeypatch):
    """As on a machine with an NVIDIA GPU, as far as tracing looks."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(attention, "get_backend", lambda: gpu("9.0"))
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_cudnn_is_exported_where_the_model_takes_it(nvidia, random_model, tmp_path):
    micro.write_model(tmp_path, random_model, unet=dataclasses.replace(micro.UNET, attention_head_dim=1))
    sd = StableDiffusion.from_pretrained(tmp_path, dtype="bfloat16")
    scorer = Scorer(sd, ("noise_norm",))
    for platforms, fused in ((("cpu",), False), (("cuda",), True)):
        program = export.export_detector(scorer, 2, platforms).program
        assert (export.CUDNN in deserialize(bytearray(program)).mlir_module()) == fused
    with pytest.raises(InputError, match=r"cpu,cuda.*NVIDIA GPU"):
        export.export_detector(scorer, 2, ("cpu", "cuda"))


@pytest.fixture
def tpu(monkeypatch):
    """As on a machine with a TPU, as far as tracing looks."""
    monkeypatch.setattr(attention, "get_backend", lambda: SimpleNamespace(platform="tpu", platform_version=""))
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_a_tpus_kernel_is_exported_where_there_is_a_tpu(tpu, random_model, tmp_path):
    micro.write_model(tmp_path, random_model, unet=dataclasses.replace(micro.UNET, sample_size=32))
    scorer = Scorer(StableDiffusion.from_pretrained(tmp_path), ("noise_norm",))
    for platform in ("cpu", "tpu"):
        program = export.export_detector(scorer, 2, (platform,)).program
        assert ("tpu_custom_call" in deserialize(bytearray(program)).mlir_module()) == (platform == "tpu")
    with pytest.raises(InputError, match=r"cpu,tpu.*TPU"):
        export.export_detector(scorer, 2, ("cpu", "tpu"))


def test_a_missing_serializer_is_named(sd, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"flatbuffers.*pip install"):
        export.export_detector(Scorer(sd, ("noise_norm",)), 2)
