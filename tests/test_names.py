"""What commands check by name, and what they say of a name that does not exist."""

from typing import get_args

import pytest

from memattn_jax import InputError, names
from memattn_jax.detectors import registry
from memattn_jax.errors import LIMIT, check_name
from memattn_jax.mitigations import MITIGATIONS
from memattn_jax.mitigations.attention_mask import Mask
from memattn_jax.schedulers import SCHEDULERS


def test_the_names_are_those_of_the_registries():
    assert tuple(registry.DETECTORS) == names.DETECTORS
    assert names.FIRST_STEP == registry.FIRST_STEP
    assert names.TRAJECTORY == registry.TRAJECTORY
    assert names.SCHEDULERS == SCHEDULERS
    assert tuple(MITIGATIONS) == names.MITIGATIONS
    assert get_args(Mask) == names.MASKS


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("ddmi", SCHEDULERS, "did you mean 'ddim'? expected one of ddim, pndm, euler, dpm-solver++"),
        ("DDIM", SCHEDULERS, "did you mean 'ddim'?"),
        ("solver", SCHEDULERS, "did you mean 'dpm-solver++'?"),
        ("heun", SCHEDULERS, "unknown thing 'heun'; expected one of ddim, "),
        ("", SCHEDULERS, "unknown thing ''; expected one of ddim, "),
        ("entropyE", names.DETECTORS, "did you mean 'entropy_e'? expected one of entropy_e, entropy_d, "),
        ("\x1b[2J" + "x" * 900, names.DETECTORS, r"unknown thing '\x1b[2Jxxx"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest_and_the_list(name, known, message):
    with pytest.raises(InputError) as refused:
        check_name("thing", name, known, "--option")
    assert str(refused.value).startswith("--option: unknown thing '")
    assert message in str(refused.value)
    assert len(str(refused.value)) <= LIMIT
    assert str(refused.value).isprintable()
    check_name("thing", known[0], known)
