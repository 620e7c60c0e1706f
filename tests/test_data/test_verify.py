import io
import warnings

import cv2
import numpy as np
import pytest
from mmengine.fileio import LocalBackend
from PIL import Image

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


def test_unknown_action():
    with pytest.raises(RAVLTError) as refused:
        VerifyImages(on_error="warn")
    assert str(refused.value) == (
        "bad_images='warn' is unknown; use one of ('error', 'skip')."
    )


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
