"""The Gibbs sampler over prompts, against its distribution and on scores that are known."""

from itertools import islice

import numpy as np
import pytest

from memattn_jax import demo
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.demo import grammar
from memattn_jax.errors import InputError
from memattn_jax.search import Chain, Search, Slots, search
from memattn_jax.search.gibbs import move
from memattn_jax.search.state import from_json, to_json

LETTERS = tuple("abcdefghij")
SLOTS = Slots((LETTERS,) * 4, most=5)
SECRET = "c a f e"


def overlap(prompts):
    """Words in their right place: a score that rises on the way to the secret."""
    return np.array([sum(x == y for x, y in zip(one.split(), SECRET.split(), strict=True)) for one in prompts], float)


def test_finds_what_scores_highest():
    last = list(search(overlap, SLOTS, Search(temperature=0.2, chains=3, steps=60)))[-1]
    assert (last.found[0].prompt, last.found[0].score) == (SECRET, 4)
    assert last.step == 60
    assert [one.score for one in last.found] == sorted((one.score for one in last.found), reverse=True)
    assert len({one.prompt for one in last.found}) == len(last.found)


def test_goes_on_from_any_state():
    settings = Search(temperature=0.5, chains=2, steps=12, patience=3)
    states = list(search(overlap, SLOTS, settings))
    assert any(state.ended for state in states)
    for cut in (0, 5, 10):
        kept = from_json(to_json(states[cut], {"seed": 0}), {"seed": 0})
        assert kept == states[cut]
        assert list(search(overlap, SLOTS, settings, kept)) == states[cut + 1 :]
    assert from_json(to_json(states[0], {"seed": 0}), {"seed": 1}) is None


def test_other_seeds_draw_others():
    first, second = (next(search(overlap, SLOTS, Search(temperature=1, chains=4, seed=seed))).chains for seed in (0, 1))
    assert first != second


def test_words_are_drawn_from_the_softmax():
    scores, rng = np.array([0.0, 1.0, np.nan, 0.5]), np.random.default_rng(0)
    words = [(letter,) for letter in "wxyz"]
    drawn = [move(Chain(("w",)), words, list("wxyz"), scores, 0.5, rng).words[0] for _ in range(4000)]
    expected = np.exp(np.array([0.0, 2.0, 1.0]))
    shares = [drawn.count(letter) / 4000 for letter in "wxz"]
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.03)
    assert "y" not in drawn  # not finite


def test_best_is_kept_whatever_is_drawn():
    moved = move(Chain(("w",)), [("w",), ("x",)], ["w", "x"], np.array([0.0, 1.0]), 1e9, np.random.default_rng(3))
    assert (moved.prompt, moved.score, moved.since) == ("x", 1.0, 0)
    again = move(moved, [("w",), ("x",)], ["w", "x"], np.array([0.0, 1.0]), 1e9, np.random.default_rng(3))
    assert (again.prompt, again.since) == ("x", 1)
    blind = move(moved, [("w",)], ["w"], np.array([np.inf]), 1.0, np.random.default_rng(3))
    assert (blind.words, blind.score, blind.since) == (moved.words, 1.0, 1)


def test_chains_that_do_not_improve_begin_anew():
    flat = search(lambda prompts: np.zeros(len(prompts)), SLOTS, Search(temperature=1, chains=2, steps=9, patience=2))
    last = list(islice(flat, 9))[-1]
    assert len(last.ended) == 6  # each has a best after one step, and none after two more
    assert last.scored <= 9 * 2 * 6


@pytest.mark.parametrize("name", ["temperature", "chains", "steps", "patience"])
def test_numbers_must_be_positive(name):
    with pytest.raises(InputError, match=name):
        Search(**{"temperature": 1.0, name: 0})


def test_words_of_the_built_in_grammar():
    """Every memorized prompt of the plainest form can be proposed, and no list is made of memorized prompts."""
    words = grammar.slots(Tokenizer(demo.MODEL / "tokenizer", 77)).words
    plain = [
        one.split()[1:] for half in demo.HALVES for one in demo.prompts("memorized", half) if len(one.split()) == 5
    ]
    assert len(plain) > 3
    assert all(word in slot for one in plain for word, slot in zip(one, words, strict=True))
    assert not set(words[0]) & set(words[2])
    assert grammar.with_article(("owl", "by", "tasdo", "orvba")) == "an owl by tasdo orvba"
