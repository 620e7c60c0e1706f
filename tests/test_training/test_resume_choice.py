"""Which checkpoint --resume takes; and that every damage to one is found."""

import os
import random
import re

import pytest
import torch
from mmengine.config import Config

from helpers.run_states import assert_equal
from ravlt.errors import RAVLTError
from ravlt.training.checkpoints import resume
from ravlt.training.checkpoints.resume import _read_seed, set_resume
from ravlt.weights.checkpoint import read_checkpoint


def write(path, iteration: int = 4, seed: int | None = 7) -> None:
    meta = dict(iter=iteration, epoch=0, seed=seed)
    weights = dict(a=torch.arange(40.0), b=torch.ones(3, 5))
    torch.save(dict(meta=meta, state_dict=weights), path)


def resumed(work_dir, resume) -> str | None:
    cfg = Config(dict(work_dir=str(work_dir)))
    set_resume(cfg, resume)
    assert cfg.get("resume", False) is (cfg.get("load_from") is not None)
    return cfg.get("load_from")


@pytest.fixture
def work(tmp_path):
    """Three checkpoints, of which iter_4 is the newest, and a best one."""
    for age, name in enumerate(["best_mIoU_iter_4", "iter_4", "iter_9", "epoch_3"]):
        path = tmp_path / f"{name}.pth"
        write(path)
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "iter_99.txt").write_text("")
    return tmp_path


def test_no_resume(work):
    assert resumed(work, None) is None


def test_resume_from_a_path(work):
    path = str(work / "epoch_3.pth")
    assert resumed(work, path) == path
    assert resumed(work, "s3://a/b.pth") == "s3://a/b.pth"


def test_resume_from_a_missing_path(work):
    with pytest.raises(RAVLTError) as refused:
        resumed(work, "gone.pth")
    assert str(refused.value) == (
        "--resume 'gone.pth' does not exist; name a checkpoint, or use --resume for "
        "the latest in the work directory."
    )


def test_auto_follows_the_pointer(work):
    path = str(work / "iter_9.pth")
    (work / "last_checkpoint").write_text(f"{path}\n")
    assert resumed(work, "auto") == path


@pytest.mark.parametrize("pointer", [None, "", "gone.pth", "."])
def test_auto_takes_the_newest_if_the_pointer_is_broken(work, pointer):
    if pointer is not None:
        (work / "last_checkpoint").write_text(pointer)
    assert resumed(work, "auto") == str(work / "iter_4.pth")


def test_auto_with_nothing_to_resume(tmp_path):
    assert resumed(tmp_path, "auto") is None
    assert resumed(tmp_path / "new", "auto") is None


def test_seed_of_the_run_that_goes_on(work):
    for said, expected in ((None, 7), (3, 3)):
        cfg = Config(dict(work_dir=str(work), randomness=dict(seed=said, x=1)))
        set_resume(cfg, "auto")
        assert cfg.randomness.to_dict() == dict(seed=expected, x=1)


def test_checkpoints_elsewhere_are_found_by_the_pointer(work, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    gone = work / "iter_4.pth"
    (run / "last_checkpoint").write_text(str(gone))
    gone.write_bytes(b"")
    assert resumed(run, "auto") == str(work / "iter_9.pth")


def damage(path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(torch.arange(40.0).numpy().tobytes())
    data[place + 50] ^= 1
    path.write_bytes(bytes(data))


def cut(path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("hurt", "reason"),
    [
        (damage, r"is damaged \(\S+/data/0 has changed\)"),
        (cut, "truncated or not a PyTorch file"),
        (empty, "truncated or not a PyTorch file"),
    ],
)
def test_broken_ones_are_passed_over_and_told(work, monkeypatch, hurt, reason):
    said = []
    monkeypatch.setattr(resume, "print_log", lambda text, **_: said.append(text))
    newest = work / "iter_4.pth"
    (work / "last_checkpoint").write_text(str(newest))
    times = newest.stat()
    hurt(newest)
    os.utime(newest, (times.st_atime, times.st_mtime))
    assert resumed(work, "auto") == str(work / "iter_9.pth")
    (line,) = said
    assert "\n" not in line
    assert re.search(rf"Resuming from '.*/iter_9\.pth': .*iter_4\.pth.*{reason}", line)
    with pytest.raises(RAVLTError, match=reason):
        resumed(work, str(newest))  # named, so that no other will do


def test_all_broken(work):
    for path in work.glob("*.pth"):
        cut(path)
    with pytest.raises(RAVLTError, match=r"No checkpoint in '.*' is intact: .*iter_9"):
        resumed(work, "auto")


def test_weights_alone_are_no_run(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / "weights.pth")
    with pytest.raises(RAVLTError, match=r"holds no state of a run; .* load_from\.$"):
        resumed(tmp_path, str(tmp_path / "weights.pth"))


def test_no_changed_bit_goes_unnoticed(tmp_path):
    """Or what is read is the same: it was a bit of the padding or of a time."""
    path = tmp_path / "iter_4.pth"
    write(path)
    whole, state = path.read_bytes(), read_checkpoint(path)
    draw, found = random.Random(0), 0
    for _ in range(300):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data))
        try:
            _read_seed(str(path), checksums=True)
        except RAVLTError:
            found += 1
        else:
            assert_equal(read_checkpoint(path), state)
    assert 100 < found < 300


def test_checksums_can_be_turned_off(tmp_path):
    path = tmp_path / "iter_4.pth"
    write(path)
    data = path.read_bytes()
    place = data.index(torch.arange(40.0).numpy().tobytes())
    path.write_bytes(data[:place] + b"\1" + data[place + 1 :])
    assert _read_seed(str(path), checksums=False) == 7
    with pytest.raises(RAVLTError, match="is damaged"):
        _read_seed(str(path), checksums=True)


def test_resume_in_the_config(work):
    """As mmengine reads it: with ``load_from``, else the newest of the work folder."""
    cfg = Config(dict(work_dir=str(work), resume=True))
    set_resume(cfg, None)
    newest = cfg.load_from
    assert cfg.resume and newest == resumed(work, "auto")
    named = str(next(p for p in work.glob("*.pth") if str(p) != newest))
    cfg = Config(dict(work_dir=str(work), resume=True, load_from=named))
    set_resume(cfg, None)
    assert cfg.load_from == named
