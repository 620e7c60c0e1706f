"""Check one dataset of a config: its annotations, images and label maps."""

import os
from collections.abc import Iterator

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ravlt.config import type_name
from ravlt.errors import RAVLTError

from .coco import Use, check_coco, is_valid_image, read_coco
from .problems import ERROR, WARNING, Problem
from .samples import Sample, check_sample


def build_bare(config: dict, scope: str) -> BaseDataset:
    """Build a dataset without pipeline and annotations, to read its attributes.

    Args:
        config: Config of the dataset.
        scope: ``'mmdet'`` or ``'mmseg'``.
    """
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.build({**config, "pipeline": [], "lazy_init": True})


def is_coco(dataset: BaseDataset) -> bool:
    """Return whether a dataset reads a COCO file as ``CocoDataset`` does."""
    kinds = type(dataset).__mro__
    reader = next((k for k in kinds if "load_data_list" in vars(k)), None)
    if reader is None:  # no data set of mmengine
        return False
    return reader.__name__ == "CocoDataset" and type(dataset).COCOAPI is reader.COCOAPI


def use_of(dataset: BaseDataset, config: dict, training: bool) -> Use:
    """Return how a dataset uses its annotation file.

    Args:
        dataset: Result of :func:`build_bare`.
        config: Config of the dataset, with the pipeline.
        training: Whether the dataset is for training.
    """
    pipeline = config.get("pipeline") or []
    return Use(
        classes=tuple(dataset.metainfo.get("classes") or ()),
        masks=any(step.get("with_mask") for step in pipeline),
        # Semi-supervised training has images without annotations, too.
        labels=any(type_name(step) == "LoadAnnotations" for step in pipeline),
        training=training,
        min_size=(dataset.filter_cfg or {}).get("min_size", 0) if training else 0,
    )


def reading_of(pipeline: list[dict]) -> dict:
    """Return the arguments of ``VerifyImages`` that match a pipeline's image loader."""
    for step in pipeline:
        if type_name(step) == "LoadImageFromFile":
            keys = ("backend_args", "color_type", "imdecode_backend")
            return {key: step[key] for key in keys if step.get(key)}
    return {}


def check_dataset(
    config: dict,
    scope: str,
    training: bool = True,
    num_classes: int | None = None,
    jobs: int = 0,
) -> list[Problem]:
    """Return all problems of one dataset's data.

    Args:
        config: Config of the dataset; not of a wrapper.
        scope: ``'mmdet'`` or ``'mmseg'``.
        training: Whether the dataset is for training.
        num_classes: Number of classes of a segmentor; None uses the dataset's.
        jobs: Number of processes that decode images; 0 decodes in this one.
    """
    place = config.get("ann_file") or config.get("data_root") or type_name(config)
    try:
        dataset = build_bare(config, scope)
        place = dataset.ann_file or place
        if is_coco(dataset):
            content = read_coco(place, config.get("backend_args"))
            problems = check_coco(content, place, use_of(dataset, config, training))
            samples = list(_coco_samples(content, dataset, config))
        else:
            dataset.serialize_data = False  # serializing an empty list fails
            dataset.full_init()
            samples = list(_listed_samples(dataset, config, num_classes))
            problems = list(_unlisted(dataset))
            if training and not samples:
                problems.append(Problem(ERROR, "nothing", place, "no image found"))
            elif scope == "mmdet":
                kind = type_name(config)
                problems.append(Problem(WARNING, "unchecked", place, kind))
    except Exception as error:  # a host's parser may raise any exception
        name = "" if isinstance(error, RAVLTError) else f"{type(error).__name__}: "
        reason = f"{name}{error}".splitlines()[0]
        return [Problem(ERROR, "unreadable", place, reason)]
    # Worker processes of a DataLoader end with this one, also after a crash.
    loader = DataLoader(_Files(samples), None, num_workers=jobs, collate_fn=_keep)
    for found in loader:
        problems += found
    return problems


def _coco_samples(content: dict, dataset, config: dict) -> Iterator[Sample]:
    for record in content["images"]:
        if is_valid_image(record):
            info = dict(
                img_path=os.path.join(dataset.data_prefix["img"], record["file_name"]),
                height=record["height"],
                width=record["width"],
            )
            yield _sample(info, config)


def _listed_samples(dataset, config: dict, num_classes: int | None) -> Iterator[Sample]:
    classes = len(dataset.metainfo.get("classes") or ()) or None
    if classes and num_classes:
        classes = min(classes, num_classes)
    loads_labels = any(
        type_name(step).endswith("LoadAnnotations")
        for step in config.get("pipeline") or []
    )
    for info in dataset.data_list:
        if isinstance(info.get("img_path"), str):
            yield _sample(info, config, classes or num_classes, loads_labels)


def _sample(
    info: dict, config: dict, num_classes: int | None = None, labels: bool = False
) -> Sample:
    reading = reading_of(config.get("pipeline") or [])
    return Sample.of(
        info if labels else info | {"seg_map_path": None}, num_classes, **reading
    )


def _unlisted(dataset: BaseDataset) -> Iterator[Problem]:
    """Yield the images that MMSegmentation omits, because their suffix differs."""
    folder = dataset.data_prefix.get("img_path")
    suffix = getattr(dataset, "img_suffix", None)
    if not suffix or not folder or dataset.ann_file or not os.path.isdir(folder):
        return
    for where, _, names in os.walk(folder):
        for name in sorted(names):
            kind = os.path.splitext(name)[1].lower()
            if kind in Image.registered_extensions() and not name.endswith(suffix):
                yield Problem(WARNING, "image-unlisted", os.path.join(where, name))


class _Files(Dataset):
    """Dataset whose items are the problems of each sample."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> list[Problem]:
        return check_sample(self.samples[index])


def _keep(found: list[Problem]) -> list[Problem]:
    return found
