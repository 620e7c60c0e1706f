"""Optimizer wrappers that skip steps whose loss or gradients are not finite.

``bad_losses=dict(skip=3)`` in a config selects them for this repository's tools; with
the hosts' tools set ``optim_wrapper=dict(type='FiniteOptimWrapper', skip=3, ...)``.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn

from ravlt.errors import RAVLTError

ADVICE = "lower the learning rate, clip gradients (optim_wrapper.clip_grad) or"


class FiniteStepMixin:
    """Optimizer wrapper that skips a step whose loss or gradients contain NaN or Inf.

    A skipped step changes neither weights nor optimizer state. Buffers, such as the
    statistics of batch norm, get back their values from before the forward pass. With
    loss scaling only losses count, because the scaler skips overflowing gradients.

    All processes decide together, by one all-reduce of one number. The decision waits
    for the device between backward pass and step, as ``clip_grad`` and loss scaling do.

    Args:
        *args: As in the base wrapper.
        skip: Largest number of consecutive steps to skip.
        **kwargs: As in the base wrapper.

    Raises:
        RAVLTError: In training, if more consecutive steps are not finite.
    """

    def __init__(self, *args, skip: int = 3, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.skip = skip
        self.skipped = 0  # consecutive steps
        # Bool scalar: a loss of the current step is not finite.
        self._bad: Tensor | None = None
        self._model: nn.Module | None = None
        self._buffers: dict[str, Tensor] = {}

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        # Accumulated gradients: save the buffers before the first forward pass.
        if self._bad is None:
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
                f"(weights are those before them); {ADVICE} look at the data."
            )
        print_log(
            f"{what}: skipped this step ({self.skipped} in a row, {self.skip} may be).",
            logger="current",
            level=logging.WARNING,
        )

    def _is_bad(self) -> bool:
        bad, self._bad = self._bad.float(), None
        # A loss scaler checks the gradients itself, and overflows are normal with it.
        if not hasattr(self, "loss_scaler"):
            parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, math.inf)  # no clipping
            bad = torch.maximum(bad, (~norm.isfinite()).float())
        all_reduce(bad, "max")
        return bool(bad)


@OPTIM_WRAPPERS.register_module()
class FiniteOptimWrapper(FiniteStepMixin, OptimWrapper):
    __doc__ = FiniteStepMixin.__doc__


@OPTIM_WRAPPERS.register_module()
class FiniteAmpOptimWrapper(FiniteStepMixin, AmpOptimWrapper):
    __doc__ = FiniteStepMixin.__doc__
