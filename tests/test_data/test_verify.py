import io
import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.fileio import LocalBackend
from PIL import Image
from torch.utils.data import DataLoader

from ravlt.data.check import verify
from ravlt.data.check.verify import VerifyImages
from ravlt.errors import RAVLTError


def picture(size: tuple[int, int] = (64, 80)) -> np.ndarray:
    """Noise, so that every row is different."""
    return np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)


def encode(suffix: str, image: np.ndarray | None = None) -> bytes:
    if image is None:
        image = picture()
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.fixture
def write(tmp_path):
    def write(content: bytes, name: str = "some.jpg") -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


def sample(path: str, key: str = "img_path") -> dict:
    return {key: path, "other": 1}


def refusal(path: str, key: str = "img_path") -> str:
    with pytest.raises(RAVLTError) as refused:
        VerifyImages()(sample(path, key))
    message = str(refused.value)
    assert message.startswith(f"Cannot use '{path}' (") and "\n" not in message
    assert message.endswith(
        "); restore or remove the file, or train without such files by "
        "bad_images='skip'."
    )
    return message


# ------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
def test_sound_images_pass(write, suffix):
    results = sample(write(encode(suffix)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert VerifyImages()(results) is results
    assert results == sample(results["img_path"])


@pytest.mark.parametrize("size", [(1, 1), (5, 5), (7, 300), (9, 8)])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_small_images_pass(write, size, suffix):
    assert VerifyImages()(sample(write(encode(suffix, picture(size)))))


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK", "I;16"])
def test_other_kinds_of_pixels_pass(write, mode):
    image = Image.new(mode, (40, 30))
    stream = io.BytesIO()
    image.save(stream, "TIFF" if mode == "CMYK" else "PNG")
    assert VerifyImages()(sample(write(stream.getvalue())))


def test_huge_images_pass(write, monkeypatch):
    path = write(encode(".png"))
    for limit in (64 * 80 - 1, 10):  # a warning of Pillow's, and an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert VerifyImages()(sample(path))


@pytest.mark.parametrize("given", ["no/such.jpg", picture()], ids=["path", "pixels"])
def test_what_inferencers_give_passes(given):
    assert VerifyImages()(given) is given


def test_samples_without_paths_pass():
    for results in ({}, {"img_path": None}, {"seg_map_path": ""}, {"img": 3}):
        assert VerifyImages()(results) is results


# ------------------------------------------------------------------------------ broken


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_jpeg_which_opencv_accepts(write, share):
    whole = encode(".jpg")
    part = whole[: int(share * len(whole))]
    path = write(part)
    # This is why we look: a picture of the right size, whose end is of one colour.
    image = cv2.imread(path)
    assert image.shape == (64, 80, 3)
    assert np.ptp(image[-4:, -4:], axis=(0, 1)).max() == 0
    if int(cv2.__version__.split(".")[0]) < 5:
        decoded = cv2.imdecode(np.frombuffer(part, np.uint8), cv2.IMREAD_COLOR)
        assert decoded.shape == (64, 80, 3)
    assert "image file is truncated" in refusal(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_png(write, share):
    whole = encode(".png")
    assert "truncated" in refusal(write(whole[: int(share * len(whole))], "a.png"))


def test_damaged_png(write):
    content = bytearray(encode(".png"))
    content[len(content) // 2] ^= 0xFF
    refusal(write(bytes(content), "a.png"))


def test_no_image_at_all(write):
    assert "(it is empty)" in refusal(write(b""))
    for content in (b"junk", b"<html>not found</html>", b"\0" * 1000):
        assert "(it is no image)" in refusal(write(content))


def test_missing_file(tmp_path):
    assert "(it does not exist)" in refusal(str(tmp_path / "none.jpg"))


def test_folder(tmp_path):
    assert "directory" in refusal(str(tmp_path))


def test_label_files_are_looked_at_too(write):
    path = write(b"junk", "label.png")
    assert path in refusal(path, "seg_map_path")


def test_skip_gives_none_and_a_warning(write, monkeypatch):
    logged = []
    monkeypatch.setattr(verify, "print_log", lambda *a, **k: logged.append((a, k)))
    step = VerifyImages(on_error="skip")
    assert step(sample(write(encode(".jpg")))) is not None
    assert not logged
    path = write(b"junk", "bad.jpg")
    assert step(sample(path)) is None
    ((message,), kwargs) = logged[0]
    assert (
        message == f"Skipped a sample: cannot use '{path}' (it is no image); 1 so far."
    )
    assert kwargs == {"logger": "current", "level": 30} and len(logged) == 1
    step(sample(path))
    assert logged[1][0][0].endswith("; 2 so far.")


def test_files_are_read_through_the_backend(write, monkeypatch):
    path, seen = write(encode(".jpg")), []
    get = LocalBackend.get

    def spy(self, filepath) -> bytes:
        seen.append(str(filepath))
        return get(self, filepath)

    monkeypatch.setattr(LocalBackend, "get", spy)
    backend_args = dict(backend="local")
    assert VerifyImages(backend_args=backend_args)(sample(path))
    assert seen == [path] and backend_args == dict(backend="local")


def test_repr():
    assert repr(VerifyImages("skip")) == ("VerifyImages(on_error='skip')")


# -------------------------------------------------------------------------------- once


@pytest.fixture
def decoded(monkeypatch) -> Callable[[], int]:
    """How many images were decoded since the last call, in whatever process."""
    count, decode = multiprocessing.get_context("fork").Value("i"), verify.check_image

    def counted(sample):
        with count.get_lock():
            count.value += 1
        return decode(sample)

    def since() -> int:
        found, count.value = count.value, 0
        return found

    monkeypatch.setattr(verify, "check_image", counted)
    return since


class Files:
    """A data set of samples that pass through the check."""

    def __init__(self, samples: list[dict], **keys) -> None:
        self.samples, self.step = samples, VerifyImages(**keys)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> bool:
        return self.step(dict(self.samples[index])) is not None


@pytest.mark.parametrize("persistent", [True, False])
def test_each_file_once_over_epochs_and_workers(write, tmp_path, decoded, persistent):
    samples = [sample(write(encode(".jpg"), f"{i}.jpg")) for i in range(12)]
    loader = DataLoader(
        Files(samples, passed=str(tmp_path / "passed")),
        batch_size=2,
        shuffle=True,
        num_workers=2,
        persistent_workers=persistent,
        multiprocessing_context="fork",
    )
    counts = []
    for _ in range(4):
        assert sum(batch.sum() for batch in loader) == 12
        counts.append(decoded())
    assert counts == [12, 0, 0, 0]
    # A later run of another process.
    later = Files(samples, passed=str(tmp_path / "passed"))
    assert all(later[i] for i in range(12)) and decoded() == 0


def test_once_in_a_process_without_a_file(write, decoded):
    step, results = VerifyImages(), sample(write(encode(".jpg")))
    assert step(results) is step(results) is results
    assert decoded() == 1


def replace(path: str, content: bytes) -> None:
    """Replace a file; its time changes for certain."""
    before = os.stat(path).st_mtime_ns
    Path(path).write_bytes(content)
    os.utime(path, ns=(before, before + 1))


def test_changed_files_are_decoded_again(write, tmp_path, decoded):
    path = write(encode(".jpg"))
    once = VerifyImages(passed=str(tmp_path / "passed"))
    for _ in range(2):
        assert once(sample(path))
    assert decoded() == 1
    replace(path, Path(path).read_bytes())
    assert once(sample(path)) and decoded() == 1
    replace(path, bytes(os.stat(path).st_size))
    with pytest.raises(RAVLTError, match="it is no image"):
        once(sample(path))
    os.remove(path)
    with pytest.raises(RAVLTError, match="does not exist"):
        once(sample(path))


def test_label_maps_count_as_their_images_do(write, tmp_path):
    image, labels = write(encode(".jpg")), write(b"", "a.png")
    results = sample(image) | dict(seg_map_path=labels, reduce_zero_label=False)
    Path(labels).write_bytes(encode(".png", np.full((64, 80), 3, np.uint8)))
    passed = str(tmp_path / "passed")
    assert VerifyImages(num_classes=4, passed=passed)(results)
    # Sound for four classes only, with this offset.
    for changed in (dict(num_classes=3), dict(num_classes=2)):
        with pytest.raises(RAVLTError, match="the values 3 are outside of the"):
            VerifyImages(**changed, passed=passed)(results)
    reduced = results | dict(reduce_zero_label=True)
    assert VerifyImages(num_classes=3, passed=passed)(reduced)
    with pytest.raises(RAVLTError, match=r"\(64, 80\), and \(64, 81\)"):
        VerifyImages(passed=passed)(results | dict(height=64, width=81))
    replace(labels, encode(".png", np.full((64, 80), 9, np.uint8)))
    with pytest.raises(RAVLTError, match="the values 9 are"):
        VerifyImages(num_classes=4, passed=passed)(results)


def test_bad_files_are_decoded_each_time(write, tmp_path, decoded):
    path = write(b"junk")
    step = VerifyImages("skip", passed=str(tmp_path / "passed"))
    assert step(sample(path)) is step(sample(path)) is None
    assert decoded() == 2
    replace(path, encode(".jpg"))
    assert step(sample(path))


def test_a_broken_record_costs_time_only(write, tmp_path, decoded):
    path, passed = write(encode(".jpg")), tmp_path / "passed"
    for content in (None, b"", b"\0" * 999, b"\n" * 9, b"\xff\xfe x\n"):
        if content is not None:
            passed.write_bytes(content)
        assert VerifyImages(passed=str(passed))(sample(path)) and decoded() == 1
    assert VerifyImages(passed=str(passed))(sample(path)) and decoded() == 0
