"""The network under every transform of PyTorch, compared by values.

The transforms are tracing, scripting, export, functional gradients, fake tensors and
symbolic graphs.
"""

import copy
import io

import pytest
import timm
import torch
from timm.layers import get_notrace_functions, get_notrace_modules, set_scriptable
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torchvision.models.feature_extraction import (
    create_feature_extractor,
    get_graph_node_names,
)

from helpers.backbones import build, error, images, randomize
from ravlt.models import RAVLTClassifier

DEFAULT = ("rala", "rala", "softmax", "softmax")
settings = pytest.mark.parametrize("attn_types", ["rala", DEFAULT], ids=str)


def backbone(attn_types) -> nn.Module:
    return randomize(build(attn_types=attn_types), mild=True).eval()


def classifier(attn_types=DEFAULT) -> RAVLTClassifier:
    torch.manual_seed(0)
    model = timm.create_model("ravlt_t", arch="test", attn_types=attn_types)
    return randomize(model, mild=True).eval()


def agree(outs, expected, bound: float = 1e-5) -> None:
    assert len(outs) == len(expected)
    for out, wanted in zip(outs, expected, strict=True):
        assert error(out, wanted) < bound


def saved_and_loaded(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    return torch.jit.load(file)


SIZES = ((64, 96), (96, 64), (37, 45), (128, 160), (75, 33))


@settings
def test_trace_saves_and_loads(attn_types):
    """Traced with and without gradients, at one size, for any other."""
    model = backbone(attn_types)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            traced = saved_and_loaded(torch.jit.trace(model, images(1, 3, 64, 64)))
        for size in SIZES:
            x = images(2, 3, *size)
            agree(traced(x), model(x))


@settings
def test_script_saves_and_loads(attn_types):
    """timm's switch makes it scriptable, at any size, in training and eval mode."""
    with set_scriptable(True):
        model = classifier(attn_types)
    scripted = saved_and_loaded(torch.jit.script(model))
    for size in ((64, 96), (37, 45)):
        x = images(2, 3, *size)
        agree([scripted(x)], [model(x)])
    twin = copy.deepcopy(model).train()
    torch.manual_seed(3)
    expected = twin(x)
    torch.manual_seed(3)
    agree([torch.jit.script(model.train())(x)], [expected])


@pytest.mark.integration
@settings
def test_export_with_free_height_and_width(attn_types):
    model = backbone(attn_types)
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model, (images(2, 3, 64, 96),), dynamic_shapes=({0: free, 2: free, 3: free},)
    ).module()
    with torch.no_grad():
        for size in ((1, 64, 96), (2, 128, 96), (1, 75, 101)):
            x = images(size[0], 3, *size[1:])
            agree(program(x), model(x))


@settings
def test_functional_gradient(attn_types):
    model = backbone(attn_types).double()
    x = images(1, 3, 32, 48).double()
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        outs = torch.func.functional_call(model, parameters, (x,))
        return sum(out.square().mean() for out in outs)

    grads, grad_x = torch.func.grad(loss, argnums=(0, 1))(parameters, x)
    x.requires_grad_()
    loss(dict(model.named_parameters()), x).backward()
    agree([grad_x], [x.grad], 1e-10)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-9, atol=1e-10)


@settings
@pytest.mark.parametrize("train", [False, True])
def test_fake_tensors_leave_no_trace(attn_types, train):
    """Fake tensors run before and after real tensors of the same size."""
    model = backbone(attn_types)
    x = images(2, 3, 64, 96)
    expected = model(x)
    for _ in range(2):
        with FakeTensorMode():
            fake = build(attn_types=attn_types).train(train)
            outs = fake(torch.empty(x.shape))
            if train:
                sum(out.sum() for out in outs).backward()
                assert all(p.grad.shape == p.shape for p in fake.parameters())
            for out, wanted in zip(outs, expected, strict=True):
                assert (out.shape, out.stride()) == (wanted.shape, wanted.stride())
        with torch.no_grad():
            agree(model(x), expected, 1e-6)


@settings
def test_symbolic_graph(attn_types):
    """The graph, built as in timm's tests, has equal outputs and all gradients.

    It is also scriptable.
    """
    model = classifier(attn_types)
    kwargs = dict(
        leaf_modules=get_notrace_modules(),
        autowrap_functions=get_notrace_functions(),
        param_shapes_constant=True,
    )
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=kwargs)
    graph = create_feature_extractor(
        model,
        train_return_nodes=train_nodes[-1:],
        eval_return_nodes=eval_nodes[-1:],
        tracer_kwargs=kwargs,
    )
    for size in ((64, 96), (37, 45)):
        x = images(2, 3, *size)
        with torch.inference_mode():
            (out,) = graph.eval()(x).values()
            assert torch.equal(out, model.eval()(x))
    (scripted,) = torch.jit.script(graph)(x).values()
    agree([scripted], [out])
    (out,) = graph.train()(images(2, 3, 64, 64)).values()
    out.mean().backward()
    assert all(p.grad is not None for p in graph.parameters())
