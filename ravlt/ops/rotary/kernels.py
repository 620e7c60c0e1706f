"""The rotation as Triton kernels, and for other kernels to call."""

import triton
import triton.language as tl

from ..tiles import load_tile, store_tile, tile_mask


@triton.jit(do_not_specialize=["size"])
def rotary_table(
    table_ptr, size, COUNT: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write cos and sin of positions times frequencies, (2, size, COUNT).

    The frequencies are those of :func:`ravlt.ops.rotary.rotary_frequencies`.
    """
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    number = tl.arange(0, PADDED)[None, :]
    last: tl.constexpr = COUNT - 1 if COUNT > 1 else 1
    angle = position * tl.exp(number * (-9.210340371976184 / last))  # ln 10000
    entry = table_ptr + position * COUNT + number
    mask = (position < size) & (number < COUNT)
    tl.store(entry, tl.cos(angle), mask)
    tl.store(entry + size * COUNT, tl.sin(angle), mask)


@triton.jit
def load_rotation(
    table_ptr, size, start, width, num_tokens,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load cos and sin for all pairs of features of a tile, each (BLOCK, DP / 2)."""
    token = start + tl.arange(0, BLOCK)[:, None]
    pair = tl.arange(0, DP // 2)[None, :]
    is_row = pair < D // 4
    position = tl.where(is_row, token // width, token % width)
    number = tl.where(is_row, pair, pair - D // 4)
    entry = table_ptr + position * (D // 4) + number
    mask = (token < num_tokens) & (pair < D // 2)
    cos = tl.load(entry, mask, other=0.0)
    sin = tl.load(entry + size * (D // 4), mask, other=0.0)
    return cos, sin


@triton.jit
def rotate_pairs(x, cos, sin, DP: tl.constexpr, BLOCK: tl.constexpr):
    """Rotate a tile (BLOCK, DP); the negative of ``sin`` rotates it back."""
    # Tiles are loaded by whole rows and then taken apart: loads of every second element
    # waste half of the bandwidth.
    a, b = tl.split(tl.reshape(x, (BLOCK, DP // 2, 2)))
    rotated = tl.join(a * cos - b * sin, b * cos + a * sin)
    return tl.reshape(rotated, (BLOCK, DP))


@triton.jit
def rotate_tile(
    x, table_ptr, size, start, width, num_tokens,
    INVERSE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rotate a tile (BLOCK, DP) by its tokens' positions, or rotate it back."""
    cos, sin = load_rotation(table_ptr, size, start, width, num_tokens, D, DP, BLOCK)
    if INVERSE:
        sin = -sin
    return rotate_pairs(x, cos, sin, DP, BLOCK)


@triton.jit(do_not_specialize=["num_heads", "num_tokens", "width", "size"])
def rotate_tiles(
    x_ptr, x_strides, table_ptr, y_ptr, y_strides,
    num_heads, num_tokens, width, size, INVERSE: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rotate the tokens of all heads, or rotate them back."""
    start, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    mask = tile_mask(start, num_tokens, D, DP, BLOCK)
    x = load_tile(x_ptr, x_strides, head, num_heads, start, mask, DP, BLOCK)
    x = x.to(tl.float32)
    y = rotate_tile(x, table_ptr, size, start, width, num_tokens, INVERSE, D, DP, BLOCK)
    store_tile(y_ptr, y_strides, head, num_heads, start, mask, y, DP, BLOCK)
