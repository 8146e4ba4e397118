"""The README's Python runs as it stands, in the folder where its first command was run."""

import re
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def names(random_model):
    """What the first block defines."""
    scope: dict = {}
    exec(BLOCKS[0].replace('"PATH_OR_HUB_NAME"', repr(str(random_model))), scope)
    return scope


def test_first_example(names):
    run = names["run"]
    assert run.images.shape == (2, 128, 128, 3)
    assert run.images.dtype == np.uint8
    assert run.latents.shape == (2, 16, 16, 4)
    assert {tap.shape for tap in run.tokens.values()} == {(50, 2, 4, 77)}
    assert run.lengths.tolist() == [len(names["sd"].tokenizer.clip(prompt).input_ids) for prompt in run.prompts]


def test_detection(names):
    found = names["found"]
    assert {name: score.shape for name, score in found.scores.items()} == {"entropy_e": (2,), "noise_norm": (2,)}
    assert all(np.isfinite(score).all() for score in found.scores.values())


def test_second_example(names):
    exec(BLOCKS[1], names)
    (last,) = BLOCKS[1].strip().splitlines()[-1:]
    entropy = eval(last.split("#")[0], names)
    assert list(entropy) == [names["sd"].unet.sites[3]]
    assert 0 < entropy[names["site"]][0] < np.log(77)


def test_the_seam_is_named_where_metric_e_is_read(names):
    assert names["sd"].unet.sites[3] in README


def test_there_are_two_examples():
    assert len(BLOCKS) == 2
