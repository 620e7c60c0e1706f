"""Functions that damage one image or one label map of a data set.

Each overwrites the file, at random where it has a choice.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Fault = Callable[[Path, random.Random], None]


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    entries = Image.Exif()
    entries[0x112] = orientation
    return entries


def png(header: tuple, rows: bytes) -> bytes:
    """Return a PNG file made by hand, as no library writes it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    """Return a PNG file that claims side x side pixels in a few bytes."""
    return png((side, side, 8, 0), b"\0" * 1000)


def recode(change: Callable[[Image.Image], Image.Image], kind: str, **options) -> Fault:
    def fault(path: Path, rng: random.Random) -> None:
        path.write_bytes(encode(change(Image.open(path).copy()), kind, **options))

    return fault


def rewrite(change: Callable[[bytes, random.Random], bytes]) -> Fault:
    def fault(path: Path, rng: random.Random) -> None:
        path.write_bytes(change(path.read_bytes(), rng))

    return fault


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    return bytes(content)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((rng.randrange(len(data)), -1, -2, -12, -13))]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 30)) + data[at:]


def remove(path: Path, rng: random.Random) -> None:
    path.unlink()


def to_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def turned(path: Path, rng: random.Random) -> None:
    kind = rng.choice(("JPEG", "PNG", "WEBP", "TIFF", "AVIF"))
    entries = exif(rng.randint(2, 8))
    path.write_bytes(encode(Image.open(path).copy(), kind, exif=entries))


def sixteen_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)


def clear(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def palette(image: Image.Image) -> Image.Image:
    return image.convert("P", palette=Image.Palette.ADAPTIVE)


def frames(kind: str) -> Fault:
    def fault(path: Path, rng: random.Random) -> None:
        image = Image.open(path).copy()
        image = palette(image) if kind == "GIF" else image
        others = [image.rotate(180)] * rng.randint(1, 3)
        path.write_bytes(encode(image, kind, save_all=True, append_images=others))

    return fault


def rgb16(path: Path, rng: random.Random) -> None:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(">u2") * 200
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    path.write_bytes(png((pixels.shape[1], pixels.shape[0], 16, 2), rows))


def resized(path: Path, rng: random.Random) -> None:
    image = Image.open(path)
    size = [side + rng.choice((-1, 0, 1, 7, side)) for side in image.size]
    if size == list(image.size):
        size[0] += 1
    path.write_bytes(encode(image.resize(size, Image.NEAREST), image.format))


IMAGE_FAULTS: dict[str, Fault] = {
    "truncated": rewrite(truncate),
    "flipped bytes": rewrite(flip_bytes),
    "inserted bytes": rewrite(insert),
    "appended bytes": rewrite(lambda data, rng: data + rng.randbytes(50)),
    "zero bytes long": rewrite(lambda data, rng: b""),
    "zeros": rewrite(lambda data, rng: bytes(len(data))),
    "text": rewrite(lambda data, rng: b"<html>not found</html>"),
    "missing": remove,
    "folder": to_folder,
    "bomb": rewrite(lambda data, rng: bomb(rng.choice((10_000, 20_000, 60_000)))),
    "another size": resized,
    "EXIF": turned,
    "CMYK JPEG": recode(lambda i: i.convert("CMYK"), "JPEG"),
    "CMYK TIFF": recode(lambda i: i.convert("CMYK"), "TIFF"),
    "grey JPEG": recode(lambda i: i.convert("L"), "JPEG"),
    "grey PNG": recode(lambda i: i.convert("L"), "PNG"),
    "bits": recode(lambda i: i.convert("1"), "PNG"),
    "palette": recode(palette, "PNG"),
    "transparent colour": recode(palette, "PNG", transparency=3),
    "alpha": recode(clear, "PNG"),
    "alpha WEBP": recode(clear, "WEBP", lossless=True),
    "grey and alpha": recode(lambda i: clear(i).convert("LA"), "PNG"),
    "16-bit grey PNG": recode(sixteen_bit, "PNG"),
    "16-bit grey TIFF": recode(sixteen_bit, "TIFF"),
    "16-bit RGB PNG": rgb16,
    "float TIFF": recode(lambda i: i.convert("F"), "TIFF"),
    "32-bit TIFF": recode(lambda i: i.convert("I"), "TIFF"),
    "animated GIF": frames("GIF"),
    "animated PNG": frames("PNG"),
    "animated WEBP": frames("WEBP"),
    "TIFF of pages": frames("TIFF"),
    "BMP by another name": recode(lambda i: i, "BMP"),
    "PNG by another name": recode(lambda i: i, "PNG"),
    "JPEG 2000": recode(lambda i: i, "JPEG2000"),
    "AVIF": recode(lambda i: i, "AVIF"),
    "ICO": recode(lambda i: i, "ICO"),
    "TGA": recode(lambda i: i, "TGA"),
}


def values(change: Callable[[np.ndarray, random.Random], np.ndarray]) -> Fault:
    def fault(path: Path, rng: random.Random) -> None:
        changed = change(np.array(Image.open(path)), rng)
        path.write_bytes(encode(Image.fromarray(changed), "PNG"))

    return fault


def one_value(labels: np.ndarray, rng: random.Random) -> np.ndarray:
    labels[rng.randrange(len(labels)), 3] = rng.randrange(256)
    return labels


def four_bits(path: Path, rng: random.Random) -> None:
    labels = np.array(Image.open(path))
    rows = b"".join(b"\0" + (r[0::2] << 4 | r[1::2]).tobytes() for r in labels)
    path.write_bytes(png((labels.shape[1], labels.shape[0], 4, 0), rows))


def coloured(image: Image.Image) -> Image.Image:
    image.putpalette(bytes(range(256)) * 3)
    return image


_AS_IMAGES = (
    "truncated",
    "flipped bytes",
    "inserted bytes",
    "zero bytes long",
    "text",
    "missing",
    "folder",
    "bomb",
    "another size",
)
LABEL_FAULTS: dict[str, Fault] = {name: IMAGE_FAULTS[name] for name in _AS_IMAGES} | {
    "RGB": recode(lambda i: i.convert("RGB"), "PNG"),
    "alpha": recode(lambda i: i.convert("LA"), "PNG"),
    "palette": recode(coloured, "PNG"),
    "palette of 4 bits": recode(coloured, "PNG", bits=4),
    "GIF": recode(coloured, "GIF"),
    "JPEG": recode(lambda i: i, "JPEG"),
    "grey of 4 bits": four_bits,
    "one bit": recode(lambda i: i.point(lambda v: 255 * (v > 1)).convert("1"), "PNG"),
    "16 bits": values(lambda a, rng: a.astype(np.uint16)),
    "16 bits, beyond 255": values(lambda a, rng: a.astype(np.uint16) + 256),
    "float": recode(lambda i: i.convert("F"), "TIFF"),
    "fractions": recode(
        lambda i: Image.fromarray(np.asarray(i).astype(np.float32) + 0.5), "TIFF"
    ),
    "32 bits": recode(lambda i: i.convert("I"), "TIFF"),
    "a value": values(one_value),
    "all values": values(lambda a, rng: a + np.uint8(rng.randrange(256))),
    "nothing but 0": values(lambda a, rng: a * 0),
    "nothing but 255": values(lambda a, rng: a * 0 + 255),
    "transposed": values(lambda a, rng: a.T.copy()),
    "EXIF": recode(lambda i: i, "PNG", exif=exif(6)),
}
