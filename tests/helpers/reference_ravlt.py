"""RAVLT step by step as the paper states it: the reference network of the tests.

The network is channels-first, computes every product as a convolution, and computes
explicit N x N scores for softmax. Nothing is fused, folded, cached or tiled. It takes
its parameters from a :class:`ravlt.RAVLT`, so that both have equal weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ravlt.models.ravlt import RAVLT, Block


class ReferenceRAVLT(nn.Module):
    """A RAVLT in its plainest form.

    Args:
        model: Source of the parameters, which are shared, not copied. Its attention
            must be 'rala' or 'softmax', the same in all blocks of a stage.
    """

    def __init__(self, model: RAVLT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (B, 3, H, W) to (B, C_i, H_i, W_i) for each of ``out_indices``."""
        model = self.model
        x = model.patch_embed.proj(x)
        outs = []
        for i, stage in enumerate(model.layers):
            sin, cos = _tables(stage.RoPE.head_dim, x)
            for block in stage.blocks:
                x = _block(block, x, sin, cos, model.attn_types[i])
            if i in model.out_indices:
                outs.append(_layer_norm(model.extra_norms[str(i)].norm, x))
            if stage.downsample is not None:
                x = stage.downsample.norm(stage.downsample.reduction(x))
        return tuple(outs)


def _block(block: Block, x: Tensor, sin: Tensor, cos: Tensor, kind: str) -> Tensor:
    drop = block.drop_path
    x = x + _conv(block.pos, x)
    y = _attention(block.attn, _layer_norm(block.norm1.norm, x), sin, cos, kind)
    x = x + drop(block.gamma_1 * y)
    hidden = F.gelu(_conv(block.ffn.fc1, _layer_norm(block.norm2.norm, x)))
    hidden = hidden + _conv(block.ffn.dwconv, hidden)
    return x + drop(block.gamma_2 * _conv(block.ffn.fc2, hidden))


def _attention(layer: nn.Module, x: Tensor, sin: Tensor, cos: Tensor, kind: str):
    b, c, h, w = x.shape
    q, k, v, gate = _conv(layer.qkvo, x).chunk(4, dim=1)
    lepe = _conv(layer.lepe, v)
    q, k, v = (
        t.reshape(b, layer.num_heads, -1, h * w).transpose(2, 3) for t in (q, k, v)
    )
    y = _CORES[kind](q, k, v, sin, cos)
    y = y.transpose(2, 3).reshape(b, c, h, w)
    return _conv(layer.proj, (y + lepe) * gate)


def _rala(q: Tensor, k: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    n, d = q.shape[-2:]
    q, k = F.elu(q) + 1, F.elu(k) + 1
    query = q.mean(dim=-2, keepdim=True)
    alpha = n * torch.softmax((query * k).sum(-1, keepdim=True) * d**-0.5, dim=-2)
    k = k * alpha
    z = 1 / (q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1) + 1e-6)
    q, k = _rotate(q, sin, cos), _rotate(k, sin, cos)
    buffer = (k.transpose(-2, -1) * n**-0.5) @ (v * n**-0.5)
    return q @ buffer * z


def _softmax(q: Tensor, k: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    q, k = _rotate(q, sin, cos), _rotate(k, sin, cos)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v


_CORES = {"rala": _rala, "softmax": _softmax}


def _tables(head_dim: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute sine and cosine for every feature of every token, each (H * W, d)."""
    height, width = x.shape[-2:]
    count = head_dim // 4
    theta = [10000.0 ** (-m / max(count - 1, 1)) for m in range(count)]
    theta = torch.tensor(theta, device=x.device, dtype=x.dtype)
    theta = theta.repeat_interleave(2)
    rows = torch.arange(height, device=x.device)[:, None, None] * theta
    cols = torch.arange(width, device=x.device)[None, :, None] * theta
    angles = torch.cat(
        (rows.expand(height, width, -1), cols.expand(height, width, -1)), dim=-1
    ).reshape(height * width, head_dim)
    return angles.sin(), angles.cos()


def _rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def _conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(
        x, layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups
    )


def _layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    y = F.layer_norm(
        x.permute(0, 2, 3, 1), x.shape[1:2], layer.weight, layer.bias, layer.eps
    )
    return y.permute(0, 3, 1, 2).contiguous()
