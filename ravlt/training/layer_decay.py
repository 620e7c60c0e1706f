"""Layer-wise decay of the learning rate, for fine-tuning pretrained backbones."""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ravlt.errors import RAVLTError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Constructor of an optimizer with smaller learning rates for earlier layers.

    A parameter at depth i of n layers has the learning rate lr * rate^(n - 1 - i), as
    in BEiT (arXiv 2106.08254). The depth comes from the ``get_layer_depth`` method of
    the module that contains the parameter. Parameters of other modules keep lr.

    Select it by ``optim_wrapper=dict(constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, ...))``. The factor multiplies with
    mmengine's settings in ``paramwise_cfg``.

    Args:
        optim_wrapper_cfg: As in mmengine.
        paramwise_cfg: As in mmengine, with ``layer_decay_rate`` in (0, 1].

    Raises:
        RAVLTError: If the rate is missing or out of range, or the model has no module
            with ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        paramwise_cfg = dict(paramwise_cfg or {})
        self.rate = paramwise_cfg.pop("layer_decay_rate", None)
        if self.rate is None or not 0 < self.rate <= 1:
            raise RAVLTError(
                f"paramwise_cfg.layer_decay_rate={self.rate} of "
                f"{type(self).__name__} must be in (0, 1]; 0.9 is usual."
            )
        # Without any setting, mmengine puts all parameters into one group.
        paramwise_cfg.setdefault("bypass_duplicate", False)
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(self, params: list[dict], module: nn.Module, prefix="", **kwargs):
        """Add a group for each parameter and scale its learning rate."""
        super().add_params(params, module, prefix, **kwargs)
        if prefix:  # a recursive call for a child; the root scales all groups
            return
        scales = self._scales(module)
        for group in params:
            (parameter,) = group["params"]
            if parameter in scales:
                group["lr"] = group.get("lr", self.base_lr) * scales[parameter]

    def _scales(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """Compute the factor of the learning rate of each parameter with a depth."""
        scales = {}
        for _, module in model.named_modules():
            if not hasattr(module, "get_layer_depth"):
                continue
            for name, parameter in module.named_parameters():
                depth, num_layers = module.get_layer_depth(name)
                scales[parameter] = self.rate ** (num_layers - 1 - depth)
        if not scales:
            raise RAVLTError(
                f"{type(self).__name__} finds no module with get_layer_depth in "
                f"{type(model).__name__}; use it with a RAVLT backbone."
            )
        return scales
