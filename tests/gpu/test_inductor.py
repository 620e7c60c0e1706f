"""torch.compile by its own compiler: one graph, and one compilation for all sizes."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from helpers.backbones import build, error, images, randomize
from helpers.kernels import DEVICE, autocast
from ravlt.models import RAVLT

# As few stages as contain every part, because compiling takes seconds a stage.
PARTS = dict(attn_types=("rala", "softmax") * 2, out_indices=(0, 1))
SIZES = ((2, 64, 96), (3, 80, 64), (2, 37, 133))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(run, model: RAVLT, x: torch.Tensor, dtype: torch.dtype) -> list:
    """Return the feature maps, and the gradients of all parameters in one tensor."""
    with autocast(dtype):
        outs = run(x)
    loss = sum(out.float().square().mul(out).mean() for out in outs)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return [*outs, torch.cat([grad.flatten() for grad in grads])]


@pytest.mark.parametrize("dynamic", [False, True])
def test_training_equals_eager(dynamic):
    """Fused loops add up in another order."""
    model = randomize(build(**PARTS), mild=True).to(DEVICE)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, backend=counter, dynamic=dynamic, fullgraph=True)
    compilations = []
    for batch, *size in SIZES if dynamic else SIZES[:1]:
        x = images(batch, 3, *size).to(DEVICE)
        found = results(compiled, model, x, torch.float32)
        compilations.append(counter.frame_count)
        expected = results(model, model, x, torch.float32)
        for got, wanted in zip(found, expected, strict=True):
            assert error(got, wanted) < 1e-4, size
        assert all(out.is_contiguous() for out in found)
    assert len(set(compilations)) == 1, compilations


def test_mixed_precision_is_as_precise_as_eager():
    """Fused loops keep in float32 what eager operations round in between."""
    model = randomize(build(**PARTS), mild=True).to(DEVICE)
    x = images(2, 3, 64, 96).to(DEVICE)
    exact = results(model, model, x, torch.float32)
    eager = results(model, model, x, torch.bfloat16)
    compiled = torch.compile(model, fullgraph=True)
    found = results(compiled, model, x, torch.bfloat16)
    for got, rounded, wanted in zip(found, eager, exact, strict=True):
        assert error(got, wanted) < 1.5 * error(rounded, wanted)


def test_inference_equals_eager():
    model = randomize(build(**PARTS), mild=True).to(DEVICE).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, *size in SIZES:
            x = images(batch, 3, *size).to(DEVICE)
            for got, wanted in zip(compiled(x), model(x), strict=True):
                assert error(got, wanted) < 1e-4, size
