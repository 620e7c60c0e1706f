import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from ravlt.data.check import annotations, passed
from ravlt.data.check.passed import PassedChecks, file_state, fingerprint
from ravlt.data.check.run import check_data
from ravlt.data.shapes.dataset import CLASSES
from ravlt.errors import RAVLTError

KEYS = [fingerprint(index) for index in range(50)]


@pytest.fixture
def place(tmp_path) -> str:
    return str(tmp_path / "runs/.checked_data")


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    """The warnings of the checks."""
    messages = []
    for module in (passed, annotations):
        monkeypatch.setattr(
            module, "print_log", lambda text, **_: messages.append(text)
        )
    return messages


# ----------------------------------------------------------------------------- the file


def test_found_in_this_process_and_later_ones(place):
    checks = PassedChecks(place)
    assert checks.find(KEYS[0]) is None
    checks.add(KEYS[0])
    checks.add(KEYS[1], '{"a note": 1}')
    for reader in (checks, PassedChecks(place)):
        assert [reader.find(key) for key in KEYS[:3]] == ["", '{"a note": 1}', None]


def test_reads_what_others_append_meanwhile(place):
    mine, other = PassedChecks(place), PassedChecks(place)
    for key in KEYS:
        assert mine.find(key) is None
        other.add(key)
        assert mine.find(key) == ""


def test_without_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checks = PassedChecks(PassedChecks.place(None))
    checks.add(KEYS[0])
    assert checks.find(KEYS[0]) == "" and not list(tmp_path.iterdir())


def test_lies_beside_the_work_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "work_dirs/.checked_data")
    assert PassedChecks.place("work_dirs/run") == expected
    assert PassedChecks.place(f"{tmp_path}/work_dirs/other/") == expected


def _append(place: str, keys: list[str]) -> None:
    checks = PassedChecks(place)
    for key in keys:
        checks.add(key, key)


def test_processes_append_at_once(place):
    fork = multiprocessing.get_context("fork")
    parts = [[fingerprint(part, i) for i in range(300)] for part in range(4)]
    writers = [fork.Process(target=_append, args=(place, keys)) for keys in parts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    checks = PassedChecks(place)
    assert all(checks.find(key) == key for keys in parts for key in keys)


def test_a_write_cut_at_any_byte_costs_no_other_check(place):
    checks = PassedChecks(place)
    for key in KEYS[:2]:
        checks.add(key)
    whole = Path(place).read_bytes()
    second = whole.index(KEYS[1].encode())
    for length in range(second, len(whole)):
        Path(place).write_bytes(whole[:length])
        after = PassedChecks(place)
        assert after.find(KEYS[0]) == "" and after.find(KEYS[1]) is None
        after.add(KEYS[2])
        later = PassedChecks(place)
        # Only the line feed is missing, which the next write begins with.
        second_note = "" if length == len(whole) - 1 else None
        assert [later.find(key) for key in KEYS[:3]] == ["", second_note, ""]


@pytest.mark.parametrize("seed", range(5))
def test_junk_stands_for_no_check(place, seed):
    checks = PassedChecks(place)
    for key in KEYS[:10]:
        checks.add(key)
    rng = np.random.default_rng(seed)
    content = np.frombuffer(Path(place).read_bytes(), np.uint8).copy()
    at = rng.choice(content.size, 5, replace=False)
    content[at] = rng.integers(0, 256, 5)
    Path(place).write_bytes(content.tobytes() + rng.bytes(100))
    after = PassedChecks(place)
    assert all(after.find(key) is None for key in KEYS[10:])
    assert sum(after.find(key) == "" for key in KEYS[:10]) >= 5


def test_a_removed_file_begins_anew(place):
    checks = PassedChecks(place)
    for key in KEYS[:5]:
        checks.add(key)
    assert PassedChecks(place).find(KEYS[0]) == ""
    reader = PassedChecks(place)
    assert reader.find(KEYS[9]) is None  # has read to the end
    os.remove(place)
    PassedChecks(place).add(KEYS[9])
    assert reader.find(KEYS[9]) == ""


def test_where_nothing_can_be_written(tmp_path, logged):
    (tmp_path / "taken").write_text("")
    checks = PassedChecks(str(tmp_path / "taken/.checked_data"))
    for key in KEYS[:3]:
        checks.add(key)
        assert checks.find(key) == ""
    (message,) = logged
    assert message.startswith(f"Cannot write '{tmp_path / 'taken/.checked_data'}' (")


def test_a_file_changes_by_size_time_and_place(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"ab")
    os.utime(path, ns=(0, 1))
    first = file_state(str(path))
    assert first == (str(path), 2, 1)
    monkeypatch.chdir(tmp_path)
    assert file_state("a") == first
    os.utime(path, ns=(0, 2))
    assert file_state(str(path)) == (str(path), 2, 2)
    path.write_bytes(b"abc")
    os.utime(path, ns=(0, 1))
    assert file_state(str(path)) == (str(path), 3, 1)
    for absent in (None, "", str(tmp_path / "b")):
        assert file_state(absent) is None


def test_another_version_checks_again(monkeypatch):
    before = fingerprint("a")
    assert fingerprint("a") == before != fingerprint("b")
    monkeypatch.setattr(passed, "__version__", "next")
    assert fingerprint("a") != before


# ------------------------------------------------------------------ annotations of COCO


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The annotation files that are read."""
    paths, read = [], annotations.read_coco
    monkeypatch.setattr(
        annotations, "read_coco", lambda path: (paths.append(path), read(path))[1]
    )
    return paths


@pytest.fixture
def path(tmp_path) -> Path:
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    images = [
        dict(id=i, file_name=f"{i}.jpg", height=60, width=80) for i in range(1, 5)
    ]
    notes = [
        dict(id=i, image_id=i, category_id=1, bbox=[1, 2, 30, 40], area=9, iscrowd=0)
        for i in range(1, 5)
    ]
    content = dict(images=images, annotations=notes, categories=categories)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    return path


def change(path: Path, **keys) -> None:
    """Change the last annotation, and the file's time with certainty."""
    content, before = json.loads(path.read_text()), path.stat().st_mtime_ns
    content["annotations"][-1].update(keys)
    path.write_text(json.dumps(content))
    os.utime(path, ns=(before, before + 1))


def check(path: Path, classes=CLASSES, **keys) -> Config:
    """Check the file as a run beside it would, in a process of its own."""
    dataset = dict(
        type="CocoDataset", ann_file=str(path), metainfo=dict(classes=classes)
    )
    cfg = Config(
        dict(
            default_scope="mmdet",
            work_dir=str(path.parent / "runs/one"),
            train_dataloader=dict(dataset=dataset),
        )
        | keys
    )
    check_data(cfg, ("train_dataloader",))
    return cfg


def test_annotations_are_checked_once(path, reads):
    for _ in range(3):
        check(path)
    assert reads == [str(path)]
    check(path, work_dir=str(path.parent / "runs/two"))
    assert len(reads) == 1  # for all work directories
    change(path, area=10)
    check(path)
    assert len(reads) == 2
    check(path, CLASSES[:3])
    assert len(reads) == 3
    check(path, bad_images="skip")
    assert len(reads) == 4
    for _ in range(2):
        check(path, bad_images="off")
        check(path)
    assert len(reads) == 4


def test_bad_annotations_are_refused_each_time(path, reads):
    change(path, bbox=[1, 2, -3, 4])
    for _ in range(2):
        with pytest.raises(RAVLTError, match="annotation 4 of image 4"):
            check(path)
    assert len(reads) == 2
    check(path, bad_images="off")
    assert len(reads) == 2


def test_warnings_are_repeated(path, reads, logged):
    change(path, area=0)
    check(path)
    check(path)
    assert len(reads) == 1 and len(logged) == 2 and logged[0] == logged[1]
    assert logged[0].startswith(f"'{path}' has objects that are left out: 1 x area")


def test_the_copy_without_bad_images_is_found_again(path, reads, logged):
    change(path, bbox=[1, 2, -3, 4])
    runs = [check(path, bad_images="skip") for _ in range(2)]
    copies = [cfg.train_dataloader.dataset.ann_file for cfg in runs]
    assert len(reads) == 1 and copies[0] == copies[1] and logged[0] == logged[1]
    copy = Path(copies[0])
    expected = copy.read_bytes()
    assert [r["id"] for r in json.loads(expected)["images"]] == [1, 2, 3]
    for spoil in (copy.unlink, lambda: copy.write_text("{")):
        spoil()
        check(path, bad_images="skip")
        assert copy.read_bytes() == expected
    assert len(reads) == 3


def test_a_torn_note_is_no_outcome(path, reads):
    check(path)
    (place,) = path.parent.glob("runs/.checked_data")
    place.write_bytes(place.read_bytes().rstrip()[:-1] + b"\n")
    check(path)
    check(path)
    assert len(reads) == 2


def test_an_unknown_action_is_refused_at_once(path):
    with pytest.raises(RAVLTError) as refused:
        check(path, bad_images="warn")
    assert str(refused.value) == (
        "bad_images='warn' is unknown; use one of ('error', 'skip', 'off')."
    )
