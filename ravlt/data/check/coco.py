"""Check a COCO annotation file and report all its problems in one pass."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmengine.fileio import get

from ravlt.errors import RAVLTError

from .masks import are_numbers, extent, is_short, mask_fault
from .problems import ERROR, WARNING, Problem

Finding = tuple[str, str, str]  # severity, kind, detail
_INT64 = 2**63


@dataclass(frozen=True)
class Use:
    """How a config uses an annotation file.

    Attributes:
        classes: Names, in the order of the labels.
        masks: Whether the pipeline loads masks.
        labels: Whether it loads annotations at all.
        training: Whether the file is for training, not for evaluation.
        min_size: Smallest shorter side of an image that training keeps, in pixels.
    """

    classes: tuple[str, ...] = ()
    masks: bool = False
    labels: bool = True
    training: bool = True
    min_size: int = 0


def read_coco(path: str, backend_args: dict | None = None) -> dict:
    """Read an annotation file.

    Args:
        path: Path of the file.
        backend_args: As in the host's dataset.

    Raises:
        RAVLTError: If the file is not JSON, or lacks COCO's lists of records.
    """
    try:
        content = json.loads(get(path, backend_args=backend_args).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise RAVLTError(f"'{path}' is no JSON file ({error}); restore it.") from error
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
            # Test sets have no annotations.
            if key == "annotations" and found is None and isinstance(content, dict):
                content[key] = []
                continue
            raise RAVLTError(
                f"'{path}' has no list '{key}' of records; give a COCO annotation file."
            )
    return content


def check_coco(content: dict, path: str, use: Use) -> list[Problem]:
    """Return the problems of an annotation file's records.

    Args:
        content: Result of :func:`read_coco`.
        path: Path of the file, for the problems.
        use: How the config uses the file.
    """
    return list(_Check(content, path, use).run())


def is_valid_image(record: dict) -> bool:
    """Return whether an image record has a valid id, file name and size."""
    size = [record.get("height"), record.get("width")]
    name = record.get("file_name")
    return (
        _id(record, "id") is not None
        and isinstance(name, str)
        and bool(name)
        and are_numbers(size)
        and min(size) >= 1
    )


def without_images(content: dict, ids: set) -> dict:
    """Return the content without some images and their annotations.

    Args:
        content: Result of :func:`read_coco`, not changed.
        ids: Ids of the images to remove.
    """
    # An annotation without an image id stays, so that its error stays as well.
    return content | {
        "images": [r for r in content["images"] if _id(r, "id") not in ids],
        "annotations": [
            r for r in content["annotations"] if _id(r, "image_id") not in ids - {None}
        ],
    }


def _id(record: dict, key: str) -> int | str | None:
    """Return an id if it is an integer or a string, else None."""
    value = record.get(key)
    is_integer = type(value) is int or type(value) is float and value.is_integer()
    return value if is_integer or isinstance(value, str) else None


@dataclass
class _Check:
    content: dict
    path: str
    use: Use
    images: dict = field(default_factory=dict)
    names: dict = field(default_factory=dict)
    kept: Counter = field(default_factory=Counter)

    def run(self) -> Iterator[Problem]:
        yield from self._categories()
        yield from self._images()
        yield from self._annotations()
        for image in self.images.values():
            if not self.kept[image["id"]]:
                yield self._problem(WARNING, "image-empty", self._name(image))
        learns = self.use.training and self.use.labels
        if learns and not any(self.kept.values()):
            yield self._problem(ERROR, "nothing", f"classes {self.use.classes}"[:80])

    def _problem(self, severity, kind, detail, image=None) -> Problem:
        return Problem(severity, kind, self.path, detail, image)

    @staticmethod
    def _name(image: dict) -> str:
        return f"image {image['id']} ({image['file_name']})"

    # ------------------------------------------------------------------ categories

    def _categories(self) -> Iterator[Problem]:
        for record in self.content["categories"]:
            number, name = _id(record, "id"), record.get("name")
            what = f"category {number!r} ({name!r})"
            if number is None or not isinstance(name, str):
                yield self._problem(ERROR, "record", f"{what} needs an id and a name")
            elif number in self.names or name in self.names.values():
                yield self._problem(ERROR, "id-twice", what)
            else:
                self.names[number] = name
        classes = self.use.classes
        found = [name for name in self.names.values() if name in classes]
        if tuple(found) != classes[: len(found)]:
            at = next(i for i, name in enumerate(found) if name != classes[i])
            # Names that are not in the file come last, because they take no label.
            order = (*found, *(name for name in classes if name not in found))
            detail = (
                f"label {at} is '{found[at]}' in the file, '{classes[at]}' in the "
                f"config, where the dataset needs metainfo=dict(classes={order})"
            )
            yield self._problem(ERROR, "class-order", detail)
        for name in classes:
            if name not in found:
                yield self._problem(WARNING, "class-absent", f"class '{name}'")

    # ---------------------------------------------------------------------- images

    def _images(self) -> Iterator[Problem]:
        files = {}
        for index, record in enumerate(self.content["images"]):
            number = _id(record, "id")
            if not is_valid_image(record):
                what = f"image {number!r} (record {index})"
                needs = "needs an id, a file_name, a height and a width"
                yield self._problem(ERROR, "record", f"{what} {needs}", number)
                continue
            if number in self.images:
                yield self._problem(ERROR, "id-twice", self._name(record), number)
            self.images[number] = record
            yield from self._number(number, self._name(record), number)
            first = files.setdefault(record["file_name"], number)
            if first != number:
                detail = f"{self._name(record)}, also image {first}"
                yield self._problem(WARNING, "image-twice", detail)
            if min(record["height"], record["width"]) < self.use.min_size:
                yield self._problem(WARNING, "image-small", self._name(record))

    def _number(self, number, what: str, image) -> Iterator[Problem]:
        if type(number) is not int:
            yield self._problem(WARNING, "id-kind", f"{what} has the id {number!r}")
        elif not -_INT64 <= number < _INT64:
            yield self._problem(ERROR, "id-huge", f"{what} has the id {number}", image)

    # ----------------------------------------------------------------- annotations

    def _annotations(self) -> Iterator[Problem]:
        seen, unused = {}, Counter()
        for index, record in enumerate(self.content["annotations"]):
            number, of = _id(record, "id"), _id(record, "image_id")
            what = f"annotation {number!r} of image {of!r}"
            image = self.images.get(of)
            if number is None or of is None:
                detail = f"annotation {number!r} (record {index}) needs an id and an "
                # Without an image id, no image can be skipped for it.
                yield self._problem(ERROR, "record", detail + "image_id", of)
                continue
            if number in seen:
                yield self._problem(ERROR, "id-twice", what, of)
                yield self._problem(ERROR, "id-twice", what, seen[number])
            seen[number] = of
            yield from self._number(number, what, of)
            if image is None:
                # If the image's own record is bad, that has been reported already.
                yield self._problem(WARNING, "orphan", what, of)
                continue
            what += f" ({image['file_name']})"
            if number == 0 and not self.use.training:
                yield self._problem(WARNING, "id-zero", what)
            found = list(self._annotation(record, image))
            for severity, kind, detail in found:
                yield self._problem(severity, kind, f"{what}: {detail}", of)
            name = self.names.get(_id(record, "category_id"))
            if name is not None and name not in self.use.classes:
                unused[name] += 1
            elif not any(kind in _LOSES for _, kind, _ in found):
                self.kept[of] += not record.get("ignore")
        for name, count in sorted(unused.items()):
            detail = f"category '{name}' with {count} objects"
            yield self._problem(WARNING, "class-unused", detail)

    def _annotation(self, record: dict, image: dict) -> Iterator[Finding]:
        """Yield the problems of an annotation whose image is valid."""
        if _id(record, "category_id") not in self.names:
            category = record.get("category_id")
            yield ERROR, "category-absent", f"category {category!r:.40}"
        crowd = record.get("iscrowd")
        if crowd not in (0, 1) and ("iscrowd" in record or not self.use.training):
            yield ERROR, "record", f"iscrowd is {crowd!r:.40}, which must be 0 or 1"
        size = image["height"], image["width"]
        box = record.get("bbox")
        name = self.names.get(_id(record, "category_id"))
        left_out = name not in self.use.classes
        for severity, kind, detail in _box(box, size):
            left_out |= kind in _LOSES
            yield severity, kind, detail
        area = record.get("area")
        if not are_numbers([area]):
            yield ERROR, "record", f"area is {area!r:.40}, which must be a number"
        elif area <= 0 and not left_out:
            left_out = True
            yield WARNING, "area", f"area is {area}"
        if self.use.masks:
            yield from self._mask(record, size, left_out)

    def _mask(self, record: dict, size, left_out: bool) -> Iterator[Finding]:
        mask = record.get("segmentation")
        if not mask:
            if not left_out:
                yield ERROR, "mask", "there is no segmentation"
            return
        fault = mask_fault(mask, size)
        if fault:
            yield ERROR, "mask", fault
        elif is_short(mask):
            # Evaluation takes a polygon of four numbers for a box.
            severity = WARNING if self.use.training else ERROR
            yield severity, "mask-short", f"polygons {mask!r:.60}"
        elif isinstance(mask, list) and not left_out:
            around = extent(mask)
            if (
                are_numbers(record.get("bbox"), 4)
                and _iou(around, record["bbox"]) < 0.5
            ):
                yield WARNING, "mask-elsewhere", f"box {record['bbox']}, mask {around}"


_LOSES = ("box", "box-tiny", "box-outside", "area", "category-absent", "record")


def _box(box: object, size: tuple[int, int]) -> Iterator[Finding]:
    if not are_numbers(box, 4):
        yield ERROR, "box", f"bbox is {box!r:.80}"
        return
    (height, width), (x, y, w, h) = size, box
    if w < 0 or h < 0:
        yield ERROR, "box", f"bbox is {box}"
    elif w < 1 or h < 1:
        yield WARNING, "box-tiny", f"bbox is {box}"
    elif min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        yield WARNING, "box-outside", f"bbox is {box} of {width} x {height}"
    # Annotators round to a pixel beyond the image.
    elif min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
        yield WARNING, "box-beyond", f"bbox is {box} of {width} x {height}"


def _iou(one, other) -> float:
    """Return the IoU of two boxes, each widened by a pixel for thin objects."""
    (x0, y0, w0, h0), (x1, y1, w1, h1) = one, other
    across = min(x0 + w0, x1 + w1) - max(x0, x1) + 2
    down = min(y0 + h0, y1 + h1) - max(y0, y1) + 2
    shared = max(across, 0) * max(down, 0)
    return shared / ((w0 + 2) * (h0 + 2) + (w1 + 2) * (h1 + 2) - shared)
