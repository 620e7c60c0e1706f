"""Checkpoints that do not fit the model, through the command lines."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from helpers.tool_runs import read_metrics, train
from helpers.toy_runs import Toy, batches, run
from ravlt.weights.checkpoint import read_checkpoint

pytestmark = pytest.mark.integration

HEAD = "decode_head.conv_seg"


@pytest.fixture
def content(seg_run) -> dict:
    return read_checkpoint(seg_run.work / "iter_4.pth")


@pytest.fixture
def tensors(content) -> dict:
    return content["state_dict"]


@pytest.fixture
def other_classes(content, tensors, tmp_path) -> Path:
    """The checkpoint of a run whose data had four classes."""
    for name in ("weight", "bias"):
        tensors[f"{HEAD}.{name}"] = tensors[f"{HEAD}.{name}"][:4]
    return save(tmp_path / "four.pth", content)


def save(path: Path, content: dict) -> Path:
    torch.save(content, path)
    return path


def test_another_number_of_classes(seg_run, shapes, other_classes, tensors):
    error = seg_run.test(shapes, checkpoint=other_classes).error()
    assert error.startswith(
        f"error: Checkpoint '{other_classes}' does not fit the model (it has "
        f"{count(tensors) - 2} of the model's {count(tensors)} tensors, "
    )
    (_, *shape) = tensors[f"{HEAD}.weight"].shape
    assert error.endswith(
        f"2 of another shape in decode_head): set num_classes of decode_head as in its "
        f"training ({HEAD}.weight is {(4, *shape)}, the model's {(6, *shape)}), or "
        f"evaluate what fits with --allow-partial."
    )


def count(tensors: dict) -> int:
    return sum(not key.endswith("num_batches_tracked") for key in tensors)


def test_allow_partial_evaluates_and_says_what_is_left(
    seg_run, shapes, tensors, tmp_path
):
    del tensors[f"{HEAD}.bias"]
    tensors["foreign.weight"] = torch.ones(1)
    path = save(tmp_path / "part.pth", {"state_dict": tensors})
    assert (
        "1 missing in decode_head, 1 unexpected in foreign"
        in seg_run.test(shapes, checkpoint=path).error()
    )
    run = seg_run.test(shapes, "--allow-partial", checkpoint=path).succeeded()
    (line,) = [line for line in run.out.splitlines() if " Loaded " in line]
    assert line.endswith(
        f"1 missing in decode_head, 1 unexpected in foreign, from '{path}'."
    )
    assert "do not match exactly" not in run.out
    assert "mIoU" in read_metrics(seg_run.cwd)


def test_a_prefix_of_every_name_is_dropped(seg_run, shapes, tensors, tmp_path):
    path = save(tmp_path / "wrapped.pth", {f"model.{k}": v for k, v in tensors.items()})
    seg_run.test(shapes, checkpoint=path).succeeded()
    found = read_metrics(seg_run.cwd)["mIoU"]
    seg_run.test(shapes).succeeded()
    assert found == read_metrics(seg_run.cwd)["mIoU"]


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_the_file_of_a_classifier(seg_run, shapes, tensors, tmp_path, wrapper):
    classifier = {
        key.removeprefix("backbone."): value
        for key, value in tensors.items()
        if key.startswith("backbone.layers")
    }
    path = save(tmp_path / "imagenet.pth", {wrapper: classifier})
    for args in ([], ["--allow-partial"]):
        error = seg_run.test(shapes, *args, checkpoint=path).error()
        assert error.startswith(
            f"error: Checkpoint '{path}' does not fit the model (it has 0 of the "
        )
        assert "it holds only a backbone, as a classifier's file does" in error


def test_load_from_says_in_one_line_what_was_not_loaded(shapes, other_classes):
    options = {"load_from": other_classes, "train_cfg.val_interval": 100}
    cwd = other_classes.parent / "run"
    run = train(cwd, "--data-root", shapes, options=options).succeeded()
    (line,) = [line for line in run.out.splitlines() if " Loaded " in line]
    assert line.endswith(
        f"tensors, 2 of another shape in decode_head, from '{other_classes}'."
    )
    assert "do not match exactly" not in run.out and "size mismatch" not in run.out


def test_a_run_resumes_only_what_fits(shapes, other_classes):
    line = ["--data-root", shapes, "--resume", other_classes]
    error = train(other_classes.parent / "run", *line).error()
    assert "2 of another shape in decode_head" in error
    assert error.endswith(", or start anew with it as load_from.")


def test_config_of_a_resumed_run(seg_run, shapes, tensors, tmp_path):
    """It has ``resume=True``; an evaluation needs no optimizer and no training set."""
    path = save(tmp_path / "weights.pth", dict(state_dict=tensors))
    run_of_test = seg_run.test(shapes, options={"resume": True}, checkpoint=path)
    assert "mIoU" in run_of_test.succeeded().out


class Renaming(Hook):
    """Rename tensors of somebody else's program, as users do."""

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        found = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            key.replace("encoder.", "linear."): value for key, value in found.items()
        }

    def before_train(self, runner) -> None:
        self.loaded = runner.model.linear.weight.item()


def test_hooks_of_users_rename_tensors_first(tmp_path):
    state = Toy().state_dict()
    state = {k.replace("linear.", "encoder."): v + 1 for k, v in state.items()}
    torch.save(dict(state_dict=state), tmp_path / "other.pth")
    renaming, fit = Renaming(), dict(type="CheckpointFitHook", strict=True)
    path = tmp_path / "other.pth"
    run(tmp_path, batches(1.0), {}, [fit, renaming], load_from=path)
    assert renaming.loaded == 1.5
