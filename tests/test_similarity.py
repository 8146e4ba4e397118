import itertools

import numpy as np
import pytest

from memattn_jax.copies import correlation
from memattn_jax.copies.correlation import normalized_correlation
from memattn_jax.errors import InputError


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


def by_hand(picture: np.ndarray, reference: np.ndarray, shifts: int) -> float:
    """The largest correlation over shifts, of two pictures in float64."""
    height, width, _ = picture.shape
    found = []
    for down, right in itertools.product(range(-shifts, shifts + 1), repeat=2):
        rows, columns = height - abs(down), width - abs(right)
        parts = (
            picture[max(down, 0) :, max(right, 0) :][:rows, :columns],
            reference[max(-down, 0) :, max(-right, 0) :][:rows, :columns],
        )
        a, b = ((part - part.mean(axis=(0, 1))).ravel() for part in parts)
        found.append(a @ b / np.sqrt((a @ a) * (b @ b)))
    return max(found)


def test_the_largest_over_shifts_that_do_not_wrap_around(monkeypatch):
    rng = np.random.default_rng(1)
    pictures, references = rng.random((4, 9, 12, 3)), rng.random((5, 9, 12, 3))
    references[0, 2:, :-1] = pictures[0, :-2, 1:]
    references[1] = np.roll(pictures[1], 2, axis=1)
    monkeypatch.setattr(correlation, "VALUES", 2 * 9 * 12 * 3)  # blocks of two
    found = normalized_correlation(pictures, references, shifts=2)
    wanted = [[by_hand(a, b, 2) for b in references] for a in pictures]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found[0, 0] == pytest.approx(1)
    assert found[1, 1] == pytest.approx(1)  # a part of it that was moved out at one side does not count
    assert normalized_correlation(pictures, references, shifts=1)[0, 0] < 0.5


def test_what_is_flat_where_they_overlap_does_not_correlate():
    framed = np.full((1, 8, 8, 3), 37, np.uint8)
    framed[:, 0] = 200
    picture = np.random.default_rng(2).integers(0, 256, (1, 8, 8, 3), np.uint8)
    assert 0 <= normalized_correlation(framed, picture, shifts=1)[0, 0] < 1
    assert normalized_correlation(np.full((1, 8, 8, 3), 1e3 / 3), picture)[0, 0] == 0


def test_sizes_are_checked():
    with pytest.raises(InputError, match="same size"):
        normalized_correlation(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 9, 3)))
    with pytest.raises(InputError, match="shifts 8"):
        normalized_correlation(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 3)), shifts=8)
