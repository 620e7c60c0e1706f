"""Hook that logs effective ranks of attention during training."""

import contextlib
from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS


@HOOKS.register_module()
class EffectiveRankHook(Hook):
    """Hook that logs effective ranks of every RAVLT attention layer in training.

    ``rank_output/LAYER`` is the rank of the input to the layer's last projection.
    ``rank_kv/LAYER`` is the rank of its KV buffer, if it has one. Both are computed
    over all heads, and averaged over the images that this process trained on in the
    iteration. Logs repeat the values until the next measurement.

    Args:
        interval: Iterations between measurements.
    """

    def __init__(self, interval: int = 100) -> None:
        self.interval = interval
        self._ranks: dict[str, float] = {}
        self._watching = contextlib.ExitStack()

    def before_train(self, runner) -> None:
        """Raise RAVLTError if the model has no layer to measure."""
        with self._watch(runner):
            pass

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Attach to the layers if a measurement is due in this iteration."""
        if self.every_n_train_iters(runner, self.interval):
            self._watching.enter_context(self._watch(runner))

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: Mapping | None = None
    ) -> None:
        """Detach from the layers and log the ranks."""
        self._watching.close()
        for name, rank in self._ranks.items():
            runner.message_hub.update_scalar(f"train/{name}", rank)
        self._ranks.clear()

    def _watch(self, runner) -> contextlib.AbstractContextManager:
        """Return a context in which every call of an attention layer is measured."""
        # Imported here, because `import ravlt` registers this hook and must not load
        # the analysis package.
        from ravlt.analysis.attention.rank import Call, layer_ranks, watch

        def measure(layer: str, call: Call) -> None:
            for kind, rank in layer_ranks(call).items():
                self._ranks[f"rank_{kind}/{layer}"] = rank

        wrapped = is_model_wrapper(runner.model)
        return watch(runner.model.module if wrapped else runner.model, measure)
