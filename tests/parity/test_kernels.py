"""Forms of attention against PyTorch's."""

import jax
import numpy as np
import pytest
import torch

from memattn_jax.models.kernels.attention import self_attention


@pytest.mark.parametrize(("pixels", "level"), [(1024, 70.0), (4096, 20.0)])
def test_blocked_attention_in_float16_overflows_no_sooner_than_pytorch(pixels, level):
    """Weights of up to 1 for each of thousands of keys, times values: their sum passes float16's 65,504."""
    rng = np.random.default_rng(0)
    query = (0.01 * rng.normal(size=(1, pixels, 1, 64))).astype(np.float16)
    values = (level + 0.1 * rng.normal(size=query.shape)).astype(np.float16)
    arrays = (query, query[:, ::-1], values)
    ours = jax.jit(self_attention)(*arrays)
    heads_first = (torch.from_numpy(np.ascontiguousarray(x.swapaxes(1, 2))) for x in arrays)
    theirs = torch.nn.functional.scaled_dot_product_attention(*heads_first).numpy().swapaxes(1, 2)
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
