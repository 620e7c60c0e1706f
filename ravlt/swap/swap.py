"""Puts RAVLT into a config, and makes everything that reads it agree."""

import logging
from collections.abc import Mapping, Sequence

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from ravlt.config import HOSTS, find_scope, type_name
from ravlt.errors import RAVLTError
from ravlt.models.ravlt import RAVLT

from .changes import Change, Swap, dotted
from .imports import import_changes
from .levels import Level
from .plain import view_as_pyramid
from .readers import leaves_levels, rewire, used_levels
from .settings import find_backbone
from .sites import Site, find_sites
from .stages import STRIDES, match_stages, stride_warnings
from .training import (
    optimizer_changes,
    optimizer_warnings,
    pixel_changes,
    weight_changes,
)


def swap_backbone(
    cfg: Config,
    arch: str | Mapping = "t",
    attn_types: str | Sequence[str] | None = None,
    pretrained: str | None = None,
) -> Config:
    """Gives a config with RAVLT in place of its backbone; the given one is untouched.

    Every backbone in the model is replaced, also inside of wrappers (semi-supervised
    learning, tracking), and whatever depends on it is adapted: necks, heads, the
    preprocessor's statistics, weights to load, learning rates by name. What runs but
    means something else than before is logged as a warning.

    Args:
        cfg: Config of mmdet or mmseg, as ``Config.fromfile`` gives it.
        arch: Size or dict, see :class:`ravlt.models.RAVLT`.
        attn_types: Attention of each stage; None takes the released setting.
        pretrained: Weights of RAVLT; None trains from scratch.

    Returns:
        The new config.

    Raises:
        RAVLTError: If a swap makes no sense there, or the old backbone cannot run here:
            it is built, without weights, and asked for its channels and strides.

    Example:
        >>> cfg = Config.fromfile('retinanet_r50_fpn_1x_coco.py')
        >>> swap_backbone(cfg, 's', pretrained='RAVLT_S.pth').dump('my_config.py')
    """
    swap = plan_swap(cfg, arch, attn_types, pretrained)
    for warning in swap.warnings:
        print_log(warning, logger="current", level=logging.WARNING)
    return swap.apply(cfg)


def plan_swap(
    cfg: Config,
    arch: str | Mapping = "t",
    attn_types: str | Sequence[str] | None = None,
    pretrained: str | None = None,
) -> Swap:
    """Says what :func:`swap_backbone` changes; arguments and errors are the same."""
    scope = find_scope(cfg) or "mmdet"
    if scope not in HOSTS:
        raise RAVLTError(
            f"default_scope='{scope}' is neither 'mmdet' nor 'mmseg'; of classifiers "
            f"take timm.create_model('ravlt_t')."
        )
    sites = list(find_sites(cfg.get("model") or {}))
    if not sites:
        raise RAVLTError(
            "The config has no model with a backbone to swap; give the config of a "
            "detector or segmentor."
        )
    changes: list[Change] = []
    warnings: list[str] = []
    old_names: list[str] = []
    new_names: list[str] = []
    for site in sites:
        _refuse_shared_parts(site)
        old, unknown = find_backbone(site, scope)
        view = view_as_pyramid(site, scope, old.levels)
        stages = match_stages(view.levels, site.kind)
        warnings += unknown
        warnings += view.warnings
        warnings += stride_warnings(view.levels, stages, site.kind)
        used = used_levels(view.site, len(view.levels))
        if leaves_levels(site):
            why = "the neck does not read all levels, and a norm gets no gradient"
            changes.append(Change(("find_unused_parameters",), True, why))
        out_indices = tuple(stages[i] for i in used)
        new = _replacement(site.backbone, out_indices, arch, attn_types, pretrained)
        path = (*site.path, "backbone")
        changes.append(Change(path, new, f"in place of {site.kind}"))
        with torch.device("meta"):
            model = RAVLT(**{k: v for k, v in new.items() if k != "type"})
        levels = [Level(model.embed_dims[i], STRIDES[i]) for i in model.out_indices]
        changes += view.changes
        changes += rewire(view.site, scope, view.levels, used, levels)
        old_names += old.parameters
        new_names += [name for name, _ in model.named_parameters()]
    changes += pixel_changes(cfg.model, ("model",))
    changes += weight_changes(cfg, sites)
    changes += optimizer_changes(cfg, old_names, new_names)
    if pretrained is None:
        warnings.append(
            "RAVLT trains from scratch, which takes a longer schedule: name ImageNet "
            "weights with pretrained."
        )
    swapped = Swap(tuple(changes), ()).apply(cfg)
    changes = import_changes(cfg, swapped, sites) + changes
    return Swap(tuple(changes), tuple(warnings + optimizer_warnings(cfg)))


def _replacement(
    cfg: Mapping, out_indices: tuple[int, ...], arch, attn_types, pretrained
) -> dict:
    """The config of RAVLT, with the settings of the old backbone that still apply."""
    new = dict(type="RAVLT", arch=arch)
    if attn_types is not None:
        new["attn_types"] = attn_types
    if cfg.get("in_channels", 3) != 3:
        new["in_channels"] = cfg["in_channels"]
    if out_indices != tuple(range(len(STRIDES))):
        new["out_indices"] = out_indices
    if "SyncBN" in type_name(cfg.get("norm_cfg") or {}):
        new["norm_cfg"] = dict(type="SyncBN")
    if pretrained is not None:
        new["init_cfg"] = dict(type="Pretrained", checkpoint=pretrained)
        if cfg.get("norm_eval"):  # without weights its statistics mean nothing
            new["norm_eval"] = True
    return new


def _refuse_shared_parts(site: Site) -> None:
    """Refuses models of which the neck or a head is a piece of the backbone."""
    shared = (site.owner.get("roi_head") or {}).get("shared_head")
    if shared:
        raise RAVLTError(
            f"{dotted(site.path)}.roi_head.shared_head ({type_name(shared)}) is the "
            f"last stage of the old backbone (a C4 head), which RAVLT cannot give; "
            f"choose the config of the same method with an FPN."
        )
    if site.kind == "SSDVGG":
        raise RAVLTError(
            f"{dotted(site.path)}.backbone is SSDVGG, whose last layers are the first "
            f"of SSD's head; choose ssdlite or RetinaNet."
        )
    for neck, path in site.necks():
        if "rfp_backbone" in neck:
            raise RAVLTError(
                f"{dotted(path)} ({type_name(neck)}) runs copies of the old "
                f"backbone on its own output, which RAVLT cannot take; choose the "
                f"config of the same method with an FPN."
            )
