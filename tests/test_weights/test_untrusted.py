"""Hostile checkpoints: no code in them runs, and memory stays bounded."""

import contextlib
import pickle
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

import ravlt
from helpers.hostile_checkpoints import (
    Call,
    claim,
    dangerous_pickles,
    pickled,
    write_archive,
)
from ravlt.errors import RAVLTError
from ravlt.weights.checkpoint import load_pretrained, read_checkpoint, use_safe_loading


@pytest.mark.parametrize("kind", ["archive", "bare", "before 1.6"])
@pytest.mark.parametrize("name", dangerous_pickles(Path("x")))
def test_nothing_runs(tmp_path, name, kind):
    proof = tmp_path / "proof"
    code = dangerous_pickles(proof)[name]
    path = tmp_path / "hostile.pth"
    if kind == "archive":
        write_archive(path, code)
    elif kind == "bare":
        path.write_bytes(code)
    else:  # magic number, version and system come first
        numbers = (torch.serialization.MAGIC_NUMBER, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(n, 2) for n in numbers) + code)
    with pytest.raises(RAVLTError) as refused:
        read_checkpoint(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    assert not proof.exists()
    with contextlib.suppress(
        AttributeError
    ):  # torch finds no tensor, after the code ran
        pickle.loads(code)
    assert proof.exists()


class Dtype:
    """A pickled numpy dtype with an arbitrary state."""

    def __init__(self, code: str, *state) -> None:
        self.code, self.state = code, state

    def __reduce__(self):
        return np.dtype, (self.code, False, True), self.state


class Array:
    def __init__(self, dtype, data: bytes) -> None:
        self.state = (1, (1,), dtype, False, data)

    def __reduce__(self):
        build, args, _ = np.zeros(1).__reduce__()
        return build, args, self.state


FIELDS = (None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 8, 0)


@pytest.mark.parametrize(
    "value",
    [
        # Without the flag of a type with objects, bytes would become their address.
        Array(Dtype("V8", 3, "|", *FIELDS), b"A" * 8),
        Array(Dtype("f8", 3, "<", *FIELDS), b"A" * 8),
        np.array([None], dtype=object),
        np.array(["x"]),
        np.array([1j]),
        np.zeros(1, dtype=[("a", "f8")]),
    ],
    ids=["forged void", "forged number", "objects", "text", "complex", "fields"],
)
def test_arrays_hold_plain_numbers(tmp_path, value):
    write_archive(tmp_path / "a.pth", pickled({"x": value}))
    with pytest.raises(RAVLTError, match=r"Refused checkpoint .*a\.pth.*numpy\.dtype"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "u1", "?"])
def test_arrays_of_numbers_come_back(tmp_path, dtype):
    array = np.arange(5).astype(dtype)
    torch.save({"x": array, "y": array[3]}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found["x"].dtype == array.dtype and found["x"].tolist() == array.tolist()
    assert found["y"] == array[3] and type(found["y"]) is type(array[3])


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


TERA = 10**12
HUGE = {
    "storage": claim(TERA, (TERA,), (1,)),
    "a little more": claim(5, (5,), (1,)),
    "view": claim(4, (TERA,), (1,)),
    "array": Call(np.ndarray, (TERA,)),
}


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("name", HUGE)
def test_absurd_sizes(tmp_path, name, order):
    path = tmp_path / "huge.pth"
    write_archive(path, pickled({"state_dict": {"w": HUGE[name]}}), order=order)
    before = peak()
    with pytest.raises(RAVLTError, match=r"huge\.pth") as refused:
        read_checkpoint(path)
    assert "\n" not in str(refused.value)
    assert peak() - before < 50_000  # kilobytes


def test_expanded_tensors_are_accepted(tmp_path):
    torch.save({"w": torch.ones(1).expand(10**6)}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["w"].sum() == 10**6


def test_absurd_size_before_torch_1_6(tmp_path):
    path = tmp_path / "huge.pth"
    torch.save({"w": torch.zeros(99)}, path, _use_new_zipfile_serialization=False)
    code = path.read_bytes()
    assert code.count(b"K\x63") == 2  # the storage's and the tensor's
    path.write_bytes(code.replace(b"K\x63", b"\x8a\x05\x00\x10\xa5\xd4\xe8"))  # 1e12
    with pytest.raises(RAVLTError, match=r"Cannot read checkpoint .*huge\.pth"):
        read_checkpoint(path)


ODD = {
    "complex64": torch.ones(2, dtype=torch.complex64),
    "float8_e4m3fn": torch.ones(2).to(torch.float8_e4m3fn),
    "sparse": torch.ones(2).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "on the meta device": torch.ones(2, device="meta"),
}


@pytest.mark.parametrize("name", ODD)
def test_unsupported_tensors_are_named(tmp_path, name):
    content = {"state_dict": {"a.b": torch.ones(1), "c.d": ODD[name]}}
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(RAVLTError) as refused:
        read_checkpoint(tmp_path / "odd.pth")
    kind = (
        name if name in ("sparse", "quantized", "on the meta device") else f"of {name}"
    )
    assert str(refused.value) == (
        f"Refused checkpoint '{tmp_path / 'odd.pth'}': state_dict.c.d is {kind}, not a "
        f"plain tensor of numbers; save weights as float32, float16 or bfloat16."
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_integer_weights_are_refused(tmp_path, dtype):
    model = ravlt.RAVLT("test")
    key = "layers.2.blocks.1.attn.proj.weight"
    state = model.state_dict()
    torch.save({**state, key: state[key].to(dtype)}, tmp_path / "int.pth")
    with pytest.raises(RAVLTError, match=rf"int\.pth' has {key} of {dtype}, but the"):
        load_pretrained(model, str(tmp_path / "int.pth"))


def test_containers_may_hold_themselves(tmp_path):
    # Deeper than Python's stack; written by hand, because pickle would not go so deep.
    inner = pickled({"w": 1})[2:-1]
    code = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 5000 + inner + b"s" * 5000 + b"."
    write_archive(tmp_path / "deep.pth", code)
    assert read_checkpoint(tmp_path / "deep.pth")
    loop = b"\x80\x02]q\x00h\x00a."
    write_archive(tmp_path / "loop.pth", loop)
    (found,) = read_checkpoint(tmp_path / "loop.pth")
    assert found[0] is found


# ---------------------------------------------------------------- configs inside files


@pytest.fixture
def loader(monkeypatch):
    """mmengine's loader after ``use_safe_loading()``."""
    from mmengine.runner import checkpoint

    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    monkeypatch.setattr(checkpoint, "load_from_http", None)
    use_safe_loading()
    return checkpoint


def test_configs_inside_are_removed(tmp_path, loader):
    """mmengine executes meta.config when it resumes; an inferencer may execute cfg."""
    code = "raise SystemExit"
    meta = {"config": code, "cfg": code, "iter": 3}
    content = {"meta": meta, "message_hub": {"runtime_info": dict(meta)}}
    torch.save(content, tmp_path / "a.pth")
    found = loader.CheckpointLoader.load_checkpoint(str(tmp_path / "a.pth"))
    assert found == {
        "meta": {"iter": 3},
        "message_hub": {"runtime_info": {"iter": 3}},
    }
    assert read_checkpoint(tmp_path / "a.pth") == content


def test_a_damaged_history_has_no_config(tmp_path, loader):
    """A malformed history does not prevent loading the weights."""
    torch.save({"state_dict": {}, "message_hub": [1]}, tmp_path / "a.pth")
    found = loader.CheckpointLoader.load_checkpoint(str(tmp_path / "a.pth"))
    assert found == {"state_dict": {}, "message_hub": [1]}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}])
def test_mmengine_receives_only_string_keys(tmp_path, loader, wrap):
    path = str(tmp_path / "a.pth")
    torch.save(wrap({"w": torch.ones(1), 0: torch.ones(1)}), path)
    with pytest.raises(RAVLTError, match=r"a\.pth' has a key of type int where"):
        loader.load_checkpoint(nn.Linear(1, 1), path)


@pytest.mark.parametrize(
    "address",
    ["torchvision://resnet18", "open-mmlab://resnet50_v1c", "https://a/b.pth"],
)
def test_model_zoo_addresses_are_read_safely(monkeypatch, loader, address):
    asked = []
    monkeypatch.setattr(
        "ravlt.weights.checkpoint.fetch", lambda url: asked.append(url) or "none.pth"
    )
    with pytest.raises(RAVLTError, match=r"^Checkpoint 'https://.*' does not exist"):
        loader.CheckpointLoader.load_checkpoint(address)
    assert len(asked) == 1 and asked[0].startswith("https://")


# ------------------------------------------------------------------------------- noise


def corrupted(data: bytes, generator: random.Random) -> bytes:
    """Return the data after one to three random changes, cuts or repetitions."""
    data = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(len(data))
        kind = generator.choice(["flip", "flip", "set", "cut", "double"])
        if kind == "flip":
            data[place] ^= 1 << generator.randrange(8)
        elif kind == "set":
            data[place : place + 4] = generator.randbytes(4)
        elif kind == "cut":
            del data[place : place + generator.randint(1, 64)]
        else:
            data[place:place] = data[place : place + generator.randint(1, 64)]
    return bytes(data)


def make_noise(tmp_path: Path, trials: int) -> dict[str, int]:
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        "meta": {"iter": 3, "seed": 0},
        "message_hub": {"log_scalars": {"loss": history}},
        "state_dict": {f"w{i}": torch.randn(3, 4) for i in range(4)},
    }
    path, counts = tmp_path / "noise.pth", {"refused": 0, "read": 0}
    generator = random.Random(0)
    for trial in range(trials):
        torch.save(content, path, _use_new_zipfile_serialization=bool(trial % 2))
        path.write_bytes(corrupted(path.read_bytes(), generator))
        try:
            read_checkpoint(path)
            counts["read"] += 1
        except RAVLTError as error:
            assert "\n" not in str(error)
            counts["refused"] += 1
    return counts


def test_noise_is_read_or_refused_in_one_line(tmp_path):
    counts = make_noise(tmp_path, 300)
    assert counts["refused"] > 30 and counts["read"] > 3


@pytest.mark.slow
def test_much_noise_is_read_or_refused_in_one_line(tmp_path):
    counts = make_noise(tmp_path, 20_000)
    print(counts)
    assert counts["refused"] > 2000 and counts["read"] > 200
