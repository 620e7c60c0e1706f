"""Depthwise convolution of channels-last tokens as Triton kernels.

A program handles tiles of TILE x TILE tokens and BLOCK of their channels. The windows
of neighbouring tokens overlap; the cache serves what is read again. Channels of the
input are contiguous, everything else goes by strides.
"""

import triton
import triton.language as tl

jit = triton.jit(do_not_specialize=["height", "width", "tiles", "tiles_of_program"])


@triton.jit
def locate(tile, height, width, TILE: tl.constexpr):
    """Return image, rows and columns of the tokens of a tile, numbered row by row."""
    down, across = tl.cdiv(height, TILE), tl.cdiv(width, TILE)
    token = tl.arange(0, TILE * TILE)
    row = tile // across % down * TILE + token // TILE
    col = tile % across * TILE + token % TILE
    return tile // (across * down), row, col


@triton.jit
def offsets(strides, image, row, col):
    """Compute the offsets of tokens in a (B, H, W, C) tensor."""
    start = tl.full((), image, tl.int64) * strides[0]
    return start + row.to(tl.int64) * strides[1] + col * strides[2]


@jit
def convolution(
    x_ptr, x_strides, taps_ptr, bias_ptr, y_ptr, y_strides, height, width,
    FLIP: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr, SIZE: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Convolve by taps (SIZE * SIZE, C).

    FLIP turns the kernels by 180 degrees, which gives the gradient of the input.
    """
    # Programs for the channels of a tile follow each other, since they share its rows.
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    image, row, col = locate(tl.program_id(0) // blocks, height, width, TILE)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    exists = channel < C
    total = tl.zeros((TILE * TILE, BLOCK), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, exists, other=0.0)
        total += bias.to(tl.float32)[None, :]
    for i in tl.static_range(SIZE):
        for j in tl.static_range(SIZE):
            y, x = row + (i - SIZE // 2), col + (j - SIZE // 2)
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            entries = x_ptr + offsets(x_strides, image, y, x)[:, None] + channel
            value = tl.load(entries, inside[:, None] & exists, other=0.0).to(tl.float32)
            tap = i * SIZE + j
            if FLIP:
                tap = SIZE * SIZE - 1 - tap
            weight = tl.load(taps_ptr + tap * C + channel, exists, other=0.0)
            weight = weight.to(tl.float32)
            if RESIDUAL and i == SIZE // 2 and j == SIZE // 2:
                weight += 1.0
            total += value * weight
    entries = y_ptr + offsets(y_strides, image, row, col)[:, None] + channel
    mask = ((row < height) & (col < width))[:, None] & exists
    tl.store(entries, total, mask)


@jit
def weight_gradients(
    x_ptr, x_strides, grad_ptr, grad_strides, sums_ptr,
    height, width, tiles, tiles_of_program,
    C: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of one row of every kernel over some tiles.

    The result, (programs, SIZE, SIZE, C), has to be summed over the programs.
    """
    program, i = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    j = tl.arange(0, PADDED)[:, None, None]
    total = tl.zeros((PADDED, TILE * TILE, BLOCK), tl.float32)
    first = program * tiles_of_program
    stop = tl.minimum(first + tiles_of_program, tiles)
    for tile in tl.range(first, stop, num_stages=3):
        image, row, col = locate(tile, height, width, TILE)
        row, col = row[None, :, None], col[None, :, None]
        mask = (row < height) & (col < width) & (channel < C)
        entries = grad_ptr + offsets(grad_strides, image, row, col) + channel
        grad = tl.load(entries, mask, other=0.0).to(tl.float32)
        y, x = row + (i - SIZE // 2), col + (j - SIZE // 2)
        mask = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        mask = mask & (j < SIZE) & (channel < C)
        entries = x_ptr + offsets(x_strides, image, y, x) + channel
        total += tl.load(entries, mask, other=0.0).to(tl.float32) * grad
    row_of_sums = sums_ptr + ((program * SIZE + i) * SIZE + j) * C + channel
    mask = (j < SIZE) & (channel < C)
    tl.store(row_of_sums, tl.sum(total, 1, keep_dims=True), mask)
