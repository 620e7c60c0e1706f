"""Puts RAVLT into a config, and makes everything that reads it agree."""

import copy
import logging
from collections.abc import Mapping, Sequence

from mmengine.config import Config
from mmengine.logging import print_log

from ravlt.errors import RAVLTError
from ravlt.models.archs import resolve_arch

from .changes import Change, apply_changes
from .levels import Level, backbone_levels
from .sites import Site, find_sites
from .training import training_changes
from .wiring import rewire, used_levels

_STRIDES = (4, 8, 16, 32)


def swap_backbone(
    cfg: Config,
    arch: str | Mapping = "t",
    attn_types: str | Sequence[str] | None = None,
    pretrained: str | None = None,
) -> Config:
    """Gives a config with RAVLT in place of its backbone; the given one is untouched.

    Args:
        cfg: Config of mmdet or mmseg, as ``Config.fromfile`` gives it.
        arch: Size or dict, see :class:`ravlt.models.RAVLT`.
        attn_types: Attention of each stage; None takes the released setting.
        pretrained: Weights of RAVLT; None trains from scratch.

    Raises:
        RAVLTError: If a swap makes no sense there, or the old backbone cannot run.
    """
    changes = swap_changes(cfg, arch, attn_types, pretrained)
    swapped = copy.deepcopy(cfg)
    apply_changes(swapped, changes)
    return swapped


def swap_changes(
    cfg: Config,
    arch: str | Mapping = "t",
    attn_types: str | Sequence[str] | None = None,
    pretrained: str | None = None,
) -> list[Change]:
    """Gives what :func:`swap_backbone` changes; arguments and errors are the same."""
    scope = cfg.get("default_scope") or "mmdet"
    sites = list(find_sites(cfg.get("model", {})))
    if not sites:
        raise RAVLTError("The config has no model.backbone to swap.")
    imports = cfg.get("custom_imports") or {}
    names = list(imports.get("imports", []))
    changes = []
    if "ravlt" not in names:
        value = {**imports, "imports": [*names, "ravlt"]}
        changes.append(Change(("custom_imports",), value, "registers RAVLT"))
    for site in sites:
        changes += _swap_site(site, scope, arch, attn_types, pretrained)
    return [*changes, *training_changes(cfg)]


def _swap_site(site: Site, scope: str, arch, attn_types, pretrained) -> list[Change]:
    old_cfg = site.owner["backbone"]
    old = backbone_levels(old_cfg, scope)
    _check_head(site)
    used = used_levels(site.owner, old)
    stages = _stages(old, old_cfg["type"])
    indices = tuple(stages[i] for i in used)
    dims = resolve_arch(arch)["embed_dims"]
    new = dict(type="RAVLT", arch=arch)
    if attn_types is not None:
        new["attn_types"] = attn_types
    if old_cfg.get("in_channels", 3) != 3:
        new["in_channels"] = old_cfg["in_channels"]
    if indices != (0, 1, 2, 3):
        new["out_indices"] = indices
    norm = (old_cfg.get("norm_cfg") or {}).get("type")
    new["norm_cfg"] = dict(type="SyncBN" if norm == "SyncBN" else "BN")
    if pretrained is not None:
        new["init_cfg"] = dict(type="Pretrained", checkpoint=pretrained)
    changes = [Change((*site.path, "backbone"), new, f"was {old_cfg['type']}")]
    if site.owner.get("pretrained"):
        changes.append(Change((*site.path, "pretrained"), None, "the old backbone's"))
    channels = [dims[i] for i in indices]
    return changes + list(rewire(site.owner, site.path, old, used, channels))


def _check_head(site: Site) -> None:
    """Refuses heads that are a piece of the backbone."""
    shared = (site.owner.get("roi_head") or {}).get("shared_head")
    if shared:
        raise RAVLTError(
            f"{'.'.join(map(str, site.path))}.roi_head.shared_head ({shared['type']}) "
            f"is the last stage of the old backbone (a C4 head), which RAVLT cannot "
            f"give; choose the config of the same method with an FPN."
        )


def _stages(old: Sequence[Level], name: str) -> tuple[int, ...]:
    """Which stages of RAVLT stand in for the old levels."""
    strides = [level.stride for level in old]
    if all(stride in _STRIDES for stride in strides) and len(set(strides)) == len(old):
        indices = tuple(_STRIDES.index(stride) for stride in strides)
    elif len(old) <= 4 and max(strides) <= 32 and strides[0] >= 4:
        # Dilated: as many stages as levels, up to the last.
        indices = tuple(range(4 - len(old), 4))
        new = [_STRIDES[i] for i in indices]
        print_log(
            f"{name} gave strides {strides}, RAVLT gives {new}: heads see a coarser "
            f"grid than they were made for; check crop size and dilations.",
            logger="current",
            level=logging.WARNING,
        )
    else:
        raise RAVLTError(
            f"The backbone {name} gives strides {strides}, and RAVLT has {_STRIDES}; "
            f"choose a config whose neck or head takes some of these."
        )
    if list(indices) != sorted(indices):
        raise RAVLTError(f"The backbone {name} gives its maps in another order.")
    return indices
