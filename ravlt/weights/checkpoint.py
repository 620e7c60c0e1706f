"""Read checkpoints without executing code from them, and load backbone weights.

A checkpoint is a pickle, and unpickling can execute code. Files are therefore read with
``weights_only=True``. Besides tensors and plain containers only the objects that
mmengine itself saves are allowed: its history buffer, and the numpy arrays and scalars
inside it.
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
from .untrusted import allowed_globals, check_tensors

# Keys of the ImageNet head in a released classifier: 1 x 1 convolution, batch norm and
# linear layer.
_HEAD_KEYS = frozenset(
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
# Parameters of attention cores. Released files have none.
_CORE = re.compile(r"layers\.\d+\.blocks\.\d+\.attn\.core\..+")
_BLOCK = re.compile(r"layers\.\d+\.blocks\.\d+\.")
# First bytes of files that stand in place of a checkpoint, and what to do about it.
_SUBSTITUTES = (
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml)", re.I),
        "a web page, as a server sends in place of a file that is missing or needs a "
        "login; download the file itself",
    ),
    (
        re.compile(rb"version https://git-lfs\.github\.com/spec"),
        "a git-LFS pointer, which only names the file; fetch the file with git lfs "
        "pull, or download it",
    ),
)
# Exceptions that PyTorch and zipfile raise for malformed files.
_MALFORMED = (
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
# Keys under which training programs store the state dict, in order of preference.
_WRAPPERS = ("state_dict", "model", "model_ema")
_STATE_DICTS = (*_WRAPPERS, "ema_state_dict")


def read_checkpoint(path: str, map_location="cpu"):
    """Read a checkpoint without executing code from it.

    Args:
        path: A file, a web address (see :func:`ravlt.weights.download.fetch`), or any
            address that mmengine's file backends support.
        map_location: Device of the tensors, as in ``torch.load``.

    Returns:
        The content of the file, usually a dict.

    Raises:
        RAVLTError: If the file is missing or truncated, if it contains anything but
            plain tensors, plain containers and mmengine's history, or if the keys of
            a state dict are not strings.
    """
    path = str(path)
    try:
        with allowed_globals():
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
    except _MALFORMED as error:
        raise _unreadable(path, error) from error


def use_safe_loading() -> None:
    """Make mmengine read all files and web addresses with :func:`read_checkpoint`.

    mmengine then also receives no config from the checkpoint, which it would execute
    when a run resumes or when an inferencer is given no config.

    Call this in a program, not in a library, because it changes mmengine's
    ``CheckpointLoader`` for the whole process. Without it, mmengine 0.10 cannot resume
    under torch >= 2.6, and later versions unpickle arbitrary objects.
    """
    loader = mmengine_checkpoint.CheckpointLoader
    stores = (r"(\S+\:)?s3://", r"(\S+\:)?petrel://")
    for prefix in ("", "http://", "https://", *stores):
        loader.register_scheme(prefix, _read_without_config, force=True)
    # The schemes torchvision://, open-mmlab:// and mmcls:// call this function.
    mmengine_checkpoint.load_from_http = _read_without_config


def load_pretrained(model: nn.Module, path: str, prefix: str | None = None) -> None:
    """Load backbone weights strictly, and log how many tensors were loaded.

    The file may be a released ImageNet classifier, a detector or segmentor (whose
    ``backbone.`` part is loaded), or the state dict of a :class:`ravlt.models.RAVLT`.

    Args:
        model: A :class:`ravlt.models.RAVLT`.
        path: See :func:`read_checkpoint`.
        prefix: Prefix of the backbone's keys in the file. None means ``backbone.`` if
            any key starts with it, and no prefix otherwise.

    Raises:
        RAVLTError: If the file cannot be read, no key matches, a key is missing or
            unexpected, a shape or the kind of dtype differs, or the file's rotary
            table is not RAVLT's.
    """
    state_dict, metadata = backbone_state_dict(read_checkpoint(path), path, prefix)
    state_dict = _without_unbuilt_stages(state_dict, len(model.layers))
    own = model.state_dict()
    missing, unexpected = own.keys() - state_dict.keys(), state_dict.keys() - own.keys()
    loaded = own.keys() & state_dict.keys()
    _check_keys(path, loaded, missing, unexpected)
    for key in sorted(loaded):
        _check_value(path, key, state_dict[key], own[key])
    model.check_folds(state_dict, "", metadata)
    model.load_state_dict(state_dict, strict=False)
    print_log(
        f"Loaded {len(loaded)} tensors from '{path}'; missing {len(missing)} "
        f"(output norms and parameters of attention cores, which keep their initial "
        f"values); unexpected {len(unexpected)}.",
        logger="current",
    )
    saved = metadata.get("attn_types") or RELEASED_ATTN_TYPES
    warn_attn_types(saved, model.attn_types)


def backbone_state_dict(
    checkpoint, path: str, prefix: str | None = None
) -> tuple[dict[str, Tensor], Mapping]:
    """Extract the backbone's tensors from any kind of checkpoint.

    Args:
        checkpoint: Return value of :func:`read_checkpoint`.
        path: Name of the file, for messages.
        prefix: See :func:`load_pretrained`.

    Returns:
        The tensors under the backbone's own names, and the metadata that the file
        records of it, among them its attention types.

    Raises:
        RAVLTError: If the checkpoint has no dict of tensors, or a key is not a string.
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
            f"Checkpoint '{path}' holds no dict of tensors, neither at its top level "
            f"nor under {', '.join(_WRAPPERS)}; give a file of model weights."
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
    return tensors, metadata.get(prefix[:-1], {})


def state_dict_of(checkpoint, path: str) -> Mapping:
    """Return the state dict of a detector's or segmentor's checkpoint.

    Args:
        checkpoint: Return value of :func:`read_checkpoint`.
        path: Name of the file, for messages.

    Raises:
        RAVLTError: If the checkpoint has no state dict.
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
                f"'{path}' is a web page, not a file; replace /blob/ by /resolve/."
            )
        path = fetch(path)
    if os.path.isdir(path):
        raise RAVLTError(f"'{path}' is a folder; give the checkpoint file (.pth).")
    file = io.BytesIO(get_bytes(path)) if "://" in path else os.path.expanduser(path)
    _check_substitute(file, path)
    content = torch.load(file, map_location=map_location, weights_only=True)
    check_tensors(content, path)
    _check_state_dicts(content, path)
    return content


def _check_substitute(file: str | io.BytesIO, path: str) -> None:
    if isinstance(file, io.BytesIO):
        head = file.getvalue()[:100]
    else:
        with open(file, "rb") as stream:
            head = stream.read(100)
    for pattern, problem in _SUBSTITUTES:
        if pattern.match(head):
            raise RAVLTError(f"'{path}' is not a checkpoint but {problem}.")


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
        _name_state_dict(content)
    return content


def _name_state_dict(content: Mapping) -> None:
    """Move the weights of other training programs to where mmengine looks for them."""
    name = next((n for n in _WRAPPERS if isinstance(content.get(n), Mapping)), None)
    if name is not None:
        content["state_dict"] = content.pop(name)


def _check_state_dicts(content, path: str) -> None:
    """Check that PyTorch and mmengine can process the keys and metadata.

    Raises:
        RAVLTError: If a key is not a string, or the metadata do not have PyTorch's
            form.
    """
    if not isinstance(content, Mapping):
        return
    for state_dict in (content, *(content.get(name) for name in _STATE_DICTS)):
        if not isinstance(state_dict, Mapping):
            continue
        for key in state_dict:
            if not isinstance(key, str):
                raise RAVLTError(
                    f"Checkpoint '{path}' has a key of type {type(key).__name__} where "
                    f"tensor names belong; save model.state_dict() to a new file and "
                    f"load that."
                )
        if not _is_metadata(getattr(state_dict, "_metadata", None)):
            raise RAVLTError(
                f"Checkpoint '{path}' has malformed metadata beside its tensors; save "
                f"dict(model.state_dict()), which has none, to a new file and load "
                f"that."
            )


def _is_metadata(metadata) -> bool:
    """Return whether metadata are absent or have PyTorch's form, a dict a module."""
    if metadata is None:
        return True
    return isinstance(metadata, Mapping) and all(
        isinstance(of_module, Mapping)
        and isinstance(of_module.get("attn_types", ()), list | tuple)
        for of_module in metadata.values()
    )


def _unreadable(path: str, error: Exception) -> RAVLTError:
    # The first sentence. PyTorch's unpickler begins with the advice to unpickle without
    # a check, and says what is wrong at the end of the first paragraph.
    text = re.split(r"WeightsUnpickler error:\s*", str(error).strip())[-1]
    reason = re.split(r"\n|\. ", text)[0].rstrip(".") or type(error).__name__
    return RAVLTError(
        f"Cannot read checkpoint '{path}', which is truncated or not a PyTorch file "
        f"({reason}); copy or download it again."
    )


def _without_unbuilt_stages(
    state_dict: Mapping[str, Tensor], num_stages: int
) -> dict[str, Tensor]:
    """Drop the keys of the stages that the model does not build."""
    unbuilt = [f"layers.{i}." for i in range(num_stages, NUM_STAGES)]
    unbuilt.append(f"layers.{num_stages - 1}.downsample.")
    return {k: v for k, v in state_dict.items() if not k.startswith(tuple(unbuilt))}


def _check_keys(path: str, loaded: set, missing: set, unexpected: set) -> None:
    if not loaded:
        raise RAVLTError(
            f"Checkpoint '{path}' has no key of RAVLT (its first keys are "
            f"{sorted(unexpected)[:3]}); give RAVLT weights, or set prefix in init_cfg "
            f"to the name of the backbone in the file."
        )
    missing = {
        key
        for key in missing
        if not _OUTPUT_NORM.fullmatch(key) and not _CORE.fullmatch(key)
    }
    unexpected = {key for key in unexpected if not _OUTPUT_NORM.fullmatch(key)}
    # A classifier's head is ignored, but an incomplete head means a damaged file.
    if unexpected & _HEAD_KEYS:
        missing |= _HEAD_KEYS - unexpected
        unexpected -= _HEAD_KEYS
    if missing or unexpected:
        # Another size lacks whole blocks.
        blocks = {match[0] for match in map(_BLOCK.match, loaded) if match}
        lost = (m is None or m[0] in blocks for m in map(_BLOCK.match, missing))
        remedy = "set arch to the size of the file's network"
        if not unexpected and any(lost):
            remedy = "the file is incomplete, so copy or download it again"
        raise RAVLTError(
            f"Checkpoint '{path}' does not fit the model: missing {_count(missing)}, "
            f"unexpected {_count(unexpected)}; {remedy}."
        )


def _check_value(path: str, key: str, found, expected: Tensor) -> None:
    if not isinstance(found, Tensor):
        raise RAVLTError(
            f"Checkpoint '{path}' has {key} of type {type(found).__name__}, but the "
            f"model needs a tensor; save model.state_dict() to a new file and load "
            f"that."
        )
    if found.shape != expected.shape:
        raise RAVLTError(
            f"Checkpoint '{path}' has {key} of shape {tuple(found.shape)}, but the "
            f"model needs {tuple(expected.shape)}; set arch to the size of the file's "
            f"network."
        )
    if found.is_floating_point() != expected.is_floating_point():
        raise RAVLTError(
            f"Checkpoint '{path}' has {key} of {found.dtype}, but the model needs "
            f"{expected.dtype}; save the weights in the dtype that they were trained "
            f"in."
        )


def _count(keys: set) -> str:
    names = sorted(keys)
    return f"{len(names)} keys" + (f" ({', '.join(names[:3])} ...)" if names else "")
