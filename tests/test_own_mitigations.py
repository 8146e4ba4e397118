"""Mitigations of a stranger's: what is made for other rows is refused, and each runs by its own attributes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extensions import Weaker

from memattn_jax import InputError
from memattn_jax.mitigations import AttentionMask, Mitigation
from memattn_jax.pytree import as_arrays

PROMPTS = ["the cat", "a", "the hill of the sun"]
RUN = {"steps": 3, "seeds": [0, 1, 2], "taps": None}


class OneRow(Mitigation):
    """Undecorated, and of one row alone in one method."""

    def __init__(self, method: str):
        object.__setattr__(self, "method", method)

    def tokens(self, tokens, seeds, vocabulary):
        return type(tokens)(*(part[:1] for part in tokens)) if self.method == "tokens" else tokens

    def embeddings(self, start):
        return start.context[:1] if self.method == "embeddings" else start.context

    def update(self, step, moved):
        return moved[:1] if self.method == "update" else moved


@pytest.mark.parametrize(
    ("mitigation", "message"),
    [
        (OneRow("tokens"), r"OneRow\.tokens returned 1 for 3 prompts"),
        (OneRow("embeddings"), r"embeddings returned \[1, .* in place of \[3, "),
        (OneRow("update"), r"update returned \[1, .* in place of \[3, "),
        (AttentionMask(begin_scale=np.asarray([1.0, 2.0])), r"begin_scale has shape \[2\], where there are 3 prompts"),
    ],
)
def test_what_is_made_for_other_rows_is_not_spread_over_these(matrices, mitigation, message):
    with pytest.raises(InputError, match=message):
        matrices.sample(PROMPTS, mitigation=mitigation, **RUN)


def test_an_undecorated_mitigation_runs_by_its_own_attributes(matrices):
    class Scaled(Mitigation):
        def __init__(self, factor: float):
            object.__setattr__(self, "factor", factor)

        def embeddings(self, start):
            return start.context * self.factor

    one, none = (matrices.sample(PROMPTS, mitigation=Scaled(factor), **RUN).latents for factor in (1.0, 0.0))
    assert np.abs(one - none).max() > 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_weights_are_of_the_same_dtype(dtype):
    changed = jax.eval_shape(Weaker.weights, as_arrays(Weaker()), {"to_q": jnp.ones(3, dtype)})
    assert changed["to_q"].dtype == dtype
