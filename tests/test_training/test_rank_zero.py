"""Rank 0 decides, the others follow; and a machine that differs stops the run."""

import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.model import MMDistributedDataParallel
from torch import nn

from helpers.distributed_runs import call_in_group, finish, launch, write_config
from helpers.tool_runs import SEG
from ravlt.errors import RAVLTError
from ravlt.training.checkpoints import resume
from ravlt.training.checkpoints.resume import set_resume
from ravlt.training.distributed import group, preparation
from ravlt.training.distributed.preparation import check_data_once, fetch_weights
from ravlt.training.distributed.rank_zero import on_rank_zero
from ravlt.training.distributed.same_start import SameStartHook

pytestmark = pytest.mark.integration


def messages(outcomes: list) -> list[str]:
    """Return the sentences, of errors that users see as such."""
    assert all(isinstance(outcome, RAVLTError) for outcome in outcomes), outcomes
    return [str(outcome) for outcome in outcomes]


def call_and_count(function) -> tuple[object, int]:
    calls = []
    result = on_rank_zero(lambda: calls.append(1) or function())
    return result, len(calls)


def slow_rank(seconds: float) -> int:
    time.sleep(seconds)
    return get_rank()


def fail(error: Exception) -> None:
    raise error


def test_one_process_calls_the_function_itself():
    assert call_and_count(get_rank) == (0, 1)
    with pytest.raises(KeyError):
        on_rank_zero(partial(fail, KeyError("x")))


def test_result_of_rank_zero_reaches_all():
    """It may take longer than a collective, which here may take 2 s."""
    found = call_in_group(3, call_and_count, partial(slow_rank, 5.0), timeout=2)
    assert found == [(0, 1), (0, 0), (0, 0)]


def test_error_of_rank_zero_reaches_all():
    sentence = RAVLTError("'a.json' is broken; repair it.")
    found = call_in_group(2, on_rank_zero, partial(fail, sentence))
    assert messages(found) == ["'a.json' is broken; repair it."] * 2
    own, told = call_in_group(2, on_rank_zero, partial(fail, KeyError("key")))
    assert isinstance(own, KeyError)
    (message,) = messages([told])
    assert message == "Process 0 failed (KeyError: 'key'); see its traceback."


def check_counted(loaders: tuple[str, ...]) -> tuple[str, int]:
    """Check data as one process of a run; validation data are missing."""
    calls = []

    def check(cfg: Config, loaders: tuple[str, ...]) -> None:
        calls.append(loaders)
        if "val_dataloader" in loaders:
            raise RAVLTError("'b.json' does not exist; correct the path.")
        cfg.train_dataloader.dataset.ann_file = "sound_a.json"

    cfg = Config(dict(train_dataloader=dict(dataset=dict(ann_file="a.json"))))
    with (
        patch.object(preparation, "check_data", check),
        patch.object(preparation, "check_classes"),
    ):
        check_data_once(cfg, loaders)
    return cfg.train_dataloader.dataset.ann_file, len(calls)


def test_data_are_checked_once():
    found = call_in_group(2, check_counted, ("train_dataloader",))
    assert found == [("sound_a.json", 1), ("sound_a.json", 0)]
    found = call_in_group(2, check_counted, ("train_dataloader", "val_dataloader"))
    assert messages(found) == ["'b.json' does not exist; correct the path."] * 2


def choose_counted(folders: list[Path], name: str | None) -> tuple:
    """Choose a checkpoint in a folder that each process sees as another one."""
    work = folders[get_rank()]
    cfg = Config(dict(work_dir=str(work)))
    with patch.object(resume, "_check_sums", wraps=resume._check_sums) as check:
        set_resume(cfg, str(work / name) if name else "auto")
    seed = (cfg.get("randomness") or {}).get("seed")
    return cfg.get("load_from"), seed, check.call_count


def test_rank_zero_chooses_the_checkpoint(tmp_path):
    """A machine whose disk lags behind shows an older one, or none."""
    folders = [tmp_path / "new", tmp_path / "old", tmp_path / "absent"]
    for folder, iteration in zip(folders, (9, 4), strict=False):
        folder.mkdir()
        meta = dict(iter=iteration, epoch=0, seed=iteration)
        path = folder / f"iter_{iteration}.pth"
        torch.save(dict(meta=meta, state_dict=dict(w=torch.zeros(1))), path)
    newest = str(tmp_path / "new/iter_9.pth")
    assert call_in_group(3, choose_counted, folders, None) == [
        (newest, 9, 1),
        (newest, 9, 0),
        (newest, 9, 0),
    ]
    found = call_in_group(2, choose_counted, folders, "iter_4.pth")
    (message,) = set(messages(found))
    assert message.startswith(f"--resume '{folders[0]}/iter_4.pth' does not exist;")


def fetch_counted(addresses: list[str]) -> list[str]:
    read = []

    def note(address: str) -> None:
        read.append(address)
        if "gone" in address:
            raise RAVLTError(f"Cannot download '{address}'; give a path.")

    model = dict(
        backbone=dict(init_cfg=dict(type="Pretrained", checkpoint=addresses[0])),
        heads=[dict(init_cfg=[dict(type="Pretrained", checkpoint=addresses[1])])],
    )
    with patch.object(preparation, "read_checkpoint", note):
        fetch_weights(Config(dict(model=model, load_from=addresses[2])))
    return read


def test_weights_are_fetched_once():
    one, two = "https://host/a.pth", "https://host/b.pth"
    assert call_in_group(2, fetch_counted, [one, "b.pth", two]) == [[two, one], []]
    assert call_in_group(2, fetch_counted, [one, one, None]) == [[one], []]
    found = call_in_group(2, fetch_counted, [one, "https://host/gone.pth", None])
    sentence = "Cannot download 'https://host/gone.pth'; give a path."
    assert messages(found) == [sentence] * 2


def begin(iterations: list[int], weights: list[float], replicated: bool) -> None:
    """Begin a run whose processes loaded what they did after DDP was built."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Conv2d(2, 2, 1).bfloat16())
    if replicated:
        model = MMDistributedDataParallel(model, device_ids=None)
    with torch.no_grad():
        next(model.parameters())[0, 0] = weights[get_rank()]
    runner = SimpleNamespace(
        iter=iterations[get_rank()], model=model, cfg=dict(load_from="work/a.pth")
    )
    SameStartHook().before_train(runner)


def test_runs_that_begin_alike_begin():
    assert call_in_group(2, begin, [4, 4], [0.5, 0.5], True) == [None, None]
    # Processes that hold different parts of a model may differ.
    assert call_in_group(2, begin, [4, 4], [0.5, 0.25], False) == [None, None]
    begin([4], [0.5], False)


def test_processes_that_loaded_different_states_stop():
    found = call_in_group(3, begin, [4, 4, 2], [0.5] * 3, True)
    (message,) = set(messages(found))
    assert "process 0 is at iteration 4" in message
    assert "process 2 is at iteration 2" in message
    assert message.endswith("give all machines the same file 'work/a.pth'.")
    found = call_in_group(2, begin, [4, 4], [0.5, 0.25], True)
    (message,) = set(messages(found))
    assert "process 1 is at iteration 4 with weights" in message


def test_bad_data_stop_a_run_of_two_with_one_sentence(tmp_path, shapes):
    run = launch(tmp_path, write_config(tmp_path, SEG), 2, "--data-root", "gone")
    assert finish(run) == [1]
    log = (tmp_path / "log").read_text()
    lines = [line for line in log.splitlines() if "error: " in line]
    assert lines and len(set(lines)) == 1
    assert "train_dataloader.dataset.data_root 'gone' does not exist" in lines[0]
    assert "RAVLTError" not in log


def test_batch_norms_of_processes_without_gpus():
    norm = dict(type="SyncBN", requires_grad=True)
    model = dict(backbone=dict(norm_cfg=norm), decode_head=[dict(norm_cfg=norm)])
    cfg = Config(dict(model=model))
    group._replace_sync_bn(cfg.model)
    expected = dict(norm_cfg=norm | dict(type="BN"))
    assert cfg.model.to_dict() == dict(backbone=expected, decode_head=[expected])
