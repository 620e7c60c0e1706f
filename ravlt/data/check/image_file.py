"""Read the header of an image file, and check that its pixels decode."""

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

# Pillow warns of a decompression bomb above this size. Files of real images so large
# take megabytes; a file of some kilobytes contains at best one flat colour.
HUGE_PIXELS = 2**30 // 4 // 3
_BOMB_RATIO = 200
_OPENCV_PIXELS = 2**30
_ORIENTATION = 0x112
# OpenCV rotates these formats by their EXIF orientation, and Pillow leaves that to the
# caller. TIFF is rotated by both here, AVIF by neither.
_TURNED = ("JPEG", "MPO", "PNG", "WEBP")


class BadFile(RAVLTError):
    """Error whose message is a phrase that says why a file cannot be used."""


@dataclass(frozen=True)
class Header:
    """Properties of an image that need no decoding.

    Attributes:
        format: Pillow's name of the format, from the content.
        mode: Pillow's mode, such as RGB, P or I;16.
        raw_mode: Pillow's name of the pixel layout in the file, such as RGB;16B or L;4.
        size: Height and width in the file; None if Pillow refuses the file.
        pixels: Number of pixels.
        orientation: EXIF orientation that OpenCV applies, 1 to 8; 1 is upright.
        animated: Whether there is more than one frame.
        transparent: Whether there is an alpha channel or a transparent colour.
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
        """Height and width after rotation by the EXIF orientation."""
        if self.size is None or self.orientation < 5:
            return self.size
        return self.size[::-1]


def read_header(data: bytes) -> Header:
    """Read an image's header, without decoding pixels.

    Args:
        data: Content of the file.

    Raises:
        BadFile: If the file is no image, or a decompression bomb.
    """
    if not data:
        raise BadFile("it is empty")
    try:
        with _open(data) as image:
            header = _describe(image)
    except Image.DecompressionBombError as error:
        # Only the message contains the number of pixels.
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
    # image.getexif() may decode pixels, and reads XMP, which OpenCV ignores.
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif"))
        found = exif.get(_ORIENTATION)
    except Exception:  # OpenCV ignores a damaged entry
        found = None
    return found if found in range(1, 9) else 1


def check_pixels(data: bytes, header: Header, opencv: bool = True) -> None:
    """Decode an image at reduced resolution if the format allows it, unless it is huge.

    Pillow detects missing data, which OpenCV before 5 fills with grey. OpenCV refuses
    files that Pillow accepts, for example with a wrong checksum.

    Args:
        data: Content of the file.
        header: Header of the file.
        opencv: Whether the pipeline loads the image with OpenCV.

    Raises:
        BadFile: If the image cannot be decoded.
    """
    if header.size is None or header.pixels > HUGE_PIXELS:
        return
    with _open(data) as image:
        # JPEG can be decoded at an eighth of its size, which is cheaper.
        image.draft(image.mode, (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
    if opencv:
        jpeg = header.format in ("JPEG", "MPO")  # no gain for other formats
        flag = cv2.IMREAD_REDUCED_COLOR_8 if jpeg else cv2.IMREAD_COLOR
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        except cv2.error:
            pixels = None
        if pixels is None:
            raise BadFile(f"OpenCV cannot read this {header.format} image")


def read_array(data: bytes) -> np.ndarray:
    """Decode an image without conversion, to (H, W) or (H, W, channels).

    Raises:
        BadFile: If the image cannot be decoded.
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
            # The warnings are of EXIF entries, palettes and size, not of the pixels.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                yield image
    except (Image.DecompressionBombError, BadFile):
        raise
    except UnidentifiedImageError:  # its message is only an address in memory
        raise BadFile("it is no image") from None
    except Exception as error:  # codecs raise many types for damaged files
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise BadFile(reason) from error
