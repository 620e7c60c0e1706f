"""Reading checkpoints safely, and loading them loudly.

A checkpoint is a pickle, and a pickle can run code. Files are read with
``weights_only=True``; beyond tensors only what mmengine itself writes is let in: its
history buffer, and numpy's arrays and scalars of numbers inside it.
"""

import io
import os
import pickle
import re
import struct
from collections.abc import Mapping
from zipfile import BadZipFile

import torch
from mmengine.fileio import get as get_bytes
from mmengine.logging import print_log
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from ravlt.errors import RAVLTError
from ravlt.models.archs import NUM_STAGES, RELEASED_ATTN_TYPES, warn_attn_types

from .download import fetch
from .untrusted import allow_listed, check_archive, check_tensors

# What follows the backbone in an ImageNet file: convolution, batch norm, classifier.
_CLASSIFIER_TAIL = frozenset(
    ["proj.weight", "proj.bias", "head.weight", "head.bias"]
    + [
        f"norm.{name}"
        for name in (
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        )
    ]
)
_OUTPUT_NORM = re.compile(r"extra_norms\.\d\.norm\.(weight|bias)")
# Not in released files: parameters that an attention core has of its own.
_CORE = re.compile(r"layers\.\d+\.blocks\.\d+\.attn\.core\..+")
# What comes of a file with any content.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BadZipFile,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_WRAPPERS = ("state_dict", "model", "model_ema")
_STATE_DICTS = (*_WRAPPERS, "ema_state_dict")


def read_checkpoint(path: str, map_location="cpu"):
    """Reads a checkpoint without ever running code from it.

    Args:
        path: A file, a web address (see :func:`ravlt.weights.download.fetch`), or any
            address that mmengine's file backends know.
        map_location: Where tensors go, as in ``torch.load``.

    Returns:
        What the file holds, most often a dict.

    Raises:
        RAVLTError: If the file is missing, truncated, or holds anything but plain
            tensors, plain containers and mmengine's history.
    """
    path = str(path)
    try:
        with allow_listed():
            return _load(path, map_location)
    except RAVLTError:
        raise
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise _unreadable(path, error) from error
        raise RAVLTError(
            f"Refused checkpoint '{path}': besides tensors it holds "
            f"'{refused.group(1)}', and unpickling that could run code; if you trust "
            f"its source, save its state dict alone to a new file and load that."
        ) from error
    except FileNotFoundError as error:
        raise RAVLTError(
            f"Checkpoint '{path}' does not exist; correct the path."
        ) from error
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def use_safe_loading() -> None:
    """Makes mmengine read every file and web address through :func:`read_checkpoint`.

    And without the config inside, which mmengine would run when it resumes, or when an
    inferencer gets no other.

    For programs, not for libraries: it changes ``CheckpointLoader`` for the process.
    Without it mmengine 0.10 cannot resume under torch >= 2.6, and later ones
    unpickle anything.
    """
    loader = mmengine_checkpoint.CheckpointLoader
    stores = (r"(\S+\:)?s3://", r"(\S+\:)?petrel://")
    for prefix in ("", "http://", "https://", *stores):
        loader.register_scheme(prefix, _read_without_config, force=True)
    # By which torchvision://, open-mmlab:// and mmcls:// go on.
    mmengine_checkpoint.load_from_http = _read_without_config


def load_pretrained(model: nn.Module, path: str, prefix: str | None = None) -> None:
    """Loads backbone weights, strictly, and logs what was loaded.

    Takes a released ImageNet file, a released detector or segmentor (its
    ``backbone.`` part), or a file of our own.

    Args:
        model: A :class:`ravlt.models.RAVLT`.
        path: See :func:`read_checkpoint`.
        prefix: Where the backbone is inside the file; found out if None.

    Raises:
        RAVLTError: If the file cannot be read, no key matches, a key is missing or
            unknown, a shape differs, or the rotary table is another one.
    """
    state_dict, attn_types = backbone_state_dict(read_checkpoint(path), path, prefix)
    state_dict = _without_unbuilt_stages(state_dict, len(model.layers))
    own = model.state_dict()
    missing, unexpected = own.keys() - state_dict.keys(), state_dict.keys() - own.keys()
    loaded = own.keys() & state_dict.keys()
    _check_keys(path, loaded, missing, unexpected)
    for key in sorted(loaded):
        if not isinstance(state_dict[key], Tensor):
            raise RAVLTError(
                f"Checkpoint '{path}' has {key} of type "
                f"{type(state_dict[key]).__name__}, but the model needs a tensor; "
                f"save model.state_dict() to a new file and load that."
            )
        if own[key].shape != state_dict[key].shape:
            raise RAVLTError(
                f"Checkpoint '{path}' has {key} of shape "
                f"{tuple(state_dict[key].shape)}, but the model wants "
                f"{tuple(own[key].shape)}; set arch to the file's size."
            )
        if own[key].is_floating_point() != state_dict[key].is_floating_point():
            raise RAVLTError(
                f"Checkpoint '{path}' has {key} of {state_dict[key].dtype}, but the "
                f"model wants {own[key].dtype}; save weights as they were trained."
            )
    model.load_state_dict(state_dict, strict=False)
    print_log(
        f"Loaded {len(loaded)} tensors from '{path}'; missing {len(missing)} "
        f"(output norms, and what cores other than the released ones add, keep their "
        f"initial values); unexpected {len(unexpected)}.",
        logger="current",
    )
    warn_attn_types(attn_types or RELEASED_ATTN_TYPES, model.attn_types)


def backbone_state_dict(
    checkpoint, path: str, prefix: str | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Takes the backbone's tensors out of any kind of checkpoint.

    Args:
        checkpoint: What :func:`read_checkpoint` gave.
        path: The file's name, for messages.
        prefix: Where the backbone is inside the file; found out if None.

    Returns:
        The tensors by the backbone's own names, and the attention types that the
        file records (None if it does not).

    Raises:
        RAVLTError: If there is no dict of tensors.
    """
    _check_state_dicts(checkpoint, path)
    found = checkpoint
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not any(
        isinstance(value, Tensor) for value in found.values()
    ):
        raise RAVLTError(
            f"Checkpoint '{path}' holds no dict of tensors, neither bare nor under "
            f"{', '.join(_WRAPPERS)}; give a file of model weights."
        )
    state_dict = {k.removeprefix("module."): v for k, v in found.items()}
    if prefix is None:
        inside = any(key.startswith("backbone.") for key in state_dict)
        prefix = "backbone." if inside else ""
    elif prefix and not prefix.endswith("."):
        prefix += "."
    tensors = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    metadata = getattr(found, "_metadata", None) or {}
    return tensors, metadata.get(prefix[:-1], {}).get("attn_types")


def state_dict_of(checkpoint, path: str) -> Mapping:
    """Return the state dict of a detector's or segmentor's checkpoint.

    Args:
        checkpoint: Return value of :func:`read_checkpoint`.
        path: Name of the file, for messages.

    Raises:
        RAVLTError: If the checkpoint has none.
    """
    if isinstance(checkpoint, Mapping):
        state_dict = checkpoint.get("state_dict")
        if isinstance(state_dict, Mapping):
            return state_dict
    raise RAVLTError(
        f"Checkpoint '{path}' has no state_dict; give the checkpoint of a whole "
        f"detector or segmentor."
    )


def _load(path: str, map_location):
    if path.startswith(("http://", "https://")):
        if "/blob/" in path:
            raise RAVLTError(
                f"'{path}' is a web page, not a file; write /resolve/ for /blob/."
            )
        path = fetch(path)
    if os.path.isdir(path):
        raise RAVLTError(
            f"'{path}' is a folder; if a sharded run wrote it, make a file of it by "
            f"tools/model_converters/consolidate.py."
        )
    file = io.BytesIO(get_bytes(path)) if "://" in path else os.path.expanduser(path)
    check_archive(file, path)
    content = torch.load(file, map_location=map_location, weights_only=True)
    check_tensors(content, path)
    _check_state_dicts(content, path)
    return content


def _read_without_config(path: str, map_location="cpu"):
    content = read_checkpoint(path, map_location)
    if isinstance(content, Mapping):
        owners = [content.get("meta")]
        if isinstance(content.get("message_hub"), Mapping):
            owners.append(content["message_hub"].get("runtime_info"))
        for owner in owners:
            for key in ("cfg", "config"):
                if isinstance(owner, dict):
                    owner.pop(key, None)
    return content


def _check_state_dicts(content, path: str) -> None:
    """Refuse a checkpoint whose keys or metadata PyTorch and mmengine cannot read.

    Raises:
        RAVLTError: If a key is not a string, or metadata have another form than
            PyTorch's.
    """
    if not isinstance(content, Mapping):
        return
    for found in (content, *(content.get(name) for name in _STATE_DICTS)):
        if not isinstance(found, Mapping):
            continue
        for key in found:
            if not isinstance(key, str):
                raise RAVLTError(
                    f"Checkpoint '{path}' has a key of type {type(key).__name__} where "
                    f"tensor names belong; save model.state_dict() to a new file and "
                    f"load that."
                )
        if not _is_metadata(getattr(found, "_metadata", None)):
            raise RAVLTError(
                f"Checkpoint '{path}' has malformed metadata beside its tensors; save "
                f"dict(model.state_dict()), which has none, to a new file and load "
                f"that."
            )


def _is_metadata(metadata) -> bool:
    """Return whether metadata are absent or a dict for each module."""
    if metadata is None:
        return True
    return isinstance(metadata, Mapping) and all(
        isinstance(of_module, Mapping)
        and isinstance(of_module.get("attn_types", ()), list | tuple)
        for of_module in metadata.values()
    )


def _unreadable(path: str, error: Exception) -> RAVLTError:
    reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    return RAVLTError(
        f"Cannot read checkpoint '{path}', which is truncated or no PyTorch file "
        f"({reason}); copy or download it again."
    )


def _without_unbuilt_stages(
    state_dict: Mapping[str, Tensor], num_stages: int
) -> dict[str, Tensor]:
    """Leaves out what lies behind the model's last stage."""
    later = [f"layers.{i}." for i in range(num_stages, NUM_STAGES)]
    later.append(f"layers.{num_stages - 1}.downsample.")
    return {k: v for k, v in state_dict.items() if not k.startswith(tuple(later))}


def _check_keys(path: str, loaded: set, missing: set, unexpected: set) -> None:
    if not loaded:
        raise RAVLTError(
            f"Checkpoint '{path}' has no key of RAVLT (it begins with "
            f"{sorted(unexpected)[:3]}); give RAVLT weights, or name the backbone's "
            f"prefix in init_cfg."
        )
    fresh = {k for k in missing if _OUTPUT_NORM.fullmatch(k) or _CORE.fullmatch(k)}
    lost = missing - fresh
    foreign = {key for key in unexpected if not _OUTPUT_NORM.fullmatch(key)}
    if foreign & _CLASSIFIER_TAIL:
        lost |= _CLASSIFIER_TAIL - foreign
        foreign -= _CLASSIFIER_TAIL
    if lost or foreign:
        raise RAVLTError(
            f"Checkpoint '{path}' does not fit the model: missing {_some(lost)}, "
            f"unexpected {_some(foreign)}; set arch to the file's size."
        )


def _some(keys: set) -> str:
    names = sorted(keys)
    return f"{len(names)} keys" + (f" ({', '.join(names[:3])} ...)" if names else "")
