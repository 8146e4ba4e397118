"""Prompts of the demo data: groups that text cannot tell apart."""

from collections import Counter
from itertools import product

import pytest
from demo_data import HALVES, PROMPT_GROUPS, make_groups
from demo_data.grammar import COLOURS, LINKS, OBJECTS, Caption
from demo_data.groups import RUNGS
from demo_data.names import FIRST, SECOND

SEEDS = (0, 1, 2)


def auroc(higher: list[float], lower: list[float]) -> float:
    """By ranks: the chance that one of `higher` exceeds one of `lower`, ties counting half."""
    ordered = sorted(higher + lower)
    ranks = {value: (2 * ordered.index(value) + ordered.count(value) + 1) / 2 for value in set(ordered)}
    smallest = len(higher) * (len(higher) + 1) / 2
    return (sum(ranks[value] for value in higher) - smallest) / (len(higher) * len(lower))


def test_auroc():
    assert auroc([2, 3], [0, 1]) == 1
    assert auroc([0, 1], [2, 3]) == 0
    assert auroc([1, 1, 4], [1, 2]) == (0.5 + 0.5 + 2) / 6


def test_caption_texts():
    assert Caption(("owl",), None, "by", ("velmi", "tasbek")).text == "an owl by velmi tasbek"
    two = Caption(("cat", "apple"), "orange", "in the style of", ("velmi", "tasbek"))
    assert two.text == "a cat and an apple on an orange background in the style of velmi tasbek"


def test_groups_follow_from_the_seed():
    assert make_groups(3) == make_groups(3)
    assert make_groups(3).halves != make_groups(4).halves


@pytest.mark.parametrize("seed", SEEDS)
def test_no_prompt_is_in_two_halves(seed):
    halves = make_groups(seed).halves
    assert list(halves) == [*product(PROMPT_GROUPS[:3], HALVES), *product(PROMPT_GROUPS[3:], HALVES)]
    texts = [caption.text for half in halves.values() for caption in half]
    assert len(texts) == len(set(texts)) == 8 * 24
    assert all(text == text.lower() for text in texts)


@pytest.mark.parametrize("seed", SEEDS)
def test_halves_hold_the_same_common_words(seed):
    groups = make_groups(seed)
    for half in groups.halves.values():
        assert Counter(word for caption in half for word in caption.objects) == Counter(OBJECTS.keys())
        assert Counter(c.colour for c in half) == Counter({None: 12}) + Counter(COLOURS.keys())
        shapes = Counter((len(caption.objects), caption.colour is not None, caption.link) for caption in half)
        assert shapes == Counter(product((1, 2), (False, True), LINKS))
        lengths = [tuple(len(word) for word in caption.name) for caption in half]
        assert lengths == [tuple(len(word) for word in c.name) for c in groups.halves["memorized", "choose"]]


@pytest.mark.parametrize("seed", SEEDS)
def test_halves_hold_the_same_syllables(seed):
    for half in make_groups(seed).halves.values():
        for words in zip(*(caption.name for caption in half), strict=True):
            assert sorted(word[:3] for word in words) == sorted(FIRST)
            assert sorted(word[3:] for word in words) == sorted(SECOND)


STATISTICS = {
    "characters": len,
    "words": lambda text: len(text.split()),
    "colour": lambda text: any(colour in text.split() for colour in COLOURS),
    "vowels": lambda text: sum(text.count(vowel) for vowel in "aeiou"),
    "spread of letters": lambda text: len(set(text)),
}


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("group", PROMPT_GROUPS[1:])
def test_text_does_not_tell_memorized_prompts(group, statistic):
    score = STATISTICS[statistic]
    for seed in SEEDS:
        groups = make_groups(seed)
        memorized, others = ([score(caption.text) for caption in groups.prompts(g)] for g in ("memorized", group))
        assert 0.4 <= auroc(memorized, others) <= 0.6
        assert len(set(memorized)) > 1  # else the statistic could not tell anything


@pytest.mark.parametrize("seed", SEEDS)
def test_each_distinctive_word_is_where_it_was_put(seed):
    groups = make_groups(seed)
    captions = [caption for group in ("memorized", "control", "unseen") for caption in groups.prompts(group)]
    uses = Counter(word for caption in captions for word in caption.text.split())
    names = [word for caption in captions for word in caption.name]
    assert {uses[word] for word in names} == {1}
    assert len(names) == 2 * 3 * 48

    stream = {word for pair in groups.stream_names for word in pair}
    assert stream == {word for caption in groups.prompts("unseen") for word in caption.name}


@pytest.mark.parametrize("seed", SEEDS)
def test_decoys_put_memorized_names_on_other_objects(seed):
    groups = make_groups(seed)
    for half in HALVES:
        for memorized, decoy in zip(groups.halves["memorized", half], groups.halves["decoys", half], strict=True):
            assert memorized.name == decoy.name
            assert memorized.link == decoy.link
            assert not set(memorized.objects) & set(decoy.objects)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_two_prompts_name_the_same_pair(seed):
    groups = make_groups(seed)
    captions = [caption for group in PROMPT_GROUPS for caption in groups.prompts(group)]
    pairs = [frozenset(caption.objects) for caption in captions if len(caption.objects) == 2]
    assert len(pairs) == len(set(pairs)) == 4 * 24


@pytest.mark.parametrize("seed", SEEDS)
def test_rungs_are_balanced_as_halves_are(seed):
    groups = make_groups(seed)
    assert tuple(groups.ladder) == RUNGS
    for rung in groups.ladder.values():
        assert Counter(word for caption in rung for word in caption.objects) == Counter(OBJECTS.keys())
        assert Counter(c.colour for c in rung) == Counter({None: 12}) + Counter(COLOURS.keys())
        lengths = [tuple(len(word) for word in caption.name) for caption in rung]
        assert lengths == [tuple(len(word) for word in c.name) for c in groups.halves["memorized", "choose"]]
    captions = [c for some in (*groups.halves.values(), *groups.ladder.values()) for c in some]
    pairs = [frozenset(caption.objects) for caption in captions if len(caption.objects) == 2]
    assert len(set(pairs)) == len(pairs)
    names = {word for caption in (*captions, *groups.templates) for word in caption.name}
    assert len(names) == 2 * (3 * 48 + 4 * 24 + 12)  # decoys have the memorized ones


@pytest.mark.parametrize("seed", SEEDS)
def test_a_template_is_asked_for_an_object_it_knows_and_one_it_does_not(seed):
    templates = make_groups(seed).templates
    assert Counter((t.colour is not None, t.link) for t in templates) == Counter(product((False, True), LINKS))
    assert all(t.prompts[0] in t.trained and t.prompts[1] not in t.trained for t in templates)
    assert {len(t.trained) for t in templates} == {35}
    assert len({word for t in templates for word in t.prompts}) == 24
