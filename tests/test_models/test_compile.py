"""torch.compile: one graph, and one compilation for all image sizes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from helpers.backbones import build, error, images

pytestmark = pytest.mark.integration

DEFAULT = ("rala", "rala", "softmax", "softmax")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("attn_types", ["rala", "gla", "chela", DEFAULT])
def test_one_graph(attn_types, train):
    model = build(attn_types=attn_types).train(train)
    with torch.set_grad_enabled(train):
        found = torch._dynamo.explain(model)(images(2, 3, 64, 96))
    assert found.graph_break_count == 0, found.break_reasons
    assert found.graph_count == 1
    # Compilers cannot generate code for complex numbers.
    assert "complex" not in found.graphs[0].print_readable(print_output=False)


def test_recomputed_blocks_in_one_graph():
    model = build(with_cp=True).train()
    found = torch._dynamo.explain(model)(images(2, 3, 64, 96))
    assert found.graph_break_count == 0, found.break_reasons
    names = [str(node.target) for node in found.graphs[0].graph.nodes]
    assert sum("checkpoint" in name for name in names) == 5


# As few stages as contain every part, because compiling takes seconds a stage.
@pytest.mark.parametrize(
    ("attn_types", "out_indices", "train"),
    [
        (("rala", "softmax") * 2, (0, 1), False),
        ("rala", (0, 1), True),
        ("chela", (0,), True),
    ],
    ids=["inference", "training", "chela"],
)
def test_one_compilation_for_all_sizes(attn_types, out_indices, train):
    model = build(attn_types=attn_types, out_indices=out_indices).train(train)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for size in ((2, 64, 96), (2, 80, 64), (3, 37, 133), (4, 64, 64)):
        x = images(size[0], 3, *size[1:])
        with torch.set_grad_enabled(train):
            outs, expected = compiled(x), model(x)
        for got, wanted in zip(outs, expected, strict=True):
            assert error(got, wanted) < 1e-5
            assert got.is_contiguous()
        if train:
            grads = [gradients(model, y) for y in (outs, expected)]
            assert error(*grads) < 1e-5
    assert counter.frame_count == 1


def gradients(model, outs) -> torch.Tensor:
    loss = sum(out.square().mul(out).sum() for out in outs)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def test_recomputed_blocks_with_batch_norms_in_one_graph():
    model = build(attn_types="chela", with_cp=True, out_indices=(0,)).train()
    found = torch._dynamo.explain(model)(images(2, 3, 64, 96))
    assert found.graph_break_count == 0, found.break_reasons
    assert found.graph_count == 1
