"""How the tensors of a checkpoint fit a whole detector or segmentor."""

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

# PyTorch reports these only in the text of its error.
_RESHAPED = re.compile(r"size mismatch for (\S+): ")
# Batch norm's counters, which neither PyTorch nor mmengine asks for.
_OPTIONAL = re.compile(r"(.*\.)?num_batches_tracked")
# Constants in mmdet's released files; RAVLT's output norms, of which released files
# have one for each stage.
_UNUSED = re.compile(
    r"data_preprocessor\..*|(.*\.)?extra_norms\.\d\.norm\.(weight|bias)"
)
# roi_head.bbox_head, decode_head, neck.
_PART = re.compile(r"(?:\w+\.)*\w*head(?=\.)|\w+")
# Parts of mmpretrain's classifiers.
_CLASSIFIER = {"backbone", "neck", "head", "data_preprocessor"}
_KINDS = ("missing", "unexpected", "of another shape")


@dataclass(frozen=True)
class Fit:
    """How a state dict fits a model.

    Args:
        own: The model's state dict, without counters that a file need not have.
        found: The file's state dict.
        missing: Tensors of the model that the file lacks.
        unexpected: Names in the file that the model lacks.
        reshaped: Tensors of both, with different shapes.
    """

    own: Mapping[str, Tensor]
    found: Mapping[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    @property
    def is_exact(self) -> bool:
        return not any(self._differences())

    @property
    def is_complete(self) -> bool:
        """Return whether the parts of the model have the tensors of the file, only.

        A file may have more parts: a detector can be evaluated without its mask head.
        """
        parts = {_part(key) for key in self.own}
        foreign = any(_part(key) in parts for key in self.unexpected)
        return not (self.missing or self.reshaped or foreign)

    @property
    def loaded(self) -> set[str]:
        """Return the tensors of the model that the file has."""
        return self.own.keys() - {*self.missing, *self.reshaped}

    def summary(self) -> str:
        """Count the tensors that are loaded, and by part those that are not."""
        text = f"{len(self.loaded)} of the model's {len(self.own)} tensors"
        for kind, keys in zip(_KINDS, self._differences(), strict=True):
            for part, count in Counter(map(_part, keys)).items():
                text += f", {count} {kind} in {part}"
        return text

    def remedy(self) -> str:
        """Say what to do, as far as the differences show their cause."""
        parts = {_part(key) for key in self.loaded}
        inside = any(f"backbone.{key}" in self.own for key in self.found)
        classifier = {_part(key) for key in self.found} <= _CLASSIFIER
        if (parts == {"backbone"} and classifier) or (not parts and inside):
            return (
                "it holds only a backbone, as a classifier's file does, so train with "
                "it in model.backbone.init_cfg"
            )
        keys = [*self.missing, *self.unexpected, *self.reshaped]
        if all(self._has_other_classes(key) for key in keys):
            key, heads = keys[0], dict.fromkeys(map(_part, keys))
            return (
                f"set num_classes of {' and '.join(heads)} as in its training ({key} "
                f"is {_shape(self.found, key)}, the model's {_shape(self.own, key)})"
            )
        return f"give the config that it was trained with (first difference: {keys[0]})"

    def _has_other_classes(self, key: str) -> bool:
        """Return whether only the number of a head's outputs differs."""
        own, found = (_shape(side, key) or () for side in (self.own, self.found))
        same = bool(own and found) and own[1:] == found[1:]
        return same and _part(key).endswith("head")

    def _differences(self) -> tuple[list[str], list[str], list[str]]:
        return self.missing, self.unexpected, self.reshaped


def load_fitting(model: nn.Module, state_dict: Mapping) -> tuple[OrderedDict, Fit]:
    """Load the tensors that fit, and complete the others from the model.

    A model may rename and resize what it loads, so the comparison is a load.

    Args:
        model: A whole detector or segmentor.
        state_dict: Tensors of a checkpoint. A prefix that all names share, such as
            ``model.``, is dropped if only then names agree.

    Returns:
        A state dict that loads without a difference, and how the given one fits.
    """
    own = model.state_dict()
    found = _without_prefix(state_dict, own)
    # Modules that check what they load expect tensors.
    for key in own.keys() & found.keys():
        if isinstance(own[key], Tensor) and not isinstance(found[key], Tensor):
            del found[key]
    missing, unexpected, reshaped = _try_load(model, found, own)
    completed = found.copy()
    completed._metadata = found._metadata
    for key in {*unexpected, *reshaped} & found.keys():
        del completed[key]
    completed.update((key, own[key]) for key in (*missing, *reshaped))
    needed = {k: v for k, v in own.items() if not _OPTIONAL.fullmatch(k)}
    fit = Fit(
        needed,
        found,
        [key for key in missing if key in needed],
        [key for key in unexpected if not _UNUSED.fullmatch(key)],
        reshaped,
    )
    return completed, fit


def _without_prefix(state_dict: Mapping, own: Mapping) -> OrderedDict:
    found, metadata = state_dict, getattr(state_dict, "_metadata", None) or {}
    while found and not own.keys() & found.keys():
        prefix = next(iter(found)).partition(".")[0] + "."
        if not all(key.startswith(prefix) for key in found):
            found, metadata = state_dict, getattr(state_dict, "_metadata", None) or {}
            break
        found = {key.removeprefix(prefix): value for key, value in found.items()}
        # The metadata's keys are names of modules, of the outermost without a dot.
        metadata = {f"{k}.".removeprefix(prefix)[:-1]: v for k, v in metadata.items()}
    result = OrderedDict(found)
    result._metadata = metadata
    return result


def _try_load(
    model: nn.Module, state_dict: OrderedDict, own: Mapping
) -> tuple[list[str], list[str], list[str]]:
    """Return missing, unexpected and reshaped keys."""
    if {k: _shape(own, k) for k in own} == {
        k: _shape(state_dict, k) for k in state_dict
    }:
        return [], [], []
    # PyTorch returns the keys only if all shapes agree, but gives them to hooks always.
    found = []
    handle = model.register_load_state_dict_post_hook(
        lambda _, keys: found.append(keys)
    )
    try:
        model.load_state_dict(state_dict, strict=False)
        reshaped = []
    except RuntimeError as error:
        reshaped = _RESHAPED.findall(str(error))
        if not reshaped:
            raise
    finally:
        handle.remove()
    missing, unexpected = found[-1]
    return missing, unexpected, reshaped


def _part(key: str) -> str:
    match = _PART.match(key)
    return match[0] if match else key


def _shape(tensors: Mapping, key: str) -> tuple | None:
    shape = getattr(tensors.get(key), "shape", None)
    return None if shape is None else tuple(shape)
