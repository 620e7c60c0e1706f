"""Kinds of problems of a data set, and their report."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ERROR, WARNING = "error", "warning"

# Each kind, with the effect on the run.
KINDS = {
    "bad-file": "the file is missing, damaged or does not fit its annotations; "
    "training stops there, or skips it with bad_images='skip'",
    "unreadable": "the file cannot be read, so its content was not checked",
    # Images that are loaded differently from what a viewer shows.
    "image-huge": "loading the image needs memory for every pixel",
    "image-turned": "the loader rotates the image by its EXIF orientation; check that "
    "the annotations fit the rotated image",
    "image-16bit": "only the upper 8 of 16 bits are loaded",
    "image-cmyk": "CMYK is converted to RGB without a colour profile",
    "image-alpha": "the alpha channel is dropped, so hidden colours become visible",
    "image-frames": "only the first frame is loaded",
    "image-extension": "the format of the content is not that of the file name",
    "image-unlisted": "the image is not used, because its name does not end with the "
    "config's img_suffix",
    # Label maps.
    "label-empty": "no pixel has a class, so the image does not contribute to training",
    # COCO files.
    "record": "a field that the loader needs is missing or has a wrong type or value",
    "id-twice": "the later record with this id silently replaces the earlier one",
    "id-huge": "the id does not fit into the 64-bit integers of the evaluation",
    "id-kind": "COCO ids are integers; evaluation may fail with others",
    "id-zero": "evaluation counts a correct detection of the object with id 0 as false",
    "image-twice": "the file is listed as several images, each with a part of the "
    "annotations",
    "image-empty": "the image has no objects; training filters it out "
    "(filter_empty_gt) or uses it as background",
    "image-small": "the image is below min_size of filter_cfg, so training filters it "
    "out",
    "nothing": "there is no object of the config's classes, so training learns nothing",
    "class-order": "labels follow the order of the file's categories, so they belong "
    "to other names",
    "class-absent": "the class is not in the file, so no object has its label",
    "class-unused": "the category is not in the config, so its objects become "
    "background",
    "category-absent": "the category is not in the file, so the object becomes "
    "background",
    "orphan": "the image of the annotation is not in the file, so it is ignored",
    "box": "a box must be four finite numbers with a positive size",
    "box-tiny": "the box is smaller than a pixel, so the object becomes background",
    "box-outside": "the box is outside the image, so it is ignored",
    "box-beyond": "the box extends beyond the image, and not every pipeline clips it",
    "area": "a detection dataset ignores objects without area, so they become "
    "background",
    "mask": "the mask is missing or cannot be decoded correctly",
    "mask-short": "polygons with fewer than 3 points are ignored; an object without "
    "other polygons is ignored as well",
    "mask-elsewhere": "the box and the mask are in different places",
    "unchecked": "only the images of this type of dataset are checked, not the "
    "annotations",
}
# Kinds of objects that a dataset silently ignores.
LEFT_OUT = ("box-tiny", "box-outside", "area", "mask-short", "orphan")


@dataclass(frozen=True, order=True)
class Problem:
    """A problem of a file or of a record in it.

    Attributes:
        severity: ``'error'`` if training stops or learns wrong labels, ``'warning'`` if
            the data are loaded differently from what a viewer shows.
        kind: Key of ``KINDS``.
        file: Path of the file.
        detail: Description of the problem; may be empty.
        image: Id of the COCO image to skip, if the problem affects only one image.
    """

    severity: str
    kind: str
    file: str
    detail: str = ""
    image: int | str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.detail}" if self.detail else self.file


def report_lines(problems: Iterable[Problem], shown: int = 10) -> Iterator[str]:
    """Group problems by kind and describe them, errors first.

    Args:
        problems: Any number of problems.
        shown: Largest number of problems to list for each kind.

    Yields:
        Lines of the report.
    """
    groups = defaultdict(list)
    for problem in problems:
        groups[problem.severity, problem.kind].append(problem)
    for (severity, kind), found in sorted(groups.items()):
        yield f"{severity}: {len(found)} x {kind} ({KINDS[kind]})"
        yield from (f"  {problem}" for problem in found[:shown])
        if len(found) > shown:
            yield f"  and {len(found) - shown} more"
