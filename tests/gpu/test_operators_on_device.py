"""Every operator on the device against its plain form in float64, on small tensors."""

import pytest

from helpers.backbones import largest_error
from helpers.kernels import DEVICE, DTYPES, autocast, rounding
from helpers.operators import CALLS, gradients
from ravlt.ops import plain_forms

# Their callers widen half precision.
WIDE = {"elu1", "rotate"}
CASES = [
    (name, d) for name in CALLS for d in DTYPES if name not in WIDE or d.itemsize > 2
]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_values_and_gradients_equal_the_plain_form(name, dtype):
    """Both begin with the same rounded inputs."""
    call = CALLS[name]
    inputs = [x.detach().to(DEVICE, dtype).requires_grad_() for x in call.inputs()]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with autocast(dtype):
        y = call.run(*inputs)
    with plain_forms():
        expected = call.run(*exact)
    pairs = zip(
        (y, *gradients(y, inputs)), (expected, *gradients(expected, exact)), strict=True
    )
    for i, (got, wanted) in enumerate(pairs):
        assert largest_error(got, wanted) < rounding(dtype), f"result {i}"
