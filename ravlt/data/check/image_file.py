"""What the bytes of an image file say, in the header and when they are decoded."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ravlt.errors import RAVLTError

# From here on Pillow warns of a bomb. Honest images of that size take megabytes; a few
# kilobytes that claim so many pixels are flat colour at best.
HUGE_PIXELS = 2**30 // 4 // 3
_BOMB_RATIO = 200
_OPENCV_PIXELS = 2**30
_ORIENTATION = 0x112
# OpenCV turns these by their EXIF entry, Pillow leaves that to the caller. Of TIFF,
# both turn; of AVIF, neither here.
_TURNED = ("JPEG", "MPO", "PNG", "WEBP")


class BadFile(RAVLTError):
    """Why a file cannot be used, as a phrase."""


@dataclass(frozen=True)
class Header:
    """What is known of an image without decoding it.

    Attributes:
        format: Pillow's name of the format, from the content.
        mode: Pillow's mode, such as RGB, P or I;16.
        raw_mode: How pixels lie in the file, such as RGB;16B or L;4.
        size: Height and width in the file; None if Pillow refuses to tell.
        pixels: Number of pixels.
        orientation: The EXIF entry that OpenCV obeys, 1 to 8; 1 is upright.
        animated: Whether there is more than one frame.
        transparent: Whether pixels have an alpha, or a colour stands for none.
    """

    format: str
    mode: str
    raw_mode: str
    size: tuple[int, int] | None
    pixels: int
    orientation: int = 1
    animated: bool = False
    transparent: bool = False

    @property
    def upright(self) -> tuple[int, int] | None:
        """Height and width when turned by the EXIF entry."""
        if self.size is None or self.orientation < 5:
            return self.size
        return self.size[::-1]


def read_header(data: bytes) -> Header:
    """Reads an image's header, without decoding pixels.

    Args:
        data: Content of the file.

    Raises:
        BadFile: If it is no image, or a decompression bomb.
    """
    if not data:
        raise BadFile("it is empty")
    try:
        with _open(data) as image:
            header = _describe(image)
    except Image.DecompressionBombError as error:
        # Pillow says the number of pixels there, and nowhere else.
        found = re.search(r"\d+", str(error))
        header = Header("", "", "", None, int(found[0]) if found else _OPENCV_PIXELS)
    if header.pixels > _OPENCV_PIXELS or (
        header.pixels > HUGE_PIXELS and 3 * header.pixels > _BOMB_RATIO * len(data)
    ):
        raise BadFile(
            f"it claims {header.pixels:,} pixels in {len(data):,} bytes, which is a "
            f"decompression bomb"
        )
    return header


def _describe(image: Image.Image) -> Header:
    tile = image.tile[0][3] if getattr(image, "tile", None) else ""
    raw_mode = tile[0] if isinstance(tile, tuple) and tile else tile
    return Header(
        format=image.format,
        mode=image.mode,
        raw_mode=raw_mode if isinstance(raw_mode, str) else "",
        size=(image.height, image.width),
        pixels=image.height * image.width,
        orientation=_orientation(image) if image.format in _TURNED else 1,
        # The second picture of an MPO file is a camera's preview.
        animated=image.format != "MPO" and getattr(image, "is_animated", False),
        transparent="A" in image.mode or "transparency" in image.info,
    )


def _orientation(image: Image.Image) -> int:
    # Not image.getexif(), which may decode, and reads XMP, which OpenCV does not.
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif"))
        found = exif.get(_ORIENTATION)
    except Exception:  # a damaged entry turns nothing
        found = None
    return found if found in range(1, 9) else 1


def check_pixels(data: bytes, header: Header, opencv: bool = True) -> None:
    """Decodes an image in small, unless it is huge.

    Pillow notices what OpenCV before 5 fills with grey; OpenCV refuses what Pillow
    can do without, such as a checksum.

    Args:
        data: Content of the file.
        header: Its header.
        opencv: Whether OpenCV will load it, too.

    Raises:
        BadFile: If it cannot be decoded.
    """
    if header.size is None or header.pixels > HUGE_PIXELS:
        return
    with _open(data) as image:
        # JPEG can be decoded at an eighth of its size, which is cheaper.
        image.draft(image.mode, (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
    if opencv:
        jpeg = header.format in ("JPEG", "MPO")  # others are not quicker in small
        flag = cv2.IMREAD_REDUCED_COLOR_8 if jpeg else cv2.IMREAD_COLOR
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error:
            pixels = None
        if pixels is None:
            raise BadFile(f"OpenCV cannot read this {header.format} image")


def read_array(data: bytes) -> np.ndarray:
    """Decodes an image as it is, (H, W) or (H, W, channels).

    Raises:
        BadFile: If it cannot be decoded.
    """
    try:
        with _open(data) as image:
            return np.array(image)
    except Image.DecompressionBombError as error:
        raise BadFile(str(error)) from error


@contextmanager
def _open(data: bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # Not about the pixels: EXIF oddities, palettes, huge images.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                yield image
    except (Image.DecompressionBombError, BadFile):
        raise
    except UnidentifiedImageError:  # whose message is an address in memory
        raise BadFile("it is no image") from None
    except Exception as error:  # of a damaged file, codecs raise anything
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise BadFile(reason) from error
