"""Attention maps from masks relative to each pixel, of "PSANet: Point-wise Spatial
Attention Network for Scene Parsing" (Zhao et al., ECCV 2018).

Every entry of a map is one entry of a mask. So both directions copy between views, one
row of pixels with masks at a time.
"""

from collections.abc import Iterator

from torch import Tensor


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Copy the masks of all pixels into maps at absolute positions.

    Args:
        input: The masks around the pixels,
            ``(batch, h_mask * w_mask, height, width)``.
        output: Buffer, ``(batch, height * width, height, width)``. Type 0 (collect)
            has the mask of a pixel along dimension 1, type 1 (distribute) along the
            last two.
        psa_type: 0 or 1.
        num_: The batch size.
        h_feature: The height of the features.
        w_feature: The width of the features.
        h_mask: The height of the masks.
        w_mask: The width of the masks.
        half_h_mask: The mask's row of the pixel itself.
        half_w_mask: The mask's column of the pixel itself.
    """
    masks = input.unflatten(1, (h_mask, w_mask))
    output.zero_()
    for mask, maps in _iterate_rows(masks, output, psa_type, half_h_mask):
        relative, absolute = _make_views(maps, w_mask, half_w_mask)
        relative.copy_(_cut(mask, half_w_mask))
        maps.copy_(absolute)


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Compute the gradient of :func:`psamask_forward`.

    Args:
        grad_output: ``(batch, height * width, height, width)``.
        grad_input: Buffer, ``(batch, h_mask * w_mask, height, width)``.
        psa_type: 0 or 1.
        num_: The batch size.
        h_feature: The height of the features.
        w_feature: The width of the features.
        h_mask: The height of the masks.
        w_mask: The width of the masks.
        half_h_mask: The mask's row of the pixel itself.
        half_w_mask: The mask's column of the pixel itself.
    """
    masks = grad_input.zero_().unflatten(1, (h_mask, w_mask))
    for mask, maps in _iterate_rows(masks, grad_output, psa_type, half_h_mask):
        relative, absolute = _make_views(maps, w_mask, half_w_mask)
        absolute.copy_(maps)
        _cut(mask, half_w_mask).copy_(relative)


def _iterate_rows(
    masks: Tensor, maps: Tensor, psa_type: int, half_h_mask: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the masks of a row of pixels and their part of the maps.

    Args:
        masks: ``(batch, h_mask, w_mask, height, width)``.
        maps: ``(batch, height * width, height, width)``.
        psa_type: 0 or 1.
        half_h_mask: The mask's row of the pixel itself.

    Yields:
        Views of the masks' rows within the map, ``(batch, rows, width, w_mask)``, and
        of the rows of the map, ``(batch, rows, width, width)``. The last dimension
        is that of the mask.
    """
    h_mask, (height, width) = masks.shape[1], maps.shape[2:]
    maps = maps.unflatten(1, (height, width))
    if psa_type == 0:
        maps = maps.permute(0, 3, 4, 1, 2)  # the pixel with the mask comes first
    for row in range(height):
        shift = half_h_mask - row
        first, last = max(0, -shift), min(height, h_mask - shift)
        mask = masks[:, first + shift : last + shift, :, row]
        yield mask.transpose(2, 3), maps[:, row, :, first:last].transpose(1, 2)


def _cut(mask: Tensor, half_w_mask: int) -> Tensor:
    """Return the columns of masks that can lie within a map.

    Args:
        mask: ``(batch, rows, width, w_mask)``.
        half_w_mask: The mask's column of the pixel itself.
    """
    width = mask.shape[2]
    return mask[..., max(0, half_w_mask - width + 1) : half_w_mask + width]


def _make_views(maps: Tensor, w_mask: int, half_w_mask: int) -> tuple[Tensor, Tensor]:
    """Return two views of new zeros, by places in the mask and by places in the map.

    The rows of the memory have ``2 * width`` numbers, with that of the pixel itself at
    ``width - 1``. Read with rows that are one number shorter, every row begins one
    number further to the left than the last one, as the map does.

    Args:
        maps: ``(batch, rows, width, width)``.
        w_mask: The width of the masks.
        half_w_mask: The mask's column of the pixel itself.

    Returns:
        ``(batch, rows, width, columns of the mask)`` as :func:`_cut` has them, and
        ``(batch, rows, width, width)``.
    """
    width = maps.shape[3]
    memory = maps.new_zeros(*maps.shape[:3], 2 * width)
    first = max(0, width - 1 - half_w_mask)
    last = min(2 * width - 1, width - 1 - half_w_mask + w_mask)
    shorter = memory.flatten(2)[..., width - 1 : -1]
    absolute = shorter.unflatten(2, (width, 2 * width - 1))[..., :width]
    return memory[..., first:last], absolute
