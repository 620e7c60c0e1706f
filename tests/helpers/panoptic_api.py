"""What mmdet uses of panopticapi, which is on GitHub only (cocodataset/panopticapi)."""

import importlib.util
import sys
from collections import defaultdict
from dataclasses import dataclass
from types import ModuleType

import numpy as np


def provide_panoptic_api() -> None:
    """Make panopticapi importable where it is not installed; call it before mmdet."""
    if importlib.util.find_spec("panopticapi"):
        return
    parts = dict(
        utils=dict(rgb2id=rgb2id, id2rgb=id2rgb),
        evaluation=dict(OFFSET=256**3, VOID=0, PQStat=PQStat),
    )
    package = sys.modules["panopticapi"] = ModuleType("panopticapi")
    for name, content in parts.items():
        module = ModuleType(f"panopticapi.{name}")
        vars(module).update(content)
        setattr(package, name, module)
        sys.modules[module.__name__] = module


def rgb2id(colors: np.ndarray) -> np.ndarray:
    """Return the ids (H, W) that colours (H, W, 3) stand for."""
    return colors.astype(np.int32) @ np.array([1, 256, 256**2], np.int32)


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """Return the colours (H, W, 3) that stand for ids (H, W)."""
    digits = [ids % 256, ids // 256 % 256, ids // 256**2]
    return np.stack(digits, -1).astype(np.uint8)


@dataclass
class _Matches:
    """Matched segments of a category, their summed IoU, and those without a match."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0


class PQStat:
    """Panoptic quality (arXiv 1801.00868): PQ = SQ x RQ, a category and on average."""

    def __init__(self) -> None:
        self.categories = defaultdict(_Matches)

    def __getitem__(self, category: int) -> _Matches:
        return self.categories[category]

    def __iadd__(self, other: "PQStat") -> "PQStat":
        for category, found in other.categories.items():
            mine = self[category]
            for key, value in vars(found).items():
                setattr(mine, key, getattr(mine, key) + value)
        return self

    def pq_average(self, categories: dict, isthing: bool | None) -> tuple[dict, dict]:
        """Return the average over all categories, things or stuff, and each alone."""
        each, present = {}, 0
        for label, category in categories.items():
            if isthing is not None and isthing != (category["isthing"] == 1):
                continue
            found = self[label]
            segments = found.tp + (found.fp + found.fn) / 2
            present += segments > 0
            each[label] = dict(
                pq=found.iou / segments if segments else 0.0,
                sq=found.iou / found.tp if found.tp else 0.0,
                rq=found.tp / segments if segments else 0.0,
            )
        average = {
            key: sum(values[key] for values in each.values()) / present
            for key in ("pq", "sq", "rq")
        }
        return average | dict(n=present), each
