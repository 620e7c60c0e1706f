"""Logs effective ranks during training; registered with mmengine's root."""

import contextlib
from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn

from .rank import Call, layer_ranks, watch


@HOOKS.register_module()
class EffectiveRankHook(Hook):
    """Logs effective ranks of every RAVLT attention layer during training.

    The scalars are ``rank_output/LAYER``, of what the layer's last projection gets, and
    ``rank_kv/LAYER``, of its KV buffer if it has one: over all heads, mean of the
    images that this process trained on in that iteration. Logs repeat them until the
    next measurement.

    Args:
        interval: Iterations between measurements.
    """

    def __init__(self, interval: int = 100) -> None:
        self.interval = interval
        self._ranks: dict[str, float] = {}
        self._watching = contextlib.ExitStack()

    def before_train(self, runner) -> None:
        """Raises RAVLTError if there is nothing to measure."""
        with watch(_bare_model(runner), self._measure):
            pass

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Begins to watch the layers, where a measurement is due."""
        if self.every_n_train_iters(runner, self.interval):
            self._watching.enter_context(watch(_bare_model(runner), self._measure))

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: Mapping | None = None
    ) -> None:
        """Logs what was measured."""
        self._watching.close()
        for name, rank in self._ranks.items():
            runner.message_hub.update_scalar(f"train/{name}", rank)
        self._ranks.clear()

    def _measure(self, layer: str, call: Call) -> None:
        for kind, rank in layer_ranks(call).items():
            self._ranks[f"rank_{kind}/{layer}"] = rank


def _bare_model(runner) -> nn.Module:
    wrapped = is_model_wrapper(runner.model)
    return runner.model.module if wrapped else runner.model
