"""Decodes image files to upright 8-bit RGB.

EXIF orientation is applied, 16-bit grey is scaled to 8 bits, transparent pixels are composited over white, and the
first frame of an animation is used. Colour profiles are not applied.
"""

import functools
import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from memattn_jax.pictures.skipped import UnusableError, first_line

# raster formats alone: Pillow would start Ghostscript for an EPS
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG that Pillow refuses above a megabyte
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes) -> Image.Image:
    """Decodes a file's bytes to an RGB image without metadata.

    Raises:
      UnusableError: not an image, a damaged one, one over Pillow's `MAX_IMAGE_PIXELS`, or one without a known white.
    """
    try:
        try:
            return to_rgb(load(data))
        except ValueError:
            bare = without_texts(data) if data.startswith(PNG) else data
            if len(bare) == len(data):
                raise
            return to_rgb(load(bare))
    except UnusableError:
        raise
    except UnidentifiedImageError:
        raise UnusableError("not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableError(too_large()) from None
    except Exception as error:  # at damaged bytes, decoders raise nearly anything
        raise UnusableError("a damaged image", first_line(error)) from None


def load(data: bytes) -> Image.Image:
    """Opens and decodes the first frame."""
    picture = Image.open(io.BytesIO(data), formats=known_formats())
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise UnusableError(too_large(), f"{picture.width} x {picture.height}")
    picture.load()
    return picture


def too_large() -> str:
    """The reason to refuse an image that would take gigabytes in each of several threads."""
    return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"


@functools.cache
def known_formats() -> list[str]:
    """The `FORMATS` that this build of Pillow supports."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def without_texts(data: bytes) -> bytes:
    """A PNG without its `TEXTS`, such as workflows of image generators; pixels do not depend on them."""
    kept, at = [PNG], len(PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")  # length, type, content, checksum
        if data[at + 4 : at + 8] not in TEXTS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def to_rgb(picture: Image.Image) -> Image.Image:
    """The image upright, in RGB, over a white background, and without metadata.

    Raises:
      UnusableError: 32-bit pixels, for which white is not defined.
    """
    picture.load()  # applies the orientation of a TIFF
    turn = UPRIGHT.get(orientation(picture))
    if picture.mode[0] in "IF":
        picture = eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if turn is not None:
        picture = picture.transpose(turn)
    picture.info = {}  # or the next call would rotate it again
    return picture


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as for pixels; damaged EXIF is ignored
        return 1


def eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; white where the PNG's tRNS chunk marks the value as transparent."""
    if not picture.mode.startswith("I;16") and not (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        raise UnusableError("32-bit pixels, whose white is unknown")
    values = np.asarray(picture).astype(np.uint32)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    clear = picture.info.get("transparency")
    if clear is not None:
        grey[values == clear] = 255
    return Image.fromarray(grey)


def resize_and_crop(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """Center-crops to the aspect ratio and scales to uint8 [height, width, 3]; see `to_rgb` for colours."""
    picture = to_rgb(picture)
    scale = max(height / picture.height, width / picture.width)
    if scale == 1:
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return np.asarray(picture.crop((left, top, left + width, top + height)))
    # only the crop is scaled: all of a long strip would not fit into memory
    right, bottom = (picture.width + width / scale) / 2, (picture.height + height / scale) / 2
    box = (picture.width - right, picture.height - bottom, right, bottom)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))
