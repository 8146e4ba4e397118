"""LoRA files as PyTorch's tools write them, merged here and there."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from lora_files import STYLES, check, check_pipeline, merge, randomize, weights, write_lora
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from memattn_jax import StableDiffusion
from memattn_jax.checkpoints.lora.compvis import compvis_names
from memattn_jax.checkpoints.names import leaves
from memattn_jax.diffusion.run import change_weights
from memattn_jax.mitigations.lora_strength import LoraStrength, keep_apart, with_strength
from memattn_jax.models import unet as models
from memattn_jax.models.abstract import abstract
from memattn_jax.models.configs import UNetConfig
from memattn_jax.pytree import as_arrays

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lycoris.modules import FullModule, LoConModule, LohaModule, LokrModule, NormModule


@pytest.fixture(scope="module")
def folder(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two resolutions, so that every kind of layer occurs."""
    made = tmp_path_factory.mktemp("lora") / "model"
    micro.write_model(made, random_model, unet=micro.TWO_RESOLUTIONS)
    return made


@pytest.fixture(autouse=True)
def any_peft(monkeypatch: pytest.MonkeyPatch):
    """transformers asks for a release of PEFT that may not be there yet, and works with those before it."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.18.0")


@pytest.fixture
def pipe(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


@pytest.fixture
def unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / "unet")


def layers(unet: torch.nn.Module, kinds: tuple[type, ...]) -> Iterator[tuple[str, torch.nn.Module]]:
    return ((name, layer) for name, layer in unet.named_modules() if isinstance(layer, kinds))


MATRICES = (torch.nn.Linear, torch.nn.Conv2d)
LYCORIS: dict[str, Callable] = {
    "lora": lambda n, layer: LoConModule(n, layer, lora_dim=4, alpha=2),
    "lora with a mid": lambda n, layer: LoConModule(n, layer, lora_dim=4, alpha=2, use_tucker=True),
    "rank-stabilized": lambda n, layer: LoConModule(n, layer, lora_dim=4, alpha=2, rs_lora=True),
    "dora": lambda n, layer: LoConModule(n, layer, lora_dim=4, alpha=2, weight_decompose=True),
    "dora by input": lambda n, layer: LoConModule(n, layer, 1.0, 4, 2, weight_decompose=True, wd_on_out=False),
    "dora of loha": lambda n, layer: LohaModule(n, layer, lora_dim=2, alpha=1, weight_decompose=True),
    "dora of lokr": lambda n, layer: LokrModule(n, layer, lora_dim=1, alpha=3, factor=4, weight_decompose=True),
    "loha": lambda n, layer: LohaModule(n, layer, lora_dim=2, alpha=1),
    "loha tucker": lambda n, layer: LohaModule(n, layer, lora_dim=2, alpha=1, use_tucker=True),
    "lokr": lambda n, layer: LokrModule(n, layer, lora_dim=1, alpha=3, factor=4),
    "lokr both": lambda n, layer: LokrModule(n, layer, lora_dim=1, alpha=3, use_tucker=True, decompose_both=True),
    "lokr full": lambda n, layer: LokrModule(n, layer, lora_dim=1, alpha=3, full_matrix=True),
    "full": lambda n, layer: FullModule(n, layer),
    "norm": lambda n, layer: NormModule(n, layer),
}


def trained(change, strength: float) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters that LyCORIS's layer computes with."""
    layer = change.org_module[0]
    if isinstance(change, FullModule):  # which holds the sums
        yield from (
            (name, (1 - strength) * own + strength * getattr(change, name)) for name, own in layer.named_parameters()
        )
    elif isinstance(change, NormModule | LoConModule):
        both = zip(("weight", "bias"), change.get_merged_weight(strength), strict=True)
        yield from ((name, value) for name, value in both if value is not None)
    else:  # whose get_merged_weight scales twice, unlike their forward
        changed = layer.weight + strength * change.get_weight(layer.weight.shape)
        yield "weight", change.apply_weight_decompose(changed) if change.wd else changed


@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoris(kind: str, unet: UNet2DConditionModel, tmp_path: Path):
    """Every layer of the UNet in each kind, named as kohya's scripts do or, of a few kinds, as LyCORIS by itself."""
    base, theirs, tensors = weights(unet), weights(unet), {}
    strength = 1.0 if "dora" in kind else 0.7
    of_kind = (torch.nn.LayerNorm, torch.nn.GroupNorm) if kind == "norm" else MATRICES
    changed = 0
    for name, layer in layers(unet, of_kind):
        flat = f"{'lycoris' if kind.startswith('lokr') else 'lora_unet'}_{name.replace('.', '_')}"
        change = LYCORIS[kind](flat, layer)
        randomize(change.parameters(), seed=len(tensors))
        own = change.custom_state_dict() if kind != "norm" else change.state_dict()
        tensors |= {f"{flat}.{key}": value.detach().clone().contiguous() for key, value in own.items()}
        for parameter, value in trained(change, strength):
            theirs[f"{name}.{parameter}"] = value.detach().numpy()
            changed += 1
    save_file(tensors, tmp_path / "x.safetensors")
    check(merge(base, (tmp_path / "x.safetensors", strength)), theirs, base, changed)


LAYERS = "to_q to_k to_v to_out.0 proj net.2 proj_in proj_out conv1 conv2 conv_in conv_out conv linear_1 time_emb_proj"
EVERY_LAYER = rf"(.*\.)?({'|'.join(map(re.escape, LAYERS.split()))})"
FEW = ["to_q", "to_out.0", "conv1", "proj_in"]
PEFT = {
    "lora": LoraConfig(r=4, lora_alpha=6, target_modules=EVERY_LAYER),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=FEW,
        rank_pattern={"mid_block.*.to_q": 2, "conv1": 3},
        alpha_pattern={r"^down_blocks\.\d+.*conv1": 1, "to_out.0": 9},
        use_rslora=True,
    ),
    "dora": LoraConfig(r=4, lora_alpha=6, target_modules=EVERY_LAYER, use_dora=True),
    "loha": LoHaConfig(r=2, alpha=3, target_modules=FEW, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=1, alpha=3, target_modules=FEW, use_effective_conv2d=True, decompose_both=True),
    "lokr full": LoKrConfig(r=64, alpha=3, target_modules=FEW, alpha_pattern={"to_q": 5}),
}


@pytest.mark.parametrize("kind", PEFT)
def test_peft_folder(kind: str, unet: UNet2DConditionModel, tmp_path: Path):
    base = weights(unet)
    model = get_peft_model(unet, PEFT[kind])
    adapted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    randomize(adapted)
    model.save_pretrained(tmp_path)
    adapters = [layer for layer in model.modules() if hasattr(layer, "base_layer")]
    for layer in adapters:
        layer.set_scale("default", 0.6)
    theirs = weights(model.merge_and_unload())
    check(merge(base, (tmp_path, 0.6)), theirs, base, len(adapters))


@pytest.fixture
def trained_pipe(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """With LoRA in both networks, of two ranks and an alpha of its own."""
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=EVERY_LAYER, alpha_pattern={"to_q": 3}))
    pipe.text_encoder.add_adapter(LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "out_proj", "fc1"]))
    for number, part in enumerate((pipe.unet, pipe.text_encoder)):
        randomize([parameter for name, parameter in part.named_parameters() if "lora_" in name], number)
    return pipe


@pytest.mark.parametrize("style", STYLES)
def test_styles_of_keys(style: str, trained_pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path):
    file = write_lora(style, trained_pipe, tmp_path)
    check_pipeline(file, StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))


def test_metadata_of_diffusers(trained_pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path):
    """Which alone holds the alphas then."""
    configs = {
        f"{part}_lora_adapter_metadata": getattr(trained_pipe, part).peft_config["default"].to_dict()
        for part in ("unet", "text_encoder")
    }
    file = write_lora("diffusers", trained_pipe, tmp_path, **configs)
    check_pipeline(file, StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))


def test_the_adapter_of_a_network(trained_pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path):
    """As `save_lora_adapter` writes it, without the network's name before keys and config."""
    trained_pipe.unet.save_lora_adapter(tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    base = weights(plain.unet)
    (file,) = tmp_path.glob("*.safetensors")
    ours = merge(base, (file, 0.7))
    trained_pipe.unet.fuse_lora(lora_scale=0.7)
    trained_pipe.unet.unload_lora()
    theirs = weights(trained_pipe.unet)
    check(ours, theirs, base, sum(key.endswith("lora_A.weight") for key in load_file(file)))


@pytest.mark.parametrize(
    "config", [UNetConfig(), dataclasses.replace(micro.TWO_RESOLUTIONS, layers_per_block=3)], ids=["sd1", "small"]
)
def test_original_names(config: UNetConfig):
    """As diffusers converts them from a checkpoint."""
    names = [leaf.name for leaf in leaves(abstract(models.UNet2DConditionModel, config))]
    paths = {name.rpartition(".")[0] for name in names}
    original = compvis_names(paths)
    assert original.keys() == paths
    checkpoint = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        checkpoint[f"model.diffusion_model.{original[path]}.{leaf}"] = name
    assert len(checkpoint) == len(names)
    converted = convert_ldm_unet_checkpoint(
        checkpoint, {"layers_per_block": config.layers_per_block, "class_embed_type": None}
    )
    assert converted == {name: name for name in names}


@pytest.mark.filterwarnings("ignore:Already found a:UserWarning")
def test_outputs(trained_pipe: StableDiffusionPipeline, folder: Path, tmp_path: Path):
    """Both networks with two files of different strengths, one of them negative."""
    files = [write_lora(style, trained_pipe, tmp_path / style) for style in ("diffusers", "kohya, other alphas")]
    chosen = list(zip(files, (0.6, -0.2), strict=True))
    sd = StableDiffusion.from_pretrained(folder, loras=chosen)
    assert sd.fingerprint() != StableDiffusion.from_pretrained(folder, loras=chosen[:1]).fingerprint()
    plain = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for name, (file, _) in zip("ab", chosen, strict=True):
        plain.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    plain.set_adapters(["a", "b"], [strength for _, strength in chosen])
    ids = sd.tokenizer(["the a on"]).input_ids
    context = np.asarray(sd.embed(sd.tokenizer(["the a on"])))
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    ours, _ = jax.jit(lambda unet: unet(latents, jnp.int32(7), context))(sd.unet)
    with torch.no_grad():
        theirs = plain.text_encoder(torch.from_numpy(ids).long())[0]
        np.testing.assert_allclose(context, theirs.numpy(), atol=1e-4)
        theirs = plain.unet(torch.from_numpy(latents.transpose(0, 3, 1, 2)), 7, theirs).sample
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_strength_is_a_number_of_the_run(kind: str, folder: Path, tmp_path: Path):
    """A LoRA kept apart is the one that is merged, at every strength, and another strength compiles nothing."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    tensors = {}
    for number, (name, layer) in enumerate(layers(unet, MATRICES)):
        change = LYCORIS[kind](f"lora_unet_{name.replace('.', '_')}", layer)
        randomize((parameter for key, parameter in change.named_parameters() if key != "dora_scale"), number)
        own = change.custom_state_dict()
        tensors |= {f"{change.lora_name}.{key}": 0.1 * value.detach() for key, value in own.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    sd = StableDiffusion.from_pretrained(folder)
    apart = keep_apart(tmp_path / "x.safetensors", sd)["unet"]
    programs = []
    for strength in (0.7, 0.2, 0):
        one = StableDiffusion.from_pretrained(folder, loras=[(tmp_path / "x.safetensors", strength)])
        other = change_weights(as_arrays(LoraStrength(apart, strength)), sd.unet)
        programs.append(change_weights._cache_size())
        for ours, merged in zip(leaves(other), leaves(one.unet), strict=True):
            np.testing.assert_allclose(ours.param[...], merged.param[...], atol=1e-5, err_msg=ours.name)
    assert len(set(programs)) == 1
    assert all(map(np.array_equal, jax.tree.leaves(other), jax.tree.leaves(sd.unet)))


def test_strength_of_both_networks(folder: Path, trained_pipe: StableDiffusionPipeline, tmp_path: Path):
    file = write_lora("diffusers", trained_pipe, tmp_path)
    sd, merged = StableDiffusion.from_pretrained(folder), StableDiffusion.from_pretrained(folder, loras=[(file, 0.3)])
    parts = keep_apart(file, sd)
    for name in ("unet", "text_encoder"):
        apart = with_strength(getattr(sd, name), parts[name], 0.3)
        for ours, one in zip(leaves(apart), leaves(getattr(merged, name)), strict=True):
            np.testing.assert_allclose(ours.param[...], one.param[...], atol=1e-5, err_msg=ours.name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("container", ["safetensors", "zip", "legacy"])
def test_containers_and_dtypes(dtype: torch.dtype, container: str, unet: UNet2DConditionModel, tmp_path: Path):
    """Computed in float32 from what is stored; the first bytes say in which container, whatever the name."""
    base = weights(unet)
    tensors = {
        "lora_unet_conv_in.lora_down.weight": torch.randn((2, 4, 3, 3)).to(dtype),
        "lora_unet_conv_in.lora_up.weight": torch.randn((8, 2, 1, 1)).to(dtype),
        "lora_unet_conv_in.alpha": torch.tensor(3).to(dtype),
    }
    if container == "safetensors":
        save_file(tensors, tmp_path / "x.pt")
    else:
        torch.save(tensors, tmp_path / "x.pt", _use_new_zipfile_serialization=container == "zip")
    down, up, alpha = (tensor.float() for tensor in tensors.values())
    delta = (alpha / 2 * torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)).numpy()
    theirs = base | {"conv_in.weight": base["conv_in.weight"] + delta}
    check(merge(base, (tmp_path / "x.pt", 1.0)), theirs, base, 1)
