#!/usr/bin/env python
"""Distill one layer of softmax attention into Hedgehog, on Gaussian queries and keys.

Print how far the weights are from those of softmax before and after.
"""

import argparse

import torch
from torch import Tensor

from distillation import distillation_loss
from ravlt.models.attention import CORES
from ravlt.models.attention.hedgehog import HedgehogCore
from ravlt.training.cli import run_cli

_HW = (14, 14)
_HEAD_DIM = 64
_LEARNING_RATE = 1e-2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--seed", type=int, default=0, help="of queries and keys")
    return parser.parse_args()


def run_experiment(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    """Train a core of one head on unit Gaussian queries and keys.

    Args:
        steps: Training steps.
        seed: Seed of the queries and keys.

    Returns:
        Divergence and rank correlation before and after: see :func:`compare`.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = _HW[0] * _HW[1]
    q, k = torch.randn(2, 1, 1, tokens, _HEAD_DIM, generator=generator)
    core = CORES["hedgehog"](_HEAD_DIM, num_heads=1)
    optimizer = torch.optim.Adam(core.parameters(), _LEARNING_RATE)
    before = compare(core, q, k, _HW)
    for _ in range(steps):
        optimizer.zero_grad()
        distillation_loss(core, q, k, _HW).backward()
        optimizer.step()
    return [before, compare(core, q, k, _HW)]


@torch.no_grad()
def compare(
    core: HedgehogCore, q: Tensor, k: Tensor, hw: tuple[int, int]
) -> tuple[float, float]:
    """Compare a core's weights with those of softmax on the same q and k.

    Args:
        core: Mechanism.
        q: Queries of shape (B, heads, N, d).
        k: Keys of shape (B, heads, N, d).
        hw: Height and width of the grid, H * W = N.

    Returns:
        The Kullback-Leibler divergence of the core's rows from softmax, and Spearman's
        correlation of the rows with <q, k>, both averaged over rows.
    """
    scores = q @ k.mT
    target = (scores * q.shape[-1] ** -0.5).softmax(-1)
    weights = core.dense(q, k, k, hw)
    divergence = (target * (target / weights).log()).sum(-1).mean().item()
    return divergence, rank_correlation(weights, scores)


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Compute Spearman's correlation of each row, and return the mean of all rows."""
    pairs = torch.stack((_ranks(x).flatten(0, -2), _ranks(y).flatten(0, -2)), 1)
    return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean().item()


def _ranks(x: Tensor) -> Tensor:
    return x.argsort(-1).argsort(-1).double()


def main() -> None:
    args = parse_args()
    results = run_experiment(args.steps, args.seed)
    times = ("before", f"after {args.steps} steps")
    for time, (divergence, correlation) in zip(times, results, strict=True):
        values = f"divergence {divergence:.2f}, rank correlation {correlation:.2f}"
        print(f"{time}: {values}")


if __name__ == "__main__":
    run_cli(main)
