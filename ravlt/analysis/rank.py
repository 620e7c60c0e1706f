"""Ranks of attention: spectra of KV buffers and outputs, entropy and sums of rows.

Shapes: B images, N tokens, heads of d channels, C channels in all. Spectra are singular
values in falling order.
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

# What a singular value must exceed to count, over the largest. Layers compute in
# float32, whose rounding is some 1e-6 of the largest.
TOLERANCES = (1e-2, 1e-3, 1e-4)


def singular_values(x: Tensor) -> Tensor:
    """Gives the spectra of matrices, computed in float64.

    Args:
        x: Matrices of shape (..., rows, columns).

    Returns:
        A tensor of shape (..., min(rows, columns)); NaN for a matrix that is not
        finite, of which training may make one without having to stop for this.
    """
    x = x.detach().double()
    finite = x.isfinite().all(-1).all(-1)
    x = torch.where(finite[..., None, None], x, 0.0)
    if x.shape[-2] < x.shape[-1]:
        x = x.transpose(-2, -1)
    # The triangle has the same singular values, and tokens are many.
    values = torch.linalg.svdvals(torch.linalg.qr(x, mode="r").R)
    return torch.where(finite[..., None], values, torch.nan)


def effective_rank(spectra: Tensor) -> Tensor:
    """exp of the entropy of p_i = s_i / sum_j s_j (Roy and Vetterli, EUSIPCO 2007).

    Args:
        spectra: Singular values of shape (..., r).

    Returns:
        A tensor of shape (...), between 1 and r; 0 for matrices of zeros.
    """
    total = spectra.sum(-1, keepdim=True)
    shares = torch.where(total == 0, 0.0, spectra / total)
    return _entropy(shares).exp() * (total[..., 0] != 0)


def numerical_rank(spectra: Tensor, tolerance: float) -> Tensor:
    """Counts singular values above a share of the largest.

    Args:
        spectra: Singular values of shape (..., r), falling.
        tolerance: The share, between 0 and 1.

    Returns:
        Whole numbers of shape (...).
    """
    return (spectra > tolerance * spectra[..., :1]).sum(-1)


def _entropy(shares: Tensor) -> Tensor:
    """In nats, over the last axis; 0 log 0 is 0."""
    return -torch.xlogy(shares, shares).sum(-1)


@dataclass
class Call:
    """What one attention layer computed on its way.

    Attributes:
        layer: The layer.
        inputs: What its core was called with: q, k and v of shape (B, heads, N, d),
            (H, W), and whatever else the mechanism reads.
        mixed: What the core gave, (B, heads, N, d).
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
    """Report every call of the model's RAVLT attention layers, while it is open.

    Args:
        model: Any network that holds :class:`ravlt.models.GatedAttention`.
        visit: Gets a layer's name and its call, without gradients; again where
            ``with_cp`` computes a layer again.

    Raises:
        RAVLTError: If there is no such layer.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, GatedAttention)}
    if not layers:
        raise RAVLTError(
            f"{type(model).__name__} has no RAVLT attention layer, whose rank could be "
            f"measured; give a model with a RAVLT backbone, without profile='paper'."
        )
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            for handle in _listen(name, layer, visit):
                stack.callback(handle.remove)
        yield


def _listen(
    name: str, layer: GatedAttention, visit: Callable[[str, Call], None]
) -> list[torch.utils.hooks.RemovableHandle]:
    seen: dict = {}

    def core_called(_, inputs, output) -> None:
        seen["inputs"], seen["mixed"] = inputs, output

    def layer_called(*_) -> None:
        heads = {
            key: seen[key].detach().flatten(1, 2).unflatten(-1, (layer.num_heads, -1))
            for key in ("local", "gate")
        }
        local, gate = (heads[key].transpose(1, 2) for key in ("local", "gate"))
        with torch.no_grad():
            visit(name, Call(layer, seen["inputs"], seen["mixed"], local, gate))
        seen.clear()  # tensors may be large

    def lepe_called(_, inputs, output) -> None:
        seen["local"] = output

    def qkvo_called(_, inputs, output) -> None:
        seen["gate"] = output.chunk(4, dim=-1)[3]

    return [
        layer.qkvo.register_forward_hook(qkvo_called),
        layer.core.register_forward_hook(core_called),
        layer.lepe.register_forward_hook(lepe_called),
        layer.register_forward_hook(layer_called),
    ]


class Matrix(NamedTuple):
    """Which matrix of a layer.

    Attributes:
        kind: 'kv', the KV buffer S = sum_j w_j phi(k_j) v_j^T, or 'output', what the
            last projection gets.
        alpha: Whether RALA's token weights are in it, or 1 / N in their place; None
            where the mechanism has none.
        lepe: Whether the local term is in an output; None for a KV buffer.
        gate: Whether an output is multiplied by the gate; None for a KV buffer.
    """

    kind: str
    alpha: bool | None
    lepe: bool | None = None
    gate: bool | None = None


class Spectra(NamedTuple):
    """Singular values of one kind of matrix.

    Attributes:
        heads: Of every head, (B, heads, r).
        whole: Over all heads, (B, R): of the outputs side by side, (N, C); of KV
            buffers along the diagonal of one matrix, which is how they map all
            queries, so that these are the values of all heads, sorted.
    """

    heads: Tensor
    whole: Tensor


def kv_spectra(call: Call) -> dict[Matrix, Spectra]:
    """Gives the spectra of a layer's KV buffers, with and without alpha.

    Args:
        call: What the layer computed.

    Returns:
        Nothing where the mechanism has no KV buffer.
    """
    found = {}
    for alpha, core in _cores(call.layer.core).items():
        if hasattr(core, "kv_buffer"):
            heads = singular_values(core.kv_buffer(*call.inputs))
            whole = heads.flatten(1).sort(-1, descending=True).values
            found[Matrix("kv", alpha)] = Spectra(heads, whole)
    return found


def output_spectra(call: Call) -> dict[Matrix, Spectra]:
    """Gives the spectra of a layer's outputs before the last projection.

    Args:
        call: What the layer computed.

    Returns:
        With and without alpha, LePE and gate, in every combination. The one with all
        three is (core + LePE) * gate, the layer's own.
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
    """Gives a layer's effective ranks over all heads, as it computes: means of images.

    Args:
        call: What the layer computed.

    Returns:
        'kv' (where there is a KV buffer) and 'output'.
    """
    output = _spectra_of_output((call.mixed + call.local) * call.gate)
    ranks = {"output": effective_rank(output.whole).mean().item()}
    if hasattr(call.layer.core, "kv_buffer"):
        buffers = singular_values(call.layer.core.kv_buffer(*call.inputs))
        values = buffers.flatten(1)  # in any order: an entropy sorts nothing
        ranks["kv"] = effective_rank(values).mean().item()
    return ranks


def _spectra_of_output(heads: Tensor) -> Spectra:
    whole = heads.transpose(1, 2).flatten(2)
    return Spectra(singular_values(heads), singular_values(whole))


def _cores(core: AttentionCore) -> dict[bool | None, AttentionCore]:
    """The core by whether alpha is in it; RALA without alpha is linear attention."""
    if not isinstance(core, RALACore):
        return {None: core}
    return {True: core, False: LinearCore(core.dim, core.num_heads, core.rope)}


class Rows(NamedTuple):
    """Rows of an attention matrix A, each of shape (B, heads, N).

    Attributes:
        entropy: Of abs(A_ij) / sum_j abs(A_ij), in nats: log N if all tokens weigh
            the same. Absolute, because the rotation makes weights negative.
        sums: sum_j A_ij: 1 where outputs are averages of values.
    """

    entropy: Tensor
    sums: Tensor


def attention_rows(call: Call) -> dict[bool | None, Rows]:
    """Measures the rows of the explicit attention matrix, for small grids.

    Args:
        call: What the layer computed; memory is that of heads x N x N numbers.

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
    """Gives row sums of linear attention and RALA in linear time, for any grid.

    Args:
        call: What the layer computed.

    Returns:
        Sums of shape (B, heads, N) with and without alpha; nothing for other
        mechanisms.
    """
    q, k, v, *rest = call.inputs
    ones = torch.ones_like(v)
    return {
        alpha: core(q, k, ones, *rest)[..., 0]
        for alpha, core in _cores(call.layer.core).items()
        if isinstance(core, LinearCore)
    }
