"""Ranks of attention: spectra of KV buffers and outputs, entropy and sums of rows.

Shapes: B images, N tokens, heads of d channels, C channels in all. A spectrum holds the
singular values in descending order.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ravlt.errors import RAVLTError
from ravlt.models.attention import AttentionCore, LinearCore, RALACore
from ravlt.models.ravlt import GatedAttention

# Thresholds of the numerical rank, relative to the largest singular value. Layers
# compute in float32, whose rounding error is about 1e-6 of the largest.
TOLERANCES = (1e-2, 1e-3, 1e-4)


def singular_values(x: Tensor) -> Tensor:
    """Compute the spectra of matrices in float64.

    Args:
        x: Matrices of shape (..., rows, columns).

    Returns:
        A tensor of shape (..., min(rows, columns)). It is NaN for a matrix with NaN or
        Inf, because a measurement must not stop a training run.
    """
    x = x.detach().double()
    finite = x.isfinite().all(-1).all(-1)
    x = torch.where(finite[..., None, None], x, 0.0)
    if x.shape[-2] < x.shape[-1]:
        x = x.transpose(-2, -1)
    # x usually has many more rows (tokens) than columns. The factor R of its QR
    # decomposition has the same singular values and is only (columns, columns).
    values = torch.linalg.svdvals(torch.linalg.qr(x, mode="r").R)
    return torch.where(finite[..., None], values, torch.nan)


def effective_rank(spectra: Tensor) -> Tensor:
    """Compute exp of the entropy of p_i = s_i / sum_j s_j.

    This is the effective rank of Roy and Vetterli (EUSIPCO 2007).

    Args:
        spectra: Singular values of shape (..., r).

    Returns:
        A tensor of shape (...), between 1 and r; 0 for matrices of zeros.
    """
    total = spectra.sum(-1, keepdim=True)
    shares = torch.where(total == 0, 0.0, spectra / total)
    return _entropy(shares).exp() * (total[..., 0] != 0)


def numerical_rank(spectra: Tensor, tolerance: float) -> Tensor:
    """Count the singular values above a fraction of the largest.

    Args:
        spectra: Singular values of shape (..., r), in descending order.
        tolerance: The fraction, between 0 and 1.

    Returns:
        Integers of shape (...).
    """
    return (spectra > tolerance * spectra[..., :1]).sum(-1)


def _entropy(shares: Tensor) -> Tensor:
    """Compute the entropy over the last axis, in nats; 0 log 0 is 0."""
    return -torch.xlogy(shares, shares).sum(-1)


@dataclass
class Call:
    """Intermediate results of one call of an attention layer.

    Attributes:
        layer: The layer.
        inputs: Arguments of its core: q, k and v of shape (B, heads, N, d), (H, W), and
            the layer's input if the mechanism needs it.
        mixed: Output of the core, (B, heads, N, d).
        local: LePE of the values, (B, heads, N, d).
        gate: The output gate, (B, heads, N, d).
    """

    layer: GatedAttention
    inputs: tuple
    mixed: Tensor
    local: Tensor
    gate: Tensor


@contextlib.contextmanager
def watch(model: nn.Module, visit: Callable[[str, Call], None]) -> Iterator[None]:
    """Return a context in which every call of a RAVLT attention layer is reported.

    Args:
        model: Any network that contains :class:`ravlt.models.GatedAttention`.
        visit: Function of the layer's name and its call, run without gradients. With
            ``with_cp`` a layer runs again in the backward pass and is reported again.

    Raises:
        RAVLTError: If the model has no such layer.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, GatedAttention)}
    if not layers:
        raise RAVLTError(
            f"{type(model).__name__} has no RAVLT attention layer to measure; give a "
            f"model with a RAVLT backbone, without profile='paper'."
        )
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            for handle in _listen(name, layer, visit):
                stack.callback(handle.remove)
        yield


def _listen(
    name: str, layer: GatedAttention, visit: Callable[[str, Call], None]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Register the hooks that collect a layer's :class:`Call`."""
    parts: dict = {}

    def core_called(_, inputs, output) -> None:
        parts["inputs"], parts["mixed"] = inputs, output

    def layer_called(*_) -> None:
        heads = {
            key: parts[key].detach().flatten(1, 2).unflatten(-1, (layer.num_heads, -1))
            for key in ("local", "gate")
        }
        local, gate = (heads[key].transpose(1, 2) for key in ("local", "gate"))
        with torch.no_grad():
            visit(name, Call(layer, parts["inputs"], parts["mixed"], local, gate))
        parts.clear()  # frees large tensors

    def lepe_called(_, inputs, output) -> None:
        parts["local"] = output

    def qkvo_called(_, inputs, output) -> None:
        parts["gate"] = output.chunk(4, dim=-1)[3]

    return [
        layer.qkvo.register_forward_hook(qkvo_called),
        layer.core.register_forward_hook(core_called),
        layer.lepe.register_forward_hook(lepe_called),
        layer.register_forward_hook(layer_called),
    ]


class Matrix(NamedTuple):
    """Identifier of a matrix of a layer.

    Attributes:
        kind: 'kv' is the KV buffer S = sum_j w_j phi(k_j) v_j^T; 'output' is the input
            of the last projection.
        alpha: True with RALA's token weights, False with 1 / N in their place, None if
            the mechanism has no token weights.
        lepe: Whether an output includes the local term; None for a KV buffer.
        gate: Whether an output is multiplied by the gate; None for a KV buffer.
    """

    kind: str
    alpha: bool | None
    lepe: bool | None = None
    gate: bool | None = None


class Spectra(NamedTuple):
    """Spectra of one matrix, for every image.

    Attributes:
        heads: Spectra of each head, (B, heads, r).
        all_heads: Spectra over all heads, (B, R). The outputs of all heads side by side
            form one (N, C) matrix. The KV buffers of all heads form one block-diagonal
            matrix, which maps all queries; its spectrum is the sorted union of theirs.
    """

    heads: Tensor
    all_heads: Tensor


def kv_spectra(call: Call) -> dict[Matrix, Spectra]:
    """Compute the spectra of a layer's KV buffers, with and without alpha.

    Args:
        call: The call of the layer.

    Returns:
        Spectra of each matrix; empty if the mechanism has no KV buffer.
    """
    found = {}
    for alpha, core in _cores(call.layer.core).items():
        if hasattr(core, "kv_buffer"):
            heads = singular_values(core.kv_buffer(*call.inputs))
            all_heads = heads.flatten(1).sort(-1, descending=True).values
            found[Matrix("kv", alpha)] = Spectra(heads, all_heads)
    return found


def output_spectra(call: Call) -> dict[Matrix, Spectra]:
    """Compute the spectra of a layer's outputs before the last projection.

    Args:
        call: The call of the layer.

    Returns:
        Spectra with and without alpha, LePE and gate, in every combination. With all
        three, the output is (core + LePE) * gate, as the layer computes it.
    """
    found = {}
    for alpha, core in _cores(call.layer.core).items():
        mixed = core(*call.inputs) if alpha is False else call.mixed
        for lepe in (False, True):
            summed = mixed + call.local if lepe else mixed
            for gate in (False, True):
                heads = summed * call.gate if gate else summed
                found[Matrix("output", alpha, lepe, gate)] = _spectra_of_output(heads)
    return found


def layer_ranks(call: Call) -> dict[str, float]:
    """Compute a layer's effective ranks over all heads, averaged over the images.

    Args:
        call: The call of the layer.

    Returns:
        Ranks of 'output', as the layer computes it, and of 'kv', if the mechanism has a
        KV buffer.
    """
    output = _spectra_of_output((call.mixed + call.local) * call.gate)
    ranks = {"output": effective_rank(output.all_heads).mean().item()}
    if hasattr(call.layer.core, "kv_buffer"):
        buffers = singular_values(call.layer.core.kv_buffer(*call.inputs))
        values = buffers.flatten(1)  # unsorted: the entropy ignores the order
        ranks["kv"] = effective_rank(values).mean().item()
    return ranks


def _spectra_of_output(heads: Tensor) -> Spectra:
    all_heads = heads.transpose(1, 2).flatten(2)
    return Spectra(singular_values(heads), singular_values(all_heads))


def _cores(core: AttentionCore) -> dict[bool | None, AttentionCore]:
    """Return the core with and without alpha; RALA without it is linear attention."""
    if not isinstance(core, RALACore):
        return {None: core}
    return {True: core, False: LinearCore(core.dim, core.num_heads, core.rope)}


class Rows(NamedTuple):
    """Rows of an attention matrix A, each of shape (B, heads, N).

    Attributes:
        entropy: Entropy of abs(A_ij) / sum_j abs(A_ij) in nats; log N for uniform
            weights. Absolute values, because RoPE makes some weights negative.
        sums: sum_j A_ij; 1 if outputs are averages of values.
    """

    entropy: Tensor
    sums: Tensor


def attention_rows(call: Call) -> dict[bool | None, Rows]:
    """Measure the rows of the explicit attention matrix, for small grids.

    Args:
        call: The call of the layer. Each matrix takes B x heads x N x N numbers.

    Returns:
        Rows with and without alpha, as in :class:`Matrix`.
    """
    found = {}
    for alpha, core in _cores(call.layer.core).items():
        weights = core.dense(*call.inputs)
        size = weights.abs()
        total = size.sum(-1, keepdim=True)
        shares = torch.where(total == 0, 0.0, size / total)
        found[alpha] = Rows(_entropy(shares), weights.sum(-1))
    return found


def row_sums(call: Call) -> dict[bool | None, Tensor]:
    """Compute row sums of linear attention and RALA in linear time, for any grid.

    Args:
        call: The call of the layer.

    Returns:
        Sums of shape (B, heads, N) with and without alpha; empty for other mechanisms.
    """
    q, k, v, *rest = call.inputs
    ones = torch.ones_like(v)
    return {
        alpha: core(q, k, ones, *rest)[..., 0]
        for alpha, core in _cores(call.layer.core).items()
        if isinstance(core, LinearCore)
    }
