"""Whether a log is of the kind that a calibration's clean prompts are; on the built-in model's prompts."""

import random
import string
import warnings

import pytest

from memattn_jax import demo
from memattn_jax.checkpoints.tokenizer import Tokenizer
from memattn_jax.detectors.calibration.likeness import Kind
from memattn_jax.report.findings import compare


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(demo.MODEL / "tokenizer", 77)


def ids_of(tokenizer: Tokenizer, prompts: list[str]) -> list[list[int]]:
    tokens = tokenizer(prompts)
    return [row[1 : length - 1].tolist() for row, length in zip(tokens.input_ids, tokens.lengths, strict=True)]


@pytest.fixture(scope="module")
def clean() -> list[str]:
    return (demo.FOLDER / "prompts" / "clean.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def kind(tokenizer, clean) -> Kind:
    return Kind.of(clean[:300], ids_of(tokenizer, clean[:300]))


def nonsense(clean: list[str]) -> dict[str, list[str]]:
    """Kinds of prompts that a calibration on `clean` says nothing about, 40 each."""
    chance = random.Random(0)
    words = sorted({word for prompt in clean for word in prompt.split()})
    letters = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(400)]
    return {
        "random letters": [" ".join(chance.choices(letters, k=5)) for _ in range(40)],
        "known words in any order": [" ".join(chance.choices(words, k=5)) for _ in range(40)],
        "capitals": [prompt.title() for prompt in clean[300:340]],
        "punctuation": [prompt.replace(" ", ", ") + "!!!" for prompt in clean[300:340]],
        "long": [" and ".join(chance.sample(clean, 3)) for _ in range(40)],
        "English": [f"an oil painting of my neighbour's house, number {n}" for n in range(40)],
        "empty": [""] * 40,
    }


def test_held_out_clean_prompts_are_alike(kind, tokenizer, clean):
    report = demo.prompts("control", "report") + demo.prompts("unseen", "report")
    choose = demo.prompts("control", "choose") + demo.prompts("unseen", "choose")
    groups = [demo.prompts(group, half) for group in demo.GROUPS for half in demo.HALVES]
    for prompts in (*groups, clean[300:], clean[300:340], clean[300:305], clean[300:301], report, choose):
        assert kind.differences(prompts, ids_of(tokenizer, prompts)) == []


def test_nonsense_is_not(kind, tokenizer, clean):
    for name, prompts in nonsense(clean).items():
        assert kind.differences(prompts, ids_of(tokenizer, prompts)), name


def test_one_warning_names_what_differs(kind, tokenizer, clean):
    with pytest.warns(UserWarning, match=r"^these prompts are unlike the calibration's \(.*, …\)") as caught:
        compare([prompt.title() + " x" * 80 for prompt in clean[:40]], kind, tokenizer)
    assert len(caught) == 1
    assert len(str(caught[0].message)) <= 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare([], kind, tokenizer)
        compare(clean[300:], kind, tokenizer)
