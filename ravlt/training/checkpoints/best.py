"""Choose the metric of the best checkpoint from the settings of the evaluators."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

from mmengine.config import Config
from mmengine.registry import METRICS

from ravlt.config import find_class, find_evaluators


def best_metric(cfg: Config) -> str | None:
    """Return the metric by which a run keeps its best checkpoint; greater is better.

    It is the first metric of the first known evaluator. mmengine raises KeyError at the
    first evaluation if ``save_best`` names a metric that the evaluators do not return.

    Args:
        cfg: Config of mmdet or mmseg.

    Returns:
        The name with its prefix, e.g. ``'coco/segm_mAP'``; None if no evaluator is
        known or none of them returns a metric.
    """
    names = (_name(evaluator, cfg) for evaluator in find_evaluators(cfg, "val"))
    return next((name for name in names if name), None)


def _name(evaluator: Mapping, cfg: Config) -> str | None:
    kind = find_class(evaluator, METRICS, cfg.get("default_scope"))
    if kind is None:
        return None
    # A subclass that overrides the constructor or the metrics may return other names.
    author = next(
        base for base in kind.__mro__ if {"__init__", "compute_metrics"} & {*vars(base)}
    )
    parameters = inspect.signature(kind).parameters.items()
    settings = {key: parameter.default for key, parameter in parameters} | evaluator
    choose = _METRICS.get(author.__name__)
    if choose is None or settings.get("format_only"):
        return None
    prefix, name = settings["prefix"] or kind.default_prefix, choose(settings)
    return f"{prefix}/{name}" if prefix and name else name


def _choose_coco(settings: Mapping, precision: str, recall: str) -> str | None:
    metric = _first(settings["metric"])
    if metric == "proposal_fast":
        return f"AR@{max(settings['proposal_nums'])}"
    item = recall if metric == "proposal" else precision
    items = settings["metric_items"]
    if items is not None and item not in items:
        return None
    return item if metric == "proposal" else f"{metric}_{item}"


def _choose_voc(settings: Mapping) -> str | None:
    return "mAP" if _first(settings["metric"]) == "mAP" else None


def _choose_iou(settings: Mapping) -> str:
    return _first(settings["iou_metrics"])


def _first(names: str | list[str]) -> str:
    return names if isinstance(names, str) else names[0]


# Keys are the classes that compute the metrics.
_METRICS: dict[str, Callable[[Mapping], str | None]] = {
    "CocoMetric": partial(_choose_coco, precision="mAP", recall="AR@1000"),
    "LVISMetric": partial(_choose_coco, precision="AP", recall="AR@300"),
    "CocoPanopticMetric": lambda settings: "PQ",
    "VOCMetric": _choose_voc,
    "OpenImagesMetric": lambda settings: "mAP",
    "CityScapesMetric": lambda settings: "mAP",
    "SemSegMetric": _choose_iou,
    "IoUMetric": _choose_iou,
    "CityscapesMetric": lambda settings: "averageScoreCategories",
}
