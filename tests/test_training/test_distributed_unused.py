"""No parameter is without a gradient: DDP needs no find_unused_parameters."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ravlt.models import RAVLT
from ravlt.models.archs import RELEASED_ATTN_TYPES
from ravlt.models.attention import CORES


@pytest.fixture(scope="module")
def group():
    """A group of one process, in which DDP counts gradients as in a large one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def settings() -> list[dict]:
    every = [dict(attn_types=name) for name in CORES]
    every += [
        dict(),
        dict(with_cp=True),
        dict(drop_path_rate=0.5),
        dict(norm_eval=True),
    ]
    every += [dict(with_cp=True, drop_path_rate=0.5, attn_types="rala")]
    prefixes = [(0,), (0, 1), (0, 1, 2), (1, 2, 3), (3,)]
    every += [
        dict(out_indices=indices, attn_types=attn)
        for indices in prefixes
        for attn in (RELEASED_ATTN_TYPES, "rala")
    ]
    every += [
        dict(frozen_stages=stages, with_cp=cp)
        for stages in range(5)
        for cp in (False, True)
    ]
    return every


class Detector(nn.Module):
    """A backbone with a layer on each of its outputs."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.backbone = RAVLT("test", **settings)
        dims = [self.backbone.embed_dims[i] for i in self.backbone.out_indices]
        self.heads = nn.ModuleList(nn.Conv2d(dim, 1, 1) for dim in dims)

    def forward(self, x):
        outs = zip(self.heads, self.backbone(x), strict=True)
        return sum(head(out).mean() for head, out in outs)


@pytest.mark.parametrize("settings", settings(), ids=str)
def test_no_parameter_is_unused(group, settings):
    """DDP stops in the second iteration at one without a gradient in the first."""
    model = Detector(**settings).train()
    replica = DistributedDataParallel(model, find_unused_parameters=False)
    for _ in range(2):
        replica(torch.rand(2, 3, 64, 64)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_unused_parameters_would_be_noticed(group):
    model = Detector()
    model.spare = nn.Linear(1, 1)
    replica = DistributedDataParallel(model, find_unused_parameters=False)
    replica(torch.rand(2, 3, 64, 64)).backward()
    with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
        replica(torch.rand(2, 3, 64, 64))
