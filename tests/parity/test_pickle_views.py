"""Files of torch.save whose tensors are marked as negated or conjugated, or that have unusual names."""

import pytest
import torch

from memattn_jax.checkpoints.tensors import read_tensors
from memattn_jax.errors import InputError

VIEWS = {"neg": torch._neg_view(torch.ones(3)), "conj": torch.ones(3, dtype=torch.complex64).conj()}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_whose_bytes_are_not_its_values_is_refused(name, tmp_path):
    torch.save({"w": VIEWS[name]}, tmp_path / "view.pt")
    with pytest.raises(InputError, match="negated or conjugated"):
        read_tensors(tmp_path / "view.pt")
    torch.save({"w": VIEWS[name].resolve_neg().resolve_conj()}, tmp_path / "whole.pt")
    assert read_tensors(tmp_path / "whole.pt").tensors["w"].tolist() == VIEWS[name].tolist()


def test_a_name_with_colons(tmp_path):
    """The names of the members begin with that of the file."""
    path = tmp_path / "unet_2024-01-01_12:30:00.ckpt"
    torch.save({"w": torch.ones(3)}, path)
    assert read_tensors(path).tensors["w"].tolist() == [1, 1, 1]
