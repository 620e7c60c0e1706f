"""Plain networks, such as vision transformers, whose maps all have one stride."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ravlt.config import type_name

from .changes import Change, dotted
from .levels import Level, ask_reader
from .readers import segmentation_heads
from .sites import Site
from .stages import STRIDES


@dataclass(frozen=True)
class View:
    """A model whose backbone gives a pyramid, or is taken to give one.

    Args:
        site: The model, with the necks that stay or are added.
        levels: The maps of its backbone.
        changes: What replaces the neck of the config.
        warnings: What this means for the model.
    """

    site: Site
    levels: tuple[Level, ...]
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()


def view_as_pyramid(site: Site, scope: str, levels: tuple[Level, ...]) -> View:
    """Find how RAVLT's pyramid can take the place of maps of one stride.

    Only heads of mmseg choose the level and the width of each input, so that they can
    take another set of maps. In the order of preference: the neck only resizes the maps
    to a pyramid, which RAVLT gives itself; neck and heads run on a pyramid, too; or an
    added neck resizes RAVLT's maps to the one stride.

    Args:
        site: The model that holds the backbone.
        scope: 'mmdet' or 'mmseg'.
        levels: The maps of the old backbone.

    Returns:
        The model as it is, if this does not apply.
    """
    plain = len(levels) == len(STRIDES) and len(set(levels)) == 1
    if not plain or not list(segmentation_heads(site)):
        return View(site, levels)
    return (
        _without_neck(site, scope, levels)
        or _on_pyramid(site, scope, levels)
        or _behind_resizing(site, levels)
    )


def _without_neck(site: Site, scope: str, levels: tuple[Level, ...]) -> View | None:
    necks = list(site.necks())
    if len(necks) != 1:
        return None
    [(neck, path)] = necks
    outs = _outputs(neck, scope, levels) or ()
    strides = [level.stride for level in outs]
    if len(set(strides)) < len(levels):
        return None
    why = f"{type_name(neck)} made a pyramid of one stride, and RAVLT gives one"
    warning = (
        f"{dotted(path)} ({type_name(neck)}) is taken out: it resized the maps of "
        f"{site.kind}, all of stride {levels[0].stride}, to strides {strides}, which "
        f"RAVLT gives itself."
    )
    changes = (Change((*site.path, "neck"), None, why),)
    return View(_with_neck(site, None), outs, changes, (warning,))


def _on_pyramid(site: Site, scope: str, levels: tuple[Level, ...]) -> View | None:
    pyramid = _pyramid(levels)
    if not _accepts(site, scope, pyramid):
        return None
    warning = (
        f"{site.kind} gave {len(levels)} maps of stride {levels[0].stride}, RAVLT "
        f"gives strides {list(STRIDES)} in their place, on which the heads run, too."
    )
    return View(site, pyramid, warnings=(warning,))


def _behind_resizing(site: Site, levels: tuple[Level, ...]) -> View:
    stride = levels[0].stride
    widths = [level.channels for level in levels]
    resize = dict(
        type="MultiLevelNeck",
        in_channels=widths,
        out_channels=widths[0],
        scales=[s / stride for s in STRIDES],
    )
    necks = [resize, *(dict(neck) for neck, _ in site.necks())]
    why = f"resizes RAVLT's maps to stride {stride}, which the next part needs"
    warning = (
        f"{dotted(site.path)}.neck begins with a MultiLevelNeck, which resizes RAVLT's "
        f"strides {list(STRIDES)} to stride {stride}, as {site.kind} gave them: "
        f"the model cannot take other strides, or only at a high cost."
    )
    changes = (Change((*site.path, "neck"), necks, why),)
    return View(_with_neck(site, necks), _pyramid(levels), changes, (warning,))


def _pyramid(levels: Sequence[Level]) -> tuple[Level, ...]:
    return tuple(
        Level(level.channels, stride)
        for level, stride in zip(levels, STRIDES, strict=True)
    )


def _accepts(site: Site, scope: str, levels: Sequence[Level]) -> bool:
    """True if the necks and heads of a model run on these maps at a fair cost.

    A head that enlarges maps by a fixed factor makes RAVLT's fine ones as large as the
    image or larger, of hundreds of channels.
    """
    for neck, _ in site.necks():
        levels = _outputs(neck, scope, levels)
        if levels is None:
            return False
    outs = [_outputs(head, scope, levels) for head, _ in segmentation_heads(site)]
    return all(out and out[0].stride >= STRIDES[0] for out in outs)


def _outputs(
    reader: Mapping, scope: str, levels: Sequence[Level]
) -> tuple[Level, ...] | None:
    """Return what a neck or head gives; None if it does not run on these maps."""
    try:
        return ask_reader(reader, scope, levels)
    except Exception:  # of any kind: the parts are the hosts' or users'
        return None


def _with_neck(site: Site, neck: list[Mapping] | None) -> Site:
    return Site({**site.owner, "neck": neck}, site.path)
