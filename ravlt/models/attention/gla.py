"""Gated linear attention (Yang et al., ICML 2024, arXiv 2312.06635) on images.

It scans the tokens in both directions, as ViG does (Liao et al., AAAI 2025, arXiv
2405.18425).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ravlt.errors import RAVLTError
from ravlt.ops.precision import at_least_float32, autocast_off

from ..layers import DepthwiseConv, PointwiseConv
from .base import AttentionCore, join_heads, split_heads

SCANS = {"bidir": 2, "cross4": 4}
_CHUNK = 16  # tokens between states
_RANK = 16  # rank of the map from tokens to gate logits
_SHARPNESS = 16  # gates are sigmoid(logit)^(1 / 16), initially near 0.96
_EPS = 1e-5  # added to the mean square of an output


class GLACore(AttentionCore):
    """Gated linear attention: a recurrence whose state decays channel by channel.

    In one direction, S_i = diag(a_i) S_{i-1} + k_i v_i^T and o_i = d^-1/2 S_i^T q_i,
    with gates a_i = sigmoid(W_2 W_1 x_i + b)^(1/16), one for each channel of a key. The
    output is the mean over directions, each of which includes the token itself. An RMS
    norm of each head follows, because no denominator bounds the output.

    The scan does not run token by token. Within a chunk of 16 tokens it computes
    attention with decaying weights. The states at the chunk boundaries are computed in
    the same way within runs of 16 chunks, then recursively for runs of runs. Each decay
    is a product of gates, never a quotient of such products, so no factor exceeds 1.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        scan: 'bidir' scans along the rows, from the first token to the last and back.
            'cross4' also scans along the columns. Each direction has its own gates.

    Attributes:
        gain: Factor of each channel of a head after the norm, (d,).
        key_share: Width of queries and keys over the width of values.

    Raises:
        RAVLTError: If the scan is unknown.
    """

    row_stochastic = False
    nonneg = False
    linear_in_N = True
    needs_input = True
    key_share = 1.0

    def __init__(self, dim: int, num_heads: int, scan: str = "bidir") -> None:
        super().__init__(dim, num_heads)
        if scan not in SCANS:
            raise RAVLTError(f"scan='{scan}' is unknown; use one of {tuple(SCANS)}.")
        self.scan = scan
        self.gate_down = nn.Linear(dim, _RANK, bias=False)
        self.gate_up = nn.Linear(_RANK, SCANS[scan] * int(self.key_share * dim))
        self.gain = nn.Parameter(torch.ones(dim // num_heads))
        for layer in (self.gate_down, self.gate_up):
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)
        nn.init.zeros_(self.gate_up.bias)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], x: Tensor
    ) -> Tensor:
        dtype = v.dtype
        with autocast_off(q):
            q, k, v = _scaled(q, k, v)
            gates = self._log_gates(at_least_float32(x))
            y = 0.0
            for direction, g in enumerate(gates):
                line = (_lined_up(t, hw, direction) for t in (q, k, v, g))
                y = y + _put_back(_scan(*line), hw, direction)
            y = y / len(gates)
            y = y * rms_factor(y) * self.gain.to(y.dtype)
        return y.to(dtype)

    def dense(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], x: Tensor
    ) -> Tensor:
        with autocast_off(q):
            q, k, v = _scaled(q, k, v)
            gates = self._log_gates(at_least_float32(x))
            scores = 0.0
            for direction, g in enumerate(gates):
                a = _decayed(*(_lined_up(t, hw, direction) for t in (q, k, g)))
                a = _put_back(a, hw, direction).transpose(2, 3)
                scores = scores + _put_back(a, hw, direction).transpose(2, 3)
            scores = scores / len(gates)
            return scores * rms_factor(scores @ v)

    def _log_gates(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute log a of each direction, shaped like keys, from x of (B, H, W, C)."""
        down, up, bias = (
            p.to(x.dtype)
            for p in (self.gate_down.weight, self.gate_up.weight, self.gate_up.bias)
        )
        logits = F.linear(F.linear(x, down), up, bias)
        gates = F.logsigmoid(logits) / _SHARPNESS
        shape = (SCANS[self.scan], self.num_heads, -1)
        gates = gates.flatten(1, 2).unflatten(-1, shape)
        return gates.permute(2, 0, 3, 1, 4).unbind()


class NarrowGLACore(GLACore):
    """Gated linear attention whose queries and keys are half as wide as its values."""

    key_share = 0.5


class GLAAttention(nn.Module):
    """ViG's layer: proj(core(q, k, v) s + norm(l) (1 - s)), s = sigmoid(W l + b).

    The local branch l is a depthwise 3 x 3 convolution of the input. Queries, keys,
    values and the forget gates are computed from l. The norm is an RMS norm of each
    head with a gain, as at the end of the core. The convolution and the projections of
    this layer have no bias, except W.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: The mechanism.
    """

    def __init__(self, dim: int, num_heads: int, core: NarrowGLACore) -> None:
        super().__init__()
        self.core = core
        self.num_heads = num_heads
        self.local = DepthwiseConv(dim, 3, bias=False)
        self.qkv = PointwiseConv(dim, 2 * dim, bias=False)
        self.mixing = PointwiseConv(dim, dim)
        self.local_gain = nn.Parameter(torch.ones(dim // num_heads))
        self.proj = PointwiseConv(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of a grid, (B, H, W, C) -> (B, H, W, C)."""
        local = self.local(x)
        hw, half = (x.shape[1], x.shape[2]), x.shape[-1] // 2
        q, k, v = self.qkv(local).split((half, half, 2 * half), dim=-1)
        heads = (split_heads(t, self.num_heads) for t in (q, k, v))
        y = join_heads(self.core(*heads, hw, local), hw)
        share = self.mixing(local).sigmoid()
        return self.proj(y * share + self._normalised(local) * (1 - share))

    def _normalised(self, x: Tensor) -> Tensor:
        with autocast_off(x):
            heads = at_least_float32(x).unflatten(-1, (self.num_heads, -1))
            y = heads * rms_factor(heads) * self.local_gain.to(heads.dtype)
            return y.flatten(-2).to(x.dtype)


def _scaled(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    q, k, v = (at_least_float32(t) for t in (q, k, v))
    return q * q.shape[-1] ** -0.5, k, v


def rms_factor(y: Tensor) -> Tensor:
    """Compute 1 / root mean square over the last dimension, (..., 1)."""
    return (y.square().mean(-1, keepdim=True) + _EPS).rsqrt()


def _lined_up(x: Tensor, hw: tuple[int, int], direction: int) -> Tensor:
    """Sort tokens (B, heads, N, any) into the order of a scan direction.

    Args:
        x: Tokens, row by row.
        hw: Height and width of the grid.
        direction: 0 along the rows, 1 back, 2 along the columns, 3 back.
    """
    if direction >= 2:
        x = _transposed(x, hw)
    return x.flip(2) if direction % 2 else x


def _put_back(x: Tensor, hw: tuple[int, int], direction: int) -> Tensor:
    """Invert :func:`_lined_up`."""
    x = x.flip(2) if direction % 2 else x
    return _transposed(x, hw[::-1]) if direction >= 2 else x


def _transposed(x: Tensor, hw: tuple[int, int]) -> Tensor:
    return x.unflatten(2, hw).transpose(2, 3).flatten(2, 3)


def _scan(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Scan one direction: o_i = sum_{j <= i} <q_i, exp(g_{j+1} + .. + g_i) k_j> v_j.

    Args:
        q: Scaled queries, (B, heads, N, d).
        k: Keys of the same shape.
        v: Values of shape (B, heads, N, any).
        g: Logarithms of the gates, shaped like the keys; none is positive.

    Returns:
        A tensor of the shape of ``v``.
    """
    tokens = q.shape[2]
    q, k, v, g = (_runs(t, _CHUNK) for t in (q, k, v, g))
    sums = g.cumsum(-2)
    total = sums[..., -1:, :]
    states = (k * (total - sums).exp()).transpose(-2, -1) @ v
    before = _states_before(total.squeeze(-2), states)
    y = _scores(q, k, sums) @ v + (q * sums.exp()) @ before
    return y.flatten(2, 3)[:, :, :tokens]


def _runs(x: Tensor, size: int) -> Tensor:
    """Split (B, heads, N, ..) into (B, heads, runs, size, ..), padded with zeros.

    The padding changes no result, because zero keys contribute nothing.
    """
    tokens = x.shape[2]
    runs = (tokens + size - 1) // size  # no remainder (%): it slows compilers down
    padding = [0, 0] * (x.ndim - 3) + [0, runs * size - tokens]
    return F.pad(x, padding).unflatten(2, (runs, size))


def _decayed(q: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """Compute the explicit matrix of :func:`_scan`, (B, heads, N, N)."""
    tokens = q.shape[2]
    size = 1 << (tokens - 1).bit_length()
    q, k, g = (F.pad(t, (0, 0, 0, size - tokens)) for t in (q, k, g))
    return _scores(q, k, g.cumsum(-2))[..., :tokens, :tokens]


def _scores(q: Tensor, k: Tensor, sums: Tensor) -> Tensor:
    """Compute scores in a run of tokens: <q_i, exp(s_i - s_j) k_j> if j <= i, else 0.

    The block size doubles in every step. For i in the second half of a block and j in
    the first, the decay splits at the middle m into exp(s_i - s_m) and exp(s_m - s_j).
    The scores across the halves are then plain products, and no factor exceeds 1.

    Args:
        q: Queries of shape (..., c, d); c is a power of two.
        k: Keys of the same shape.
        sums: s, the cumulative sums of the logarithms of the gates, of the same shape.

    Returns:
        A tensor of shape (..., c, c).
    """
    scores = (q * k).sum(-1)[..., None, None]  # blocks of one token
    half = 1
    while half < q.shape[-2]:
        blocks = q.shape[-2] // (2 * half), 2
        first_k, first_s = (
            t.unflatten(-2, (*blocks, half))[..., 0, :, :] for t in (k, sums)
        )
        second_q, second_s = (
            t.unflatten(-2, (*blocks, half))[..., 1, :, :] for t in (q, sums)
        )
        middle = first_s[..., -1:, :]
        second_q = second_q * (second_s - middle).exp()
        first_k = first_k * (middle - first_s).exp()
        across = second_q @ first_k.transpose(-2, -1)
        first, second = scores.unflatten(-3, blocks).unbind(-3)
        rows = F.pad(first, (0, half)), torch.cat((across, second), dim=-1)
        scores = torch.cat(rows, dim=-2)
        half *= 2
    return scores.squeeze(-3)


def _states_before(g: Tensor, states: Tensor) -> Tensor:
    """Compute the state before each chunk.

    P_0 = 0 and P_m = exp(g_{m-1}) P_{m-1} + S_{m-1}. Within a run of 16 chunks, all
    pairs of chunks are summed. The function then calls itself with the runs as chunks.

    Args:
        g: Logarithm of the decay over each chunk, (B, heads, M, d).
        states: S, the state that each chunk adds, (B, heads, M, d, any).

    Returns:
        P of the shape of ``states``.
    """
    count = g.shape[2]
    run = count if count < _CHUNK else _CHUNK
    g, states = _runs(g, run), _runs(states, run)
    after = g.cumsum(3)
    before = F.pad(after, (0, 0, 1, 0))  # one entry a chunk, and the end of the run
    decay = before[..., :, None, :] - after[..., None, :, :]
    later = torch.ones(run + 1, run, dtype=torch.bool, device=g.device).triu()
    # Masked before the exponential, which may overflow at the masked entries.
    decay = decay.masked_fill(later[..., None], -torch.inf).exp()
    known = torch.einsum("...ijf,...jfe->...ife", decay, states)
    known, ends = known[..., :-1, :, :], known[..., -1, :, :]
    if count > run:
        runs = _states_before(after[..., -1, :], ends)
        known = known + before[..., :-1, :, None].exp() * runs[:, :, :, None]
    return known.flatten(2, 3)[:, :, :count]
