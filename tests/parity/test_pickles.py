"""What torch.save writes is read as torch.load reads it; what a stranger writes is refused, and nothing of it runs."""

import argparse
import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from memattn_jax.checkpoints.pickle_file import load_pickle
from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.errors import InputError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.complex64, torch.complex128]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
DTYPES += [torch.float8_e4m3fn, torch.float8_e5m2]
both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def saved(path: Path, content: object, zipped: bool = True, **options: int) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@both_formats
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(tmp_path, dtype, zipped):
    tensor = (torch.arange(12) - 3).reshape(3, 4).to(dtype)
    stored = load_pickle(saved(tmp_path / "x.pt", {"x": tensor}, zipped))["x"]
    assert (stored.dtype.name, stored.shape, stored.tobytes()) == (str(dtype)[6:], (3, 4), bits(tensor))
    assert not stored.flags.writeable


@both_formats
def test_views_of_shared_storages(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "all": base,
        "transposed": base.T,
        "rows": base[1:3],
        "column": base[:, 2],
        "steps": base[::2, 1::3],
        "number": base[2, 3],
        "none": base[:0],
        "repeated": base[0, :3].expand(5, 3),
    }
    stored = load_pickle(saved(tmp_path / "x.pt", views, zipped))
    for name, view in views.items():
        np.testing.assert_array_equal(stored[name], view.numpy(), strict=True)
        np.testing.assert_array_equal(jax.device_put(stored[name]), view.numpy())  # whatever its alignment
    assert np.shares_memory(stored["all"], stored["steps"])


@both_formats
def test_a_training_checkpoint(tmp_path, zipped):
    """Modules, parameters, buffers, an optimizer and its schedule, as training programs save them."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).half()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 3).half()).sum().backward()
    optimizer.step()
    content = {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3]).state_dict()],
        "global_step": 7,
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "nothing": (None, True, 1.5, -(2**70), "ä", b"\xff", b"", {"a", "b"}, 1j),
        "rate": np.float64(0.5),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "options": argparse.Namespace(seed=1),
        "default": collections.defaultdict(list, a=[1]),
        "parameter": model[0].weight,
    }
    path = saved(tmp_path / "x.ckpt", content, zipped)
    stored = read_tensors(path)
    assert stored.tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(stored.tensors[name], tensor.numpy(), strict=True)
    beside = stored.metadata
    assert beside["global_step"] == 7
    assert beside["rate"] == 0.5
    assert (beside["size"], beside["device"], str(beside["dtype"])) == ((1, 2), "cpu", "torch.float16")
    assert beside["nothing"][:7] == content["nothing"][:7]
    assert set(beside["nothing"][7]) == {"a", "b"}
    assert beside["nothing"][8] == 1j
    assert beside["options"] == {"seed": 1}
    assert beside["default"] == {"a": [1]}
    assert beside["lr_schedulers"][0]["milestones"] == {2: 1, 3: 1}
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    np.testing.assert_array_equal(beside["optimizer_states"][0]["state"][0]["exp_avg"], moment.numpy())
    np.testing.assert_array_equal(beside["array"], content["array"], strict=True)
    np.testing.assert_array_equal(beside["parameter"], model[0].weight.detach().numpy())


def test_classes_of_lightning_are_names(tmp_path, monkeypatch):
    """Stable Diffusion 1.4's file has `ModelCheckpoint` as a key and a numpy number; others have instances."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    instance = module.ModelCheckpoint()
    instance.monitor = "loss"
    content = {
        "callbacks": {module.ModelCheckpoint: {"best_model_score": np.float64(1)}},
        "hyper_parameters": module.AttributeDict(rate=1),
        "instance": instance,
        "state_dict": {"a": torch.ones(2)},
    }
    path = saved(tmp_path / "x.ckpt", content)
    monkeypatch.undo()
    with pytest.raises(pickle.UnpicklingError, match="ModelCheckpoint"):
        torch.load(path, weights_only=True)
    stored = read_tensors(path)
    assert list(stored.tensors) == ["a"]
    (key,) = stored.metadata["callbacks"]
    assert str(key) == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert stored.metadata["callbacks"][key] == {"best_model_score": 1.0}
    assert stored.metadata["hyper_parameters"] == {"rate": 1}
    assert stored.metadata["instance"] == {"monitor": "loss"}
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)


@both_formats
def test_embeddings_of_textual_inversion(tmp_path, zipped):
    vectors = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 4))})
    content = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": vectors}
    stored = load_pickle(saved(tmp_path / "x.pt", content, zipped))
    np.testing.assert_array_equal(stored["string_to_param"]["*"], np.ones((2, 4)))
    assert stored["string_to_token"]["*"] == 265


@both_formats
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(tmp_path, zipped, protocol):
    path = saved(tmp_path / "x.pt", {"x": torch.ones(2), "name": "é" * 300}, zipped, pickle_protocol=protocol)
    stored = load_pickle(path)
    assert stored["name"] == "é" * 300
    np.testing.assert_array_equal(stored["x"], [1, 1])


def test_attributes_of_tensors_are_left_out(tmp_path):
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(3))
    tensor.note = parameter.note = "kept"
    stored = load_pickle(saved(tmp_path / "x.pt", {"tensor": tensor, "parameter": parameter}))
    assert stored["tensor"].tolist() == [1, 1]
    assert stored["parameter"].tolist() == [1, 1, 1]


def test_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "x.pt", {"x": torch.ones(2)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_pickle(path)["x"].tolist() == [1, 1]


def test_a_file_over_4_gb(tmp_path):
    """The directory counts in 64 bits there. The file has a hole, so that it takes no room."""
    small = zipfile.ZipFile(saved(tmp_path / "small.pt", {"x": torch.ones(2), "y": torch.zeros(3)}))
    path = tmp_path / "large.pt"
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as large:
        for name in small.namelist():
            if name.endswith("data/1"):
                file.seek(5 * 2**30)
                large.start_dir = file.tell()
            large.writestr(name, small.read(name))
    assert path.stat().st_size > 5 * 2**30
    stored = load_pickle(path)
    assert (stored["x"].tolist(), stored["y"].tolist()) == ([1, 1], [0, 0, 0])


class Payload:
    """An object that a pickle rebuilds with a call of the payload's choice."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class WithState:
    """The same, with a state that is set afterwards."""

    def __init__(self, function, arguments, state):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call


def payloads(trace: Path) -> dict[str, tuple[object, str]]:
    """{case: (what a pickle is made of, the name that the error has)}; each would leave a file if it ran."""
    command = f"touch {trace}"
    code = f"open({str(trace)!r}, 'w')"
    inner = io.BytesIO()
    torch.save(Payload(os.system, command), inner)
    return {
        "os.system": (Payload(os.system, command), "posix.system"),
        "eval": (Payload(eval, code), "builtins.eval"),
        "exec": (Payload(exec, code), "builtins.exec"),
        "open": (Payload(open, str(trace), "w"), "io.open"),
        "getattr": (Payload(getattr, Payload(__import__, "os"), "system"), "builtins.getattr"),
        "nested torch.load": (Payload(torch.load, str(trace)), "torch.serialization.load"),
        "storage of bytes": (
            Payload(torch.storage._load_from_bytes, inner.getvalue()),
            "torch.storage._load_from_bytes",
        ),
        "nested pickle": (Payload(pickle.loads, pickle.dumps(Payload(os.system, command))), "pickle.loads"),
        "in a dict of tensors": ({"a": np.ones(2), "b": [Payload(os.system, command)]}, "posix.system"),
        "state": (WithState(Path, (), {"x": Payload(os.system, command)}), "pathlib"),
        "a whole model": (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        "never called": ({"a": os.system}, "posix.system"),
    }


CASES = list(payloads(Path("x")))


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle", "protocol 0", "protocol 4"])
@pytest.mark.parametrize("case", CASES)
def test_payloads_are_named_and_never_run(tmp_path, case, container):
    trace, path = tmp_path / "trace", tmp_path / "x.ckpt"
    content, name = payloads(trace)[case]
    if container in ("zip", "legacy"):
        saved(path, content, container == "zip")
    else:
        protocol = {"pickle": 2, "protocol 0": 0, "protocol 4": 4}[container]
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    before = set(sys.modules)
    with pytest.raises(InputError, match=r"x\.ckpt: ") as error:
        read_tensors(path)
    if container != "protocol 0":
        assert "asks for " in str(error.value)
        assert name in str(error.value)
    assert len(str(error.value).replace(str(path), "")) <= 200
    assert set(sys.modules) == before
    assert not trace.exists()


def instructions(path: Path, content: bytes) -> Path:
    path.write_bytes(b"\x80\x02" + content)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


ENCODE = b"c_codecs\nencode\nq\x01(" + text("x" * 2**20) + text("latin1") + b"tq\x02"
MANY = b"}q\x01(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(50_000)) + b"u"
STATE = MANY + b"cargparse\nNamespace\n)\x81"
HAND_WRITTEN = {
    "INST": (b"(" + text("touch x") + b"ios\nsystem\n.", r"os\.system"),
    "EXT1": (b"\x82\x01.", "EXT1"),
    "EXT4": (b"\x84\x01\x00\x00\x00.", "EXT4"),
    "attributes of a function": (
        b"ccollections\nOrderedDict\nNX\x01\x00\x00\x00a\x86b.",
        "sets attributes of a Global",
    ),
    "call of a string": (text("a") + b")R.", "calls what is no function"),
    "call of a class that is only mentioned": (b"cbuiltins\nint\n)R.", r"builtins\.int"),
    "large memo": (b"Nr\xff\xff\xff\xff.", "holds a NoneType"),
    "large frame": (b"\x95" + b"\xff" * 8 + b"N.", "holds a NoneType"),
    "long string": (b"X\xff\xff\xff\xffa.", "expected 4294967295"),
    "long bytes": (b"\x8e" + b"\xff" * 7 + b"\x7fa.", "not a complete file"),
    "large integer": (b"\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20 + b".", "bits"),
    "nested key": (b")" + b"\x85" * 100_000 + b"q\x00}h\x00Ns.", "key of type tuple"),
    "colliding keys": (b"}" + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x1fNs.", "key of type int"),
    "key twice": (b"}K\x01NsK\x01Ns.", "twice"),
    "endless work": (ENCODE + b"h\x01h\x02R" * 1000 + b".", "work"),
    "endless state": (STATE + b"h\x01b" * 100_000 + b".", "work"),
    "endless pickle": (b"N" * (2**19 + 1) + b".", "instructions"),
}


@pytest.mark.parametrize("case", HAND_WRITTEN)
def test_instructions_that_no_pickler_writes(tmp_path, case):
    content, message = HAND_WRITTEN[case]
    path = instructions(tmp_path / "x.pt", content)
    with pytest.raises(InputError, match=message):
        read_tensors(path)
