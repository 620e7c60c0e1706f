"""Checks of a checkpoint's content during and after unpickling."""

import contextlib
import importlib
import pickle
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from torch import Tensor

from ravlt.errors import RAVLTError

_DTYPES = frozenset(
    [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    + [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
)
_NUMPY_DTYPES = (
    "bool",
    *(f"{kind}{8 << i}" for kind in ("int", "uint") for i in range(4)),
)
_NUMPY_DTYPES += ("float16", "float32", "float64")


def allowed_globals() -> contextlib.AbstractContextManager:
    """Return a context in which ``torch.load`` accepts mmengine's history buffer."""
    # numpy 2 renamed the private module numpy.core to numpy._core. Either version of
    # numpy must read files that were written with either.
    home = "numpy._core" if hasattr(np, "_core") else "numpy.core"
    multiarray = importlib.import_module(f"{home}.multiarray")
    allowed = [
        HistoryBuffer,
        (_history_statistic, "builtins.getattr"),
        np.ndarray,
        (_numeric_dtype, "numpy.dtype"),
        *{type(np.dtype(name)) for name in _NUMPY_DTYPES},
    ]
    for name in ("scalar", "_reconstruct"):
        function = getattr(multiarray, name)
        allowed += [
            (function, f"{module}.multiarray.{name}")
            for module in ("numpy._core", "numpy.core")
        ]
    return torch.serialization.safe_globals(allowed)


def check_tensors(content, path: str) -> None:
    """Refuse tensors of unsupported kinds.

    Args:
        content: The unpickled object, usually nested containers.
        path: Name of the file, for messages.

    Raises:
        RAVLTError: Names the key of the first such tensor.
    """
    for key, tensor in _tensors(content):
        problem = _unsupported_kind(tensor)
        if problem:
            raise RAVLTError(
                f"Refused checkpoint '{path}': {key} is {problem}, not a plain tensor "
                f"of numbers; save weights as float32, float16 or bfloat16."
            )


def _unsupported_kind(tensor: Tensor) -> str | None:
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.dtype not in _DTYPES:
        return f"of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.is_meta:
        return "on the meta device"
    return None


def _tensors(content) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor with its key.

    Containers may contain themselves and may be nested deeper than Python's stack, so
    the traversal is iterative and visits each container once.
    """
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
    """Replace ``getattr``, with which a history buffer pickles its own methods.

    Python's ``getattr`` would let a file reach arbitrary objects.
    """
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise pickle.UnpicklingError("GLOBAL getattr on other objects than a history")
    return getattr(HistoryBuffer, name)


def _numeric_dtype(code, align: bool = False, copy: bool = False) -> np.dtype:
    """Replace ``numpy.dtype``, and return only numpy's built-in numeric dtypes.

    Built-in dtypes ignore the state that a pickle sets. On a copy or a structured
    dtype, that state could declare object fields, and numpy would then interpret bytes
    of the file as pointers to Python objects.
    """
    if not isinstance(code, str) or code not in {
        np.dtype(n).str[1:] for n in _NUMPY_DTYPES
    }:
        raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({code!r}) is not numeric")
    return np.dtype(code)
