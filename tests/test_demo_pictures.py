"""Scenes of the demo data, and the emoji that they are drawn from."""

import base64
import hashlib
import io
import tarfile
from collections import Counter
from pathlib import Path

import make_demo_data
import numpy as np
import pytest
from demo_data import sprites
from demo_data.grammar import COLOURS, OBJECTS, Caption
from demo_data.randomness import Purpose, generator
from demo_data.scenes import background, draw_scene, places
from fake_sprites import disc, png
from PIL import Image

from memattn_jax import InputError

# Scenes


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
