"""Inference tile by tile: a walk over the modules of a RAVLT from outside.

Every operation of RAVLT is pointwise, local, or a sum over tokens, so tiles give the
same numbers as the whole grid. A local operation reads a tile with a halo and drops the
halo from its result. On a CPU tiles stay in the cache and memory is reused, which is
faster; on other devices they bound the memory.
"""

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ravlt.models.attention import LinearCore, RALACore, join_heads, split_heads
from ravlt.models.ravlt import Block, ConvFFN, GatedAttention, RAVLTEncoder, Stage, Stem
from ravlt.ops.dispatch import is_eager
from ravlt.ops.rala.chunked import rala_

# Tokens along a side of a tile whose tensors fit the caches of a CPU.
CPU_TILE = 96

Region = tuple[slice, slice, slice]


class Workspace:
    """The size of tiles, and memory that all blocks share.

    Args:
        side: Tokens along a side of a tile.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self._memory: dict[str, Tensor] = {}

    def empty(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return uninitialized memory of the shape of ``like``, the same for a name.

        Fresh memory costs a CPU more than the writes to it: each page causes a fault.
        """
        size = like.numel() * dtype.itemsize
        flat = self._memory.get(name)
        if flat is None or flat.numel() < size:
            flat = like.new_empty(size, dtype=torch.uint8)
            self._memory[name] = flat
        return flat[:size].view(dtype).view(like.shape)


def forward_tiled(encoder: RAVLTEncoder, x: Tensor, last: int) -> list[Tensor] | None:
    """Run stem and stages tile by tile, if :func:`tile_side` allows it.

    Args:
        encoder: The network.
        x: Images of shape (B, in_channels, H, W).
        last: Number of the last stage to run.

    Returns:
        As :meth:`RAVLTEncoder.forward_stages`; None if the plain forward pass has to
        compute.
    """
    side = tile_side(encoder, x)
    if side is None:
        return None
    workspace = Workspace(side)
    x = _stem(encoder.patch_embed, x, side)
    outs = []
    for i, stage in enumerate(encoder.layers[: last + 1]):
        x = forward_stage_tiled(stage, x, workspace)
        outs.append(x)
        if stage.downsample is not None and i < last:
            x = stage.downsample(x)
    return outs


def forward_stage_tiled(stage: Stage, x: Tensor, workspace: Workspace) -> Tensor:
    """Run the blocks of a stage, image by image if the batch exceeds a tile.

    Args:
        stage: The stage.
        x: Tokens of shape (B, H, W, C).
        workspace: Size of tiles, and memory.

    Returns:
        A new tensor of the same shape.
    """
    tokens = x.shape[0] * x.shape[1] * x.shape[2]
    images = (x,) if tokens <= workspace.side**2 else x.split(1)
    for block in stage.blocks:
        images = [forward_block_tiled(block, image, workspace) for image in images]
    return torch.cat(images) if len(images) > 1 else images[0]


def tile_side(encoder: RAVLTEncoder, x: Tensor) -> int | None:
    """Decide between tiles and the plain forward pass.

    Args:
        encoder: The network.
        x: Its input.

    Returns:
        Tokens along a side of a tile. None for the plain forward pass: in training,
        where gradients are needed, while a compiler or tracer records, for batches that
        fit into one tile, where the walk would compute something else than the modules,
        and as ``encoder.tile`` says.
    """
    if torch.is_grad_enabled() or not is_eager(x):
        return None
    side = encoder.tile
    if side is None and x.device.type == "cpu":
        side = CPU_TILE
    if not side or x.is_meta:
        return None
    tokens = x.shape[0] * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    if tokens <= side**2:
        return None
    if _takes_apart_safely(encoder):
        return side
    if encoder.tile:
        warnings.warn(
            f"RAVLT computes whole grids in spite of tile={encoder.tile}: a module in "
            f"it has a hook, is compiled, of another class, or in training mode.",
            stacklevel=2,
        )
    return None


def _takes_apart_safely(encoder: RAVLTEncoder) -> bool:
    """True if the walk computes what the modules would compute that it takes apart.

    Hooks expect whole grids. Derived, wrapped and compiled modules have a forward pass
    of their own. In training mode batch norms would normalize each tile by its own
    statistics.
    """
    parts = [(encoder.patch_embed, Stem)]
    for stage in encoder.layers:
        parts += [(stage, Stage), *((block, Block) for block in stage.blocks)]
    if any(type(part) is not cls or "forward" in vars(part) for part, cls in parts):
        return False
    return not any(
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or getattr(module, "_compiled_call_impl", None)
        for root in (encoder.patch_embed, encoder.layers)
        for module in root.modules()
    )


def _stem(stem: Stem, x: Tensor, side: int) -> Tensor:
    height, width = (-(-n // 4) for n in x.shape[-2:])
    out = None
    # Two tokens are eight pixels; the four kernels reach seven pixels far.
    for tile, outer, inner in grid_tiles(height, width, side, halo=2):
        pixels = (slice(4 * s.start, 4 * s.stop) for s in outer[1:])
        tokens = stem(x[(slice(None), slice(None), *pixels)])[inner]
        if out is None:
            out = tokens.new_empty(len(x), height, width, tokens.shape[-1])
        out[tile] = tokens
    return out


def forward_block_tiled(block: Block, x: Tensor, workspace: Workspace) -> Tensor:
    """Run a block on tokens (B, H, W, C); returns a new tensor of the same shape."""
    # A new tensor, which the two branches then change in place.
    x = block.pos(x.to(block.gamma_1.dtype))
    for layer, norm, gamma in (
        (block.attn, block.norm1, block.gamma_1),
        (block.ffn, block.norm2, block.gamma_2),
    ):
        if type(layer) is GatedAttention:
            tiles = gated_attention_tiles(layer, norm, x, workspace)
        elif type(layer) is ConvFFN:
            tiles = conv_ffn_tiles(layer, norm, x, workspace)
        else:
            tiles = [((slice(None),) * 3, layer(norm(x)))]
        for tile, branch in tiles:
            x[tile].addcmul_(gamma.view(-1), branch)
    return x


def gated_attention_tiles(
    attn: GatedAttention, norm: nn.Module, x: Tensor, workspace: Workspace
) -> Iterator[tuple[Region, Tensor]]:
    """Compute ``attn(norm(x))``.

    All of ``x`` has been read when the first tile comes: it may then be changed.

    Yields:
        The index of a tile in ``x``, and its part of the result.
    """
    hw, side = (x.shape[1], x.shape[2]), workspace.side
    grids = _project(attn, norm, x, workspace)
    q, k, v = (split_heads(grids[name], attn.num_heads) for name in ("q", "k", "v"))
    core = attn.core
    if type(core) in (LinearCore, RALACore):
        y = rala_(q, k, v, hw, list(row_tiles(*hw, side)), core.rope, core.reweight)
    else:
        y = core(q, k, v, hw, *((grids["x"],) if core.needs_input else ()))
    y, v, gate = join_heads(y, hw), grids["v"], grids["gate"]
    for tile, outer, inner in grid_tiles(*hw, side, halo=2):
        local = attn.lepe(v[outer])[inner]
        yield tile, attn.proj((y[tile].to(v.dtype) + local).mul_(gate[tile]))


def _project(
    attn: GatedAttention, norm: nn.Module, x: Tensor, workspace: Workspace
) -> dict[str, Tensor]:
    """Compute q, k (float32 or wider), v and gate; and norm(x) if the core needs it."""
    grids: dict[str, Tensor] = {}
    # Smaller tiles, because the product is wide: 4 C.
    for top, bottom in row_tiles(*x.shape[1:3], workspace.side // 2):
        normed = norm(x[:, top:bottom])
        q, k, v, gate = attn.qkvo(normed).chunk(4, dim=-1)
        parts = dict(q=q, k=k, v=v, gate=gate)
        if attn.core.needs_input:
            parts["x"] = normed
        if not grids:
            wide = torch.promote_types(q.dtype, torch.float32)
            for name, part in parts.items():
                dtype = wide if name in ("q", "k") else part.dtype
                grids[name] = workspace.empty(name, x, dtype)
        for name, part in parts.items():
            grids[name][:, top:bottom] = part
    return grids


def conv_ffn_tiles(
    ffn: ConvFFN, norm: nn.Module, x: Tensor, workspace: Workspace
) -> Iterator[tuple[Region, Tensor]]:
    """Compute ``ffn(norm(x))``; see :func:`gated_attention_tiles`."""
    normed = None
    for top, bottom in row_tiles(*x.shape[1:3], workspace.side):
        part = norm(x[:, top:bottom])
        if normed is None:
            # The attention layer no longer needs the memory of its queries.
            normed = workspace.empty("q", x, part.dtype)
        normed[:, top:bottom] = part
    for tile, outer, inner in grid_tiles(*x.shape[1:3], workspace.side, halo=1):
        hidden = ffn.fc1(normed[outer])
        hidden = ffn.dwconv(F.gelu(hidden, out=hidden))
        # Cropped after the product, whose input would have to be copied otherwise.
        yield tile, ffn.fc2(hidden)[inner]


def row_tiles(height: int, width: int, side: int) -> Iterator[tuple[int, int]]:
    """Split a grid into runs of whole rows, of about ``side**2`` tokens.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        side: Tokens along a side of a tile.

    Yields:
        The first row, and the one after the last.
    """
    return _spans(height, max(side**2 // width, 1))


def grid_tiles(
    height: int, width: int, side: int, halo: int
) -> Iterator[tuple[Region, Region, Region]]:
    """Split a grid into tiles of about ``side`` x ``side`` tokens.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        side: Tokens along a side of a tile.
        halo: Tokens that a local operation sees beyond its own.

    Yields:
        Three indices for (B, H, W, C) tensors: the tile, the tile with its halo (as
        far as the grid reaches), and the tile inside of the latter.
    """
    columns = max(round(width / side), 1)
    rows = side**2 // -(-width // columns)
    for top, bottom in _spans(height, max(rows, 1)):
        row = _with_halo(top, bottom, height, halo)
        for left, right in _spans(width, -(-width // columns)):
            col = _with_halo(left, right, width, halo)
            yield tuple((slice(None), *pair) for pair in zip(row, col, strict=True))


def _spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut 0 .. count into the fewest, nearly equal pieces of at most ``size``."""
    pieces = -(-count // size)
    for i in range(pieces):
        yield i * count // pieces, (i + 1) * count // pieces


def _with_halo(start: int, stop: int, count: int, halo: int) -> tuple[slice, ...]:
    low, high = max(start - halo, 0), min(stop + halo, count)
    return slice(start, stop), slice(low, high), slice(start - low, stop - low)
