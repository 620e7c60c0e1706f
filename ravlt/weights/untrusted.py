"""What a checkpoint may hold: checked before, while and after it is unpickled."""

import contextlib
import importlib
import pickle
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from torch import Tensor

from ravlt.errors import RAVLTError

_ZIP = b"PK\x03\x04"
_DTYPES = frozenset(
    [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    + [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
)
_MOST_SPREAD = 1 << 32  # bytes, of all tensors that repeat their data
_NUMPY_DTYPES = (
    "bool",
    *(f"{kind}{8 << i}" for kind in ("int", "uint") for i in range(4)),
)
_NUMPY_DTYPES += ("float16", "float32", "float64")


def check_archive(file, path: str) -> None:
    """Refuses an archive that would unpack to more than it is.

    PyTorch stores without compression. Compressed members, and members that lie over
    each other, make a bomb.

    Args:
        file: A path, or an open binary file, which is left at its beginning.
        path: Its name, for messages.

    Raises:
        RAVLTError: If it is such an archive.
        zipfile.BadZipFile: If it begins like an archive and is none.
    """
    with contextlib.ExitStack() as stack:
        opened = (
            stack.enter_context(open(file, "rb")) if isinstance(file, str) else file
        )
        if opened.read(len(_ZIP)) == _ZIP:
            members = zipfile.ZipFile(opened).infolist()
            size = opened.seek(0, 2)
            if sum(m.file_size for m in members) > size:
                raise RAVLTError(
                    f"Refused checkpoint '{path}': it unpacks to more than it is, and "
                    f"no file of PyTorch does; get it from where it was made."
                )
        opened.seek(0)


def allow_listed():
    """Lets mmengine's own history through; torch before 2.5 has no such list."""
    if not hasattr(torch.serialization, "safe_globals"):
        return contextlib.nullcontext()
    # numpy 2 moved its private module, and files of either may meet either.
    home = "numpy._core" if hasattr(np, "_core") else "numpy.core"
    multiarray = importlib.import_module(f"{home}.multiarray")
    allowed = [
        HistoryBuffer,
        (_history_statistic, "builtins.getattr"),
        np.ndarray,
        (_plain_dtype, "numpy.dtype"),
        *{type(np.dtype(name)) for name in _NUMPY_DTYPES},
    ]
    for name in ("scalar", "_reconstruct"):
        function = getattr(multiarray, name)
        allowed += [
            (function, f"{place}.multiarray.{name}")
            for place in ("numpy._core", "numpy.core")
        ]
    return torch.serialization.safe_globals(allowed)


def check_tensors(content, path: str) -> None:
    """Refuses tensors that are no weights: of odd kinds, or far larger than their data.

    A few bytes can claim to be any number of elements, by a stride of 0.

    Args:
        content: What was unpickled: containers in each other.
        path: The file's name, for messages.

    Raises:
        RAVLTError: Names the key of the first such tensor.
    """
    spread = 0
    for key, tensor in _tensors(content):
        kind = _odd_kind(tensor)
        if not kind:
            size = tensor.numel() * tensor.element_size()
            spread += size if size > tensor.untyped_storage().nbytes() else 0
            if spread > _MOST_SPREAD:
                kind = f"of shape {tuple(tensor.shape)} with data for far less"
        if kind:
            raise RAVLTError(
                f"Refused checkpoint '{path}': {key} is {kind}, not a plain tensor of "
                f"numbers; save weights as float32, float16 or bfloat16."
            )


def _odd_kind(tensor: Tensor) -> str | None:
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.dtype not in _DTYPES:
        return f"of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.is_meta:
        return "without data"
    return None


def _tensors(content) -> Iterator[tuple[str, Tensor]]:
    """Every tensor and its key. Containers may contain themselves."""
    pending, seen = [("", content)], set()
    while pending:
        key, node = pending.pop()
        if isinstance(node, Tensor):
            yield key, node
        elif isinstance(node, Mapping | list | tuple) and id(node) not in seen:
            seen.add(id(node))
            items = node.items() if isinstance(node, Mapping) else enumerate(node)
            pending += [(f"{key}.{k}" if key else str(k), v) for k, v in items]


def _history_statistic(owner, name: str):
    """Stands in for ``getattr``, by which a history buffer pickles its own methods.

    The true one would let a file walk from any object to any other.
    """
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise pickle.UnpicklingError("GLOBAL getattr on something else than a history")
    return getattr(HistoryBuffer, name)


def _plain_dtype(code, align: bool = False, copy: bool = False) -> np.dtype:
    """Stands in for ``numpy.dtype``: numbers only, and numpy's own object for them.

    Those take no state. Of a copy, or of a structure, a file could change the fields,
    so that bytes of its own pass for the address of a Python object.
    """
    if not isinstance(code, str) or code not in {
        np.dtype(n).str[1:] for n in _NUMPY_DTYPES
    }:
        raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({code!r}) of no number")
    return np.dtype(code)
