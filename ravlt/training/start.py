"""Start a run with a summary on the console and all details in the log file."""

import logging
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ravlt.config import find_parts, type_name
from ravlt.training.batch_size import report_batch_size
from ravlt.training.guards.schedule import warn_of_long_warmup, warn_of_other_length
from ravlt.training.guards.signals import shield_workers


def check_backbones(cfg: Config) -> None:
    """Build each RAVLT of a model on the meta device to check its arguments.

    Args:
        cfg: Config of mmdet or mmseg.

    Raises:
        RAVLTError: If an argument is wrong.
        TypeError: If an argument is unknown.
    """
    for part in find_parts(cfg.model):
        if type_name(part) == "RAVLT":
            with torch.device("meta"):
                MODELS.build(part)


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, with a short start unless it sets ``runner_type``.

    Args:
        cfg: Config of mmdet or mmseg.
    """
    if cfg.get("runner_type"):
        print_log(
            f"The runner {cfg.runner_type} is not tested with this tool: checkpoints "
            f"that are folders do not resume, and the checks of the checkpoint, the "
            f"batch size and the warm-up are left out; use the host's own tool.",
            logger="current",
            level=logging.WARNING,
        )
        return RUNNERS.build(cfg)
    return ShortStartRunner.from_cfg(cfg)


class ShortStartRunner(Runner):
    """Runner that logs its start to the log file; the console shows only a summary.

    Until the summary, before the first batch, the console shows warnings and errors
    only. After it, the console shows everything. Takes the arguments of Runner.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_hook(_StartHook(self._gate))

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger, and hold back its messages from the console."""
        logger = super().build_logger(*args, **kwargs)
        self._gate = _Gate()
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(self._gate)
        return logger

    @staticmethod
    def build_dataloader(*args, **kwargs) -> DataLoader:
        """Build a dataloader whose workers survive a SIGTERM to all processes."""
        loader = Runner.build_dataloader(*args, **kwargs)
        shield_workers(loader)
        return loader


class _Gate(logging.Filter):
    """Log filter that drops messages below a warning until it is opened."""

    is_open = False

    def filter(self, record: logging.LogRecord) -> bool:
        return self.is_open or record.levelno >= logging.WARNING


class _StartHook(Hook):
    """Hook that logs the summary of a run; not part of the config that a run writes."""

    priority = "VERY_HIGH"

    def __init__(self, gate: _Gate) -> None:
        self.gate = gate

    def before_train(self, runner) -> None:
        self.gate.is_open = True
        runner.logger.info("\n".join(("Training", *_summarize_training(runner))))
        if not runner.iter:  # else the checkpoint's learning rate goes on
            report_batch_size(runner.cfg)
        warn_of_long_warmup(runner)
        warn_of_other_length(runner)

    def before_test(self, runner) -> None:
        self.gate.is_open = True
        runner.logger.info("\n".join(("Testing", *_summarize_testing(runner))))


def _summarize_training(runner: Runner) -> Iterator[str]:
    yield f"  model: {_describe_model(runner.model)}"
    yield f"  weights: {_describe_weights(runner)}"
    yield f"  data: {_describe_data(runner.train_dataloader)}"
    if runner.val_loop is not None:
        yield f"  evaluation: {_describe_data(runner.val_dataloader)}"
    loop = runner.train_loop
    each, ranks = runner.cfg.train_dataloader.get("batch_size", 1), get_world_size()
    batch = f"{each} images" if ranks == 1 else f"{ranks} x {each} images"
    # Loops that count iterations have max_epochs=1.
    epochs = f"{loop.max_epochs} epochs, " if loop.max_epochs > 1 else ""
    yield f"  length: {epochs}{loop.max_iters} iterations of {batch}"
    yield from _places(runner)


def _summarize_testing(runner: Runner) -> Iterator[str]:
    yield f"  model: {_describe_model(runner.model)}"
    yield f"  weights: {_describe_weights(runner)}"
    yield f"  data: {_describe_data(runner.test_dataloader)}"
    yield from _places(runner)


def _describe_model(model: nn.Module) -> str:
    model = model.module if is_model_wrapper(model) else model
    text = f"{type(model).__name__}, {_millions(model)} parameters"
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        return text
    return f"{text}, {_millions(backbone)} of them in {type(backbone).__name__}"


def _millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"


def _describe_weights(runner: Runner) -> str:
    if runner.iter:
        return f"resumed after iteration {runner.iter}"
    if runner.cfg.get("load_from"):
        return runner.cfg.load_from
    files = [
        str(part["checkpoint"])
        for part in find_parts(runner.cfg.model)
        if type_name(part) == "Pretrained"
    ]
    return ", ".join(files) or "random"


def _describe_data(loader) -> str:
    """Describe a data set of any class, which may have no classes and no length."""
    dataset = getattr(loader, "dataset", loader)
    count = f"{len(dataset)} images" if hasattr(dataset, "__len__") else "images"
    meta = getattr(dataset, "metainfo", None) or {}
    names = meta.get("classes")
    if names is None or isinstance(names, str) or not len(names):
        return count
    listed = ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"{count}, {len(names)} classes ({listed})"


def _places(runner: Runner) -> Iterator[str]:
    yield f"  work directory: {runner.work_dir}"
    yield f"  log, with the config and all settings: {runner.logger.log_file}"
