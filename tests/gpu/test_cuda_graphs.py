"""CUDA graphs: captured once, replayed whatever ran in between."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from helpers.backbones import build, error, images, randomize
from helpers.kernels import DEVICE, DTYPES, autocast, rounding

SIZES = ((1, 64, 96), (2, 160, 128), (1, 224, 352))
OTHER_SIZES = ((1, 96, 64), (3, 128, 160), (1, 352, 224), (2, 37, 133))
WARM_UP = 3


@dataclass
class Captured:
    """A function of one tensor as a CUDA graph.

    Args:
        run: The function.
        x: Memory that the graph reads its argument from.
    """

    run: Callable[[Tensor], tuple[Tensor, ...]]
    x: Tensor
    graph: torch.cuda.CUDAGraph = field(default_factory=torch.cuda.CUDAGraph)

    def __post_init__(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles and loads what the graph launches
            for _ in range(WARM_UP):
                self.run(self.x)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self.graph):
            self.outs = self.run(self.x)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Replay the graph on another argument."""
        self.x.copy_(x)
        self.graph.replay()
        return self.outs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_graphs_of_several_sizes(dtype):
    """Memory that was freed or evicted in between would change their results."""
    model = randomize(build(), mild=True).to(DEVICE).eval()

    @torch.no_grad()
    def run(x: Tensor) -> tuple[Tensor, ...]:
        with autocast(dtype):
            return model(x)

    def draw(size, seed: int = 0) -> Tensor:
        return images(size[0], 3, *size[1:]).roll(seed, -1).to(DEVICE)

    graphs = {size: Captured(run, draw(size)) for size in SIZES}
    for seed, order in enumerate((SIZES, SIZES[::-1], (*SIZES, *SIZES))):
        for i, size in enumerate(order):
            x = draw(size, seed + i)
            run(draw(OTHER_SIZES[(seed + i) % len(OTHER_SIZES)], seed))
            found = [out.clone() for out in graphs[size](x)]
            for got, wanted in zip(found, run(x), strict=True):
                assert error(got, wanted) < rounding(dtype), (seed, size)


def test_graph_of_a_training_step():
    """Forward, backward and optimizer step."""
    batches = [images(2, 3, 64, 96).roll(i, -1).to(DEVICE) for i in range(4)]
    (model, run), (twin, run_twin) = training(), training()
    before = joined(twin)
    captured = Captured(run, batches[0].clone())
    for _ in range(WARM_UP):
        run_twin(batches[0])
    for x in batches[1:]:
        (loss,), (expected,) = captured(x), run_twin(x)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert error(joined(model) - before, joined(twin) - before) < 1e-3


def training() -> tuple[nn.Module, Callable[[Tensor], tuple[Tensor]]]:
    """Return a network, and a function that trains it on a batch."""
    model = randomize(build(), mild=True).to(DEVICE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(x: Tensor) -> tuple[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss = sum(out.square().mul(out).mean() for out in model(x))
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    return model, run


def joined(model: nn.Module) -> Tensor:
    """Return parameters and statistics as one tensor."""
    return torch.cat(
        [value.flatten().double() for value in model.state_dict().values()]
    )
