"""Swap RAVLT into each config that the hosts ship, and try the model."""

import hashlib
import importlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmengine.config import Config

from ravlt.errors import RAVLTError
from ravlt.swap import swap_backbone
from ravlt.swap.trial import try_model

HOSTS = ("mmdet", "mmseg")
# Narrow, but divisible into the groups of group norms in necks, like the real sizes.
_ARCH = dict(embed_dims=(64, 128, 192, 256), depths=(1,) * 4, num_heads=(1, 2, 3, 4))
# Most models accept small images; the others are tried with larger ones.
_SIDES = (128, 256, 512)


@dataclass
class Result:
    """Outcome of one config.

    Args:
        config: Name, ``mmdet::...`` or ``mmseg::...``.
        outcome: 'runs'; 'refused' by the swap; 'broken': the original runs here, the
            swapped config does not; 'unavailable': the original does not run here; or
            'no model': the file is a part of other configs.
        detail: The reason, or a remark.
        model: Hash of the model that was tried.
    """

    config: str
    outcome: str
    detail: str = ""
    model: str = ""


def family_of(config: str) -> str:
    """Return host and folder of a config, for example ``mmdet::retinanet``."""
    return config.partition("/")[0]


def host_root(host: str) -> Path:
    """Return the folder of a host's package that holds ``configs``."""
    return Path(importlib.import_module(host).__file__).parent / ".mim"


def list_configs() -> list[str]:
    """List the names of all configs that the hosts ship, except bases."""
    return [
        f"{host}::{path.relative_to(root).as_posix()}"
        for host in HOSTS
        for root in [host_root(host) / "configs"]
        for path in sorted(root.rglob("*.py"))
        if "_base_" not in path.parts
    ]


def cover(name: str, earlier: Iterable[Result] = ()) -> Result:
    """Swap RAVLT into a config and try the model.

    Args:
        name: One of :func:`list_configs`.
        earlier: Results of other configs. Configs that differ only in their backbone
            become the same model, which is tried once.
    """
    # Some configs name files relative to the folder that holds ``configs``.
    os.chdir(host_root(name.partition("::")[0]))
    try:
        cfg = _read(name)
    except Exception as error:
        return Result(name, "unavailable", f"the file: {_reason(error)}")
    if not cfg.get("model"):
        return Result(name, "no model")
    try:
        swapped = swap_backbone(cfg, _ARCH)
    except RAVLTError as error:
        if error.__cause__ is None:
            return Result(name, "refused", str(error))
        return Result(name, "unavailable", _reason(error.__cause__))
    except Exception as error:
        return _blame(name, error)
    text = json.dumps([swapped.get("default_scope"), swapped.model], default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    for result in earlier:
        if result.model == key:
            return replace(result, config=name)
    return replace(_try(name, swapped), model=key)


def read_results(path: str) -> list[Result]:
    """Read the results that :func:`write_result` has written so far."""
    if not os.path.exists(path):
        return []
    lines = Path(path).read_text().splitlines()
    return [Result(**json.loads(line)) for line in lines]


def write_result(path: str, result: Result) -> None:
    """Append a result to a file, as one line of JSON."""
    with open(path, "a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def _read(name: str) -> Config:
    host, _, path = name.partition("::")
    file = host_root(host) / "configs" / path
    try:
        return Config.fromfile(file)
    except ImportError:  # of the old backbone's package, which RAVLT may not need
        return Config.fromfile(file, import_custom_modules=False)


def _try(name: str, swapped: Config) -> Result:
    try:
        trial = try_model(swapped, _SIDES)
    except Exception as error:
        return _blame(name, error)
    if trial.idle:
        return Result(name, "broken", f"no gradient for {trial.idle[0]}")
    return Result(name, "runs", "does not train" if trial.loss is None else "")


def _blame(name: str, error: Exception) -> Result:
    """Distinguish a broken swap from a config whose original does not run here."""
    try:
        try_model(_read(name), _SIDES)
    except Exception as original:
        return Result(name, "unavailable", _reason(original))
    return Result(name, "broken", _reason(error))


def _reason(error: BaseException) -> str:
    """Return the first line of an error, without the paths of this machine."""
    line = " ".join(str(error).strip().split("\n")[0].split())
    for host in HOSTS:
        line = line.replace(f"{host_root(host).parent.parent}{os.sep}", "")
    return f"{type(error).__name__}: {line[:200]}"
