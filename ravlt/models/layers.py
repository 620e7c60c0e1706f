"""Layers on channels-last tokens (B, H, W, C).

In this layout a 1 x 1 convolution is a matrix product on contiguous memory and
LayerNorm needs no permutation. Parameters keep the shapes and names of the
convolutions in the released checkpoints.
"""

from collections.abc import Mapping

from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ravlt.errors import RAVLTError
from ravlt.ops.depthwise import depthwise_conv
from ravlt.ops.linear import linear
from ravlt.ops.precision import at_least_float32

_NORMS = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution of tokens (..., C), as a matrix product."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.flatten(1), self.bias)


class DepthwiseConv(nn.Conv2d):
    """A depthwise k x k convolution of tokens (B, H, W, C), zero-padded.

    Args:
        channels: Number of channels, C.
        kernel_size: Side of the kernel, k; odd.
        residual: Whether to add the input to the result.
        bias: Whether to add a bias; a batch norm afterwards needs none.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        residual: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=channels,
            bias=bias,
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv(x, self.weight, self.bias, self.residual)


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of tokens (B, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def build_norm(norm_cfg: Mapping, channels: int) -> nn.Module:
    """Build a batch norm from a config in the hosts' form.

    Args:
        norm_cfg: ``type`` ('BN' or 'SyncBN'), optionally ``requires_grad`` and the
            arguments of the class.
        channels: Number of channels.

    Raises:
        RAVLTError: If the type is another one, or the norm would keep no statistics
            or have no scale and shift.
    """
    cfg = dict(norm_cfg)
    name = cfg.pop("type", None)
    if name not in _NORMS:
        raise RAVLTError(
            f"norm_cfg has type={name!r}, but RAVLT's stem and downsampling hold batch "
            f"norms; use one of {sorted(_NORMS)}."
        )
    for flag in ("affine", "track_running_stats"):
        if not cfg.get(flag, True):
            raise RAVLTError(
                f"norm_cfg has {flag}=False, which fits no checkpoint; leave it out."
            )
    requires_grad = cfg.pop("requires_grad", True)
    return _NORMS[name](channels, **cfg).requires_grad_(requires_grad)


def batch_norm_affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return a batch norm in eval mode as scale and shift, each (C,).

    In float32 or wider, so that weights that take them over are rounded once.
    """
    mean, var, weight, bias = (
        at_least_float32(t)
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = weight / (var + norm.eps).sqrt()
    return scale, bias - mean * scale


def init_convolution(module: nn.Module) -> None:
    """Draw weights from a truncated normal of 0.02 and set biases to zero.

    By timm's function: PyTorch's samples by rejection since 2.15, which asks the
    device for a value and fails on fake tensors.
    """
    if isinstance(module, nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
