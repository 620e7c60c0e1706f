"""RALA as Triton kernels, which :mod:`ravlt.ops.rala.triton` launches.

The tokens of a head are divided into splits, so that one head of a large image fills
the GPU. A program reads the tokens of one split tile by tile, where the projection left
them, and sums in float32; another kernel adds up the splits.

The state of a head, (DP + 1, DP), holds S and, in its last row, m (see
:func:`ravlt.ops.rala.rala`); its gradient likewise.
"""

import triton
import triton.language as tl

from ..rotary.kernels import load_rotation, rotate_pairs, rotate_tile
from ..tiles import elu1, load_tile, product, store_tile, tile_mask

# One compiled kernel for images of all sizes.
jit = triton.jit(
    do_not_specialize=[
        "num_heads", "num_tokens", "split_tokens", "splits", "width", "rotation_size"
    ]
)  # fmt: skip


@jit
def query_sums(
    q_ptr, q_strides, sums_ptr,
    num_heads, num_tokens, split_tokens,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum phi(q) over the tokens of each split, (heads, splits, DP)."""
    head, split = tl.program_id(0), tl.program_id(1)
    total = tl.zeros((BLOCK, DP), tl.float32)
    first = split * split_tokens
    stop = tl.minimum(first + split_tokens, num_tokens)
    # Triton pipelines loops without products only if they say so.
    for start in tl.range(first, stop, BLOCK, num_stages=4):
        mask = tile_mask(start, num_tokens, D, DP, BLOCK)
        q = load_tile(q_ptr, q_strides, head, num_heads, start, mask, DP, BLOCK)
        total += elu1(q, mask)
    store_split(sums_ptr, head, split, tl.sum(total, 0), DP)


@jit
def key_value_sums(
    k_ptr, k_strides, v_ptr, v_strides, query_sum_ptr, table_ptr,
    states_ptr, logs_ptr,
    num_heads, num_tokens, split_tokens, width, rotation_size,
    ROPE: tl.constexpr, REWEIGHT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the state of each split, with weights of its tokens that sum to 1.

    Also writes the logarithm of the sum of exp(logit) over the split, by which
    :func:`merge_states` weighs it. Plain linear attention has logits of 0.
    """
    head, split = tl.program_id(0), tl.program_id(1)
    if REWEIGHT:
        g = load_mean(query_sum_ptr, head, num_tokens, D, DP)
    top = tl.full((), float("-inf") if REWEIGHT else 0.0, tl.float32)
    weights = tl.zeros((BLOCK,), tl.float32)
    key_sum = tl.zeros((BLOCK, DP), tl.float32)
    buffer = tl.zeros((DP, DP), tl.float32)
    first = split * split_tokens
    for start in range(first, tl.minimum(first + split_tokens, num_tokens), BLOCK):
        mask = tile_mask(start, num_tokens, D, DP, BLOCK)
        k = load_tile(k_ptr, k_strides, head, num_heads, start, mask, DP, BLOCK)
        v = load_tile(v_ptr, v_strides, head, num_heads, start, mask, DP, BLOCK)
        key = elu1(k, mask)
        exists = start + tl.arange(0, BLOCK) < num_tokens
        if REWEIGHT:
            logit = tl.where(exists, tl.sum(key * g[None, :], 1), float("-inf"))
            new_top = tl.maximum(top, tl.max(logit, 0))
            weight = tl.exp(logit - new_top)
            shrink = tl.exp(top - new_top)
            top = new_top
            weights *= shrink
            key_sum *= shrink
            buffer *= shrink
        else:
            weight = tl.where(exists, 1.0, 0.0)
        weights += weight
        key *= weight[:, None]
        key_sum += key
        if ROPE:
            key = rotate_tile(
                key, table_ptr, rotation_size, start, width, num_tokens,
                False, D, DP, BLOCK,
            )  # fmt: skip
        buffer += product(tl.trans(key), v, OPERAND, PRECISION)
    total = tl.sum(weights, 0)
    tl.store(logs_ptr + head * tl.num_programs(1) + split, top + tl.log(total))
    store_state(states_ptr, head, split, buffer / total, tl.sum(key_sum, 0) / total, DP)


@jit
def merge_states(
    states_ptr, logs_ptr, state_ptr, log_ptr, splits,
    MAX_SPLITS: tl.constexpr, STEP: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the states of a head's splits, weighed by the softmax of their logs."""
    head, part = tl.program_id(0), tl.program_id(1)
    logs_ptr += head * splits
    every = tl.arange(0, MAX_SPLITS)
    logs = tl.load(logs_ptr + every, every < splits, other=float("-inf"))
    top = tl.max(logs, 0)
    total = top + tl.log(tl.sum(tl.exp(logs - top), 0))
    if part == 0:
        tl.store(log_ptr + head, total)
    size: tl.constexpr = (DP + 1) * DP
    entry = part * BLOCK + tl.arange(0, BLOCK)
    merged = tl.zeros((STEP, BLOCK), tl.float32)
    for first in range(0, splits, STEP):
        split = first + tl.arange(0, STEP)
        log = tl.load(logs_ptr + split, split < splits, other=float("-inf"))
        row = (head * splits + split).to(tl.int64)
        mask = (split < splits)[:, None] & (entry < size)[None, :]
        entries = states_ptr + row[:, None] * size + entry[None, :]
        merged += tl.load(entries, mask, other=0.0) * tl.exp(log - total)[:, None]
    state_ptr += head.to(tl.int64) * size
    tl.store(state_ptr + entry, tl.sum(merged, 0), mask=entry < size)


@jit
def outputs(
    q_ptr, q_strides, state_ptr, table_ptr, y_ptr, y_strides,
    num_heads, num_tokens, split_tokens, width, rotation_size,
    ROPE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute (R phi(q))^T S / (<phi(q), m> + 1e-6)."""
    head, split = tl.program_id(0), tl.program_id(1)
    buffer = load_buffer(state_ptr, head, DP)
    key_sum = load_key_sum(state_ptr, head, DP)
    first = split * split_tokens
    for start in range(first, tl.minimum(first + split_tokens, num_tokens), BLOCK):
        mask = tile_mask(start, num_tokens, D, DP, BLOCK)
        query, denominator = load_queries(
            q_ptr, q_strides, key_sum, head, num_heads, start, mask, DP, BLOCK
        )
        if ROPE:
            query = rotate_tile(
                query, table_ptr, rotation_size, start, width, num_tokens,
                False, D, DP, BLOCK,
            )  # fmt: skip
        y = product(query, buffer, OPERAND, PRECISION) / denominator[:, None]
        store_tile(y_ptr, y_strides, head, num_heads, start, mask, y, DP, BLOCK)


@jit
def state_gradients(
    q_ptr, q_strides, grad_ptr, grad_strides, state_ptr, table_ptr,
    y_ptr, y_strides, state_grads_ptr,
    num_heads, num_tokens, split_tokens, width, rotation_size,
    ROPE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of S and m over the tokens of each split."""
    head, split = tl.program_id(0), tl.program_id(1)
    key_sum = load_key_sum(state_ptr, head, DP)
    key_sum_grad = tl.zeros((BLOCK, DP), tl.float32)
    buffer_grad = tl.zeros((DP, DP), tl.float32)
    first = split * split_tokens
    for start in range(first, tl.minimum(first + split_tokens, num_tokens), BLOCK):
        mask = tile_mask(start, num_tokens, D, DP, BLOCK)
        y = load_tile(y_ptr, y_strides, head, num_heads, start, mask, DP, BLOCK)
        grad = load_tile(
            grad_ptr, grad_strides, head, num_heads, start, mask, DP, BLOCK
        )
        query, denominator = load_queries(
            q_ptr, q_strides, key_sum, head, num_heads, start, mask, DP, BLOCK
        )
        grad = grad.to(tl.float32) / denominator[:, None]
        key_sum_grad -= query * tl.sum(y.to(tl.float32) * grad, 1)[:, None]
        if ROPE:
            query = rotate_tile(
                query, table_ptr, rotation_size, start, width, num_tokens,
                False, D, DP, BLOCK,
            )  # fmt: skip
        buffer_grad += product(tl.trans(query), grad, OPERAND, PRECISION)
    store_state(state_grads_ptr, head, split, buffer_grad, tl.sum(key_sum_grad, 0), DP)


@jit
def key_value_gradients(
    k_ptr, k_strides, v_ptr, v_strides, state_ptr, state_grad_ptr, log_ptr,
    query_sum_ptr, table_ptr, k_grad_ptr, v_grad_ptr, grad_strides, g_grads_ptr,
    num_heads, num_tokens, split_tokens, width, rotation_size,
    ROPE: tl.constexpr, REWEIGHT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of k and v, and sum that of g over each split."""
    head, split = tl.program_id(0), tl.program_id(1)
    buffer_grad = load_buffer(state_grad_ptr, head, DP)
    key_sum_grad = load_key_sum(state_grad_ptr, head, DP)
    buffer_grad_t = tl.trans(buffer_grad)
    if REWEIGHT:
        g = load_mean(query_sum_ptr, head, num_tokens, D, DP)
        log = tl.load(log_ptr + head)
        # The weighted mean of the weights' gradients, without a pass over the tokens.
        buffer = load_buffer(state_ptr, head, DP)
        key_sum = load_key_sum(state_ptr, head, DP)
        mean_grad = tl.sum(tl.sum(buffer * buffer_grad, 1), 0)
        mean_grad += tl.sum(key_sum * key_sum_grad, 0)
    g_grad = tl.zeros((BLOCK, DP), tl.float32)
    first = split * split_tokens
    for start in range(first, tl.minimum(first + split_tokens, num_tokens), BLOCK):
        mask = tile_mask(start, num_tokens, D, DP, BLOCK)
        k = load_tile(k_ptr, k_strides, head, num_heads, start, mask, DP, BLOCK)
        v = load_tile(v_ptr, v_strides, head, num_heads, start, mask, DP, BLOCK)
        key = elu1(k, mask)
        rotated = key
        # Gradients for a token of weight 1 come first.
        key_grad = product(v, buffer_grad_t, OPERAND, PRECISION)
        if ROPE:
            cos, sin = load_rotation(
                table_ptr, rotation_size, start, width, num_tokens, D, DP, BLOCK
            )
            rotated = rotate_pairs(key, cos, sin, DP, BLOCK)
            key_grad = rotate_pairs(key_grad, cos, -sin, DP, BLOCK)
        key_grad += key_sum_grad[None, :]
        value_grad = product(rotated, buffer_grad, OPERAND, PRECISION)
        if REWEIGHT:
            weight = tl.exp(tl.sum(key * g[None, :], 1) - log)
            logit_grad = weight * (tl.sum(key * key_grad, 1) - mean_grad)
            g_grad += key * logit_grad[:, None]
            key_grad = key_grad * weight[:, None] + logit_grad[:, None] * g[None, :]
            value_grad *= weight[:, None]
        else:
            key_grad /= num_tokens
            value_grad /= num_tokens
        key_grad *= tl.minimum(key, 1.0)
        store_tile(
            k_grad_ptr, grad_strides, head, num_heads, start, mask, key_grad, DP, BLOCK
        )
        store_tile(
            v_grad_ptr, grad_strides, head, num_heads, start, mask, value_grad,
            DP, BLOCK,
        )  # fmt: skip
    if REWEIGHT:
        store_split(g_grads_ptr, head, split, tl.sum(g_grad, 0), DP)


@jit
def query_gradients(
    q_ptr, q_strides, grad_ptr, grad_strides, state_ptr, table_ptr,
    g_grad_ptr, q_grad_ptr, q_grad_strides,
    num_heads, num_tokens, split_tokens, width, rotation_size,
    ROPE: tl.constexpr, REWEIGHT: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of q."""
    head, split = tl.program_id(0), tl.program_id(1)
    buffer = load_buffer(state_ptr, head, DP)
    key_sum = load_key_sum(state_ptr, head, DP)
    buffer_t = tl.trans(buffer)
    if REWEIGHT:
        mean_grad = load_mean(g_grad_ptr, head, num_tokens, D, DP)
    first = split * split_tokens
    for start in range(first, tl.minimum(first + split_tokens, num_tokens), BLOCK):
        mask = tile_mask(start, num_tokens, D, DP, BLOCK)
        grad = load_tile(
            grad_ptr, grad_strides, head, num_heads, start, mask, DP, BLOCK
        )
        query, denominator = load_queries(
            q_ptr, q_strides, key_sum, head, num_heads, start, mask, DP, BLOCK
        )
        grad = grad.to(tl.float32) / denominator[:, None]
        query_grad = product(grad, buffer_t, OPERAND, PRECISION)
        if ROPE:
            query_grad = rotate_tile(
                query_grad, table_ptr, rotation_size, start, width, num_tokens,
                True, D, DP, BLOCK,
            )  # fmt: skip
        denominator_grad = -tl.sum(query * query_grad, 1) / denominator
        query_grad += denominator_grad[:, None] * key_sum[None, :]
        if REWEIGHT:
            query_grad += mean_grad[None, :]
        query_grad *= tl.minimum(query, 1.0)
        store_tile(
            q_grad_ptr, q_grad_strides, head, num_heads, start, mask, query_grad,
            DP, BLOCK,
        )  # fmt: skip


@triton.jit
def load_queries(
    q_ptr, q_strides, key_sum, head, num_heads, start, mask,
    DP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load phi(q) of a tile, and its denominators <phi(q), m> + 1e-6."""
    q = load_tile(q_ptr, q_strides, head, num_heads, start, mask, DP, BLOCK)
    query = elu1(q, mask)
    return query, tl.sum(query * key_sum[None, :], 1) + 1e-6


@triton.jit
def store_split(sums_ptr, head, split, vector, DP: tl.constexpr):
    """Store the sum of a split in (heads, splits, DP)."""
    row = (head * tl.num_programs(1) + split).to(tl.int64)
    tl.store(sums_ptr + row * DP + tl.arange(0, DP), vector)


@triton.jit
def load_mean(sum_ptr, head, num_tokens, D: tl.constexpr, DP: tl.constexpr):
    """Load a sum over the tokens, (heads, DP), divided by N sqrt(D)."""
    total = tl.load(sum_ptr + head * DP + tl.arange(0, DP))
    return total / (num_tokens * tl.sqrt(D * 1.0))


@triton.jit
def store_state(states_ptr, head, split, matrix, vector, DP: tl.constexpr):
    """Store the state of a split, or its gradient."""
    row = (head * tl.num_programs(1) + split).to(tl.int64)
    state_ptr, channel = states_ptr + row * (DP + 1) * DP, tl.arange(0, DP)
    tl.store(state_ptr + channel[:, None] * DP + channel[None, :], matrix)
    tl.store(state_ptr + DP * DP + channel, vector)


@triton.jit
def load_buffer(state_ptr, head, DP: tl.constexpr):
    """Load S of a head, (DP, DP), or its gradient."""
    channel = tl.arange(0, DP)
    state_ptr += head.to(tl.int64) * (DP + 1) * DP
    return tl.load(state_ptr + channel[:, None] * DP + channel[None, :])


@triton.jit
def load_key_sum(state_ptr, head, DP: tl.constexpr):
    """Load m of a head, (DP,), or its gradient."""
    row = head.to(tl.int64) * (DP + 1) + DP
    return tl.load(state_ptr + row * DP + tl.arange(0, DP))
