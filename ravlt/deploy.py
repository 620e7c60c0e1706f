"""Exact folds for inference, in whole detectors and segmentors."""

from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from torch import nn

from ravlt.errors import RAVLTError
from ravlt.models.trunk import Trunk


def switch_to_deploy(model: nn.Module) -> nn.Module:
    """Folds every RAVLT of a model, in place; see :meth:`Trunk.switch_to_deploy`.

    Args:
        model: A detector, a segmentor, or anything else that holds a RAVLT, such as
            the ``model`` of an mmengine inferencer.

    Returns:
        The model itself, in eval mode.

    Raises:
        RAVLTError: If there is no RAVLT in it.

    Example:
        >>> inferencer = DetInferencer('my_config.py', 'weights.pth')
        >>> switch_to_deploy(inferencer.model)
    """
    trunks = [part for part in model.modules() if isinstance(part, Trunk)]
    if not trunks:
        raise RAVLTError(
            f"{type(model).__name__} holds no RAVLT to fold; leave --deploy or "
            f"switch_to_deploy() away."
        )
    model.eval()
    for trunk in trunks:
        trunk.switch_to_deploy()
    return model


@HOOKS.register_module()
class DeployHook(Hook):
    """Folds RAVLT before a test: ``custom_hooks = [dict(type='DeployHook')]``.

    The weights are loaded by then. Training with this hook is not affected.
    """

    def before_test(self, runner) -> None:
        """Folds the model of the runner, and the average that an EMAHook keeps of it.

        That hook exchanges their parameters by position before the first image.
        """
        switch_to_deploy(runner.model)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                switch_to_deploy(hook.ema_model)
