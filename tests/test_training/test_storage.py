import os
import stat

import pytest
from mmengine import fileio
from mmengine.fileio import io as registry

from ravlt.errors import RAVLTError
from ravlt.storage import (
    AtomicLocalBackend,
    explain_refusal,
    remove_partial,
    use_atomic_writes,
)


def test_writes_and_creates_folders(tmp_path):
    path = tmp_path / "a/b/c.pth"
    AtomicLocalBackend().put(b"new", path)
    assert path.read_bytes() == b"new"
    AtomicLocalBackend().put(b"newer", str(path))
    assert path.read_bytes() == b"newer"
    assert os.listdir(path.parent) == ["c.pth"]


def test_bare_file_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AtomicLocalBackend().put(b"new", "c.pth")
    assert (tmp_path / "c.pth").read_bytes() == b"new"


@pytest.mark.parametrize("step", ["fdopen", "fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file_and_no_rest(tmp_path, monkeypatch, step, error):
    path = tmp_path / "c.pth"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, step, fail)
    if isinstance(error, OSError):
        named = rf"Cannot write '{path}' \(No space left\), so it is unchanged; free"
        expected = pytest.raises(RAVLTError, match=named)
    else:
        expected = pytest.raises(KeyboardInterrupt)
    with expected:
        AtomicLocalBackend().put(b"new" * 1000, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["c.pth"]


def test_sync_can_be_turned_off(tmp_path, monkeypatch):
    def fail(handle: int) -> None:
        raise OSError("not on this disk")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(AtomicLocalBackend, "sync", False)
    AtomicLocalBackend().put(b"new", tmp_path / "c.pth")
    assert (tmp_path / "c.pth").read_bytes() == b"new"


def test_old_bytes_stay_until_the_new_are_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "c.pth"
    path.write_bytes(b"old")
    replace, seen = os.replace, []

    def spy(source, target) -> None:
        with open(source, "rb") as file:
            seen.append((file.read(), path.read_bytes(), os.path.dirname(source)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    AtomicLocalBackend().put(b"new", path)
    # In the same folder, because only there a rename is atomic.
    assert seen == [(b"new", b"old", str(tmp_path))]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_file_mode_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        AtomicLocalBackend().put(b"new", tmp_path / "c.pth")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c.pth").stat().st_mode) == mode


def test_mmengine_writes_through_it(tmp_path, monkeypatch):
    # Restored afterwards.
    monkeypatch.setitem(registry.backends, "local", registry.backends["local"])
    prefixes = registry.prefix_to_backends
    monkeypatch.setitem(prefixes, "", prefixes[""])
    monkeypatch.setattr(registry, "backend_instances", {})
    use_atomic_writes()
    backend = fileio.get_file_backend(str(tmp_path / "c.pth"))
    assert isinstance(backend, AtomicLocalBackend)
    fileio.put(b"new", str(tmp_path / "c.pth"))
    assert (tmp_path / "c.pth").read_bytes() == b"new"


def test_what_reaches_the_disk_in_which_order(tmp_path, monkeypatch):
    """The bytes, then the name, then the folder that holds the name."""
    path, seen = tmp_path / "c.pth", []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        fsync(handle)
        status = os.fstat(handle)
        seen.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)

    def spy_replace(source, target) -> None:
        replace(source, target)
        seen.append("name")

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    AtomicLocalBackend().put(b"new", path)
    assert seen == [3, "name", "folder"]


def test_rests_of_a_kill_are_removed_and_nothing_else(tmp_path):
    for name in ("writing-ab.part", "other.part", "writing-it", "iter_4.pth"):
        (tmp_path / name).write_text("x")
    remove_partial(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["iter_4.pth", "other.part", "writing-it"]
    remove_partial(str(tmp_path / "gone"))


def test_refusals_of_a_disk_are_told_from_other_errors():
    assert explain_refusal(OSError(28, "No space left on device", "a/b")) == (
        "Cannot write 'a/b' (No space left on device); free space or make it "
        "writable, then continue (training: --resume)."
    )
    assert explain_refusal(OSError(28, "No space left on device")).startswith(
        "Cannot write (No space"
    )
    assert explain_refusal(OSError(2, "No such file")) is None
    assert explain_refusal(KeyError("a")) is None
