"""Check the image file and the label map of a sample."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from mmengine.fileio import get
from PIL import Image

from .image_file import HUGE_PIXELS, BadFile, Header, check_pixels, read_header
from .label_file import IGNORED, LabelRule, check_labels
from .problems import ERROR, WARNING, Problem


@dataclass(frozen=True)
class Sample:
    """The files of a sample, and how the pipeline reads them.

    Attributes:
        image: Path of the image; None if there are only labels.
        size: Height and width in the annotations; None if they contain no size.
        labels: Path of the label map, if there is one.
        rule: Mapping from its values to classes; None to check only that it decodes.
        turns: Whether the loader rotates images by their EXIF orientation.
        opencv: Whether OpenCV decodes the image.
        backend_args: As in the host's loading transforms.
    """

    image: str | None
    size: tuple[int, int] | None = None
    labels: str | None = None
    rule: LabelRule | None = None
    turns: bool = True
    opencv: bool = True
    backend_args: dict | None = None

    @classmethod
    def of(
        cls,
        info: Mapping,
        num_classes: int | None = None,
        color_type: str = "color",
        imdecode_backend: str = "cv2",
        backend_args: dict | None = None,
    ) -> "Sample":
        """Create a sample from the dict that a dataset passes to its pipeline.

        Args:
            info: Paths, height and width, and MMSegmentation's settings for labels.
            num_classes: Number of classes of the segmentor; None leaves the values of
                labels unchecked.
            color_type: As in the host's ``LoadImageFromFile``.
            imdecode_backend: As in the host's ``LoadImageFromFile``.
            backend_args: As in the host's ``LoadImageFromFile``.
        """
        stated = info.get("height"), info.get("width")
        rule = None
        if "reduce_zero_label" in info:  # a data set of MMSegmentation
            reduce, label_map = info["reduce_zero_label"], info.get("label_map")
            rule = LabelRule(num_classes, reduce, label_map)
        return cls(
            image=info.get("img_path"),
            size=None if None in stated else stated,
            labels=info.get("seg_map_path"),
            rule=rule,
            turns=color_type in ("color", "grayscale"),
            opencv=imdecode_backend == "cv2",
            backend_args=backend_args,
        )


def read_file(path: str, backend_args: dict | None = None) -> tuple[bytes, Header]:
    """Read a file and its header.

    Raises:
        BadFile: If the file cannot be read, is no image or a decompression bomb.
    """
    try:
        data = get(path, backend_args=backend_args)
    except FileNotFoundError:
        raise BadFile("it does not exist") from None
    except OSError as error:
        raise BadFile(str(error)) from error
    return data, read_header(data)


def check_image(sample: Sample) -> tuple[Header, tuple[int, int] | None]:
    """Decode the image of a sample at reduced resolution and check its size.

    Returns:
        The header; height and width as loaded, None if they are not known.

    Raises:
        BadFile: If the image cannot be decoded or does not fit the annotations.
    """
    data, header = read_file(sample.image, sample.backend_args)
    check_pixels(data, header, sample.opencv)
    size = header.upright if sample.turns else header.size
    if sample.size and size and size != sample.size:
        turned = " when turned as its EXIF entry says" if size != header.size else ""
        raise BadFile(
            f"its height and width are {size}{turned}, and {sample.size} in the "
            f"annotations"
        )
    return header, size


def check_label_map(sample: Sample, size: tuple[int, int] | None) -> np.ndarray | None:
    """Decode and check the label map of a sample.

    Args:
        sample: Sample with a label map.
        size: Height and width of its image as loaded, if known.

    Returns:
        The values in the file, (H, W); None without a rule.

    Raises:
        BadFile: If the label map cannot be decoded or its labels cannot be used.
    """
    data, header = read_file(sample.labels, sample.backend_args)
    if sample.rule is None:
        return check_pixels(data, header, sample.opencv)
    return check_labels(data, header, sample.rule, size)


def check_sample(sample: Sample) -> list[Problem]:
    """Return the problems of a sample's files."""
    problems, size = [], None
    try:
        header, size = check_image(sample)
        for kind, detail in _silent_changes(header, sample):
            problems.append(Problem(WARNING, kind, sample.image, detail))
    except BadFile as error:
        problems.append(Problem(ERROR, "bad-file", sample.image, str(error)))
    if not sample.labels:
        return problems
    try:
        values = check_label_map(sample, size)
    except BadFile as error:
        return [*problems, Problem(ERROR, "bad-file", sample.labels, str(error))]
    if values is not None:
        classes = sample.rule.classes()[values.astype(np.uint8)]
        if (classes == IGNORED).all():
            problems.append(Problem(WARNING, "label-empty", sample.labels))
    return problems


def _silent_changes(header: Header, sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield kind and detail of each change that a loader makes without a message."""
    if header.pixels > HUGE_PIXELS:
        detail = f"{header.pixels:,} pixels, {3 * header.pixels / 1e9:.1f} GB as RGB"
        yield "image-huge", detail + "; not decoded here"
    has_size = sample.size or sample.labels
    if (
        sample.turns
        and header.orientation > 1
        and not (has_size and header.upright != header.size)
    ):
        yield "image-turned", f"EXIF orientation {header.orientation}"
    if "16" in header.raw_mode or "16" in header.mode:
        yield "image-16bit", ""
    if header.mode == "CMYK":
        yield "image-cmyk", ""
    if header.transparent:
        yield "image-alpha", ""
    if header.animated:
        yield "image-frames", ""
    suffix = os.path.splitext(sample.image)[1].lower()
    named = Image.registered_extensions().get(suffix)
    if header.format and header.format.replace("MPO", "JPEG") != named:
        yield "image-extension", f"its content is {header.format}"
