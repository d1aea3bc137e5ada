"""Encoded images to pixels, one meaning for every loader.

The law: Pillow is the authority on what an image shows and whether it is readable.
`is_plain` knows, from the header alone, the files that libjpeg-turbo and TensorFlow's
parallel C++ decode to the same pixels; everything else (palette, CMYK, 16 bits, alpha,
WebP, GIF, TIFF, AVIF, HEIC, turned by EXIF, cut short) is decoded by Pillow and handed
on as raw pixels.

    pixels(open("face.jpg", "rb").read())           # uint8 [H, W, 3]
    record = data if is_plain(data) else pack(pixels(data))
"""

from __future__ import annotations

import functools
import io
import math
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:  # where only the core is installed: the same pixels, later
    simplejpeg = None

# A packed record: this mark, height and width (little-endian int32), pixels.
RAW = b"RAW\0"
RAW_HEADER = 12

_MAX_PIXELS = 100_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_ORIENTATION = 0x0112
_JPEG = b"\xff\xd8"
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; Huffman coded
_JPEG_SCAN, _JPEG_APP1 = 0xDA, 0xE1
# ISO/IEC 14496-12: a box of this kind comes first; 23008-12: with one of these brands
_BOX, _HEIF = b"ftyp", (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
_Header = tuple[bytes, tuple[int, int] | None]
_met: list[_Header] = [(_PNG, None)]  # the last JPEG header, to its scan, and its size

# What Pillow's parsers raise on a damaged file.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)


class UnreadableError(ValueError):
    """An example that cannot be read: missing, truncated or not an image."""


def pixels(
    record: bytes | np.ndarray,
    *,
    out: np.ndarray | None = None,
    mirrored: bool = False,
) -> np.ndarray:
    """Return the pixels of a record.

    Args:
        record: an encoded image of any size and mode, or uint8 [H, W, 3], which is
            returned as it is. Alpha is dropped, 16-bit grey keeps its high byte,
            an animation gives its first frame, EXIF orientation is applied.
        out: contiguous uint8 [H, W, 3] that may be written to, which spares a copy.
        mirrored: left to right, which costs next to nothing while decoding.

    Returns:
        uint8 [H, W, 3]; `out` itself if that is where the pixels are.

    Raises:
        UnreadableError: if the bytes are not an image, or not a whole one.
        ValueError: if an array is not uint8 [H, W, 3].
    """
    if isinstance(record, np.ndarray):
        if record.dtype != np.uint8 or record.ndim != 3 or record.shape[2] != 3:
            raise ValueError(
                f"a source gave {record.dtype} {record.shape}: wanted uint8 [H, W, 3]"
            )
        return record[:, ::-1] if mirrored else record
    if not record:
        raise UnreadableError("empty file")
    if simplejpeg and record.startswith(_JPEG) and (size := plain_size(record)):
        try:
            return _turbo(record, size, out=out, mirrored=mirrored)
        except ValueError:
            pass  # even a warning: Pillow is the judge
    if record[4:8] == _BOX and record[8:12] in _HEIF:
        _know_heif()
    try:
        with Image.open(io.BytesIO(record)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise UnreadableError(
                    f"{image.width} x {image.height} is over {_MAX_PIXELS} pixels"
                )
            found = np.asarray(_rgb(image))
            return found[:, ::-1] if mirrored else found
    except UnidentifiedImageError:  # whose text names an address in memory
        raise UnreadableError("not an image of a known kind") from None
    except _DAMAGE as error:
        raise UnreadableError(str(error) or type(error).__name__) from None


@functools.cache
def _know_heif() -> None:
    """Let Pillow read what phones write, HEIC.

    Raises:
        UnreadableError: there is nothing that could.
    """
    try:
        import pillow_heif
    except ImportError:
        raise UnreadableError("a HEIC photo: pip install jaxface[photos]") from None
    # one thread, for photos are read in parallel already
    pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)


def _turbo(
    record: bytes, size: tuple[int, int], *, out: np.ndarray | None, mirrored: bool
) -> np.ndarray:
    # At an odd address: rows that begin at a multiple of 32 are written past the
    # caches, which takes a third longer than the copy that this costs.
    memory = np.empty(math.prod(size) * 3 + 1, np.uint8)[1:]
    colors = "BGR" if mirrored else "RGB"
    image = simplejpeg.decode_jpeg(record, colorspace=colors, buffer=memory)
    if out is None or out.shape != image.shape:
        if not mirrored:
            return image
        out = np.empty_like(image)
    if mirrored:  # in RGB: the bytes of each row of BGR, from the last to the first
        H, W, _ = image.shape
        unit = math.gcd(3 * W, 8)
        rows = image.reshape(H, 3 * W).view(f">u{unit}")
        np.copyto(out.reshape(H, 3 * W).view(f"<u{unit}"), rows[:, ::-1])
    else:
        np.copyto(out, image)
    return out


def _rgb(image: Image.Image) -> Image.Image:
    turned = image.getexif().get(_ORIENTATION, 1) != 1
    upright = ImageOps.exif_transpose(image) if turned else image
    if upright.mode == "F":
        raise UnreadableError("float pixels have no agreed range")
    if upright.mode.startswith("I"):  # 16-bit grey, whatever the byte order
        high = np.asarray(upright).astype(np.int64) >> 8
        return Image.fromarray(np.clip(high, 0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return upright.convert("RGB")


def pack(image: np.ndarray) -> bytes:
    """Return uint8 [H, W, 3] as a record that `ops.decode` reads in TensorFlow."""
    height, width, _ = image.shape
    return RAW + struct.pack("<ii", height, width) + image.tobytes()


def is_plain(data: bytes) -> bool:
    """Tell whether TensorFlow decodes these bytes to the pixels Pillow gives.

    True for whole 8-bit JPEG of 1 or 3 components without EXIF rotation, and 8-bit
    grey or RGB PNG without transparency. Only headers and the last bytes are read,
    so damage within may remain.
    """
    return plain_size(data) is not None


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) if `is_plain`."""
    try:
        if data.startswith(_JPEG) and data.endswith(b"\xff\xd9"):
            return _plain_jpeg(data)
        if data.startswith(_PNG) and data.endswith(_PNG_END):
            return _plain_png(data)
    except (struct.error, IndexError):
        pass  # the header is cut short: let Pillow say what is wrong
    return None


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    header, size = _met[0]  # images of one writer begin alike, byte for byte
    if data.startswith(header):
        return size
    at, size = 2, None
    while data[at] == 0xFF and (marker := data[at + 1]) != _JPEG_SCAN:
        if marker in _JPEG_FRAMES:
            depth, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            plain = depth == 8 and channels in (1, 3)
            plain = plain and 0 < height * width <= _MAX_PIXELS
            size = (height, width) if plain else None
        elif marker == _JPEG_APP1 and _is_turned(data):  # EXIF or XMP
            return None
        at += 2 + (data[at + 2] << 8) + data[at + 3]
    _met[0] = data[: at + 2], size
    return size


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.getexif().get(_ORIENTATION, 1) != 1
    except _DAMAGE:
        return True  # not plain: `pixels` will say what is wrong


def _plain_png(data: bytes) -> tuple[int, int] | None:
    width, height, depth, kind = struct.unpack_from(">IIBB", data, 16)
    if depth != 8 or kind not in (0, 2) or not 0 < height * width <= _MAX_PIXELS:
        return None
    at = len(_PNG)
    while (name := data[at + 4 : at + 8]) != b"IDAT":
        if len(name) < 4 or name in (b"tRNS", b"eXIf"):
            return None
        at += 12 + struct.unpack_from(">I", data, at)[0]
    return height, width
