"""Tiled inference: tile borders, cores, memory, hooks and half precision."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from helpers.backbones import build, error, images, randomize
from ravlt.inference.tiled import (
    Workspace,
    gated_attention_tiles,
    grid_tiles,
    row_tiles,
    tile_side,
)
from ravlt.models import GatedAttention
from ravlt.models.attention import RALACore

DEFAULT = ("rala", "rala", "softmax", "softmax")


@pytest.mark.parametrize("hw", [(1, 1), (1, 1000), (9, 1), (31, 100), (45, 101)])
@pytest.mark.parametrize("side", [1, 2, 5, 10, 64])
def test_no_tile_is_too_large_and_each_cell_is_in_one(hw, side):
    cells = torch.arange(hw[0] * hw[1]).view(1, *hw, 1)
    for halo in (0, 3, 5):
        seen = torch.zeros_like(cells)
        for tile, outer, inner in grid_tiles(*hw, side, halo):
            assert 1 <= cells[tile].numel() <= side**2
            assert torch.equal(cells[outer][inner], cells[tile])
            for i, length in enumerate(hw, 1):
                assert outer[i].start == max(tile[i].start - halo, 0)
                assert outer[i].stop == min(tile[i].stop + halo, length)
            seen[tile] += 1
        assert (seen == 1).all()
    rows = list(row_tiles(*hw, side))
    assert [r for a, b in rows for r in range(a, b)] == list(range(hw[0]))
    assert all(b - a == 1 or (b - a) * hw[1] <= side**2 for a, b in rows)


def test_tiles_are_few_and_nearly_square():
    tiles = [tile for tile, *_ in grid_tiles(200, 336, 96, halo=1)]
    assert {(r.stop - r.start, c.stop - c.start) for _, r, c in tiles} == {(100, 84)}
    assert len(tiles) == 2 * 4
    assert len(list(grid_tiles(96, 96, 96, halo=1))) == 1


def test_blocks_share_the_memory(monkeypatch):
    addresses = {}
    original = Workspace.empty

    def spy(self, name, like, dtype):
        memory = original(self, name, like, dtype)
        assert memory.shape == like.shape and memory.is_contiguous()
        addresses.setdefault(name, []).append(memory.data_ptr())
        return memory

    monkeypatch.setattr(Workspace, "empty", spy)
    with torch.no_grad():
        build(tile=9).eval()(images(2, 3, 64, 96))
    assert addresses
    for name, places in addresses.items():
        assert len(places) >= 5, name  # blocks
        assert len(set(places)) == 1, name


def test_larger_tensors_get_new_memory():
    workspace = Workspace(3)
    small, large = (workspace.empty("q", torch.empty(n), torch.float32) for n in (2, 9))
    assert len(large) == 9
    assert small.data_ptr() != large.data_ptr()


def test_a_name_keeps_its_memory_whatever_the_precision():
    """Half-precision models alternate between float32 queries and half inputs."""
    workspace, like = Workspace(3), torch.empty(2, 4)
    dtypes = (torch.float32, torch.float16, torch.float32, torch.bfloat16)
    parts = [workspace.empty("q", like, dtype) for dtype in dtypes]
    assert [part.dtype for part in parts] == list(dtypes)
    assert all(part.shape == (2, 4) for part in parts)
    assert len({part.data_ptr() for part in parts}) == 1


def test_when_tiles_are_used():
    x = images(1, 3, 64, 64)
    model = build().eval()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            model.tile = 5
            assert tile_side(model, x) == 5
            assert tile_side(model.train(), x) is None
            assert tile_side(model.eval(), x.to("meta")) is None
            model.tile = 16  # one tile is the whole grid
            assert tile_side(model, x) is None
            assert tile_side(model, torch.cat((x, x))) == 16
            model.tile = 0
            assert tile_side(model, x) is None
            model.tile = None
            assert tile_side(model, x) is None
            assert tile_side(model, images(1, 3, 392, 384)) == 96
    model.tile = 5
    assert tile_side(model, x) is None


def test_tiles_of_the_stem(monkeypatch):
    model, sizes = build(tile=5).eval(), []
    forward = model.patch_embed.proj.forward

    def spy(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape[2:]))
        return forward(x)

    monkeypatch.setattr(model.patch_embed.proj, "forward", spy)
    x = images(1, 3, 64, 64)
    model(x)
    assert sizes == [(64, 64)]  # gradients are on
    sizes.clear()
    with torch.no_grad():
        model(x)
    # 16 x 16 tokens in tiles of 4 x (5, 5, 6), with a halo of two tokens.
    assert len(sizes) == 4 * 3
    assert max(h for h, _ in sizes) == 4 * (4 + 4)
    assert max(w for _, w in sizes) == 4 * (5 + 4)


SIZES = {1: (29, 37), 3: (45, 70), 9: (101, 70), 64: (37, 600)}


PAPER = dict(type="focused", profile="paper")


@pytest.mark.parametrize(
    "attn_types", ["rala", "linear", "gla", "chela", PAPER, DEFAULT], ids=str
)
@pytest.mark.parametrize("tile", SIZES)
def test_tiles_equal_the_whole_grid_before_and_after_folding(attn_types, tile):
    model = randomize(build(tile=tile, attn_types=attn_types).double()).eval()
    whole = copy.deepcopy(model)
    whole.tile = 0
    x = images(2 + tile % 2, 3, *SIZES[tile]).double()
    before = x.clone()
    expected = [out.detach() for out in model(x)]
    with torch.no_grad():
        torch.testing.assert_close(list(whole(x)), expected, rtol=0, atol=0)
        for outs in (model(x), model.switch_to_deploy()(x)):
            torch.testing.assert_close(list(outs), expected, rtol=1e-11, atol=1e-11)
    folded = [out.detach() for out in model(x)]
    torch.testing.assert_close(folded, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(x, before)


PARTS = [
    "patch_embed",
    "layers.1",
    "layers.2.blocks.1",
    "layers.3.blocks.0.attn",
    "layers.0.blocks.0.attn.core",
    "layers.0.blocks.0.ffn",
    "layers.0.blocks.0.attn.qkvo",
    "layers.3.blocks.0.norm1.norm",
    "layers.0.downsample",
]


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_a_hook_sees_whole_grids(part, pre):
    """Tensors that the hook keeps do not change later."""
    model, seen = randomize(build(tile=3).double()).eval(), []
    x = images(2, 3, 45, 70).double()
    module = model.get_submodule(part)

    def keep(module, args, out=None) -> None:
        tensor = args[0] if out is None else out
        seen.append((tensor, tensor.detach().clone()))

    register = module.register_forward_pre_hook if pre else module.register_forward_hook
    handle = register(keep)
    expected = model(x)
    with torch.no_grad():
        outs = model(x)
    (_, whole), (kept, then) = seen
    torch.testing.assert_close(kept, whole, rtol=0, atol=0)
    assert torch.equal(kept, then)
    torch.testing.assert_close(list(outs), [y.detach() for y in expected])
    handle.remove()
    with torch.no_grad():
        model(x)
    assert len(seen) == 2


def test_inference_mode():
    model = build(tile=5).eval()
    x = images(2, 3, 45, 70)
    with torch.no_grad():
        expected = model(x)
    with torch.inference_mode():
        got = model(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    # Tables that inference mode computed must not break the backward pass.
    sum(out.square().sum() for out in model.train()(x)).backward()


def test_training_without_gradients_updates_statistics_as_with_them():
    model = randomize(build(tile=3).double()).train()
    twin = copy.deepcopy(model)
    x = images(2, 3, 45, 70).double()
    expected = [out.detach() for out in twin(x)]
    with torch.no_grad():
        outs = model(x)
    torch.testing.assert_close(list(outs), expected, rtol=0, atol=0)
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("tile", [0, 9])
@pytest.mark.parametrize("attn_types", ["rala", "gla", "chela", DEFAULT])
def test_bfloat16(attn_types, tile):
    """Autocast and a half-precision module agree with float32 on whole grids."""
    model = randomize(build("t", attn_types=attn_types, tile=0), mild=True).eval()
    x = images(1, 3, 96, 128)
    with torch.no_grad():
        exact = model(x)
        model.tile = tile
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(x)
        half = model.bfloat16()(x.bfloat16())
    for a, b, expected in zip(mixed, half, exact, strict=True):
        assert 1e-5 < error(a, expected) < 2e-2
        assert b.dtype == torch.bfloat16
        assert 1e-5 < error(b, expected) < 5e-2


def test_zero_tiles_nothing_and_partial_tokens_count():
    model = build(tile=0).eval()
    with torch.no_grad():
        assert tile_side(model, images(1, 3, 392, 384)) is None
        model.tile = 16
        assert tile_side(model, images(1, 3, 64, 61)) is None
        assert tile_side(model, images(1, 3, 61, 65)) == 16


def test_other_devices_compute_whole_grids_unless_told(monkeypatch):
    """On a GPU batches stay whole; tiles are for images beyond its memory."""
    monkeypatch.setattr("ravlt.inference.tiled.is_eager", lambda x: True)
    model = build().eval()
    with torch.no_grad(), FakeTensorMode():
        x = torch.empty(2, 3, 800, 1344, device="cuda")
        assert tile_side(model, x) is None
        model.tile = 64
        assert tile_side(model, x) == 64


def test_recorded_models_compute_whole_grids():
    model, x, sides = build(tile=5).eval(), images(1, 3, 64, 64), []

    class Probe(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sides.append(tile_side(model, x))
            return 2 * x

    with torch.no_grad():
        assert tile_side(model, x) == 5
        torch.jit.trace(Probe(), x, check_trace=False)
        with FakeTensorMode() as mode:
            Probe()(mode.from_tensor(x))
    assert sides == [None, None]


def test_batches_that_exceed_a_tile_go_image_by_image(monkeypatch):
    """So that memory does not grow with the batch."""
    shapes = []
    original = Workspace.empty

    def spy(self, name, like, dtype):
        shapes.append(tuple(like.shape[:3]))
        return original(self, name, like, dtype)

    monkeypatch.setattr(Workspace, "empty", spy)
    with torch.no_grad():
        build(tile=9).eval()(images(3, 3, 64, 96))
    assert set(shapes) == {(1, 16, 24), (1, 8, 12), (3, 4, 6), (3, 2, 3)}


def test_derived_classes_compute_themselves():
    """The walk knows what the library's own classes compute, not what others make."""

    class Doubled(RALACore):
        def forward(self, *args):
            return 2 * super().forward(*args)

    class Negated(GatedAttention):
        def forward(self, x):
            return -super().forward(x)

    model = randomize(build(tile=3, attn_types="rala").double()).eval()
    model.layers[0].blocks[0].attn.core.__class__ = Doubled
    model.layers[1].blocks[0].attn.__class__ = Negated
    x = images(2, 3, 45, 70).double()
    expected = [out.detach() for out in model(x)]
    with torch.no_grad():
        torch.testing.assert_close(list(model(x)), expected, rtol=1e-11, atol=1e-11)


def test_a_tile_that_is_overruled_is_reported():
    model, x = build(tile=3).eval(), images(1, 3, 45, 70)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        model.layers[0].register_forward_hook(lambda *_: None)
        with pytest.raises(UserWarning, match="whole grids in spite of tile=3"):
            model(x)
        model.tile = None
        assert tile_side(model, images(1, 3, 392, 384)) is None


def test_compiled_blocks_run():
    model, calls = build(tile=3).eval(), []
    block = model.layers[1].blocks[0]
    block.compile(backend=lambda graph, inputs: calls.append(graph) or graph)
    x = images(1, 3, 45, 70)
    with torch.no_grad(), pytest.warns(UserWarning, match="in spite of tile=3"):
        model(x)
    assert calls


@pytest.mark.parametrize(
    "part", ["patch_embed", "layers.1", "layers.0.blocks.0", "layers.0.downsample"]
)
@pytest.mark.parametrize("case", ["derived", "training"])
def test_parts_that_the_walk_does_not_know(part, case):
    """Derived classes run their own forward pass; batch norms see whole grids."""
    model = randomize(build(tile=3).double()).eval()
    module = model.get_submodule(part)
    if case == "training":
        module.train()
    else:
        cls = type(module)
        forward = dict(forward=lambda self, x: -cls.forward(self, x))
        module.__class__ = type("Derived", (cls,), forward)
    x = images(2, 3, 45, 70).double()
    expected = [out.detach() for out in model(x)]
    with torch.no_grad():
        torch.testing.assert_close(list(model(x)), expected, rtol=1e-11, atol=1e-11)


def test_sums_over_tokens_are_precise_in_half_precision():
    """As precise as the layer on whole grids."""
    layer = randomize(GatedAttention(16, 2, "rala"), mild=True).eval().bfloat16()
    exact, x = copy.deepcopy(layer).double(), images(1, 60, 70, 16).bfloat16()
    with torch.no_grad():
        expected, whole, tiled = exact(x.double()), layer(x), torch.empty_like(x)
        tiles = gated_attention_tiles(layer, nn.Identity(), x, Workspace(9))
        for tile, part in tiles:
            tiled[tile] = part
    assert error(tiled, expected) < 1.5 * error(whole, expected)
