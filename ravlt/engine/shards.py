"""Sharded checkpoints: a folder to which every process writes what it holds.

PyTorch's distributed checkpoint writes and reads the tensors, for any number of
processes. What is not a tensor lies beside them in a file that is written last, and
names the shards that belong to it: at any moment the folder is whole or incomplete.
"""

import os
import pickle
import shutil
import time
from collections import OrderedDict
from pathlib import PosixPath

import torch
import torch.distributed.checkpoint as dcp
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner.checkpoint import save_checkpoint
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.serialization import _get_layout

from ravlt.errors import RAVLTError

MODEL = "model."  # what names of the model's tensors begin with
_REST = "rest.pth"
_CONTENTS = ".metadata"  # PyTorch's name


def write_shards(folder: str, tensors: dict[str, Tensor], rest: dict) -> None:
    """Writes a sharded checkpoint; every process must call this.

    A checkpoint that is there already stays whole until the new one is.

    Args:
        folder: New folder, or one to write anew.
        tensors: Sharded ones, of which each process has a part, and whole ones.
        rest: What else belongs to the checkpoint; the main process's is written.
    """
    os.makedirs(folder, exist_ok=True)
    name = [f"{time.time_ns():x}"]
    broadcast_object_list(name)
    dcp.save(tensors, checkpoint_id=os.path.join(folder, *name))
    if is_main_process():
        save_checkpoint(rest | dict(shards=name[0]), os.path.join(folder, _REST))
        for entry in os.scandir(folder):
            if entry.is_dir() and entry.name not in name:
                shutil.rmtree(entry.path)


def read_shards(folder: str, tensors: dict[str, Tensor]) -> dict:
    """Reads a sharded checkpoint; every process must call this.

    Args:
        folder: What :func:`write_shards` wrote, in any number of processes.
        tensors: Those to read, filled in place.

    Returns:
        The rest.

    Raises:
        RAVLTError: If the folder is incomplete or damaged, holds more than tensors, or
            lacks one of these.
    """
    rest, shards, contents = _open(folder)
    wrong = [
        key
        for key, value in tensors.items()
        if key not in contents or contents[key].size != value.shape
    ]
    if wrong:
        raise RAVLTError(
            f"Checkpoint '{folder}' does not fit the model: {len(wrong)} tensors are "
            f"missing or of another size ({', '.join(wrong[:3])} ...); use the config "
            f"that it was trained with."
        )
    _load(folder, shards, tensors)
    return rest


def consolidate(folder: str) -> dict:
    """Makes a plain checkpoint of a sharded one, without the optimizer's state.

    Args:
        folder: What :func:`write_shards` wrote.

    Returns:
        ``meta`` and ``state_dict``, as a run in one process would write them.

    Raises:
        RAVLTError: As :func:`read_shards`.
    """
    rest, shards, contents = _open(folder)
    tensors = {
        key: torch.empty(kind.size, dtype=kind.properties.dtype)
        for key, kind in contents.items()
        if key.startswith(MODEL)
    }
    _load(folder, shards, tensors)
    state_dict = OrderedDict((k.removeprefix(MODEL), v) for k, v in tensors.items())
    state_dict._metadata = rest["state_dict_metadata"]
    return dict(meta=rest["meta"], state_dict=state_dict)


def read_rest(folder: str) -> dict:
    """Reads what a sharded checkpoint holds besides tensors.

    Raises:
        RAVLTError: If the folder is incomplete or damaged.
    """
    path = os.path.join(folder, _REST)
    if not os.path.isfile(path):
        raise RAVLTError(
            f"'{folder}' is no sharded checkpoint, or an incomplete one; name another."
        )
    # Imported here, because `import ravlt` registers the strategy that uses this file
    # and must not load the code that reads and downloads weights.
    from ravlt.weights.checkpoint import read_checkpoint

    return read_checkpoint(path)


def _open(folder: str) -> tuple[dict, str, dict[str, TensorStorageMetadata]]:
    """Reads the rest, finds the shards, and proves their contents to be tensors.

    PyTorch unpickles the table of contents, and what is not a tensor, without looking.
    """
    rest = read_rest(folder)
    shards = os.path.join(folder, os.path.basename(rest["shards"]))
    try:
        with open(os.path.join(shards, _CONTENTS), "rb") as file:
            contents = _Unpickler(file).load().state_dict_metadata
    except (pickle.UnpicklingError, EOFError, OSError, AttributeError) as error:
        raise _damaged(folder, error) from error
    if not all(
        isinstance(key, str) and isinstance(kind, TensorStorageMetadata)
        for key, kind in contents.items()
    ):
        raise _damaged(folder, "it holds more than named tensors")
    return rest, shards, contents


def _load(folder: str, shards: str, tensors: dict[str, Tensor]) -> None:
    try:
        dcp.load(tensors, checkpoint_id=shards)
    except dcp.CheckpointException as error:
        ((cause, _), *_) = error.failures.values()
        raise _damaged(folder, cause) from error


class _Unpickler(pickle.Unpickler):
    """Lets in what PyTorch makes a table of contents of, and nothing else."""

    def find_class(self, module: str, name: str):
        found = super().find_class(module, name)
        home = Metadata.__module__
        if (
            (isinstance(found, type) and found.__module__ == module == home)
            or isinstance(found, torch.dtype)
            or found in (_StorageInfo, torch.Size, PosixPath, _get_layout)
        ):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _damaged(folder: str, reason) -> RAVLTError:
    return RAVLTError(
        f"Cannot read checkpoint '{folder}', which is damaged ({reason}); use another."
    )
