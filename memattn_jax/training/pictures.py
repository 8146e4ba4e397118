"""Pictures as people keep them, to upright RGB of 8 bits.

A picture is turned as its EXIF says, 16-bit grey is scaled to 8 bits, transparent pixels are laid over white, and of an
animation the first frame counts. Colour profiles are not applied.
"""

import functools
import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from memattn_jax.training.skipped import UnusableError, first_line

# raster formats alone: Pillow would start Ghostscript for an EPS
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
PNG = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG that Pillow refuses from a megabyte on
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
    """A file's bytes to an RGB picture without metadata.

    Raises:
      UnusableError: not a picture, a damaged one, one over Pillow's `MAX_IMAGE_PIXELS`, or one without a known white.
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
        raise UnusableError("not a picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableError(too_large()) from None
    except Exception as error:  # at damaged bytes, decoders raise nearly anything
        raise UnusableError("a damaged picture", first_line(error)) from None


def load(data: bytes) -> Image.Image:
    """Opens and decodes the first frame."""
    picture = Image.open(io.BytesIO(data), formats=known_formats())
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise UnusableError(too_large(), f"{picture.width} x {picture.height}")
    picture.load()
    return picture


def too_large() -> str:
    """Why a picture is refused that would take gigabytes, in each of several threads."""
    return f"more than {Image.MAX_IMAGE_PIXELS:,} pixels"


@functools.cache
def known_formats() -> list[str]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def without_texts(data: bytes) -> bytes:
    """A PNG without its `TEXTS`, such as the workflows that image generators write: no pixel depends on them."""
    kept, at = [PNG], len(PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")  # length, type, content, checksum
        if data[at + 4 : at + 8] not in TEXTS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture upright, RGB, with white behind what is transparent, and without metadata.

    Raises:
      UnusableError: pixels of 32 bits, of which nothing says how much is white.
    """
    picture.load()  # which turns a TIFF
    turn = UPRIGHT.get(orientation(picture))
    if picture.mode[0] in "IF":
        picture = eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    if turn is not None:
        picture = picture.transpose(turn)
    picture.info = {}  # else the next one would turn it again
    return picture


def orientation(picture: Image.Image) -> int:
    """How the camera was held, 1 to 8."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as for pixels; but damaged EXIF leaves them as they are
        return 1


def eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; white where a PNG's tRNS names the value transparent."""
    if not picture.mode.startswith("I;16") and not (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        raise UnusableError("pixels of 32 bits, whose white is unknown")
    values = np.asarray(picture).astype(np.uint32)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    clear = picture.info.get("transparency")
    if clear is not None:
        grey[values == clear] = 255
    return Image.fromarray(grey)


def resize_and_crop(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """Scales the picture's middle, cropped to the aspect, to uint8 [height, width, 3]; see `to_rgb` for the colours."""
    picture = to_rgb(picture)
    scale = max(height / picture.height, width / picture.width)
    if scale == 1:
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return np.asarray(picture.crop((left, top, left + width, top + height)))
    # of the crop alone: the whole of a long strip, scaled, would not fit into memory
    right, bottom = (picture.width + width / scale) / 2, (picture.height + height / scale) / 2
    box = (picture.width - right, picture.height - bottom, right, bottom)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))
