"""The custom operators of PyTorch around the Triton kernels."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as fwAD
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from helpers.backbones import build, error, images, randomize
from helpers.kernels import DEVICE
from ravlt.ops import plain_forms
from ravlt.ops.depthwise import depthwise_conv
from ravlt.ops.rala import rala
from ravlt.ops.rotary import rotate_queries_and_keys

pytestmark = [pytest.mark.usefixtures("kernels"), pytest.mark.kernels]

HW = (3, 5)


def tokens(count: int = 3) -> list[Tensor]:
    """Draw tensors of tokens (1, 2, 15, 8), views of one product."""
    product = images(1, 15, count * 16).to(DEVICE).requires_grad_()
    parts = product.chunk(count, dim=-1)
    return [t.unflatten(-1, (2, 8)).transpose(1, 2) for t in parts]


def check(operator, *arguments) -> None:
    opcheck(operator, arguments)


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("reweight", [True, False])
def test_rala_follows_the_rules_of_operators(rope, reweight):
    q, k, v = (t.detach().requires_grad_() for t in tokens())
    operators = torch.ops.ravlt
    check(operators.rala.default, q, k, v, *HW, rope, reweight)
    with torch.no_grad():
        kept = operators.rala(q, k, v, *HW, rope, reweight)
    grad, q, k, v = (t.detach() for t in (torch.ones_like(q), q, k, v))
    check(
        *(operators.rala_backward.default, grad, q, k, v, *kept),
        *(*HW, rope, reweight),
    )


@pytest.mark.parametrize("inverse", [False, True])
def test_rotation_follows_the_rules_of_operators(inverse):
    q, k = (t.detach().requires_grad_() for t in tokens(2))
    check(torch.ops.ravlt.rotate.default, q, k, *HW, inverse)


@pytest.mark.parametrize("flip", [False, True])
def test_convolution_follows_the_rules_of_operators(flip):
    x, grad = (images(2, *HW, 6).to(DEVICE).requires_grad_() for _ in range(2))
    weight = images(6, 1, 3, 3).to(DEVICE).requires_grad_()
    bias = images(6).to(DEVICE).requires_grad_()
    operators = torch.ops.ravlt
    check(operators.depthwise_conv.default, x, weight, bias, True, flip)
    check(operators.depthwise_conv.default, x, weight, None, False, flip)
    check(operators.depthwise_weight_gradient.default, x, grad, 3)


class Operators(nn.Module):
    """All operators on one grid (B, H, W, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(images(16, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        hw = (x.shape[1], x.shape[2])
        x = depthwise_conv(x, self.weight, None, residual=True)
        heads = x.flatten(1, 2).unflatten(-1, [2, 8]).transpose(1, 2)
        y = rala(heads, heads, heads, hw)
        return y + sum(rotate_queries_and_keys(heads, heads, hw))


def called(graph: torch.fx.Graph) -> set[str]:
    """Name the custom operators in a graph."""
    names = {str(node.target).removesuffix(".default") for node in graph.nodes}
    return {name for name in names if name.startswith("ravlt.")}


@pytest.mark.integration
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_breaks(dynamic):
    """The backend runs the graph as it is; the operators are in it."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _):
        graphs.append(graph.graph)
        return graph

    module = Operators().to(DEVICE)
    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=dynamic)
    for hw in ((4, 6), (5, 7)):
        x = images(1, *hw, 16).to(DEVICE).requires_grad_()
        got, expected = compiled(x), module(x)
        assert error(got, expected) < 1e-5
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected)]
        assert error(*grads) < 1e-5
    assert len(graphs) == (1 if dynamic else 2)
    # Compilers fuse the plain rotation with its neighbours.
    assert called(graphs[0]) == {"ravlt.depthwise_conv", "ravlt.rala"}


@pytest.mark.integration
def test_exported():
    module = Operators().to(DEVICE)
    x = images(1, 4, 6, 16).to(DEVICE)
    program = torch.export.export(module, (x,))
    assert called(program.graph) == {"ravlt.depthwise_conv", "ravlt.rala"}
    other = images(1, 4, 6, 16).to(DEVICE) + 1
    assert error(program.module()(other), module(other)) < 1e-5


def test_checkpointed():
    module = Operators().to(DEVICE)
    x = images(1, *HW, 16).to(DEVICE).requires_grad_()
    grads = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
        grads.append(torch.autograd.grad(run(x).square().sum(), x)[0])
    assert torch.equal(*grads)


def test_traced_models_hold_plain_operations():
    module = Operators().to(DEVICE)
    x = images(1, *HW, 16).to(DEVICE)
    traced = torch.jit.trace(module, x)
    assert "ravlt::" not in str(traced.inlined_graph)
    assert error(traced(x), module(x)) < 1e-5


@pytest.mark.parametrize("size", [3, 5, 7])
def test_wide_convolutions_stay_plain(size):
    """Their taps would not fit into the registers of a kernel that unrolls them."""
    x, weight = images(1, *HW, 16).to(DEVICE), images(16, 1, size, size).to(DEVICE)
    y = depthwise_conv(x.requires_grad_(), weight)
    assert ("ravlt" in y.grad_fn.name()) == (size <= 5)


def test_shapes_that_do_not_fit():
    """A kernel would read foreign memory."""
    q, k, v = tokens()
    with pytest.raises(ValueError, match="all have to be"):
        rala(q, k, v, (4, 5))
    with pytest.raises(ValueError, match="all have to be"):
        rala(q, k[:, :, :14], v, HW)
    with pytest.raises(ValueError, match="both have to be"):
        rotate_queries_and_keys(q, k, (4, 5))
    x = images(1, *HW, 16).to(DEVICE)
    for shape in ((15, 1, 3, 3), (16, 1, 3, 5), (16, 1, 4, 4), (16, 2, 3, 3)):
        with pytest.raises(ValueError, match="16 channels"):
            depthwise_conv(x, images(*shape).to(DEVICE))
    with pytest.raises(ValueError, match="as many biases"):
        depthwise_conv(x, images(16, 1, 3, 3).to(DEVICE), images(15).to(DEVICE))


def test_head_dimensions_that_have_no_kernel():
    """Rotation needs pairs for rows and columns; plain linear attention does not."""
    q = images(1, 2, 15, 6).to(DEVICE).requires_grad_()
    assert "ravlt" not in rala(q, q, q, HW, rope=False).grad_fn.name()


def test_functional_gradients_take_plain_operations():
    module = Operators().to(DEVICE)
    x = images(1, *HW, 16).to(DEVICE).requires_grad_()
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    gradient = torch.func.grad(lambda x: module(x).square().sum())
    assert error(gradient(x.detach()), expected) < 1e-5
    compiled = torch.compile(gradient, backend="eager")
    assert error(compiled(x.detach()), expected) < 1e-5


def test_forward_mode_derivatives_take_plain_operations():
    module = Operators().to(DEVICE)
    x, tangent = (images(1, *HW, 16).to(DEVICE) + i for i in range(2))
    with plain_forms():
        step = 1e-3
        expected = (module(x + step * tangent) - module(x - step * tangent)) / 2 / step
    with torch.no_grad(), fwAD.dual_level():
        y = module(fwAD.make_dual(x, tangent))
        found = fwAD.unpack_dual(y).tangent
    assert found is not None
    assert error(found, expected) < 1e-2


def test_autocast_leaves_the_residual_stream_in_float32():
    """Kernels read it as it is; a convolution of PyTorch would round it."""
    model = randomize(build(attn_types="rala"), mild=True).to(DEVICE)
    block = model.layers[0].blocks[0]
    x = images(1, 4, 6, 16).to(DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = block.pos(x)
    assert y.dtype == torch.float32
    assert error(y, block.pos(x)) == 0
