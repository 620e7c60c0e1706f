"""Rows of attention matrices: what one token attends to, without the N x N matrix.

Shapes: B images, N = H W tokens, heads of d channels.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ravlt.errors import RAVLTError
from ravlt.models import RAVLT
from ravlt.models.attention import AttentionCore, FeatureMapCore, build_core
from ravlt.models.ravlt import GatedAttention
from ravlt.ops.precision import at_least_float32, autocast_off

from .rank_study import Subject, name_of, to_pixels

HEADS = ("mean", "max", "each")
_STRIDE = 4  # stride of the first stage, in pixels


def attention_row(core: AttentionCore, inputs: tuple, token: int) -> Tensor:
    """Compute row i of ``core.dense``, A_ij for all j, in linear memory.

    With a feature map, the row is <phi(q_i), phi(k_j)> over the denominator. For any
    other core it is a derivative: d<u, y_i> / dv_j = A_ij u for a vector u. If the core
    ends with a norm, this holds for u orthogonal to y_i, because the norm contributes a
    derivative along y_i only.

    Args:
        core: The mechanism.
        inputs: Its arguments: q, k and v of shape (B, heads, N, d), (H, W), and the
            layer's input if the mechanism needs it.
        token: Index i of the token, row by row.

    Returns:
        A tensor of shape (B, heads, N), float32 or wider.

    Raises:
        RAVLTError: If the core is not linear in v.
    """
    q, k, v, hw, *rest = inputs
    q, k, v = (at_least_float32(t.detach()) for t in (q, k, v))
    if getattr(core, "legacy_clamp", False):
        raise RAVLTError(
            "legacy_clamp=True is not a linear map of v, so that there is no attention "
            "matrix; set legacy_clamp=False."
        )
    if isinstance(core, FeatureMapCore):
        with torch.no_grad(), autocast_off(q):
            q, k = core.features(q, k, v, hw)
            scores = (k @ q[:, :, token, :, None]).squeeze(-1) / k.shape[-2]
            return scores / core.denominator(scores.sum(-1, keepdim=True))
    with torch.enable_grad(), autocast_off(q):
        v.requires_grad_()
        y = core(q, k, v, hw, *rest)
        at_token = y.detach()[:, :, token]
        u = _orthogonal(at_token)
        cotangent = torch.zeros_like(y)
        cotangent[:, :, token] = u
        (grad,) = torch.autograd.grad(y, v, cotangent)
        u = (u * getattr(core, "gain", 1.0)).detach()
        return (grad @ u[..., None]).squeeze(-1) / u.square().sum(-1, keepdim=True)


def _orthogonal(y: Tensor) -> Tensor:
    """Project the axis of y's smallest entry onto the orthogonal complement of y."""
    axis = y.abs().argmin(-1, keepdim=True)
    length = y.square().sum(-1, keepdim=True)
    along = torch.where(length > 0, y.gather(-1, axis) / length, 0.0)
    return torch.zeros_like(y).scatter(-1, axis, 1.0) - along * y


def token_at(
    pixel: tuple[int, int],
    image_size: tuple[int, int],
    size: tuple[int, int],
    stride: int,
) -> tuple[int, int]:
    """Find the token of a pixel: the one whose square contains the pixel's centre.

    Args:
        pixel: Column and row of the pixel, from 0.
        image_size: Width and height of the image.
        size: Height and width to which the image is resized.
        stride: Side of a token, in pixels of the resized image.

    Returns:
        Row and column of the token.

    Raises:
        RAVLTError: If the pixel is outside of the image.
    """
    if not all(0 <= p < side for p, side in zip(pixel, image_size, strict=True)):
        raise RAVLTError(
            f"Pixel {pixel[0]} {pixel[1]} is outside of the image, which is "
            f"{image_size[0]} wide and {image_size[1]} high; give column and row, "
            f"counted from 0."
        )
    col, row = (
        (2 * p + 1) * stretched // (2 * side) // stride
        for p, side, stretched in zip(pixel, image_size, size[::-1], strict=True)
    )
    return row, col


@dataclass
class TokenAttention:
    """Attention weights of one token of a layer.

    Attributes:
        mechanism: Name of the mechanism.
        signed: Whether weights may be negative.
        weights: The token's row of the attention matrix of each head, (heads, H, W).
        token: Row and column of the token.
        cell: Height and width of a token, in pixels of the image.
    """

    mechanism: str
    signed: bool
    weights: Tensor
    token: tuple[int, int]
    cell: tuple[float, float]


def attention_of_pixel(
    subject: Subject,
    image: Image.Image,
    size: tuple[int, int],
    pixel: tuple[int, int],
    stage: int,
    block: int,
) -> TokenAttention:
    """Run the backbone on an image and compute what a pixel's token attends to.

    Args:
        subject: The backbone.
        image: The image, RGB.
        size: Height and width to which the image is resized.
        pixel: Column and row of the image pixel whose token attends.
        stage: Stage of the layer, from 1.
        block: Block of the layer in its stage, from 1.

    Raises:
        RAVLTError: If the pixel or the layer does not exist.
    """
    core = find_layer(subject.backbone, stage, block).core
    stride = _STRIDE << (stage - 1)
    row, col = token_at(pixel, image.size, size, stride)
    calls = []
    handle = core.register_forward_hook(lambda _, inputs, y: calls.append(inputs))
    try:
        with torch.no_grad():
            subject.backbone(subject.prepare(to_pixels(image, size)))
    finally:
        handle.remove()
    (inputs,) = calls
    grid = inputs[3]
    weights = attention_row(core, inputs, row * grid[1] + col)[0].unflatten(-1, grid)
    cell = stride * image.height / size[0], stride * image.width / size[1]
    signed = not core.nonneg
    return TokenAttention(name_of(core), signed, weights, (row, col), cell)


def find_layer(backbone: RAVLT, stage: int, block: int) -> nn.Module:
    """Return an attention layer; stages and blocks count from 1.

    Raises:
        RAVLTError: If the layer does not exist.
    """
    depths = [len(layer.blocks) for layer in backbone.layers]
    if not (1 <= stage <= len(depths) and 1 <= block <= depths[stage - 1]):
        raise RAVLTError(
            f"There is no block {block} in stage {stage}: the backbone's stages have "
            f"{depths} blocks; count from 1."
        )
    return backbone.layers[stage - 1].blocks[block - 1].attn


def put_core(backbone: RAVLT, name: str, stage: int, block: int) -> None:
    """Replace the mechanism of a layer; the new one receives the same q, k and v.

    Args:
        backbone: Changed in place.
        name: A key of :data:`ravlt.models.attention.CORES`. Parameters that the new
            mechanism adds have their initial values.
        stage: Stage of the layer, from 1.
        block: Block of the layer in its stage, from 1.

    Raises:
        RAVLTError: If the layer does not exist, or its profile is 'paper'.
    """
    layer = find_layer(backbone, stage, block)
    if not isinstance(layer, GatedAttention):
        raise RAVLTError(
            f"Block {block} of stage {stage} is a {type(layer).__name__}, which fits "
            f"its own mechanism only; use profile='gated' to try others in it."
        )
    layer.core = build_core(name, layer.core.dim, layer.num_heads).eval()


def combine_heads(weights: Tensor, heads: str) -> dict[str, Tensor]:
    """Combine the maps of all heads into one, or return one map for each head.

    Args:
        weights: Rows of shape (heads, H, W).
        heads: 'mean'; 'max' takes for each token the weight farthest from 0; 'each'
            keeps the heads apart. A single head is returned as it is.

    Returns:
        Maps of shape (H, W), by title.
    """
    if heads == "each" or len(weights) == 1:
        return {f"head {i}": row for i, row in enumerate(weights, 1)}
    if heads == "max":
        largest = weights.abs().argmax(0, keepdim=True)
        return {f"max of {len(weights)} heads": weights.gather(0, largest)[0]}
    return {f"mean of {len(weights)} heads": weights.mean(0)}


def describe(attention: TokenAttention, weights: Tensor) -> str:
    """Describe a map of :func:`combine_heads`: its sum and :func:`half_radius`."""
    radius = half_radius(weights, attention.token, attention.cell)
    return f"sum {weights.sum().item():.3g}, half of it within {radius:.0f} px"


def half_radius(
    weights: Tensor, token: tuple[int, int], cell: tuple[float, float]
) -> float:
    """Compute the radius around a token that contains half of the sum of abs(A_ij).

    Args:
        weights: A row of the attention matrix, (H, W).
        token: Row and column of the token.
        cell: Height and width of a token; distances are between token centres.
    """
    rows, cols = (
        (torch.arange(n, dtype=torch.float64) - at) * side
        for n, at, side in zip(weights.shape, token, cell, strict=True)
    )
    distances, order = torch.hypot(rows[:, None], cols).flatten().sort()
    mass = weights.double().abs().flatten()[order].cumsum(0)
    return distances[torch.searchsorted(mass, mass[-1] / 2)].item()
