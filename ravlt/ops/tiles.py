"""Functions that the Triton kernels share: tiles of tokens, and the feature map.

A tile holds BLOCK tokens of one head of a (B, heads, N, D) tensor, whose channels are
contiguous. D is padded to DP, a power of two. Heads of all images are counted through.
"""

import triton
import triton.language as tl


@triton.jit
def tile_mask(
    start, num_tokens, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """True for the elements of a tile that the tensor has, (BLOCK, DP)."""
    token, channel = tl.arange(0, BLOCK), tl.arange(0, DP)
    return (start + token < num_tokens)[:, None] & (channel < D)[None, :]


@triton.jit
def tile_pointers(
    x_ptr, strides, head, num_heads, start, DP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Point to the elements of the tile that begins at token ``start``."""
    # Offsets within a tile fit into 32 bits, those within a tensor may not.
    x_ptr += (head // num_heads).to(tl.int64) * strides[0]
    x_ptr += (head % num_heads).to(tl.int64) * strides[1]
    x_ptr += tl.full((), start, tl.int64) * strides[2]
    token, channel = tl.arange(0, BLOCK), tl.arange(0, DP)
    return x_ptr + token[:, None] * strides[2] + channel[None, :]


@triton.jit
def load_tile(
    x_ptr, strides, head, num_heads, start, mask, DP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Load a tile; padding is 0."""
    x = tile_pointers(x_ptr, strides, head, num_heads, start, DP, BLOCK)
    return tl.load(x, mask, other=0.0)


@triton.jit
def store_tile(
    x_ptr, strides, head, num_heads, start, mask, tile,
    DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a tile without its padding, in the dtype of the tensor."""
    tl.store(
        tile_pointers(x_ptr, strides, head, num_heads, start, DP, BLOCK), tile, mask
    )


@triton.jit
def elu1(x, mask):
    """Apply elu + 1 in float32; padding becomes 0, and NaN stays NaN."""
    x = x.to(tl.float32)
    below = tl.exp(tl.where(x > 0, 0.0, x))
    return tl.where(mask, tl.where(x >= 0, x + 1, below), 0.0)


@triton.jit
def product(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Multiply matrices in a given precision; sum in float32."""
    return tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision=PRECISION)
