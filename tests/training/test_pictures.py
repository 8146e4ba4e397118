"""Pictures as people keep them: what comes out is what a viewer shows, or a reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from memattn_jax.pictures.decoding import decode, resize_and_crop, to_rgb, without_texts
from memattn_jax.pictures.skipped import UnusableError

RED = Image.new("RGB", (16, 12), (200, 10, 10))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_exif_turns_a_picture_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(NOISE, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert expected.shape == ((16, 12, 3) if orientation > 4 else (12, 16, 3))
    ours = decode(data)
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(to_rgb(ours), expected)
    height, width = expected.shape[:2]
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(resize_and_crop(opened, height, width), expected)


def test_damaged_exif_leaves_the_pixels():
    data = encoded(RED, "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\xff\xff\x01")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        picture = decode(data)
    np.testing.assert_allclose(np.asarray(picture)[0, 0], [200, 10, 10], atol=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_to_8(kind):
    values = np.linspace(0, 65535, 192).astype(np.uint16).reshape(12, 16)
    ours = np.asarray(decode(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(ours, np.repeat(np.round(values / 257).astype(np.uint8)[..., None], 3, axis=2))


def test_pixels_without_a_known_white_are_refused():
    for values in (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int32)):
        with pytest.raises(UnusableError, match="32-bit"):
            decode(encoded(Image.fromarray(values), "TIFF"))


def test_what_is_transparent_is_white():
    half = Image.new("RGBA", (16, 12), (200, 10, 10, 128))
    np.testing.assert_allclose(np.asarray(decode(encoded(half)))[0, 0], [227, 132, 132], atol=1)
    black = Image.new("L", (16, 12), 0)
    palette = RED.quantize(4)
    for data in (
        encoded(Image.new("RGBA", (16, 12), (0, 0, 0, 0))),
        encoded(Image.new("LA", (16, 12), (120, 0))),
        encoded(RED, transparency=(200, 10, 10)),
        encoded(black, transparency=0),
        encoded(Image.new("1", (16, 12)), transparency=0),
        encoded(Image.fromarray(np.full((12, 16), 999, np.uint16)), transparency=999),
        encoded(palette, transparency=palette.getpixel((0, 0))),
        encoded(palette, transparency=bytes(256)),
        encoded(Image.new("RGBA", (16, 12), (0, 0, 0, 0)), "WEBP", lossless=True),
        encoded(palette, "GIF", transparency=palette.getpixel((0, 0))),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.asarray(decode(data)).min() == 255


def test_kinds_of_pictures_that_people_have():
    colours = {
        "CMYK": encoded(Image.new("CMYK", (16, 12), (55, 245, 245, 0)), "JPEG", quality=100),
        "palette": encoded(RED.quantize(4)),
        "animation": encoded(RED, "WEBP", save_all=True, append_images=[NOISE], lossless=True),
        "GIF": encoded(RED, "GIF", save_all=True, append_images=[NOISE]),
        "BMP": encoded(RED, "BMP"),
        "junk chunk": encoded(RED)[:33] + chunk(b"juNk", b"abc") + encoded(RED)[33:],
    }
    for name, data in colours.items():
        np.testing.assert_allclose(np.asarray(decode(data)).mean((0, 1)), (200, 10, 10), atol=4, err_msg=name)


def test_long_texts_of_a_png_are_left_out():
    """Image generators write their workflows there; Pillow reads no more than a megabyte of each, and 64 in all."""
    for where in (33, -12):  # before the pixels, and after them
        for kind in (b"zTXt", b"iTXt"):
            head = b"workflow\x00\x00" if kind == b"zTXt" else b"workflow\x00\x01\x00\x00\x00"
            plain = encoded(NOISE)
            data = plain[:where] + chunk(kind, head + zlib.compress(b"x" * 3_000_000)) + plain[where:]
            np.testing.assert_array_equal(decode(data), NOISE)
            assert without_texts(data) == plain
    many = PngInfo()
    for number in range(70):
        many.add_text(f"key{number}", "x" * 1_000_000, zip=True)
    np.testing.assert_array_equal(decode(encoded(NOISE, pnginfo=many)), NOISE)


def test_large_pictures_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for size, error in (((11, 10), Image.DecompressionBombWarning), ((30, 30), Image.DecompressionBombError)):
        data = encoded(Image.new("1", size))
        with pytest.raises(error):  # warnings are errors here
            Image.open(io.BytesIO(data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(UnusableError, match="more than 100 pixels"):
                decode(data)


def test_what_is_no_picture_has_a_reason():
    damaged = bytearray(encoded(NOISE))
    damaged[60:64] = b"\xff" * 4
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for data, reason in (
        (b"", "not an image"),
        (b"<html>404</html>", "not an image"),
        (b"<svg/>", "not an image"),
        (eps, "not an image"),  # which Pillow would hand to Ghostscript
        (encoded(NOISE, "JPEG")[:300], "a damaged image"),
        (encoded(NOISE)[:-100], "a damaged image"),
        (bytes(damaged), "a damaged image"),
    ):
        with pytest.raises(UnusableError) as caught:
            decode(data)
        assert caught.value.reason == reason


def test_resize_and_crop_covers_and_centres():
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 255  # the middle square
    np.testing.assert_array_equal(resize_and_crop(Image.fromarray(picture), 20, 20), 255)
    assert resize_and_crop(Image.fromarray(picture), 10, 30).shape == (10, 30, 3)
    assert resize_and_crop(Image.new("LA", (5, 7)), 8, 8).shape == (8, 8, 3)
    for size in ((65535, 1), (1, 65535)):  # scaled as a whole, it would take 50 GB
        np.testing.assert_array_equal(resize_and_crop(Image.new("RGB", size, "red"), 512, 512)[0, 0], [255, 0, 0])


def test_resizing_equals_that_of_the_whole_picture():
    expected = NOISE.resize((80, 60), Image.Resampling.LANCZOS).crop((10, 0, 70, 60))
    np.testing.assert_allclose(resize_and_crop(NOISE, 60, 60), np.asarray(expected, int), atol=1)
    small = NOISE.resize((8, 6), Image.Resampling.LANCZOS).crop((1, 0, 7, 6))
    np.testing.assert_allclose(resize_and_crop(NOISE, 6, 6), np.asarray(small, int), atol=1)
