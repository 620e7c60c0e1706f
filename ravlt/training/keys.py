"""Report misspelled keys of a config: before a run, and in errors of constructors."""

import inspect
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import FrameType

from mmengine.config import Config
from mmengine.runner import Runner

# Top-level keys that mmengine, the hosts' tools and this package read.
_KNOWN = frozenset(inspect.signature(Runner.__init__).parameters) - {"self"} | {
    "activation_checkpointing",
    "bad_images",
    "bad_losses",
    "compile",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "safety",
    "strategy",
    "sync_bn",
    "tta_model",
}
# Not suggested, because most configs have a variable test_pipeline, which is similar.
_READ = _KNOWN | {"tta_pipeline"}
# Variables of configs, such as conv_cfg, resemble keys: 0.80 with env_cfg.
_SIMILARITY = 0.85
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_UNEXPECTED = re.compile(r"\(\) got an unexpected keyword argument '(\w+)'")
# Functions of mmengine that build a class from a part of the config, with the names of
# their variables for the class and for the part.
_BUILDERS = {
    "build_from_cfg": ("obj_cls", "args"),
    "build_scheduler_from_cfg": ("scheduler_cls", "args"),
    "build_dataloader": ("DataLoader", "dataloader_cfg"),
}


def find_typos(cfg: Config, options: Iterable[str]) -> Iterator[str]:
    """Yield a warning for each key that nothing reads.

    Other keys of a file may be its variables, so only keys that resemble a known one
    are reported. :func:`explain_argument` reports arguments of constructors.

    Args:
        cfg: Config, before the options change it.
        options: Dotted keys of ``--cfg-options``.
    """
    for key in cfg:
        known = None if key in _READ else _similar(key, _KNOWN)
        if known:
            yield _warning(key, known)
    for option in options:
        top = option.partition(".")[0]
        similar = _correct(cfg, option)
        if similar:
            yield _warning(option, similar)
        elif top not in _READ:
            yield (
                f"The config key '{option}' has no effect, because nothing but the "
                f"file reads '{top}'; set a key of the run, as the file does."
            )


def _correct(cfg: Config, option: str) -> str | None:
    """Correct the first part of a dotted key that the config does not have."""
    node, parts = dict(cfg.items()), option.split(".")
    for index, part in enumerate(parts):
        if isinstance(node, list | tuple) and part.isdecimal():
            node = node[int(part)] if int(part) < len(node) else None
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        # If a part has a type, its constructor checks the arguments.
        elif isinstance(node, Mapping) and "type" not in node:
            others = node if index else _KNOWN
            known = None if part in others else _similar(part, others)
            return known and ".".join((*parts[:index], known, *parts[index + 1 :]))
        else:
            break
    return None


def _similar(key: str, known: Iterable[str]) -> str | None:
    # A known name with a prefix or suffix is a variable, such as data_root_07.
    others = [name for name in known if name not in key]
    return next(iter(get_close_matches(key, others, 1, _SIMILARITY)), None)


def _warning(key: str, known: str) -> str:
    return f"The config key '{key}' is unknown; did you mean '{known}'?"


def explain_argument(error: BaseException) -> str | None:
    """Explain an error about an argument in a config that a constructor does not take.

    Args:
        error: Error that ended the program.

    Returns:
        One sentence, or None for any other error.
    """
    found = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
    if not found:
        return None
    for frame in reversed([frame for frame, _ in _frames(error)]):
        names = _BUILDERS.get(frame.f_code.co_name)
        if not names or not frame.f_globals["__name__"].startswith("mmengine."):
            continue
        variables = {**frame.f_globals, **frame.f_locals}
        kind, arguments = (variables.get(name) for name in names)
        if found[1] in (arguments or {}):
            return _sentence(kind, found[1])
    return None  # code passes the argument, not the config


def _sentence(kind: type, argument: str) -> str:
    known = _arguments(kind)
    similar = get_close_matches(argument, known, 1)
    remedy = f"did you mean '{similar[0]}'?" if similar else f"use {', '.join(known)}."
    return f"The config gives {kind.__name__} an unknown '{argument}'; {remedy}"


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of an error, then those of the error that it replaced."""
    yield from traceback.walk_tb(error.__traceback__)
    if error.__context__ is not None:
        yield from _frames(error.__context__)


def _arguments(kind: type) -> list[str]:
    """Return a constructor's arguments, with those that it passes to base classes."""
    names: dict[str, None] = {}
    for base in inspect.getmro(kind):
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names.update((p.name, None) for p in parameters if p.kind not in _VARIADIC)
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    names.pop("self", None)
    return list(names)
