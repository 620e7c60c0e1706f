"""The same small segmentor with each attention: training, ranks and time of a step.

Two tasks. In ``shapes`` an object's outline tells its class. In ``cue`` that is told by
a mark 160 pixels away, which no convolution of that network and no window of ``diag``
reaches: see :func:`reach`.
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

from ravlt.datasets import cue
from ravlt.datasets.shapes import write_shapes
from ravlt.engine.config import load_config
from ravlt.engine.data import set_data_root

from .costs import count_costs
from .rank import Call, effective_rank, layer_ranks, singular_values, watch
from .samples import make_batch
from .timing import measure_times

_RANK_IMAGES = 16
_WARMUP_ITERS = 30
_WARMUP, _REPEAT = 1, 3  # steps of an attention before it is another one's turn


@dataclass(frozen=True)
class Task:
    """What is learnt, and by which network.

    Attributes:
        size: Height and width of the images.
        iters: Training iterations, unless asked for others.
        write: Writes the data set into a folder.
        options: Changes to the quickstart's config, as of ``--cfg-options``.
    """

    size: tuple[int, int]
    iters: int
    write: Callable[[Path], object]
    options: Mapping


def _network(dims: Sequence[int], depths: Sequence[int], stages: int) -> dict:
    """Options of a backbone of which the first stages are built, neck and head."""
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
        # Stride 4 only: deeper stages would see the whole strip.
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
        config: The quickstart's config of a segmentor.
        task: A key of :data:`TASKS`.
        attention: A name for ``attn_types``, in all blocks.
        seed: Of the weights and the order of images.
        iters: Training iterations, at least 2.
    """

    config: str
    task: str
    attention: str
    seed: int
    iters: int


def make_config(trial: Trial, data_root: str, work_dir: str) -> Config:
    """Gives the config of a trial; but for ``attn_types`` and the seed it is a task's.

    Args:
        trial: What to train.
        data_root: Folder of the task's data set.
        work_dir: For logs.
    """
    task = TASKS[trial.task]
    warmup = min(_WARMUP_ITERS, trial.iters // 2)
    cfg = load_config(
        trial.config,
        {
            **task.options,
            "model.data_preprocessor.size": task.size,
            "model.backbone.attn_types": trial.attention,
            "model.backbone.tile": 0,  # ranks are of whole layers
            # With the hosts' first weights, of a hundredth, a network so small forgets
            # what is far away before it learns what it is good for.
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
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None  # once, at the end
    cfg.default_hooks.checkpoint = None
    del cfg.default_hooks.visualization
    cfg.visualizer = None  # one of its own for each run of the process
    cfg.work_dir = work_dir
    cfg.experiment_name = f"{trial.task}-{trial.attention}-{trial.seed}"
    cfg.log_level = "ERROR"
    return cfg


def run_trial(trial: Trial, data_root: str, work_dir: str) -> dict:
    """Trains and evaluates a network.

    Args:
        trial: What to train.
        data_root: Folder of the task's data set.
        work_dir: For logs.

    Returns:
        The trial's fields without the config; ``miou`` (0 to 1), ``params`` and
        ``macs`` of the whole segmentor on one image, ``seconds`` of training, and
        ``ranks`` of each layer ``before`` and ``after``: see :func:`measure_ranks`.
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
    """Measures ranks before and after training, and how long it took in between."""

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
    """Gives effective ranks of each attention layer, means over images.

    Args:
        model: A segmentor with a RAVLT backbone, in eval mode and with ``tile=0``.
        data: A batch, as for its ``data_preprocessor``.

    Returns:
        By layer: 'core', what the mechanism gave, over all heads; 'output', the layer's
        own (core + LePE) x gate; 'full', the most that either could have.
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
    """Builds the network of a trial with its first weights."""
    from mmseg.registry import MODELS

    cfg = make_config(trial, "", "")
    MMLogger.get_current_instance().setLevel("ERROR")  # a line a weight otherwise
    torch.manual_seed(trial.seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def reach(model: nn.Module, size: tuple[int, int], columns: slice) -> tuple[int, int]:
    """Finds by gradients which pixels can change the scores of some columns.

    Args:
        model: A segmentor of mmseg.
        size: Height and width of the image.
        columns: Of the scores.

    Returns:
        The first and the last column of such pixels.
    """
    image = torch.randn(1, 3, *size, dtype=torch.float64, requires_grad=True)
    scores = model.double().eval().encode_decode(image, [dict(img_shape=size)])
    (slope,) = torch.autograd.grad(scores[..., columns].square().sum(), image)
    reached = slope.abs().amax((0, 1, 2)).nonzero()
    return reached.min().item(), reached.max().item()


def time_steps(trials: Sequence[Trial], rounds: int) -> list[dict]:
    """Times training steps in one process; attentions take turns, against drifts.

    Args:
        trials: Networks; their first weights are trained on random pixels.
        rounds: How often each has its turn.

    Returns:
        For each trial 'task', 'attention', and of all its steps the median, the
        fastest and the slowest, in seconds.
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
    """A step as a runner does it: forward, backward, clipping and update."""
    from mmengine.optim import build_optim_wrapper

    cfg = make_config(trial, "", "")
    model = build_segmentor(trial).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = cfg.train_dataloader.batch_size
    data = make_batch(model, batch, TASKS[trial.task].size, train=True)
    return lambda: model.train_step(data, wrapper)
