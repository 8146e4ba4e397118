"""Meshes, which weights are split over them, and processes that meet."""

import re
import socket
import subprocess
import sys

import pytest
from jax import P as Spec
from jax.sharding import AbstractMesh

from memattn_jax import InputError
from memattn_jax.checkpoints.names import leaves
from memattn_jax.models.abstract import abstract
from memattn_jax.models.clip_text import CLIPTextModel
from memattn_jax.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from memattn_jax.models.unet import UNet2DConditionModel
from memattn_jax.models.vae import AutoencoderKL
from memattn_jax.sharding.placement import make_mesh, partition_spec, rows_multiple
from memattn_jax.sharding.processes import start_processes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data", "--mesh 'data': "),
        ("data=2,", "--mesh 'data=2,': "),
        ("data=-1", "--mesh 'data=-1': "),
        ("data=1,data=1", "--mesh 'data=1,data=1': "),
        ("rows=2", "--mesh rows=2: unknown axis 'rows'"),
        ("data=0", "--mesh data=0: data"),
        ("model=3,data=2", "needs 6 devices, but there are 1; XLA_FLAGS=--xla_force_host_platform_device_count=6"),
    ],
)
def test_meshes_that_cannot_be(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_mesh(text)


def test_meshes():
    assert make_mesh(None) is None
    mesh = make_mesh("data=1")
    assert dict(mesh.shape) == {"data": 1, "model": 1}
    assert [rows_multiple(count, None) for count in (1, 5)] == [1, 5]
    eight = AbstractMesh((8, 1), ("data", "model"))
    assert [rows_multiple(count, eight) for count in (1, 8, 9)] == [8, 8, 16]


def test_nearly_all_of_stable_diffusion_is_split():
    mesh = AbstractMesh((1, 2), ("data", "model"))
    models = (
        abstract(UNet2DConditionModel, UNetConfig()),
        abstract(AutoencoderKL, VAEConfig()),
        abstract(CLIPTextModel, CLIPTextConfig()),
    )
    total = split = 0
    for leaf in (leaf for model in models for leaf in leaves(model)):
        shape = leaf.param.shape
        here = "model" in partition_spec(leaf.name, shape, mesh)
        total, split = total + leaf.param.size, split + here * leaf.param.size
        assert here or leaf.param.size < 77 * 768 + 1, leaf.name
    assert split / total > 0.99


def test_partition_rules():
    mesh = AbstractMesh((1, 8), ("data", "model"))
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    layer = "text_model.encoder.layers.0"
    for name, shape, spec in (
        (f"{block}.attn1.to_q.weight", (320, 320), Spec(None, "model")),
        (f"{block}.attn2.to_v.weight", (768, 320), Spec(None, "model")),
        (f"{block}.attn2.to_out.0.weight", (320, 320), Spec("model", None)),
        (f"{block}.attn2.to_out.0.bias", (320,), Spec(None)),
        (f"{block}.ff.net.0.proj.bias", (2560,), Spec("model")),
        (f"{block}.ff.net.2.weight", (1280, 320), Spec("model", None)),
        (f"{block}.norm1.weight", (320,), Spec(None)),
        (f"{layer}.self_attn.q_proj.weight", (768, 768), Spec(None, "model")),
        (f"{layer}.self_attn.out_proj.weight", (768, 768), Spec("model", None)),
        (f"{layer}.mlp.fc2.bias", (768,), Spec(None)),
        ("down_blocks.0.resnets.0.conv1.weight", (3, 3, 320, 320), Spec(None, None, None, "model")),
        ("conv_norm_out.weight", (320,), Spec(None)),
        ("conv_in.weight", (3, 3, 4, 320), Spec(None, None, None, "model")),
        ("conv_out.weight", (3, 3, 320, 4), Spec(None, None, None, None)),  # four channels for eight devices
        ("conv_out.bias", (4,), Spec(None)),
    ):
        assert partition_spec(name, shape, mesh) == spec, name


START = """
import os, signal, sys, time
from memattn_jax.sharding.processes import start_processes
index, count = start_processes(sys.argv[1], int(sys.argv[2]), 2)
print(index, count, flush=True)
if index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
import jax.numpy as jnp
print(jnp.ones(3).sum(), flush=True)
"""


def test_two_processes_meet_and_part():
    """One that dies afterwards leaves the other alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    first, second = (
        subprocess.Popen([sys.executable, "-c", START, address, str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    )
    assert first.communicate(timeout=300)[0].splitlines() == ["0 2", "3.0"]
    assert second.communicate(timeout=300)[0].splitlines() == ["1 2"]
    assert (first.returncode, second.returncode) == (0, -9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, "--process-id and --num-processes missing"),
        ({"process_id": 1}, "--num-processes missing"),
        ({"coordinator": "a", "process_id": 0, "num_processes": 2}, "--coordinator a: "),
        ({"coordinator": "a:1", "process_id": 2, "num_processes": 2}, "--process-id 2: .*--num-processes 2"),
    ],
)
def test_processes_that_cannot_be(given, message):
    assert start_processes() == (0, 1)
    assert start_processes(process_id=1, num_processes=3) == (1, 3)
    with pytest.raises(InputError, match=message):
        start_processes(**given)
