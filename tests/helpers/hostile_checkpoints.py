"""Checkpoint files that no training writes, as an attacker would."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch


class Call:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *args) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Storage:
    """A reference to the only storage of an archive, as PyTorch pickles it."""

    def __init__(self, numel: int) -> None:
        self.numel = numel


def claim(numel: int, size: tuple, stride: tuple) -> Call:
    """Return a float32 tensor of any size that claims any number of elements."""
    args = (Storage(numel), 0, size, stride, False, OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, *args)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return "storage", torch.FloatStorage, "0", "cpu", obj.numel
        return None


def pickled(content) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def write_archive(
    path: Path, code: bytes, data=bytes(16), method=zipfile.ZIP_STORED, order="little"
) -> None:
    """Write a file in PyTorch's format.

    Args:
        path: The file.
        code: Pickle of its content.
        data: Bytes of the storage '0'.
        method: Compression of the data.
        order: Byte order that the file claims.
    """
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", code)
        archive.writestr("a/byteorder", order)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", data, compress_type=method)


def dangerous_pickles(proof: Path) -> dict[str, bytes]:
    """Return pickles that create a folder when Python loads them, by ways of attack."""
    line = f"__import__('os').mkdir({str(proof)!r})"
    target = str(proof).encode()
    state = OrderedDict(w=1)
    rebuilt = Call(
        torch._tensor._rebuild_from_type_v2, os.mkdir, dict, (str(proof),), {}
    )
    calls = {
        "os.mkdir": Call(os.mkdir, str(proof)),
        "os.system": Call(os.system, f"mkdir '{proof}'"),
        "eval": Call(eval, line),
        "exec": Call(exec, line),
        "torch's own rebuilding": rebuilt,
        "deep in a state dict": {"state_dict": {"a": [({"b": Call(eval, line)},)]}},
        "beside weights": {
            "state_dict": state,
            "optimizer": Call(os.mkdir, str(proof)),
        },
        "numpy's loader": Call(np.testing.runstring, line, {}),
    }
    pickles = {name: pickled(call) for name, call in calls.items()}
    arg = b"X" + struct.pack("<I", len(target)) + target
    text = b"X" + struct.pack("<I", len(line)) + line.encode()
    return pickles | {
        "GLOBAL": b"\x80\x02cos\nmkdir\n" + arg + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + arg + b"\x85R.",
        "INST": b"(" + b"S" + repr(str(proof)).encode() + b"\nios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\n" + arg + b"o.",
        "builtins": b"\x80\x02c__builtin__\neval\n" + text + b"\x85R.",
        "BUILD": b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00acos\nmkdir\n"
        + arg
        + b"\x85Rsb.",
    }
