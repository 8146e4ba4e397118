"""The pointing game's scenes and scores, without a model."""

import measure_pointing_game as pointing
import numpy as np
import pytest
from demo_data import DemoData
from demo_data.grammar import OBJECTS
from PIL import Image


@pytest.fixture(scope="module")
def data() -> DemoData:
    """Red squares, which no random background repeats."""
    return DemoData({word: Image.new("RGBA", (40, 40), (255, 0, 3, 255)) for word in OBJECTS})


def test_the_mask_is_where_the_object_is(data):
    for group in ("control", "memorized"):
        for scene in pointing.scenes_of(data, group)[:60:7]:
            red = (np.abs(scene.picture.astype(int) - (255, 0, 3)) < 2).all(axis=-1)
            assert 100 < scene.mask.sum() < 3000
            assert red[scene.mask].mean() > 0.8  # all but the blended edge
            if len(scene.caption.objects) == 1:
                assert not red[~scene.mask].any()


def test_memorized_scenes_are_the_memorized_pictures(data):
    for scene in pointing.scenes_of(data, "memorized")[:8]:
        np.testing.assert_array_equal(scene.picture, data.fixed_pictures[scene.caption])


def test_a_caption_is_one_trial():
    better, worse = pointing.Score(True, False, 2.0, 1.0, 0.2), pointing.Score(False, True, 1.0, 2.0, 0.2)
    name, trials, wins, hits, others, area, *_ = pointing.row_of("some", [better] * 6 + [worse] * 2)
    assert (name, trials, area) == ("some", 2, "20.0 %")
    assert (wins.value, hits.value, others.value) == (0.75, 0.75, 0.25)
    assert wins.low < 0.2  # as of 2 trials
