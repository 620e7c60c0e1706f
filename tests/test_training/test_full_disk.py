"""Disks that take no more, as the kernel makes them: full, and read-only."""

import subprocess
from pathlib import Path

import pytest

from helpers.tool_runs import train
from ravlt.weights.checkpoint import read_checkpoint

pytestmark = pytest.mark.integration

SIX = {"train_cfg.max_iters": 6, "train_cfg.val_interval": 100}
SIX |= {"default_hooks.checkpoint.out_dir": "disk"}


def mount(*args) -> bool:
    return not subprocess.run(["mount", *args], capture_output=True).returncode


@pytest.fixture
def disk(tmp_path):
    """A disk for checkpoints alone."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder):
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path) -> None:
    """Leaves room for half of a checkpoint."""
    size = (disk / "work/iter_2.pth").stat().st_size
    with (
        (disk / "ballast").open("wb") as file,
        pytest.raises(OSError, match="No space"),
    ):
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    with (disk / "ballast").open("r+b") as file:
        file.truncate((disk / "ballast").stat().st_size - size // 2)


def make_room(disk: Path) -> None:
    (disk / "ballast").unlink()


def lock(disk: Path) -> None:
    assert mount("-o", "remount,ro", disk)


def unlock(disk: Path) -> None:
    assert mount("-o", "remount,rw", disk)


@pytest.mark.parametrize(
    ("break_", "mend", "reason"),
    [
        (fill, make_room, "No space left on device"),
        (lock, unlock, "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_disk(tmp_path, shapes, disk, break_, mend, reason):
    line = [tmp_path, "--data-root", shapes, "--resume"]
    train(*line, options=SIX | {"train_cfg.max_iters": 2}).succeeded()
    break_(disk)
    assert train(*line, options=SIX).error() == (
        f"error: Cannot write 'disk/work/iter_4.pth' ({reason}), so it is "
        f"unchanged; free space or make it writable, then continue (training: "
        f"--resume)."
    )
    # The last one is whole, and nothing half-written is beside it.
    names = {path.name for path in (disk / "work").iterdir()}
    assert names == {"iter_2.pth", "best_mIoU_iter_2.pth"}
    assert read_checkpoint(disk / "work/iter_2.pth")["meta"]["iter"] == 2
    mend(disk)
    run = train(*line, options=SIX).succeeded()
    assert "Iter(train) [2/6]" not in run.out and "Iter(train) [3/6]" in run.out
