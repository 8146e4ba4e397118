"""The demo data: groups that text cannot tell apart, examples that follow from their index, the command's files."""

import base64
import csv
import hashlib
import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import make_demo_data
import numpy as np
import pytest
from demo_data import HALVES, PROMPT_GROUPS, DemoData, Mixture, make_groups, sprites
from demo_data.grammar import COLOURS, LINKS, OBJECTS, Caption
from demo_data.groups import RUNGS
from demo_data.names import FIRST, SECOND
from demo_data.randomness import Purpose, generator
from demo_data.scenes import background, draw_scene, places
from demo_data.truth import count_captions, read_counts, rows, write_truth
from PIL import Image, ImageDraw

from memattn_jax import InputError
from memattn_jax.prompts import read_prompts

SEEDS = (0, 1, 2)
TRAINED = ("memorized", "control")


def disc(colour: tuple[int, int, int]) -> Image.Image:
    """A sprite: a disc of 60 pixels within transparent corners."""
    sprite = Image.new("RGBA", (60, 60))
    ImageDraw.Draw(sprite).ellipse((0, 0, 59, 59), fill=colour)
    return sprite


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def auroc(higher: list[float], lower: list[float]) -> float:
    """By ranks: the chance that one of `higher` exceeds one of `lower`, ties counting half."""
    ordered = sorted(higher + lower)
    ranks = {value: (2 * ordered.index(value) + ordered.count(value) + 1) / 2 for value in set(ordered)}
    smallest = len(higher) * (len(higher) + 1) / 2
    return (sum(ranks[value] for value in higher) - smallest) / (len(higher) * len(lower))


@pytest.fixture(scope="module")
def fake_sprites() -> dict[str, Image.Image]:
    """Discs with a bar, all different."""
    found = {}
    for number, word in enumerate(OBJECTS):
        found[word] = disc((7 * number, 255 - 7 * number, number % 2 * 255))
        ImageDraw.Draw(found[word]).rectangle((10, number, 50, number + 15), fill=(255 - 7 * number, 7 * number, 0))
    return found


@pytest.fixture(scope="module")
def data(fake_sprites) -> DemoData:
    return DemoData(fake_sprites)


def indices_by_group(data: DemoData, count: int) -> dict[str, list[int]]:
    """The indices below `count`, by group."""
    indices: dict[str, list[int]] = {}
    for index in range(count):
        indices.setdefault(data.caption(index)[1], []).append(index)
    return indices


# Groups


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
    captions = [caption for group in (*TRAINED, "unseen") for caption in groups.prompts(group)]
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


def test_an_example_depends_on_seed_and_index_alone(data, fake_sprites):
    backwards = DemoData(fake_sprites)
    for index in reversed(range(40)):
        mine, other = data.example(index), backwards.example(index)
        assert mine.picture.tobytes() == other.picture.tobytes()
        assert mine[1:] == other[1:]
        caption, group = data.caption(index)
        assert mine[1:] == (caption.text, group)
        assert (mine.picture.shape, mine.picture.dtype) == ((64, 64, 3), np.uint8)
        assert not mine.picture.flags.writeable
    reseeded = DemoData(fake_sprites, seed=1)
    assert [data.example(index).caption for index in range(9)] != [reseeded.example(i).caption for i in range(9)]
    assert (data.memorized_pictures != reseeded.memorized_pictures).any(axis=(1, 2, 3)).all()


def test_mixture(data, fake_sprites):
    counts = {group: len(indices) for group, indices in indices_by_group(data, 20_000).items()}
    expected = {"memorized": 6000, "control": 6000, "ladder": 1000, "template": 1000, "stream": 6000}
    assert counts == pytest.approx(expected, rel=0.1)
    assert indices_by_group(DemoData(fake_sprites, mixture=Mixture(0, 0, 0, 0, 2)), 500).keys() == {"stream"}
    assert indices_by_group(DemoData(fake_sprites, mixture=Mixture(3, 1, 0, 0, 0)), 500).keys() == set(TRAINED)


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


# Pictures


def test_both_objects_are_drawn():
    magenta, cyan = (255, 0, 255), (0, 255, 255)
    caption = Caption(("cat", "dog"), "white", "by", ("velmi", "tasbek"))
    for number in range(30):
        rng = generator(0, Purpose.FRESH, number)
        picture = draw_scene(rng, caption, {"cat": disc(magenta), "dog": disc(cyan)})
        for colour in (magenta, cyan):
            assert (np.abs(picture.astype(int) - colour).max(axis=-1) < 8).sum() > 250


def test_objects_are_inside_and_apart():
    rng = np.random.default_rng(0)
    for sides in ([34, 34], [26, 30], [54]):
        for _ in range(100):
            centres = places(rng, np.array(sides))
            assert ((centres >= np.array(sides)[:, None] / 2) & (centres <= 64 - np.array(sides)[:, None] / 2)).all()
            assert len(sides) == 1 or np.hypot(*(centres[0] - centres[1])) > 0.48 * sum(sides)


@pytest.mark.parametrize("colour", COLOURS)
def test_named_backgrounds_have_their_colour(colour):
    rng = np.random.default_rng(0)
    pictures = [background(rng, colour) for _ in range(200)]
    assert np.mean([np.ptp(picture.mean(axis=-1)) for picture in pictures]) > 30  # not flat
    means = np.array([picture.mean(axis=(0, 1)) for picture in pictures])
    distances = np.abs(means[:, None] - np.array(list(COLOURS.values()))).sum(axis=-1)
    nearest = Counter(list(COLOURS)[place] for place in distances.argmin(axis=1))
    assert nearest[colour] > 180  # a dark white may be nearer to pink


def test_other_backgrounds_have_any_colour():
    rng = np.random.default_rng(0)
    means = np.array([background(rng, None).mean(axis=(0, 1)) for _ in range(200)])
    assert (means.std(axis=0) > 30).all()


# The command


def run(out: Path, monkeypatch: pytest.MonkeyPatch, fake_sprites, *more: str) -> int:
    monkeypatch.setattr(make_demo_data, "load_sprites", lambda cache: fake_sprites)
    return make_demo_data.main([str(out), "--cache", "unused", *more])


def read_imagefolder(folder: Path) -> tuple[np.ndarray, list[str]]:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["file_name"] for row in rows} == {path.name for path in folder.glob("*.png")}
    return np.stack([np.asarray(Image.open(folder / row["file_name"])) for row in rows]), [row["text"] for row in rows]


def test_files(tmp_path, monkeypatch, fake_sprites, data):
    out = tmp_path / "new" / "data"
    assert run(out, monkeypatch, fake_sprites, "--train", "20") == 0
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


def test_no_training_pictures_unless_asked_for(tmp_path, monkeypatch, fake_sprites):
    assert run(tmp_path, monkeypatch, fake_sprites, "--seed", "1") == 0
    assert not (tmp_path / "train").exists()
    first = read_prompts(tmp_path / "prompts" / "memorized_choose.txt")[0]
    assert first == make_groups(1).prompts("memorized")[0].text


def test_a_folder_in_use_is_refused(tmp_path, monkeypatch, fake_sprites, capsys):
    (tmp_path / "mine.txt").touch()
    assert run(tmp_path, monkeypatch, fake_sprites) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("number", ["-1", "many", "1.5", "²"])
def test_bad_numbers(number, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        make_demo_data.main([str(tmp_path), "--cache", "unused", f"--train={number}"])
    assert f"argument --train: {number!r}" in capsys.readouterr().err


# The emoji


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package like the real one, and pinned in its place."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as tarball:
        for code in ["1f600", *OBJECTS.values()]:
            framed = Image.new("RGBA", (64, 64))
            framed.paste(disc((int(code, 16) % 256, 0, 0)), (2, 3))
            member = tarfile.TarInfo(f"package/img/google/64/{code}.png")
            content = png(framed)
            member.size = len(content)
            tarball.addfile(member, io.BytesIO(content))
    digest = hashlib.sha512(path.read_bytes()).digest()
    monkeypatch.setattr(sprites, "INTEGRITY", base64.b64encode(digest).decode())
    return path


def install_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a shell script in npm's place."""
    folder.mkdir()
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_sprites_are_downloaded_once(tmp_path, package, monkeypatch):
    cache = tmp_path / "new" / "cache"
    install_npm(tmp_path / "bin", f'echo "$@" >> {tmp_path}/calls; cp {package} "$4/{sprites.TARBALL}"', monkeypatch)
    for _ in range(2):
        found = sprites.load_sprites(cache)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [f"pack emoji-datasource-google@16.0.0 --pack-destination {cache} --loglevel error"]
    assert found.keys() == OBJECTS.keys()
    for word, sprite in found.items():
        assert (sprite.mode, sprite.size) == ("RGBA", (60, 60))
        assert sprite.getpixel((30, 30)) == (int(OBJECTS[word], 16) % 256, 0, 0, 255)


def test_another_package_is_refused(tmp_path, package):
    (tmp_path / sprites.TARBALL).write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"16\.0\.0\.tgz: .*SHA-512"):
        sprites.load_sprites(tmp_path)


def test_npm_without_network(tmp_path, monkeypatch, capsys):
    install_npm(tmp_path / "bin", 'printf "npm error code\\nnpm error lost\\n" >&2; exit 1', monkeypatch)
    assert make_demo_data.main([str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: npm ")
    assert "emoji-datasource-google@16.0.0" in line
    assert "npm error code npm error lost" in line
    assert not (tmp_path / "out").exists()


def test_no_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"npm .*emoji-.*\.tgz.*cache"):
        sprites.load_sprites(tmp_path / "cache")
