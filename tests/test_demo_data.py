"""Examples of the demo data, which follow from their index, and the files of the command."""

import csv
import json
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import make_demo_data
import numpy as np
import pytest
from demo_data import HALVES, PROMPT_GROUPS, DemoData, Mixture, make_groups
from demo_data.examples import DEFAULT, with_stream
from demo_data.grammar import COLOURS, LINKS, OBJECTS
from demo_data.truth import count_captions, read_counts, rows, write_truth
from fake_sprites import fake_sprites
from PIL import Image

from memattn_jax.prompts import read_prompts

SEEDS = (0, 1, 2)
TRAINED = ("memorized", "control")


@pytest.fixture(scope="module")
def data() -> DemoData:
    return DemoData(fake_sprites())


def indices_by_group(data: DemoData, count: int) -> dict[str, list[int]]:
    """The indices below `count`, by group."""
    indices: dict[str, list[int]] = {}
    for index in range(count):
        indices.setdefault(data.caption(index)[1], []).append(index)
    return indices


# Training examples


@pytest.mark.parametrize("seed", SEEDS)
def test_the_stream_cannot_say_an_unseen_name_or_pair(seed):
    groups = make_groups(seed)
    count = len(groups.stream_names)
    names = {groups.stream_name(first, step) for first in range(count) for step in range(1, count)}
    assert len(names) == count * (count - 1)
    assert not names & {caption.name for caption in groups.prompts("unseen")}
    held_out = {frozenset(caption.objects) for group in ("unseen", "decoys") for caption in groups.prompts(group)}
    assert not held_out & {frozenset(pair) for pair in groups.stream_pairs}
    assert len(groups.stream_pairs) == len(OBJECTS) * (len(OBJECTS) - 1) // 2 - 48


def test_training_captions(data):
    captions = [data.caption(index) for index in range(30_000)]
    trained = {caption.text for caption, _ in captions}
    for group in PROMPT_GROUPS:
        prompts = {caption.text for caption in data.groups.prompts(group)}
        assert prompts <= trained if group in TRAINED else not prompts & trained

    stream = [caption for caption, group in captions if group == "stream"]
    names = data.groups.stream_names
    possible = {data.groups.stream_name(first, step) for first in range(len(names)) for step in range(1, len(names))}
    assert {caption.name for caption in stream} <= possible
    assert {caption.objects for caption in stream if len(caption.objects) == 1} == {(word,) for word in OBJECTS}
    assert {caption.colour for caption in stream} == {None, *COLOURS}
    assert {caption.link for caption in stream} == set(LINKS)

    uses = Counter(word for caption, _ in captions for word in caption.name)
    graded = Counter(word for caption, group in captions if group in ("ladder", "template") for word in caption.name)
    vocabulary = data.groups.vocabulary()
    assert uses.keys() <= set(vocabulary["names"])
    even = [uses[word] for word in vocabulary["names"] if word not in graded and word in uses]
    assert max(even) < 2 * min(even)  # every word of their names is trained about equally often
    rare = {word for caption in data.groups.ladder[1] for word in caption.name}  # may not have come up yet
    assert {word for text in trained for word in text.split()} | rare == set(vocabulary["words"])


def test_an_example_depends_on_seed_and_index_alone(data):
    backwards = DemoData(fake_sprites())
    for index in reversed(range(40)):
        mine, other = data.example(index), backwards.example(index)
        assert mine.picture.tobytes() == other.picture.tobytes()
        assert mine[1:] == other[1:]
        caption, group = data.caption(index)
        assert mine[1:] == (caption.text, group)
        assert (mine.picture.shape, mine.picture.dtype) == ((64, 64, 3), np.uint8)
        assert not mine.picture.flags.writeable
    reseeded = DemoData(fake_sprites(), seed=1)
    assert [data.example(index).caption for index in range(9)] != [reseeded.example(i).caption for i in range(9)]
    assert (data.memorized_pictures != reseeded.memorized_pictures).any(axis=(1, 2, 3)).all()


def test_mixture(data):
    counts = {group: len(indices) for group, indices in indices_by_group(data, 20_000).items()}
    expected = {"memorized": 6000, "control": 6000, "ladder": 1000, "template": 1000, "stream": 6000}
    assert counts == pytest.approx(expected, rel=0.1)
    assert indices_by_group(DemoData(fake_sprites(), mixture=Mixture(0, 0, 0, 0, 2)), 500).keys() == {"stream"}
    assert indices_by_group(DemoData(fake_sprites(), mixture=Mixture(3, 1, 0, 0, 0)), 500).keys() == set(TRAINED)
    assert with_stream(DEFAULT.stream) == pytest.approx(DEFAULT)
    more = np.array(with_stream(0.65)) / sum(with_stream(0.65))
    np.testing.assert_allclose(more, [0.15, 0.15, 0.025, 0.025, 0.65])


def test_memorized_captions_have_one_picture_and_the_others_never(data):
    pictures: dict[tuple[str, str], list[bytes]] = {}
    for index in range(1500):
        picture, caption, group = data.example(index)
        pictures.setdefault((group, caption), []).append(picture.tobytes())
    memorized = [p.tobytes() for p in data.memorized_pictures]
    for (group, caption), seen in pictures.items():
        if group in ("ladder", "template"):
            assert len(set(seen)) == 1
        elif group == "memorized":
            texts = [prompt.text for prompt in data.groups.prompts("memorized")]
            assert set(seen) == {memorized[texts.index(caption)]}
        else:
            assert len(set(seen)) == len(seen)
    assert len({caption for group, caption in pictures if group == "control"}) == 48
    assert len(set(memorized)) == 48


def test_rungs_are_shown_as_often_as_they_say(data):
    captions = [caption for index in range(60_000) for caption, group in [data.caption(index)] if group == "ladder"]
    rungs = {caption: times for times, some in data.groups.ladder.items() for caption in some}
    counts = Counter(rungs[caption] for caption in captions)
    assert counts[64] == pytest.approx(len(captions) * 64 / 85, rel=0.1)
    assert counts[16] == pytest.approx(len(captions) * 16 / 85, rel=0.2)
    assert len(captions) / 60_000 * 48 / 24 / 85 * 256 == pytest.approx(0.3, rel=0.1)  # the memorized ones' share


def test_pictures_of_a_template_differ_in_the_object_alone(data):
    template, other = data.groups.templates[:2]
    pictures = np.stack([data.template_picture(template.caption(word)) for word in template.trained[:6]]).astype(int)
    assert len({picture.tobytes() for picture in pictures}) == 6
    shared = (pictures == pictures[0]).all(axis=(0, 3))
    assert 0.3 < shared.mean() < 1
    empty = data.template_picture(template.caption(template.trained[0]), blank=True)
    assert 0.3 < (empty == pictures).all(axis=-1).mean() < 1
    assert (data.template_picture(other.caption("cat")) != pictures[0]).any(axis=-1).mean() > 0.5


def test_fresh_pictures_are_no_training_pictures(data):
    caption = data.groups.prompts("control")[0]
    fresh = [data.fresh_picture(caption, number).tobytes() for number in range(30)]
    assert fresh == [data.fresh_picture(caption, number).tobytes() for number in range(30)]
    assert len(set(fresh)) == 30
    renamed = replace(caption, name=("velmi", "tasbek"))
    assert data.fresh_picture(renamed, 0).tobytes() != fresh[0]
    trained = {data.example(index).picture.tobytes() for index in range(300) if data.caption(index)[0] == caption}
    assert trained
    assert not trained & set(fresh)


def test_other_pictures_are_seldom_like_a_memorized_one(data):
    def normalized(pictures: list[np.ndarray]) -> np.ndarray:
        flat = np.reshape(pictures, (len(pictures), -1)).astype(np.float64)
        flat -= flat.mean(axis=1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    fresh = [data.fresh_picture(c, n) for g in PROMPT_GROUPS for c in data.groups.prompts(g) for n in range(5)]
    nearest = (normalized(fresh) @ normalized(data.memorized_pictures).T).max(axis=1)
    assert (nearest > 0.9).mean() < 0.01


# The command


def run(out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.setattr(make_demo_data, "load_sprites", lambda cache: fake_sprites())
    return make_demo_data.main([str(out), "--cache", "unused", *more])


def read_imagefolder(folder: Path) -> tuple[np.ndarray, list[str]]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["file_name"] for row in rows} == {path.name for path in folder.glob("*.png")}
    return np.stack([np.asarray(Image.open(folder / row["file_name"])) for row in rows]), [row["text"] for row in rows]


def test_files(tmp_path, monkeypatch, data):
    out = tmp_path / "new" / "data"
    assert run(out, monkeypatch, "--train", "20") == 0
    for group, half in product(PROMPT_GROUPS, HALVES):
        prompts = read_prompts(out / "prompts" / f"{group}_{half}.txt")
        assert prompts == [caption.text for caption in data.groups.halves[group, half]]
    pictures, texts = read_imagefolder(out / "memorized")
    assert texts == [caption.text for caption in data.groups.prompts("memorized")]
    np.testing.assert_array_equal(pictures, data.memorized_pictures)
    pictures, texts = read_imagefolder(out / "train")
    assert texts == [data.example(index).caption for index in range(20)]
    np.testing.assert_array_equal(pictures, [data.example(index).picture for index in range(20)])
    for group, count in (("ladder", 4 * 24), ("template", 24)):
        pictures, texts = read_imagefolder(out / group)
        assert len(texts) == count
        assert [row.caption.text for row in rows(data) if row.group == group] == texts
    with (out / "prompts" / "truth.csv").open(encoding="utf-8", newline="") as file:
        truth = list(csv.DictReader(file))
    others = json.loads((out / "prompts" / "paraphrases.json").read_text())
    assert others.keys() == {row["prompt"] for row in truth if row["group"] == "memorized"}
    for prompt, wordings in others.items():
        assert len({prompt, *wordings}) == 6
        kept = {(text.split()[1], *text.split()[-2:]) for text in (prompt, *wordings)}
        assert len(kept) == 1
    assert Counter(row["group"] for row in truth) == dict.fromkeys(PROMPT_GROUPS, 48) | {"ladder": 96, "template": 24}
    assert {row["rate"] for row in truth if row["group"] == "ladder"} == {"1", "4", "16", "64"}
    assert {row["rate"] for row in truth if row["group"] in TRAINED} == {"256"}
    assert {row["shown"] for row in truth} == {""}
    assert json.loads((out / "vocabulary.json").read_text(encoding="utf-8")) == data.groups.vocabulary()
    sheet = np.asarray(Image.open(out / "contact_sheet.png"))
    top = 34  # under the first heading
    np.testing.assert_array_equal(sheet[top : top + 128 : 2, 8:136:2], data.memorized_pictures[0])


def test_truth_counts_what_was_shown(tmp_path, data):
    counts = count_captions(data, iter(np.arange(40).reshape(5, 8)), 4)
    assert counts == Counter(data.example(index).caption for index in range(32))
    write_truth(data, tmp_path / "truth.csv", counts)
    with (tmp_path / "truth.csv").open(encoding="utf-8", newline="") as file:
        truth = list(csv.DictReader(file))
    assert {row["prompt"]: int(row["shown"]) for row in truth} == {
        row["prompt"]: counts[row["prompt"]] for row in truth
    }
    assert sum(int(row["shown"]) for row in truth) > 10
    assert read_counts(tmp_path / "truth.csv") == Counter({row["prompt"]: counts[row["prompt"]] for row in truth})
    assert read_counts(tmp_path / "none.csv") == Counter()


def test_no_training_pictures_unless_asked_for(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, "--seed", "1") == 0
    assert not (tmp_path / "train").exists()
    first = read_prompts(tmp_path / "prompts" / "memorized_choose.txt")[0]
    assert first == make_groups(1).prompts("memorized")[0].text


def test_a_folder_in_use_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").touch()
    assert run(tmp_path, monkeypatch) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("number", ["-1", "many", "1.5", "²"])
def test_bad_numbers(number, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        make_demo_data.main([str(tmp_path), "--cache", "unused", f"--train={number}"])
    assert f"argument --train: {number!r}" in capsys.readouterr().err
