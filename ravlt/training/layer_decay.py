"""Layer-wise decay of the learning rate, for fine-tuning pretrained backbones."""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ravlt.errors import RAVLTError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Gives early layers smaller learning rates (as BEiT, arXiv 2106.08254, does).

    A parameter at depth i of n layers has the learning rate lr * rate^(n - 1 - i), by
    the ``get_layer_depth`` of the module that it is in; what is in none keeps lr.
    ``optim_wrapper=dict(constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, ...))``; all other settings of
    ``paramwise_cfg`` are mmengine's and multiply with it.

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
        # Without any setting mmengine makes one group of everything.
        paramwise_cfg.setdefault("bypass_duplicate", False)
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(self, params: list[dict], module: nn.Module, prefix="", **kwargs):
        """Adds a group for each parameter, as mmengine; then scales learning rates."""
        super().add_params(params, module, prefix, **kwargs)
        if prefix:  # mmengine calls this method for every child
            return
        scales = self._scales(module)
        for group in params:
            (parameter,) = group["params"]
            if parameter in scales:
                group["lr"] = group.get("lr", self.base_lr) * scales[parameter]

    def _scales(self, model: nn.Module) -> dict[nn.Parameter, float]:
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
