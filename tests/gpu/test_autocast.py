"""The network under autocast: which tensors are rounded, and what that costs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from helpers.backbones import build, error, images, randomize
from helpers.kernels import DEVICE, autocast
from ravlt.models.ravlt import Block
from ravlt.ops import plain_forms

# As narrow as heads of 64 channels allow, which are those of RAVLT-T.
ARCH = dict(embed_dims=(64, 128, 192, 256), depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4))
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def narrow(**options):
    return randomize(build(ARCH, **options), mild=True).to(DEVICE)


@dtypes
def test_residual_stream_stays_in_float32(dtype):
    model = narrow().train()
    seen = []
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda m, x, y: seen.append(y))
    with autocast(dtype):
        outs = model(images(2, 3, 64, 96).to(DEVICE))
    assert [y.dtype for y in seen] == [torch.float32] * 4
    assert {out.dtype for out in outs} == {torch.float32}
    sum(out.square().mean() for out in outs).backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@dtypes
def test_fused_attention_runs_in_half_precision(dtype, monkeypatch):
    """No other kernel is allowed; flash attention raises if it does not fit."""
    attention, given = F.scaled_dot_product_attention, []

    def spy(*tensors: Tensor, **options) -> Tensor:
        given.extend(t.dtype for t in tensors)
        return attention(*tensors, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model = narrow(attn_types="softmax").train()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with autocast(dtype):
            outs = model(images(2, 3, 64, 96).to(DEVICE))
        sum(out.square().mean() for out in outs).backward()
    assert given == [dtype] * 12


@dtypes
@pytest.mark.parametrize("attn_types", ["rala", "linear", "softmax"])
def test_values_and_gradients(attn_types, dtype):
    """Four blocks of about ten roundings each, by half a unit of the largest values.

    The loss is scaled, as in training, or gradients would underflow in float16.
    """
    model = narrow(attn_types=attn_types).eval()
    x = images(2, 3, 160, 224).to(DEVICE)
    found, exact = [], []
    for results, run in ((found, model), (exact, narrow(attn_types=attn_types))):
        if results is exact:
            run, x = run.double().eval(), x.double()
        with autocast(dtype) if results is found else plain_forms():
            outs = run(x)
        loss = 1024 * sum(out.square().mul(out).mean() for out in outs)
        grads = torch.autograd.grad(loss, list(run.parameters()))
        results += [*outs, torch.cat([grad.flatten() for grad in grads])]
    for got, wanted in zip(found, exact, strict=True):
        assert error(got, wanted) < 16 * torch.finfo(dtype).eps
