"""Explicit N x N matrices of every attention core, written from the formulas alone."""

import math

import torch
from torch import Tensor


def phi(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())


def rotation_matrix(row: int, col: int, d: int) -> Tensor:
    """Build the block-diagonal R_n of one token, pair by pair."""
    out = torch.zeros(d, d, dtype=torch.float64)
    count = d // 4
    for pair in range(d // 2):
        m = pair % count
        theta = 10000.0 ** (-m / (count - 1)) if count > 1 else 1.0
        angle = theta * (row if pair < count else col)
        i = 2 * pair
        out[i, i] = out[i + 1, i + 1] = math.cos(angle)
        out[i, i + 1], out[i + 1, i] = -math.sin(angle), math.sin(angle)
    return out


def rotations(hw: tuple[int, int], d: int) -> Tensor:
    return torch.stack(
        [rotation_matrix(n // hw[1], n % hw[1], d) for n in range(hw[0] * hw[1])]
    )


def turn(x: Tensor, hw: tuple[int, int]) -> Tensor:
    return torch.einsum("nij,bhnj->bhni", rotations(hw, x.shape[-1]), x)


def products(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bhid,bhjd->bhij", q, k)


def over_rows(scores: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide each row by its sum; eps is added to the mean of the row."""
    n = scores.shape[-1]
    return scores / (scores.sum(-1, keepdim=True) + n * eps)


def dense_rala(core, q, k, v, hw, alpha_on=True, rope=True) -> Tensor:
    """Compute A_ij = alpha_j q_i R_i^T R_j k_j / (sum_l alpha_l <q_i, k_l> + N eps)."""
    n, d = q.shape[-2:]
    q, k = phi(q), phi(k)
    g = q.mean(-2)
    logits = torch.einsum("bhd,bhnd->bhn", g, k) / math.sqrt(d)
    alpha = n * logits.softmax(-1) if alpha_on else torch.ones_like(logits)
    scores = products(q, k) * alpha[..., None, :]
    denominator = scores.sum(-1, keepdim=True) + n * 1e-6
    if rope:
        scores = products(turn(q, hw), turn(k, hw)) * alpha[..., None, :]
    return scores / denominator


def dense_linear(core, q, k, v, hw) -> Tensor:
    return dense_rala(core, q, k, v, hw, alpha_on=False, rope=False)


def dense_softmax(core, q, k, v, hw) -> Tensor:
    scores = products(turn(q, hw), turn(k, hw))
    return (scores / math.sqrt(q.shape[-1])).softmax(-1)


def dense_focused(core, q, k, v, hw) -> Tensor:
    """Map by f_3(x) = |x| x^3 / |x^3|; norms are over the channels of all heads.

    x is (relu + 1e-6) / softplus(sigma).
    """
    b, h, n, d = q.shape
    scale = (1 + core.sigma.double().exp()).log()

    def focus(x: Tensor) -> Tensor:
        whole = x.transpose(1, 2).reshape(b, n, h * d)
        whole = (whole.clamp(min=0) + 1e-6) / scale
        cubes = whole**3
        length = whole.square().sum(-1, keepdim=True).sqrt()
        whole = cubes * length / cubes.square().sum(-1, keepdim=True).sqrt()
        return whole.view(b, n, h, d).transpose(1, 2)

    return over_rows(products(focus(q), focus(k)))


def grid(hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute the distances in rows and in columns of every pair of tokens."""
    n = torch.arange(hw[0] * hw[1], dtype=torch.float64)
    rows, cols = (n / hw[1]).floor(), n % hw[1]
    return rows[:, None] - rows, cols[:, None] - cols


def dense_cosformer(core, q, k, v, hw) -> Tensor:
    rows, cols = grid(hw)
    half = math.pi / 2
    near = (half * rows / hw[0]).cos() * (half * cols / hw[1]).cos()
    if core.layout == "raster":
        n = torch.arange(hw[0] * hw[1], dtype=torch.float64)
        near = (half * (n[:, None] - n) / len(n)).cos()
    scores = products(q.clamp(min=0), k.clamp(min=0)) * near
    return scores / scores.sum(-1, keepdim=True).clamp(min=1e-6 * len(near))


def dense_vicinity(core, q, k, v, hw) -> Tensor:
    rows, cols = grid(hw)
    half = math.pi / 2
    near = (half * rows / hw[0]).cos() + (half * cols / hw[1]).cos()
    return over_rows(products(q.clamp(min=0), k.clamp(min=0)) * near)


def rms(y: Tensor) -> Tensor:
    """Compute the root mean square over the channels of all heads, (B, 1, N, 1)."""
    mean = y.square().mean((1, 3), keepdim=True)
    return mean.clamp(min=1e-300).sqrt() + 1e-8  # the gradient at 0 is 0, not NaN


def dense_norm(core, q, k, v, hw) -> Tensor:
    scores = products(phi(q), phi(k)) / q.shape[-2]
    return scores / rms(scores @ v)


def dense_diag(core, q, k, v, hw) -> Tensor:
    n = torch.arange(hw[0] * hw[1])
    block = [(int(i) // hw[1] // 8, int(i) % hw[1] // 8) for i in n]
    same = torch.tensor([[a == b for b in block] for a in block])
    scores = products(q, k) / math.sqrt(q.shape[-1])
    if core.activation == "softmax":
        scores = torch.where(same, scores.exp(), 0.0)
        return scores / scores.sum(-1, keepdim=True)
    scores = torch.where(same, scores.clamp(min=0), 0.0)
    return scores / rms(scores @ v)


# Offset (rows, columns) of the token that each group of channels comes from.
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (-1, -1), (1, 1), (-1, 1), (1, -1))


def copied_in_space(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Shift channels between neighbours, one token and one channel at a time.

    Channels are numbered head by head.
    """
    (height, width), (heads, d) = hw, (x.shape[1], x.shape[3])
    rows = []
    for channel in range(heads * d):
        head, feature = divmod(channel, d)
        group = channel // (heads * d // 16)
        dr, dc = SIDES[group] if group < 8 else (0, 0)
        tokens = []
        for n in range(height * width):
            row, col = n // width + dr, n % width + dc
            inside = 0 <= row < height and 0 <= col < width
            there = (
                x[:, head, row * width + col, feature] if inside else 0 * x[:, 0, 0, 0]
            )
            tokens.append(there)
        rows.append(torch.stack(tokens, -1))
    return torch.stack(rows, 1).unflatten(1, (heads, d)).mT


def dense_fixation(core, q, k, v, hw) -> Tensor:
    offset = 1 / math.sqrt(q.shape[-1])
    q, k = q.clamp(min=0) + offset, k.clamp(min=0) + offset
    context = torch.cat((q, k, v), -1)

    def gate(layer) -> Tensor:
        logits = context @ layer.weight.double().T + layer.bias.double()
        return 1 / (1 + (-logits).exp())

    return over_rows(products(gate(core.gate_q) * q, gate(core.gate_k) * k))


def dense_hedgehog(core, q, k, v, hw) -> Tensor:
    """Compute the matrix from plain exponentials, without shifts that limit them."""

    def features(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = torch.einsum("hij,bhnj->bhni", weight.double(), x) + bias.double()
        return torch.cat((y.exp(), (-y).exp()), -1)

    q = features(q, core.weight_q, core.bias_q)
    return over_rows(products(q, features(k, core.weight_k, core.bias_k)), eps=0)


def directions(scan: str, hw: tuple[int, int]) -> list[list[int]]:
    """Return the order of the tokens in each direction of a scan."""
    rows = [r * hw[1] + c for r in range(hw[0]) for c in range(hw[1])]
    columns = [r * hw[1] + c for c in range(hw[1]) for r in range(hw[0])]
    orders = [rows, rows[::-1], columns, columns[::-1]]
    return orders if scan == "cross4" else orders[:2]


def gates(core, x: Tensor) -> Tensor:
    """Compute the gates of each direction, (directions, B, heads, N, d)."""
    up, down = core.gate_up.weight.double(), core.gate_down.weight.double()
    logits = x.flatten(1, 2) @ down.T @ up.T + core.gate_up.bias.double()
    a = (1 / (1 + (-logits).exp())) ** (1 / 16)
    a = a.unflatten(-1, (len(directions(core.scan, (1, 1))), core.num_heads, -1))
    return a.permute(2, 0, 3, 1, 4)


def dense_gla(core, q, k, v, hw, x) -> Tensor:
    """Compute the mean over directions of <q_i, k_j> times the gates of j + 1 .. i.

    The gates multiply channel by channel. The gain of the norm is left out, because it
    is not a matrix over tokens.
    """
    orders = directions(core.scan, hw)
    scores = 0
    for order, a in zip(orders, gates(core, x), strict=True):
        place = torch.tensor(order).argsort()
        between = (place[None, :, None] < place) & (place <= place[:, None, None])
        decay = torch.einsum("ijt,bhtf->bhijf", between.double(), a.log()).exp()
        pairs = torch.einsum("bhif,bhjf,bhijf->bhij", q, k, decay)
        scores = scores + pairs * (place <= place[:, None])
    scores = scores / (len(orders) * math.sqrt(q.shape[-1]))
    return scores / ((scores @ v).square().mean(-1, keepdim=True) + 1e-5).sqrt()


def short_long(conv, x: Tensor) -> Tensor:
    """Compute BN(long * x) + BN(short * x), one tap of a kernel at a time."""
    height, width = x.shape[1:3]
    total = 0
    for kernel, norm in (
        (conv.long.weight, conv.norm_long),
        (conv.short.weight, conv.norm_short),
    ):
        kernel, reach = kernel.double()[:, 0], kernel.shape[-1] // 2
        padded = x.new_zeros(len(x), height + 2 * reach, width + 2 * reach, x.shape[3])
        padded[:, reach : reach + height, reach : reach + width] = x
        y = 0
        for i in range(2 * reach + 1):
            for j in range(2 * reach + 1):
                y = y + padded[:, i : i + height, j : j + width] * kernel[:, i, j]
        mean, var = norm.running_mean, norm.running_var
        if norm.training:
            mean = y.mean((0, 1, 2))
            var = (y - mean).square().mean((0, 1, 2))
        y = (y - mean) / (var + 1e-5).sqrt()
        total = total + y * norm.weight.double() + norm.bias.double()
    return total


def dense_chela(core, q, k, v, hw, x) -> Tensor:
    u = short_long(core.conv, x)
    u = u / (1 + (-u).exp())

    def heads(scale: Tensor, shift: Tensor) -> Tensor:
        y = u * scale.double() + shift.double()
        return y.flatten(1, 2).unflatten(-1, (core.num_heads, -1)).transpose(1, 2)

    q, k = q + heads(core.scale_q, core.shift_q), k + heads(core.scale_k, core.shift_k)
    return dense_norm(core, q, k, v, hw)


TWINS = {
    "rala": dense_rala,
    "linear": dense_linear,
    "softmax": dense_softmax,
    "focused": dense_focused,
    "cosformer": dense_cosformer,
    "vicinity": dense_vicinity,
    "norm": dense_norm,
    "diag": dense_diag,
    "fixation": dense_fixation,
    "hedgehog": dense_hedgehog,
    "gla": dense_gla,
    "chela": dense_chela,
}
