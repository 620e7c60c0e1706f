"""Memory grows linearly with the tokens: intermediate tensors and saved activations."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.backbones import build, images
from helpers.largest_tensor import largest
from helpers.reference_ravlt import ReferenceRAVLT
from ravlt.analysis.speed.timing import saved_bytes
from ravlt.inference.tiled import Workspace, forward_stage_tiled
from ravlt.models.attention import CORES, build_core

SETTINGS = {name: name for name in CORES} | {
    "default": ("rala", "rala", "softmax", "softmax")
}
settings = pytest.mark.parametrize("attn_types", SETTINGS.values(), ids=SETTINGS)


@pytest.mark.parametrize("case", ["train", "with_cp", "eval", "tiles"])
@settings
def test_no_stage_makes_a_square_of_its_tokens(attn_types, case):
    """Each stage runs alone, on so many tokens that an N x N tensor would stand out."""
    height, width = 40, 52
    squared = (height * width) ** 2
    model = build(attn_types=attn_types, with_cp=case == "with_cp")
    model.train(case in ("train", "with_cp"))
    for stage, dim in zip(model.layers, model.embed_dims, strict=True):
        x = images(1, height, width, dim)
        if case == "tiles":
            seen = largest(forward_stage_tiled, stage, x, Workspace(11), backward=False)
        else:
            seen = largest(stage, x, backward=case in ("train", "with_cp"))
            # At least the projection to queries, keys, values and gate must be seen.
            assert seen.numel >= 4 * x.numel()
        assert seen.numel < squared / 7, seen.shape


def test_operations_are_counted_without_gradients():
    """The counter looks for the gradient functions of what modules receive."""
    model, x = build().eval(), images(2, 3, 64, 96)
    counts = []
    for grad in (True, False):
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(grad):
            model(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@settings
def test_the_largest_tensor_of_the_network_grows_linearly(attn_types):
    model = build(attn_types=attn_types)
    small, large = (
        largest(model, images(2, 3, 64 * f, 96 * f), backward=True).numel
        for f in (1, 2)
    )
    assert large == 4 * small


@pytest.mark.parametrize("name", CORES)
def test_products_of_a_core_grow_linearly(name):
    """Operation counts at N and 4 N tokens give the exponent of the time complexity."""
    core = build_core(name, 16, 2)

    def flops(side: int) -> int:
        q, k, v = images(3, 1, 2, side**2, 8)
        x = [images(1, side, side, 16)] if core.needs_input else []
        # The counter does not count the CPU's fused kernel, so attention runs unfused.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            core(q, k, v, (side, side), *x)
        return counter.get_total_flops()

    slope = math.log(flops(64) / flops(32), 4)
    assert slope == pytest.approx(1 if core.linear_in_N else 2, abs=0.01)


def test_explicit_scores_would_be_seen():
    model = build(attn_types="softmax")
    x = images(1, 3, 128, 160)
    squared = (32 * 40) ** 2
    reference = largest(ReferenceRAVLT(model), x, backward=True)
    assert reference.shape[-2:] == (32 * 40, 32 * 40)
    assert reference.numel == squared
    assert largest(model, x, backward=True).numel < squared / 8


def kept_bytes(model, x) -> int:
    return saved_bytes(lambda: model(x), model)


@settings
def test_training_memory_grows_linearly(attn_types):
    model = build(attn_types=attn_types).train()
    small, large = (kept_bytes(model, images(2, 3, 64 * f, 96 * f)) for f in (1, 2))
    assert large / small < 4.2  # below 4 if the small grid pads its blocks


def test_quadratic_training_memory_would_be_seen():
    model = ReferenceRAVLT(build(attn_types="softmax").train())
    small, large = (kept_bytes(model, images(2, 3, 64 * f, 96 * f)) for f in (1, 2))
    assert large / small > 6


@pytest.mark.parametrize(
    ("name", "count"), [("rala", 8.2), ("linear", 7.1), ("softmax", 6.1)]
)
def test_what_attention_keeps_for_the_backward_pass(name, count):
    """Inputs among it; of elu + 1 the result, of rotations nothing but angles."""
    core = build_core(name, 64, 1)
    inputs = [t.requires_grad_() for t in images(3, 1, 1, 30 * 40, 64)]
    kept = saved_bytes(lambda: core(*inputs, (30, 40)), core)
    assert kept < count * 4 * inputs[0].numel()


@pytest.mark.parametrize("attn_types", ["rala", SETTINGS["default"]])
def test_recomputed_blocks_keep_less(attn_types):
    x = images(2, 3, 128, 192)
    plain, saving = (
        kept_bytes(build(attn_types=attn_types, with_cp=with_cp).train(), x)
        for with_cp in (False, True)
    )
    assert saving < 0.4 * plain


@pytest.mark.parametrize("recompute", [None, True, False])
def test_the_feed_forward_network_keeps_one_hidden_map(recompute):
    """Without recomputation of GELU and the convolution it keeps three."""
    ffn = build(recompute_ffn=recompute).train().layers[0].blocks[0].ffn
    x = images(1, 16, 24, 16)
    hidden = 16 * 24 * ffn.fc1.out_channels
    count = x.numel() + (3 if recompute is False else 1) * hidden
    kernel = ffn.dwconv.weight.numel() if recompute is False else 0
    assert kept_bytes(ffn, x) == 4 * (count + kernel)
