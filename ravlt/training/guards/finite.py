"""Numbers that are not finite: steps left out, runs that stop, losses that jump.

``bad_losses=dict(skip=3)`` in a config lets our tools train through a bad batch; with
the hosts' tools it is ``optim_wrapper=dict(type='FiniteOptimWrapper', skip=3, ...)``.
"""

import logging
import math
import os
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from torch import Tensor, nn

from ravlt.errors import RAVLTError

_ADVICE = "lower the learning rate, clip gradients (optim_wrapper.clip_grad) or"
_MIN_SCALE = 1.0  # below it, gradients overflow even as they are


class _StepsIfFinite:
    """Of an optimizer wrapper: leaves out steps whose numbers are not finite.

    Then weights, optimizer, and what the forward pass changed (the model's buffers, so
    batch norms' statistics) are as if the batch had never been. All processes decide
    together. The decision costs one small collective, and waits for the device where
    ``clip_grad`` and loss scaling wait as well: between gradients and step.

    Args:
        *args: As of the wrapper.
        skip: Steps in a row that may be left out.
        **kwargs: As of the wrapper.

    Raises:
        RAVLTError: While training, if more steps in a row are bad.
    """

    def __init__(self, *args, skip: int = 3, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.skip = skip
        self.skipped = 0  # in a row
        self._bad: Tensor | None = None  # whether a loss of this step is not finite
        self._model: nn.Module | None = None
        self._buffers: dict[str, Tensor] = {}

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        if self._bad is None:  # of several passes whose gradients add up, the first
            self._model = model
            self._buffers = {k: v.clone() for k, v in model.named_buffers()}
        with super().optim_context(model):
            yield

    def backward(self, loss: Tensor, **kwargs) -> None:
        bad = ~loss.detach().isfinite()
        self._bad = bad if self._bad is None else self._bad | bad
        super().backward(loss, **kwargs)

    def step(self, **kwargs) -> None:
        if not self._is_bad():
            self.skipped = 0
            super().step(**kwargs)
            return
        self.skipped += 1
        for name, buffer in self._model.named_buffers():
            buffer.copy_(self._buffers[name])
        what = (
            f"The loss or a gradient is not finite at iteration "
            f"{self.message_hub.get_info('iter', 0) + 1}"
        )
        if self.skipped > self.skip:
            raise RAVLTError(
                f"{what}, after {self.skip} skipped steps in a row, so training stops "
                f"(weights are those before them); {_ADVICE} look at the data."
            )
        print_log(
            f"{what}: skipped this step ({self.skipped} in a row, {self.skip} may be).",
            logger="current",
            level=logging.WARNING,
        )

    def _is_bad(self) -> bool:
        bad, self._bad = self._bad.float(), None
        # A loss scaler looks at gradients itself, and they may well overflow.
        if not hasattr(self, "loss_scaler"):
            parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, math.inf)  # measures only
            bad = torch.maximum(bad, (~norm.isfinite()).float())
        all_reduce(bad, "max")
        return bool(bad)


@OPTIM_WRAPPERS.register_module()
class FiniteOptimWrapper(_StepsIfFinite, OptimWrapper):
    __doc__ = _StepsIfFinite.__doc__


@OPTIM_WRAPPERS.register_module()
class FiniteAmpOptimWrapper(_StepsIfFinite, AmpOptimWrapper):
    __doc__ = _StepsIfFinite.__doc__


@HOOKS.register_module()
class StopOnNonFiniteHook(Hook):
    """Stops training at the first loss that is not finite, and if fp16 breaks down.

    mmengine logs every loss as a number in every iteration, so that the check costs
    no synchronisation of its own. No checkpoint is written from broken weights. A
    wrapper that leaves out bad steps stops by itself, when there are too many.

    Args:
        check_weights: Whether the weights of every checkpoint are checked, before it is
            written and after it is loaded.
    """

    priority = "NORMAL"  # before CheckpointHook

    def __init__(self, check_weights: bool = True) -> None:
        self.check_weights = check_weights

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: Mapping | None = None
    ) -> None:
        """Raises RAVLTError if a loss term is infinite or NaN, or the scale fell."""
        _check_scale(runner)
        if isinstance(runner.optim_wrapper, _StepsIfFinite):
            return
        terms = {k: _number(v) for k, v in (outputs or {}).items() if "loss" in k}
        broken = {k: v for k, v in terms.items() if not math.isfinite(v)}
        if broken:
            named = ", ".join(f"{k}={v}" for k, v in broken.items())
            raise RAVLTError(
                f"The loss is not finite at iteration {runner.iter + 1} ({named}); "
                f"{_last_checkpoint(runner)}; {_ADVICE} train without --amp."
            )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Raise RAVLTError if a weight contains NaN or Inf, or has another dtype."""
        if not self.check_weights:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        own = dict((*model.named_parameters(), *model.named_buffers()))
        for key, value in checkpoint.get("state_dict", checkpoint).items():
            if not isinstance(value, Tensor):
                continue  # extra state, or a file of another training program
            real = value.is_floating_point()
            fits = key not in own or own[key].is_floating_point() == real
            if not fits or (real and not torch.isfinite(value).all()):
                raise RAVLTError(
                    f"The weight {key} of '{runner.cfg.get('load_from')}' is "
                    f"{'not finite' if fits else value.dtype}; give another checkpoint."
                )

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Raise RAVLTError if a weight, or its average, contains NaN or Inf."""
        if not self.check_weights:
            return
        average = checkpoint.get("ema_state_dict", {})
        for key, value in (*checkpoint["state_dict"].items(), *average.items()):
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise RAVLTError(
                    f"The weight {key} is not finite at iteration {runner.iter + 1}, "
                    f"so no checkpoint was written; {_last_checkpoint(runner)}; lower "
                    f"the learning rate or clip gradients (optim_wrapper.clip_grad)."
                )


@HOOKS.register_module()
class LossSpikeHook(Hook):
    """Log a warning when the loss is far above its running median.

    mmengine has no such hook. It logs every loss as a number, so this one adds no wait
    for the device.

    Args:
        factor: Ratio of loss and median from which a spike begins.
        window: Iterations of the median; there is none in the first fifth of them.
    """

    def __init__(self, factor: float = 10.0, window: int = 100) -> None:
        self.factor = factor
        self.recent: deque[float] = deque(maxlen=window)
        self.spiking = False

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs: Mapping | None = None
    ) -> None:
        """Log the first iteration of a spike."""
        loss = _number((outputs or {}).get("loss", math.nan))
        if not math.isfinite(loss):
            return
        known = len(self.recent) >= self.recent.maxlen // 5
        median = statistics.median(self.recent) if known else math.inf
        spiking = 0 < self.factor * median < loss
        if spiking and not self.spiking:
            print_log(
                f"The loss jumped to {loss:.4g} at iteration {runner.iter + 1}; the "
                f"median of the last {len(self.recent)} is {median:.4g}.",
                logger="current",
                level=logging.WARNING,
            )
        self.spiking = spiking
        self.recent.append(loss)


def _number(value) -> float:
    return float(torch.as_tensor(value).detach())


def _check_scale(runner) -> None:
    scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
    if scaler is not None and scaler.get_scale() < _MIN_SCALE:
        raise RAVLTError(
            f"The loss scale fell to {scaler.get_scale():.2g} by iteration "
            f"{runner.iter + 1}: gradients overflow in every step and weights no "
            f"longer change; {_last_checkpoint(runner)}; {_ADVICE} use "
            f"--amp-dtype bfloat16."
        )


def _last_checkpoint(runner) -> str:
    pointer = os.path.join(runner.work_dir, "last_checkpoint")
    if not os.path.isfile(pointer):
        return "no checkpoint had been written yet"
    with open(pointer) as file:
        return f"the last good checkpoint is {file.read().strip()}"
