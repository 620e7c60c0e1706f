"""RALA on a GPU: custom operators of PyTorch around the Triton kernels.

The backward pass computes feature map, rotation and weights of the tokens again. Beside
q, k, v and y the forward pass keeps S, m, the sum of phi(q) and the normalizer of the
weights.
"""

import functools
from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gpu import capability
from ..launch import (
    LARGEST_TILE,
    LAUNCH_OPTIONS,
    MAX_SPLITS,
    divide_tokens,
    empty_tokens,
    with_contiguous_channels,
)
from ..precision import autocast_off
from ..rotary.triton import rotary_table
from . import kernels, naive

# Splits and elements of a state that a program adds up at once.
MERGED = dict(STEP=16, BLOCK=128)


def supports(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """True if the kernels take these dtypes and this head dimension on this GPU."""
    dim = q.shape[-1]
    if not q.dtype == k.dtype == v.dtype or dim > 128 or dim % 4:
        return False
    return has_products(q.dtype, capability(q.device))


def has_products(dtype: torch.dtype, capability: tuple[int, int]) -> bool:
    """True if Triton compiles the products for a GPU.

    For capability 10 (B200), Triton 3.6 to 3.9 abort on some in float32 and TF32.
    """
    return dtype != torch.float32 or capability[0] != 10


def rala(
    q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], rope: bool, reweight: bool
) -> Tensor:
    """Compute :func:`ravlt.ops.rala.rala`.

    Joining the heads of the result is a view, as splitting those of q, k and v is.
    """
    return _forward(q, k, v, hw[0], hw[1], rope, reweight)[0]


@torch.library.custom_op("ravlt::rala", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height: int,
    width: int,
    rope: bool,
    reweight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y and, for the backward pass, states, normalizers and sums of phi(q)."""
    outputs = _empty_outputs(q, k, v, height, width, rope, reweight)
    y, state, log, query_sum = outputs
    q, k, v = map(with_contiguous_channels, (q, k, v))
    with torch.cuda.device_of(q):
        launch = Launcher(q, (height, width), rope, reweight)
        if reweight:
            query_sums = launch.empty_parts(query_sum)
            launch(kernels.query_sums, q, q.stride(), query_sums)
            launch.add(query_sums, query_sum)
        states, logs = launch.empty_parts(state), launch.empty_parts(log)
        launch(
            kernels.key_value_sums,
            *(k, k.stride(), v, v.stride(), query_sum, launch.table, states, logs),
        )
        launch.merge(states, logs, state, log)
        launch(kernels.outputs, q, q.stride(), state, launch.table, y, y.stride())
    return outputs


@_forward.register_fake
def _empty_outputs(q, k, v, height, width, rope, reweight):
    if not q.shape == k.shape == v.shape or q.shape[2] != height * width:
        raise ValueError(
            f"q, k and v have the shapes {tuple(q.shape)}, {tuple(k.shape)} and "
            f"{tuple(v.shape)}; all have to be (B, heads, {height * width}, d)."
        )
    heads, padded = q.shape[0] * q.shape[1], _padded(q.shape[-1])
    state, log, query_sum = (
        q.new_empty(heads, *shape, dtype=torch.float32)
        for shape in ((padded + 1, padded), (), (padded if reweight else 0,))
    )
    return empty_tokens(v), state, log, query_sum


@torch.library.custom_op("ravlt::rala_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    state: Tensor,
    log: Tensor,
    query_sum: Tensor,
    height: int,
    width: int,
    rope: bool,
    reweight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    grad, q, k, v = map(with_contiguous_channels, (grad, q, k, v))
    q_grad, k_grad, v_grad = (empty_tokens(t) for t in (q, k, v))
    state_grad, g_grad = torch.empty_like(state), torch.empty_like(query_sum)
    with torch.cuda.device_of(q):
        launch = Launcher(q, (height, width), rope, reweight)
        queries = (q, q.stride(), grad, grad.stride(), state, launch.table)
        state_grads = launch.empty_parts(state_grad)
        launch(kernels.state_gradients, *queries, y, y.stride(), state_grads)
        launch.add(state_grads, state_grad)
        g_grads = launch.empty_parts(g_grad)
        launch(
            kernels.key_value_gradients,
            *(k, k.stride(), v, v.stride(), state, state_grad, log, query_sum),
            *(launch.table, k_grad, v_grad, v_grad.stride(), g_grads),
        )
        launch.add(g_grads, g_grad)
        launch(kernels.query_gradients, *queries, g_grad, q_grad, q_grad.stride())
    return q_grad, k_grad, v_grad


@_backward.register_fake
def _(grad, q, k, v, y, state, log, query_sum, height, width, rope, reweight):
    return tuple(empty_tokens(t) for t in (q, k, v))


def _keep_for_backward(ctx, inputs, output) -> None:
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, *_):
    *inputs, y, state, log, query_sum = ctx.saved_tensors
    if torch.is_grad_enabled():  # for derivatives of higher order
        return *_differentiate_plainly(ctx, grad, inputs), None, None, None, None
    kept = (y, state, log, query_sum)
    return *_backward(grad, *inputs, *kept, *ctx.options), None, None, None, None


def _differentiate_plainly(ctx, grad: Tensor, inputs: list[Tensor]) -> Iterator:
    height, width, rope, reweight = ctx.options
    wanted = [x for x in inputs if x.requires_grad]
    with autocast_off(grad):
        y = naive.rala(*inputs, (height, width), rope, reweight)
        grads = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return (next(grads) if x.requires_grad else None for x in inputs)


_forward.register_autograd(_differentiate, setup_context=_keep_for_backward)


class Launcher:
    """Launches kernels with one program for each split of each head.

    Args:
        q: Queries of shape (B, heads, N, d).
        hw: Height and width of the grid.
        rope: Whether to rotate.
        reweight: Whether to weigh the keys by the global query.

    Attributes:
        table: Angles of the rotation; None without it.
    """

    def __init__(
        self, q: Tensor, hw: tuple[int, int], rope: bool, reweight: bool
    ) -> None:
        batch, num_heads, num_tokens, dim = q.shape
        self.heads, self.dtype = batch * num_heads, q.dtype
        self.capability = capability(q.device)
        self.splits, split_tokens = divide_tokens(self.heads, num_tokens, q.device)
        self.table = rotary_table(max(hw), dim, q.device) if rope else None
        self.arguments = dict(
            num_heads=num_heads,
            num_tokens=num_tokens,
            split_tokens=split_tokens,
            width=hw[1],
            rotation_size=max(hw),
            ROPE=rope,
            REWEIGHT=reweight,
            D=dim,
            DP=_padded(dim),
        )

    def empty_parts(self, total: Tensor) -> Tensor:
        """Allocate (heads, splits, ...) for parts of ``total``, (heads, ...).

        A single split writes into ``total`` itself.
        """
        if self.splits == 1:
            return total.unsqueeze(1)
        return total.new_empty(self.heads, self.splits, *total.shape[1:])

    def __call__(self, kernel: Callable, *tensors) -> None:
        """Launch a kernel on these tensors; it gets the other arguments it names."""
        tiles = tile_options(kernel, self.arguments["DP"], self.dtype, self.capability)
        given = self.arguments | tiles
        names = (*kernel.arg_names, "num_warps", "num_stages")
        options = {name: given[name] for name in names if name in given}
        kernel[(self.heads, self.splits)](*tensors, **options, **LAUNCH_OPTIONS)

    def add(self, parts: Tensor, total: Tensor) -> None:
        """Add up the parts of all splits."""
        if self.splits > 1:
            torch.sum(parts, 1, out=total)

    def merge(self, states: Tensor, logs: Tensor, state: Tensor, log: Tensor) -> None:
        """Add up the states of all splits, weighed by the softmax of their logs."""
        if self.splits == 1:
            return
        parts = triton.cdiv(state[0].numel(), MERGED["BLOCK"]) if len(state) else 0
        kernels.merge_states[(self.heads, parts)](
            *(states, logs, state, log, self.splits),
            MAX_SPLITS=MAX_SPLITS,
            DP=self.arguments["DP"],
            **MERGED,
            **LAUNCH_OPTIONS,
        )


@functools.cache  # every launch asks
def tile_options(
    kernel: Callable, padded: int, dtype: torch.dtype, capability: tuple[int, int]
) -> dict:
    """Choose the tokens of a tile, warps, pipeline stages and precision of a kernel.

    bfloat16 is multiplied as it is; float16 as TF32, which is as precise and does not
    overflow, or else as bfloat16; float32 as three products of TF32. Tiles are as large
    as fits without spilled registers into 99 KiB of shared memory, which all these GPUs
    have.

    Args:
        kernel: One of those that read tokens.
        padded: Head dimension, padded.
        dtype: Of the tokens.
        capability: Of the GPU.
    """
    is_large = padded > 64
    # Splits are multiples of the largest tile: a tile must not reach into the next.
    tokens, warps, stages = LARGEST_TILE, 8 if is_large else 4, 2
    operand, precision = tl.bfloat16, "ieee"
    if dtype == torch.float16:
        # Two matrices of 128 x 128 in float32 would not fit.
        fits = not (is_large and kernel is kernels.key_value_gradients)
        if fits and has_products(torch.float32, capability):
            operand, precision, stages = tl.float32, "tf32", 1 if is_large else 2
    elif dtype == torch.float32:
        operand, precision, warps, stages = tl.float32, "tf32x3", 8, 1
        if is_large:
            precision, tokens, warps = "ieee", 16, 16
    if is_large and kernel is kernels.key_value_gradients:
        stages = 1
    return dict(
        BLOCK=tokens,
        OPERAND=operand,
        PRECISION=precision,
        num_warps=warps,
        num_stages=stages,
    )


def _padded(dim: int) -> int:
    return max(triton.next_power_of_2(dim), 16)  # products need 16
