"""Train, measure and time one small segmentor with each attention mechanism.

There are two tasks. In ``shapes`` the outline of an object determines its class. In
``cue`` a coloured mark at the other end of the image determines it. No convolution of
that network and no window of ``diag`` reaches the mark: see :func:`reach`.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from torch import nn

import cue
from ravlt.analysis.attention.rank import (
    Call,
    effective_rank,
    layer_ranks,
    singular_values,
    watch,
)
from ravlt.analysis.costs.count import count_costs
from ravlt.analysis.speed.timing import measure_times
from ravlt.config import load_config
from ravlt.data.random_batch import make_batch
from ravlt.data.root import set_data_root
from ravlt.data.shapes import write_shapes

_RANK_IMAGES = 16
_WARMUP_ITERS = 30
_WARMUP, _REPEAT = 1, 3  # steps of one attention in a turn: unmeasured, measured


@dataclass(frozen=True)
class Task:
    """A data set and the network that learns it.

    Attributes:
        size: Height and width of the images in pixels.
        iters: Default number of training iterations.
        write: Function that writes the data set into a folder.
        options: Changes to the quickstart's config, in the form of ``--cfg-options``.
    """

    size: tuple[int, int]
    iters: int
    write: Callable[[Path], object]
    options: Mapping


def _network(dims: Sequence[int], depths: Sequence[int], stages: int) -> dict:
    """Return options for a backbone with only its first stages, a neck and a head."""
    used, channels = list(dims[:stages]), 32
    return {
        "model.backbone.arch": dict(
            embed_dims=dims, depths=depths, num_heads=[dim // 16 for dim in dims]
        ),
        "model.backbone.out_indices": list(range(stages)),
        "model.neck": dict(in_channels=used, out_channels=channels, num_outs=stages),
        "model.decode_head": dict(
            in_channels=[channels] * stages,
            in_index=list(range(stages)),
            feature_strides=[4 * 2**i for i in range(stages)],
            channels=channels,
        ),
    }


_SHAPES_SIZE = (128, 128)
TASKS = {
    "shapes": Task(
        _SHAPES_SIZE,
        1000,
        lambda root: write_shapes(root, 600, 100, _SHAPES_SIZE),
        _network((32, 64, 96, 128), (1, 1, 2, 1), stages=4)
        | {"train_dataloader.batch_size": 4},
    ),
    "cue": Task(
        cue.SIZE,
        500,
        lambda root: cue.write_cue(root, 600, 100),
        # Stride 4 only: the convolutions of deeper stages would reach the cue.
        _network((32, 64, 64, 64), (2, 1, 1, 1), stages=1)
        | {
            "train_dataloader.batch_size": 16,
            "model.decode_head.num_classes": len(cue.SEG_CLASSES),
            **{
                f"{split}_dataloader.dataset": dict(
                    img_suffix=".png",
                    metainfo=dict(classes=cue.SEG_CLASSES, palette=cue.PALETTE),
                )
                for split in ("train", "test")
            },
        },
    ),
}


@dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes:
        config: Path of the quickstart's segmentor config.
        task: Key of :data:`TASKS`.
        attention: Name of the mechanism (``attn_types``) of all blocks.
        seed: Seed of the weights and of the order of images.
        iters: Number of training iterations, at least 2.
    """

    config: str
    task: str
    attention: str
    seed: int
    iters: int


def make_config(trial: Trial, data_root: str, work_dir: str) -> Config:
    """Build the config of a trial.

    Configs of one task differ only in ``attn_types``, the seed and the iterations.

    Args:
        trial: Network and training run.
        data_root: Folder of the task's data set.
        work_dir: Folder for logs.
    """
    task = TASKS[trial.task]
    warmup = min(_WARMUP_ITERS, trial.iters // 2)
    cfg = load_config(
        trial.config,
        {
            **task.options,
            "model.data_preprocessor.size": task.size,
            "model.backbone.attn_types": trial.attention,
            "model.backbone.tile": 0,  # ranks need the outputs of whole layers
            # The hosts initialise this layer with a standard deviation of 0.01, from
            # which `linear` did not learn the cue in trials.
            "model.decode_head.init_cfg": None,
            "test_dataloader.batch_size": 10,
            "param_scheduler.0.end": warmup,
            "param_scheduler.1.begin": warmup,
            "param_scheduler.1.end": trial.iters,
            "train_cfg.max_iters": trial.iters,
            "randomness": dict(seed=trial.seed),
        },
    )
    set_data_root(cfg, data_root)
    # The runner's test loop evaluates once, after training.
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    del cfg.default_hooks.visualization
    cfg.visualizer = None  # each run of the process creates its own
    cfg.work_dir = work_dir
    cfg.experiment_name = f"{trial.task}-{trial.attention}-{trial.seed}"
    cfg.log_level = "ERROR"
    return cfg


def run_trial(trial: Trial, data_root: str, work_dir: str) -> dict:
    """Train and evaluate a network.

    Args:
        trial: Network and training run.
        data_root: Folder of the task's data set.
        work_dir: Folder for logs.

    Returns:
        The trial's fields except ``config``, ``miou`` (0 to 1), ``params`` and
        ``macs`` of the whole segmentor on one image, ``seconds`` of training, and
        ``ranks`` of each layer ``before`` and ``after`` it: see :func:`measure_ranks`.
    """
    from mmengine.runner import Runner

    runner = Runner.from_cfg(make_config(trial, data_root, work_dir))
    hook = _RankHook()
    runner.register_hook(hook, priority="LOWEST")
    runner.train()
    miou = float(runner.test()["mIoU"]) / 100
    cost = count_costs(runner.model, TASKS[trial.task].size)["total"]
    return dict(
        task=trial.task,
        attention=trial.attention,
        seed=trial.seed,
        iters=trial.iters,
        miou=miou,
        params=cost.params,
        macs=cost.macs,
        seconds=hook.seconds,
        ranks=hook.ranks,
    )


class _RankHook(Hook):
    """Measures effective ranks before and after training, and its duration."""

    def __init__(self) -> None:
        self.ranks: dict[str, dict] = {}

    def before_train(self, runner) -> None:
        self.ranks["before"] = self._measure(runner)
        self._start = time.perf_counter()

    def after_train(self, runner) -> None:
        self.seconds = time.perf_counter() - self._start
        self.ranks["after"] = self._measure(runner)

    def _measure(self, runner) -> dict[str, dict[str, float]]:
        dataset = runner.build_dataloader(runner.cfg.test_dataloader).dataset
        samples = [dataset[i] for i in range(min(_RANK_IMAGES, len(dataset)))]
        data = {key: [sample[key] for sample in samples] for key in samples[0]}
        training = runner.model.training
        ranks = measure_ranks(runner.model.eval(), data)
        runner.model.train(training)
        return ranks


def measure_ranks(model: nn.Module, data: Mapping) -> dict[str, dict[str, float]]:
    """Compute the effective ranks of each attention layer, averaged over images.

    Args:
        model: Segmentor with a RAVLT backbone, in eval mode and with ``tile=0``.
        data: Batch for the model's ``data_preprocessor``.

    Returns:
        By the layer's name: 'core', the rank of the mechanism's output over all heads;
        'output', the rank of (core + LePE) x gate; 'full', the largest possible rank of
        both.
    """
    found = {}

    def visit(name: str, call: Call) -> None:
        mixed = call.mixed.transpose(1, 2).flatten(2)
        found[name] = dict(
            core=effective_rank(singular_values(mixed)).mean().item(),
            output=layer_ranks(call)["output"],
            full=min(mixed.shape[1:]),
        )

    with watch(model, visit), torch.no_grad():
        model.backbone(model.data_preprocessor(data, False)["inputs"])
    return found


def build_segmentor(trial: Trial) -> nn.Module:
    """Build the network of a trial with its initial weights."""
    from mmseg.registry import MODELS

    cfg = make_config(trial, "", "")
    MMLogger.get_current_instance().setLevel("ERROR")  # else one line for each weight
    torch.manual_seed(trial.seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def reach(model: nn.Module, size: tuple[int, int], columns: slice) -> tuple[int, int]:
    """Find by gradients which pixels influence the scores of some columns.

    Args:
        model: Segmentor of mmseg.
        size: Height and width of the image in pixels.
        columns: Columns of the score map.

    Returns:
        The first and the last column with such pixels.
    """
    image = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    scores = model.double().eval().encode_decode(image, [dict(img_shape=size)])
    (slope,) = torch.autograd.grad(scores[..., columns].square().sum(), image)
    reached = slope.abs().amax((0, 1, 2)).nonzero()
    return reached.min().item(), reached.max().item()


def time_steps(trials: Sequence[Trial], rounds: int) -> list[dict]:
    """Time training steps in one process.

    The networks take turns, so that a drift of the machine's speed affects all alike.

    Args:
        trials: Networks; they are trained from initial weights on random pixels.
        rounds: Number of turns of each network.

    Returns:
        For each trial 'task', 'attention', and 'seconds', 'seconds_min' and
        'seconds_max': the median, the fastest and the slowest of all its steps.
    """
    steps = [_make_step(trial) for trial in trials]
    times: list[list[float]] = [[] for _ in trials]
    for _ in range(rounds):
        for step, found in zip(steps, times, strict=True):
            found += measure_times(step, torch.device("cpu"), _WARMUP, _REPEAT)
    return [
        dict(
            task=trial.task,
            attention=trial.attention,
            seconds=statistics.median(found),
            seconds_min=min(found),
            seconds_max=max(found),
        )
        for trial, found in zip(trials, times, strict=True)
    ]


def _make_step(trial: Trial) -> Callable[[], object]:
    """Return a function that trains one step: forward, backward, clip, update."""
    from mmengine.optim import build_optim_wrapper

    cfg = make_config(trial, "", "")
    model = build_segmentor(trial).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = cfg.train_dataloader.batch_size
    data = make_batch(model, batch, TASKS[trial.task].size, train=True)
    return lambda: model.train_step(data, wrapper)
