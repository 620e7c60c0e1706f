"""All forms of each operator against its plain form, and under every transform."""

import io

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from helpers.operators import CALLS, HW, gradients
from ravlt.ops import plain_forms
from ravlt.ops.rotary import rotary_tables, rotate

operators = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def equal(got, expected, **tolerance) -> None:
    torch.testing.assert_close(got, expected, **(tolerance or dict(rtol=0, atol=1e-11)))


@operators
def test_values_and_gradients_equal_the_plain_form(call):
    inputs = call.inputs()
    before = [x.detach().clone() for x in inputs]
    got = call.run(*inputs)
    with plain_forms():
        expected = call.run(*inputs)
    equal(got, expected)
    equal(gradients(got, inputs), gradients(expected, inputs))
    assert all(map(torch.equal, inputs, before))


@operators
def test_frozen_tensors_leave_the_others_their_gradients(call):
    inputs = call.inputs()
    expected = gradients(call.run(*inputs), inputs)
    for i, x in enumerate(inputs):
        alone = [x if i == j else y.detach() for j, y in enumerate(inputs)]
        equal(gradients(call.run(*alone), [x])[0], expected[i])


@operators
def test_first_and_second_derivatives(call):
    inputs = call.inputs()
    assert gradcheck(call.run, inputs, fast_mode=True)
    assert gradgradcheck(call.run, inputs, fast_mode=True)


@operators
def test_functional_gradient(call):
    inputs = call.inputs()
    expected = torch.autograd.grad(call.run(*inputs).square().sum(), inputs)
    bare = tuple(x.detach() for x in inputs)

    def loss(*args):
        return call.run(*args).square().sum()

    equal(torch.func.grad(loss, argnums=tuple(range(len(bare))))(*bare), expected)


@operators
def test_traced_and_saved(call):
    class Module(nn.Module):
        def forward(self, *args):
            return call.run(*args)

    inputs = [x.detach() for x in call.inputs()]
    traced = torch.jit.trace(Module(), tuple(inputs))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    others = [x + 0.1 for x in inputs]
    # A tracer computes constants such as 1 / sqrt(d) in float32.
    equal(torch.jit.load(file)(*others), call.run(*others), rtol=2e-6, atol=2e-6)


@operators
def test_fake_tensors(call):
    expected = call.run(*call.inputs())
    for _ in range(2):  # neither kind of tensor depends on what ran before
        with FakeTensorMode():
            fake = call.run(*call.inputs())
            assert fake.shape == expected.shape
            assert fake.dtype == expected.dtype
            assert fake.stride() == expected.stride()
        equal(call.run(*call.inputs()), expected, rtol=0, atol=0)


@operators
def test_meta_tensors(call):
    meta = call.run(*(x.detach().to("meta") for x in call.inputs()))
    expected = call.run(*call.inputs())
    assert (meta.shape, meta.dtype) == (expected.shape, expected.dtype)


@operators
def test_half_precision_and_autocast(call):
    """The error is that of rounding inputs and results."""
    inputs = call.inputs(torch.float32)
    expected = call.run(*inputs)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            mixed = call.run(*inputs).float()
        scale = expected.abs().max().item()
        assert (mixed - expected).abs().max() < 8 * torch.finfo(dtype).eps * scale


def test_devices_without_autocast(monkeypatch):
    """PyTorch before 2.5 raises for mps, and any version for unknown devices."""

    def refuse(device_type: str, enabled: bool = True):
        raise RuntimeError(f"unsupported autocast device_type '{device_type}'")

    call = CALLS["rala"]
    expected = call.run(*call.inputs())
    monkeypatch.setattr(torch, "autocast", refuse)
    equal(call.run(*call.inputs()), expected, rtol=0, atol=0)


def test_rotation_by_real_tables():
    """The form of devices other than CPUs."""
    call = CALLS["rotate"]
    (x,) = call.inputs()
    expected = call.run(x)
    with plain_forms():
        tables = rotary_tables(x, HW)
    assert not tables[0].is_complex()
    got = rotate(x, HW, tables)
    equal(got, expected)
    equal(gradients(got, [x]), gradients(expected, [x]))


def test_tables_from_inference_mode_serve_training():
    call = CALLS["rotate"]
    with torch.inference_mode():
        call.run(*call.inputs())
    (x,) = call.inputs()
    call.run(x).square().sum().backward()
    equal(x.grad, 2 * x.detach())  # rotations keep lengths
