"""Bad numbers in training: a step that is left out leaves nothing behind."""

import logging
import math
import multiprocessing
import os

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import nn

from helpers.toy_runs import BAD, Toy, batches, run, saved
from ravlt.errors import RAVLTError
from ravlt.training.guards.finite_steps import FiniteOptimWrapper


def equal(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            equal(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


SKIP = dict(type="FiniteOptimWrapper", skip=2)
AVERAGE = dict(
    type="EMAHook",
    ema_type="ExponentialMovingAverage",
    momentum=0.1,
    update_buffers=True,
)


@pytest.mark.parametrize("bad", [BAD, math.inf, 1e30])
def test_a_skipped_step_leaves_nothing_behind(tmp_path, bad):
    """Weights, Adam's states and statistics: as of a run that never saw the batches."""
    got = run(tmp_path / "a", batches(1, bad, 2, bad, bad, 3), SKIP)
    expected = run(tmp_path / "b", batches(1, 2, 3), dict(type="OptimWrapper"))
    for key in ("state_dict", "optimizer"):
        equal(saved(got)[key], saved(expected)[key])
    assert saved(got)["state_dict"]["norm.num_batches_tracked"] == 3


def test_bad_batches_before_any_good_one(tmp_path):
    got = run(tmp_path / "a", batches(BAD, BAD, 1, 2), SKIP)
    expected = run(tmp_path / "b", batches(1, 2), dict(type="OptimWrapper"))
    equal(saved(got)["state_dict"], saved(expected)["state_dict"])


def test_averages_are_not_spoilt(tmp_path):
    got = run(tmp_path, batches(1, BAD, 2), SKIP, [AVERAGE])
    for name in ("state_dict", "ema_state_dict"):
        values = saved(got)[name].values()
        assert all(value.isfinite().all() for value in values)
    weights = []

    class Keep(OptimWrapper):
        def step(self, **kwargs) -> None:
            super().step(**kwargs)
            weights.append(self.optimizer.param_groups[0]["params"][2].item())

    # The average of an iteration without a step is of unchanged weights.
    torch.manual_seed(0)
    model = Toy()
    wrapper = Keep(torch.optim.AdamW(model.parameters(), lr=0.1))
    for first in (1, 2):
        model.train_step({"inputs": [first, 0.5 * first - 1]}, wrapper)
    first, second = weights
    average = first
    for weight in (first, second):
        average += 0.1 * (weight - average)
    assert saved(got)["state_dict"]["linear.weight"].item() == pytest.approx(average)


@pytest.mark.parametrize("bad", [0, 1])
def test_accumulated_gradients_are_left_out_together(tmp_path, bad):
    """A step of two batches, of which one is bad."""
    window = [7.0, 8.0]
    window[bad] = BAD
    two = dict(accumulative_counts=2)
    got = run(tmp_path / "a", batches(1, 2, *window, 3, 4), SKIP | two)
    expected = run(tmp_path / "b", batches(1, 2, 3, 4), dict(**two))
    for key in ("state_dict", "optimizer"):
        equal(saved(got)[key], saved(expected)[key])


def test_too_many_in_a_row_stop_with_good_weights(tmp_path):
    runner = None
    with pytest.raises(RAVLTError) as stopped:
        runner = run(tmp_path / "a", batches(1, BAD, BAD, BAD, 2), SKIP)
    assert runner is None and not list(tmp_path.glob("a/*.pth"))
    assert str(stopped.value) == (
        "The loss or a gradient is not finite at iteration 4, after 2 skipped steps in "
        "a row, so training stops (weights are those before them); lower the learning "
        "rate, clip gradients (optim_wrapper.clip_grad) or look at the data."
    )


def test_clipping_and_skipping(tmp_path):
    clip = dict(clip_grad=dict(max_norm=0.01))
    got = run(tmp_path / "a", batches(1, BAD, 2), SKIP | clip)
    expected = run(tmp_path / "b", batches(1, 2), clip)
    equal(saved(got)["state_dict"], saved(expected)["state_dict"])


def test_skipping_is_told(tmp_path, said):
    run(tmp_path, batches(1, BAD, 2, BAD, BAD, 3), SKIP)
    assert [level for level, _ in said] == [logging.WARNING] * 3
    for (_, line), iteration, row in zip(said, (2, 4, 5), (1, 1, 2), strict=True):
        assert line == (
            f"The loss or a gradient is not finite at iteration {iteration}: skipped "
            f"this step ({row} in a row, 2 may be)."
        )


def test_a_bad_gradient_of_a_finite_loss_is_left_out():
    """The root of 0 is 0, and its slope is infinite."""
    weight = nn.Parameter(torch.zeros(2))
    wrapper = FiniteOptimWrapper(torch.optim.SGD([weight], lr=1.0))
    model = nn.ParameterList([weight])
    with wrapper.optim_context(model):
        loss = weight.sqrt().sum()
    assert loss == 0
    wrapper.update_params(loss)
    assert wrapper.skipped == 1 and weight.tolist() == [0, 0]
    with wrapper.optim_context(model):
        loss = weight.sum()
    wrapper.update_params(loss)
    assert wrapper.skipped == 0 and weight.tolist() == [-1, -1]


# ------------------------------------------------------------------------ distributed


def _train_rank(rank: int, folder: str, bad: float | None, build, queue) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = MMDistributedDataParallel(Toy(), broadcast_buffers=False)
    wrapper = build(model)
    skipped = []
    for step in range(3):
        value = float(step + 1 + rank)
        if step == 1:
            if bad is None:
                continue
            value = bad if rank == 1 else value
        model.train_step({"inputs": [value, 0.5 * value - 1]}, wrapper)
        skipped.append(wrapper.skipped)
    state = {k: v.tolist() for k, v in model.module.state_dict().items()}
    queue.put((rank, skipped, state))
    queue.close()
    queue.join_thread()
    # Freeing the group may hold Python's lock and wait for a thread that wants it.
    os._exit(0)


def build_plain(model: nn.Module) -> FiniteOptimWrapper:
    return FiniteOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))


def train_two(folder, bad: float | None, build) -> list[tuple]:
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [
        context.Process(target=_train_rank, args=(rank, str(folder), bad, build, queue))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    results = sorted(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return results


@pytest.mark.integration
@pytest.mark.parametrize("mixed", [False, True])
def test_all_processes_skip_together(tmp_path, amp, mixed):
    """One of two sees a bad batch, whose loss the other does not know of."""
    build = amp if mixed else build_plain
    got = train_two(tmp_path / "a", BAD, build)
    expected = train_two(tmp_path / "b", None, build)
    for (_, skipped, state), (_, never, clean) in zip(got, expected, strict=True):
        assert skipped == [0, 1, 0] and never == [0, 0]
        assert state == clean
    (_, _, first), (_, _, second) = got
    assert first["linear.weight"] == second["linear.weight"]
    assert first["norm.running_mean"] != second["norm.running_mean"]


# -------------------------------------------------------------------- mixed precision


def steps(model: nn.Module, wrapper, *firsts: float) -> None:
    for first in firsts:
        model.train_step({"inputs": [first, 0.5 * first - 1]}, wrapper)


def test_a_bad_batch_under_amp(amp):
    """It is left out, and the scale knows nothing of it."""
    torch.manual_seed(0)
    model, twin = Toy(), Toy()
    twin.load_state_dict(model.state_dict())
    wrapper = amp(model)
    steps(model, wrapper, 1, BAD, 2)
    steps(twin, amp(twin), 1, 2)
    equal(dict(model.state_dict()), dict(twin.state_dict()))
    assert wrapper.loss_scaler.get_scale() == 1024


def test_a_bad_batch_among_accumulated_ones_under_amp(amp):
    torch.manual_seed(0)
    model, twin = Toy(), Toy()
    twin.load_state_dict(model.state_dict())
    wrapper = amp(model, accumulative_counts=2)
    steps(model, wrapper, 1, 2, BAD, 3)
    assert wrapper.skipped == 1 and wrapper.loss_scaler.get_scale() == 1024
    steps(twin, amp(twin, accumulative_counts=2), 1, 2)
    equal(dict(model.state_dict()), dict(twin.state_dict()))


def test_overflow_under_amp_is_the_scalers_matter(amp):
    """Gradients that overflow by their scale are no bad loss, however many."""
    torch.manual_seed(0)
    model = Toy()
    wrapper = amp(model, scale=2.0**127, skip=1)
    before = model.linear.weight.item()
    steps(model, wrapper, 100, 100, 100)
    assert wrapper.skipped == 0 and model.linear.weight.item() == before
    assert wrapper.loss_scaler.get_scale() == 2.0**124
    wrapper.loss_scaler.update(1.0)
    steps(model, wrapper, 100)
    assert model.linear.weight.item() != before
