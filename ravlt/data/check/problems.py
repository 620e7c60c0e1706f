"""What can be wrong with a data set, and how it is reported."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ERROR, WARNING = "error", "warning"

# Each kind, and what happens to such data.
KINDS = {
    "bad-file": "missing, broken or unlike its annotations; training stops there, or "
    "skips it by bad_images='skip'",
    "unreadable": "cannot be read; nothing else of it was checked",
    # Images that are loaded, but not as a viewer shows them.
    "image-huge": "memory for every pixel is needed when they are loaded",
    "image-turned": "loaded turned by their EXIF entry, and nothing tells whether the "
    "annotations are",
    "image-16bit": "loaded with the upper 8 of 16 bits",
    "image-cmyk": "loaded as RGB without a colour profile",
    "image-alpha": "loaded without their transparency: hidden colours show",
    "image-frames": "loaded as their first frame",
    "image-extension": "loaded by their content, which is not what the name says",
    "image-unlisted": "not loaded: the name does not end with the config's img_suffix",
    # Label maps.
    "label-empty": "no pixel has a class, so that nothing is learnt",
    # COCO files.
    "record": "lacks what the loader needs, or holds something else there",
    "id-twice": "the later record silently replaces the earlier",
    "id-huge": "does not fit into 64 bits, in which evaluation counts",
    "id-kind": "an id is a whole number in COCO; others may fail in evaluation",
    "id-zero": "in evaluation, a detection of object 0 counts as false",
    "image-twice": "listed as several images, each with a part of the annotations",
    "image-empty": "without objects: training leaves them out (filter_empty_gt) or "
    "takes them as background",
    "image-small": "below filter_cfg's min_size, so that training leaves them out",
    "nothing": "no object of the config's classes: there is nothing to learn",
    "class-order": "labels count the file's categories, and so stand for other names",
    "class-absent": "not in the file, so that no label stands for it",
    "class-unused": "not in the config, so that its objects become background",
    "category-absent": "its object becomes background",
    "orphan": "belongs to an image that is not in the file, and is left out",
    "box": "is not four finite numbers with a positive size",
    "box-tiny": "under a pixel in size, and left out: it becomes background",
    "box-outside": "outside of the image, and left out",
    "box-beyond": "reaches beyond the image, and is cut only by pipelines that do",
    "area": "a detection dataset leaves such objects out: they become background",
    "mask": "decodes to nothing, to garbage or not at all",
    "mask-short": "polygons of under 3 points are left out; without others, the object "
    "is ignored",
    "mask-elsewhere": "box and mask show different places",
    "unchecked": "annotations of this dataset's kind are not looked at, only images",
}
# What a dataset leaves out without a word.
LEFT_OUT = ("box-tiny", "box-outside", "area", "mask-short", "orphan")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        severity: ``'error'`` for what stops training or teaches it something wrong,
            ``'warning'`` for what is loaded otherwise than it looks.
        kind: A key of ``KINDS``.
        file: The file.
        detail: What is wrong in it; may be empty.
        image: Id of the COCO image that is not to be trusted, if it is only this one.
    """

    severity: str
    kind: str
    file: str
    detail: str = ""
    image: int | str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.detail}" if self.detail else self.file


def report_lines(problems: Iterable[Problem], shown: int = 10) -> Iterator[str]:
    """Groups problems by kind, errors first.

    Args:
        problems: Any number.
        shown: How many to name of each kind.

    Yields:
        Lines.
    """
    groups = defaultdict(list)
    for problem in problems:
        groups[problem.severity, problem.kind].append(problem)
    for (severity, kind), found in sorted(groups.items()):
        yield f"{severity}: {len(found)} x {kind} ({KINDS[kind]})"
        yield from (f"  {problem}" for problem in found[:shown])
        if len(found) > shown:
            yield f"  and {len(found) - shown} more"
