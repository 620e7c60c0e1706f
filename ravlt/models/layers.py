"""Layers on channels-last tokens (B, H, W, C).

In this layout a 1 x 1 convolution is a matrix product on contiguous memory and
LayerNorm needs no permutation. Parameters keep the shapes and names of the
convolutions in the released checkpoints.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ravlt.errors import RAVLTError

from .depthwise import to_image, to_tokens
from .precision import under_cpu_autocast
from .recording import is_recorded
from .tiling import Workspace, grid_tiles

_NORMS = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}


def build_norm(norm_cfg: Mapping, channels: int) -> nn.Module:
    """Builds a batch norm from a config of the hosts' form.

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


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution of (..., C) tokens, as a matrix product."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.flatten(1)
        half = self.weight.dtype != torch.float32 or under_cpu_autocast()
        if self.bias is not None and x.device.type == "cpu" and not half:
            # Given a bias, the CPU's product first copies it to every row, which
            # takes three times as long as adding it in place.
            return F.linear(x, weight).add_(self.bias)
        return F.linear(x, weight, self.bias)

    @torch.no_grad()
    def fold_norm(self, norm: nn.LayerNorm) -> None:
        """Takes over scale and shift of the norm before it, W (s x + t) + b.

        They stay, as ones and zeros: without them the CPU's kernel is the slower one.
        """
        weight = self.weight.flatten(1)
        self.bias.add_(weight @ norm.bias)
        weight.mul_(norm.weight)
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)

    @torch.no_grad()
    def fold_scale(self, scale: Tensor) -> None:
        """Takes over a scale of each output channel and leaves ones in its place."""
        self.weight.mul_(scale.view(-1, 1, 1, 1))
        if self.bias is not None:
            self.bias.mul_(scale.flatten())
        nn.init.ones_(scale)


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of (B, H, W, C) tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Stem(nn.Module):
    """Four 3 x 3 convolutions: pixels (B, 3, H, W) -> tokens at a quarter of the size.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the tokens, C.
        norm_cfg: Config of the batch norms.
    """

    def __init__(self, in_channels: int, dim: int, norm_cfg: Mapping) -> None:
        super().__init__()
        half = dim // 2
        plan = (
            (in_channels, half, 2),
            (half, half, 1),
            (half, half, 1),
            (half, dim, 2),
        )
        layers = []
        for i, (c_in, c_out, stride) in enumerate(plan):
            if i:
                layers.append(nn.GELU())
            layers.append(nn.Conv2d(c_in, c_out, 3, stride, padding=1))
            layers.append(build_norm(norm_cfg, c_out))
        self.proj = nn.Sequential(*layers)

    def forward(self, x: Tensor, workspace: Workspace | None = None) -> Tensor:
        """Turns pixels into tokens.

        Args:
            x: Pixels of shape (B, in_channels, H, W).
            workspace: For inference in tiles; None computes the whole image at once.

        Returns:
            Tokens of shape (B, ceil(H / 4), ceil(W / 4), C).
        """
        if workspace is None:
            return self._tokens(x)
        height, width = (-(-n // 4) for n in x.shape[-2:])
        out = None
        # Two tokens are eight pixels; the four kernels reach seven pixels far.
        for tile, outer, inner in grid_tiles(height, width, workspace.side, halo=2):
            pixels = (slice(4 * s.start, 4 * s.stop) for s in outer[1:])
            tokens = self._tokens(x[(slice(None), slice(None), *pixels)])[inner]
            if out is None:
                out = tokens.new_empty(len(x), height, width, tokens.shape[-1])
            out[tile] = tokens
        return out

    def _tokens(self, x: Tensor) -> Tensor:
        return to_tokens(self.proj(x.contiguous(memory_format=torch.channels_last)))

    def switch_to_deploy(self) -> None:
        """Folds the batch norms into the convolutions before them."""
        for i, layer in enumerate(self.proj):
            if isinstance(layer, _BatchNorm):
                self.proj[i] = fold_batch_norm(self.proj[i - 1], layer)


class Downsample(nn.Module):
    """A strided 3 x 3 convolution and a batch norm: halves the grid, rounding up."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: Mapping) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(in_channels, out_channels, 3, 2, padding=1)
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(self.norm(self.reduction(to_image(x))))

    def switch_to_deploy(self) -> None:
        """Folds the batch norm into the convolution."""
        if isinstance(self.norm, _BatchNorm):
            self.norm = fold_batch_norm(self.reduction, self.norm)


@torch.no_grad()
def fold_batch_norm(conv: nn.Conv2d, norm: _BatchNorm) -> nn.Identity:
    """Folds a batch norm's statistics, scale and shift into the convolution before it.

    Returns:
        What takes the norm's place.
    """
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    conv.weight.mul_(scale.view(-1, 1, 1, 1))
    conv.bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)
    return nn.Identity().eval()


def to_maps(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), contiguous.

    mmcv's RoIAlign reads any memory format as contiguous, in silence, and convolutions
    would hand ours down to it.
    """
    if is_recorded():  # a loop would be unrolled for one size of batch
        return to_image(x).contiguous()
    b, h, w, c = x.shape
    # Plain matrices: their transposition goes in blocks, an image's element by element.
    maps = [image.flatten(0, 1).t().contiguous() for image in x]
    return torch.stack(maps).view(b, c, h, w) if b > 1 else maps[0].view(1, c, h, w)
