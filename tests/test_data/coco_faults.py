"""Ways to damage a COCO annotation file, each a change of its content in place."""

import random
from collections.abc import Callable

CocoFault = Callable[[dict, random.Random], None]
_ODD = (None, "7", "", True, float("nan"), float("inf"), -1, 0, 2**70, 1.5, [], {}, [1])
_SEGMENTATIONS = (
    None,
    [],
    [[]],
    "junk",
    7,
    [1, 2, 3, 4, 5, 6],
    [[1, 1, 9, 9]],
    [[1, 1, 9, 9, 5]],
    [[1, 1, 9, 1, 9, float("nan")]],
    [[1, 1, 9, 1, 9, float("inf")]],
    [[1, 1, 1e9, 1, 1e9, 1e9]],
    [[1, 1, 9, 1, 9, "9"]],
    [[40, 40, 45, 40, 45, 45]],
    {},
    {"size": [64, 80]},
    {"size": [64, 80], "counts": None},
    {"size": [64, 80], "counts": ""},
    {"size": [64, 80], "counts": "junk~"},
    {"size": [64, 80], "counts": "oooo"},
    {"size": [64, 80], "counts": [10, 5]},
    {"size": [64, 80], "counts": [10, -10, 5120]},
    {"size": [64, 80], "counts": [0.5, 5119.5]},
    {"size": [64, 80], "counts": [10, 10**9]},
    {"size": [64, 80], "counts": [1000, 120, 4000]},
    {"size": [32, 160], "counts": [1000, 120, 4000]},
)


def change(records: str, key: str, *choices) -> CocoFault:
    """Gives a record's key another value."""

    def fault(content: dict, rng: random.Random) -> None:
        rng.choice(content[records])[key] = rng.choice(choices)

    return fault


def without(records: str, key: str) -> CocoFault:
    def fault(content: dict, rng: random.Random) -> None:
        rng.choice(content[records]).pop(key, None)

    return fault


def replaced(key: str, *choices) -> CocoFault:
    def fault(content: dict, rng: random.Random) -> None:
        content[key] = rng.choice(choices)

    return fault


def twice(records: str) -> CocoFault:
    """The same id for two records."""

    def fault(content: dict, rng: random.Random) -> None:
        first, second = rng.sample(content[records], 2)
        second["id"] = first["id"]

    return fault


def repeated(records: str) -> CocoFault:
    def fault(content: dict, rng: random.Random) -> None:
        content[records].append(dict(rng.choice(content[records])))

    return fault


def box(*choices) -> CocoFault:
    """Values at places of a box."""

    def fault(content: dict, rng: random.Random) -> None:
        note = rng.choice(content["annotations"])
        for place, value in rng.choice(choices).items():
            note["bbox"][place] = value

    return fault


def without_objects(content: dict, rng: random.Random) -> None:
    image = rng.choice(content["images"])["id"]
    notes = content["annotations"]
    content["annotations"] = [n for n in notes if n["image_id"] != image]


def huge_ids(content: dict, rng: random.Random) -> None:
    """Ids as COCO's crowds have, beyond 32 bits, or beyond 64."""
    first = rng.choice((2**31, 2**53 + 1, 2**62, 2**63, 2**64 + 1))
    for note in content["annotations"]:
        note["id"] += first
        note["image_id"] += first
    for image in content["images"]:
        image["id"] += first


def swapped_names(content: dict, rng: random.Random) -> None:
    one, other = rng.sample(content["categories"], 2)
    one["name"], other["name"] = other["name"], one["name"]


def shuffled(content: dict, rng: random.Random) -> None:
    rng.shuffle(content["categories"])


def sparse_categories(content: dict, rng: random.Random) -> None:
    """Category ids with gaps, as COCO has: no fault."""
    for record in content["categories"]:
        record["id"] *= 7
    for note in content["annotations"]:
        note["category_id"] *= 7


def other_size(content: dict, rng: random.Random) -> None:
    image = rng.choice(content["images"])
    image[rng.choice(("height", "width"))] += rng.choice((-1, 1, 64))


def unknown_category(content: dict, rng: random.Random) -> None:
    del content["categories"][rng.randrange(len(content["categories"]))]


_NAN, _INF = float("nan"), float("inf")
_KEYS = [
    *(("images", key) for key in ("id", "file_name", "height", "width")),
    *(("categories", key) for key in ("id", "name")),
    *(
        ("annotations", key)
        for key in ("id", "image_id", "category_id", "bbox", "area")
    ),
]
COCO_FAULTS: dict[str, CocoFault] = {
    **{f"{records} without {key}": without(records, key) for records, key in _KEYS},
    "annotation without iscrowd": without("annotations", "iscrowd"),
    "annotation without segmentation": without("annotations", "segmentation"),
    **{f"{records}.{key} odd": change(records, key, *_ODD) for records, key in _KEYS},
    "iscrowd odd": change("annotations", "iscrowd", *_ODD, 1),
    "segmentation odd": change("annotations", "segmentation", *_SEGMENTATIONS),
    **{
        f"no {key}": replaced(key, None, {}, [], "junk", [None], [[]])
        for key in ("images", "categories", "annotations")
    },
    "image ids twice": twice("images"),
    "category ids twice": twice("categories"),
    "annotation ids twice": twice("annotations"),
    "image repeated": repeated("images"),
    "category repeated": repeated("categories"),
    "annotation repeated": repeated("annotations"),
    "box not a number": box({0: _NAN}, {3: _NAN}, {2: _INF}, {1: -_INF}, {0: 1e300}),
    "box negative": box({2: -3}, {3: -0.5}, {0: -20, 2: -5}),
    "box without size": box({2: 0}, {3: 0}, {2: 0.5}, {2: 0, 3: 0}),
    "box outside": box({0: 64}, {0: 999, 1: 999}, {0: -99}, {1: 1e9}),
    "box beyond": box({2: 99}, {0: -9}, {1: -2.5}, {3: 1e9}),
    "box of text": box({0: "1"}, {2: None}, {1: [1]}, {3: True}),
    "area zero": change("annotations", "area", 0, -4, _NAN, _INF),
    "image without objects": without_objects,
    "ids of 64 bits": huge_ids,
    "orphan": change("annotations", "image_id", 999, "1"),
    "category absent": change("annotations", "category_id", 99, 0, "1"),
    "category missing": unknown_category,
    "names swapped": swapped_names,
    "categories shuffled": shuffled,
    "categories sparse": sparse_categories,
    "another size": other_size,
    "file elsewhere": change("images", "file_name", "none.jpg", "../x.jpg", "/", "."),
}
