"""Check data and download weights once, before the processes build anything."""

from collections.abc import Iterator

from mmengine.config import Config

from ravlt.config import find_datasets, find_parts
from ravlt.data.check.run import check_data
from ravlt.training.guards.classes import check_classes
from ravlt.weights.checkpoint import read_checkpoint

from .rank_zero import on_rank_zero


def check_data_once(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check the data and the class counts of the heads in the process of rank 0.

    Args:
        cfg: Config of mmdet or mmseg, changed in place: all processes get the same
            ``ann_file`` of each dataset.
        loaders: Names of the dataloaders that will be used.

    Raises:
        RAVLTError: As in :func:`ravlt.data.check.run.check_data` and
            :func:`ravlt.training.guards.classes.check_classes`, in all processes.
    """

    def check() -> list:
        check_classes(cfg, loaders)
        check_data(cfg, loaders)
        return [dataset.get("ann_file") for dataset in _datasets(cfg, loaders)]

    files = on_rank_zero(check)
    for dataset, file in zip(_datasets(cfg, loaders), files, strict=True):
        if file is not None:
            dataset["ann_file"] = file


def fetch_weights(cfg: Config) -> None:
    """Download the pretrained weights of a training run in the process of rank 0.

    Rank 0 also reads each file, so that one that cannot be loaded stops the run before
    anything is built. Machines without a shared disk download when they load.

    Args:
        cfg: Config of mmdet or mmseg.

    Raises:
        RAVLTError: In all processes, if a file cannot be downloaded or read.
    """
    parts = find_parts(cfg.get("model"))  # an init_cfg names its file "checkpoint"
    named = [cfg.get("load_from"), *(part.get("checkpoint") for part in parts)]
    addresses = [a for a in named if str(a).startswith(("http://", "https://"))]

    def fetch_all() -> None:
        for address in dict.fromkeys(addresses):
            read_checkpoint(address)

    if addresses:
        on_rank_zero(fetch_all)


def _datasets(cfg: Config, loaders: tuple[str, ...]) -> Iterator[dict]:
    for name in loaders:
        yield from find_datasets(cfg.get(name) or {})
