import numpy as np
import pytest

from memattn_jax.copies.correlation import normalized_correlation


def test_it_is_the_correlation_of_pixels_with_each_channel_centred():
    rng = np.random.default_rng(0)
    pictures, references = rng.integers(0, 256, (3, 8, 8, 3)), rng.integers(0, 256, (2, 8, 8, 3))
    found = normalized_correlation(pictures, references)
    assert found.shape == (3, 2)
    a, b = ((x - x.mean(axis=(0, 1))).ravel() for x in (pictures[1], references[0]))
    assert found[1, 0] == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_brightness_and_contrast_do_not_count_and_flat_pictures_are_0():
    rng = np.random.default_rng(0)
    picture = rng.random((1, 8, 8, 3))
    changed = 0.5 * picture + rng.random(3)
    assert normalized_correlation(changed, picture)[0, 0] == pytest.approx(1)
    assert normalized_correlation(-changed, picture)[0, 0] == pytest.approx(-1)
    assert normalized_correlation(np.full((1, 8, 8, 3), [1.0, 2.0, 3.0]), picture)[0, 0] == 0
