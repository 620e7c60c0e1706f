"""Hooks that watch numbers: a run stops, no broken file is written, jumps are told."""

import logging
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers.tool_runs import is_finite, train
from helpers.toy_runs import BAD, Toy, batches, run
from ravlt.errors import RAVLTError
from ravlt.training.guards.finite import LossSpikeHook, StopOnNonFiniteHook


@pytest.fixture
def runner(tmp_path):
    return SimpleNamespace(
        iter=6, work_dir=str(tmp_path), rank=0, optim_wrapper=SimpleNamespace()
    )


def test_a_scale_that_breaks_down_stops(amp, runner):
    """A gradient that is never finite, of a loss that is: 17 halvings of 65536."""
    weight = nn.Parameter(torch.zeros(2))
    model = nn.ParameterList([weight])
    runner.optim_wrapper = wrapper = amp(model, scale=65536.0)
    hook = StopOnNonFiniteHook()
    for _ in range(16):
        wrapper.update_params(weight.sqrt().sum())
        hook.after_train_iter(runner, 0, outputs={"loss": 0.0})
    wrapper.update_params(weight.sqrt().sum())
    with pytest.raises(RAVLTError) as stopped:
        hook.after_train_iter(runner, 0, outputs={"loss": 0.0})
    assert str(stopped.value) == (
        "The loss scale fell to 0.5 by iteration 7: gradients overflow in every step "
        "and weights no longer change; no checkpoint had been written yet; lower the "
        "learning rate, clip gradients (optim_wrapper.clip_grad) or use --amp-dtype "
        "bfloat16."
    )


# ----------------------------------------------------------------- StopOnNonFiniteHook


def test_finite_losses_pass_without_a_warning(runner):
    outputs = {"loss": torch.ones((), requires_grad=True) * 2, "loss_cls": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StopOnNonFiniteHook().after_train_iter(runner, 0, outputs=outputs)
        StopOnNonFiniteHook().after_train_iter(runner, 0, outputs=None)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_non_finite_loss_stops(runner, tmp_path, value):
    outputs = {
        "loss": torch.tensor(float(value)),
        "decode.loss_ce": float(value),
        "loss_ok": torch.tensor(1.0),
        "acc": float("nan"),
    }
    with pytest.raises(RAVLTError) as stopped:
        StopOnNonFiniteHook().after_train_iter(runner, 0, outputs=outputs)
    assert str(stopped.value) == (
        f"The loss is not finite at iteration 7 (loss={value}, "
        f"decode.loss_ce={value}); no checkpoint had been written yet; lower the "
        f"learning rate, clip gradients (optim_wrapper.clip_grad) or train without "
        f"--amp."
    )
    (tmp_path / "last_checkpoint").write_text("work/iter_4.pth\n")
    with pytest.raises(RAVLTError, match=r"good checkpoint is work/iter_4\.pth; lower"):
        StopOnNonFiniteHook().after_train_iter(runner, 0, outputs=outputs)


def test_non_finite_weights_are_not_written(runner):
    weights = {"a": torch.ones(2), "count": torch.tensor(3)}
    StopOnNonFiniteHook().before_save_checkpoint(runner, {"state_dict": weights})
    averages = {"steps": torch.tensor(0), "module.a": torch.tensor([math.inf])}
    both = {"state_dict": dict(weights), "ema_state_dict": averages}
    with pytest.raises(RAVLTError, match=r"The weight module\.a is not finite"):
        StopOnNonFiniteHook().before_save_checkpoint(runner, both)
    weights["b.c"] = torch.tensor([1.0, float("nan")])
    with pytest.raises(
        RAVLTError, match=r"The weight b\.c is not finite at iteration 7,"
    ):
        StopOnNonFiniteHook().before_save_checkpoint(runner, {"state_dict": weights})
    hook = StopOnNonFiniteHook(check_weights=False)
    hook.before_save_checkpoint(runner, {"state_dict": weights})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("linear.weight", torch.tensor([[math.nan]]), "not finite"),
        ("norm.running_var", torch.tensor([math.inf]), "not finite"),
        ("linear.weight", torch.tensor([[3]]), "torch.int64"),
        ("norm.num_batches_tracked", torch.tensor(3.0), "torch.float32"),
    ],
)
def test_broken_weights_are_not_loaded(runner, key, value, said):
    runner.model, runner.cfg = Toy(), {"load_from": "a.pth"}
    state = runner.model.state_dict()
    StopOnNonFiniteHook().after_load_checkpoint(runner, {"state_dict": state})
    StopOnNonFiniteHook().after_load_checkpoint(runner, state)
    with pytest.raises(RAVLTError) as refused:
        StopOnNonFiniteHook().after_load_checkpoint(
            runner, {"state_dict": state | {key: value}}
        )
    assert str(refused.value) == (
        f"The weight {key} of 'a.pth' is {said}; give another checkpoint."
    )


def test_entries_that_are_no_tensors_are_not_weights(runner):
    """A file of another training program, as mmengine's own loader reads it."""
    runner.model, runner.cfg = Toy(), {"load_from": "a.pth"}
    state = runner.model.state_dict()
    StopOnNonFiniteHook().after_load_checkpoint(runner, {"model": state, "epoch": 3})
    broken = state | {"extra": [1], "linear.bias": torch.tensor([math.nan])}
    with pytest.raises(RAVLTError, match=r"weight linear\.bias of 'a\.pth' is not"):
        StopOnNonFiniteHook().after_load_checkpoint(runner, {"state_dict": broken})


def test_broken_weights_stop_a_run_before_the_file(tmp_path, monkeypatch):
    def broken(self, data, optim_wrapper) -> dict:
        with torch.no_grad():
            self.linear.weight.fill_(math.inf)
        return {"loss": 1.0}

    monkeypatch.setattr(Toy, "train_step", broken)
    with pytest.raises(RAVLTError, match=r"linear\.weight is not finite at"):
        run(tmp_path, batches(1), {})
    assert not list(tmp_path.glob("*.pth"))


def test_without_skipping_the_first_bad_batch_stops(tmp_path):
    with pytest.raises(RAVLTError, match=r"not finite at iteration 2 \(loss=nan\)"):
        run(tmp_path, batches(1, BAD, 2), {})
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.integration
def test_bad_losses_of_a_run_are_skipped_when_the_config_says_so(tmp_path, shapes):
    """The third step makes weights of 1e30; those that see them are left out."""
    explode = (
        "param_scheduler = [dict(type='MultiStepLR', milestones=[2], gamma=1e33, "
        "by_epoch=False)]\nbad_losses = dict(skip=2)"
    )
    options = {"train_cfg.val_interval": 100, "train_cfg.max_iters": 9}
    tool = train(tmp_path, "--data-root", shapes, child=explode, options=options)
    assert tool.error().startswith(
        "error: The loss or a gradient is not finite at iteration 6, after 2 skipped "
    )
    for iteration in (4, 5):
        assert f"finite at iteration {iteration}: skipped this step" in tool.out
    assert is_finite(tmp_path / "work/iter_4.pth")


# ----------------------------------------------------------------------- LossSpikeHook


def test_spikes_are_told_once(runner, said):
    hook = LossSpikeHook(factor=10, window=10)
    losses = (100, 1, 2, 3, 24, 26, 500, 600, 2, math.nan, 400, 1)
    for runner.iter, loss in enumerate(losses):
        hook.after_train_iter(runner, 0, outputs={"loss": torch.tensor(float(loss))})
    assert said == [
        (
            logging.WARNING,
            f"The loss jumped to {loss} at iteration {iteration}; the median of the "
            f"last {count} is {median}.",
        )
        for loss, iteration, count, median in (
            (500, 7, 6, 13.5),
            (400, 11, 9, 24),
        )
    ]


def test_no_spike_without_a_loss_or_a_positive_one(runner, said):
    hook = LossSpikeHook(window=10)
    for loss in (-1.0, -2.0, -1.0, 5.0):
        hook.after_train_iter(runner, 0, outputs={"loss": loss})
    hook.after_train_iter(runner, 0, outputs=None)
    assert not said
