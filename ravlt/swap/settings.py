"""Maps of a backbone that cannot be built here, from the settings of its readers."""

from mmengine.registry import MODELS

from .levels import Backbone, Level, ask_backbone
from .readers import segmentation_heads
from .sites import Site
from .stages import STRIDES


def find_backbone(site: Site, scope: str) -> tuple[Backbone, list[str]]:
    """Ask a backbone for its maps; read them from the config if its class is missing.

    Args:
        site: The model that holds the backbone.
        scope: 'mmdet' or 'mmseg'.

    Returns:
        The backbone, and warnings.

    Raises:
        RAVLTError: If it cannot run here, and the config does not say enough of it.
    """
    widths = None if _is_installed(site.backbone["type"], scope) else _widths(site)
    if widths is None:
        return ask_backbone(site, scope), []
    levels = tuple(Level(*pair) for pair in zip(widths, STRIDES, strict=True))
    warning = (
        f"The class of the backbone {site.kind} is not installed: its widths {widths}, "
        f"read from the config, are taken for strides {list(STRIDES)}; check them."
    )
    return Backbone(levels, ()), [warning]


def _is_installed(kind: str | type, scope: str) -> bool:
    if not isinstance(kind, str):
        return True
    with MODELS.switch_scope_and_registry(scope) as registry:
        return registry.get(kind) is not None


def _widths(site: Site) -> list[int] | None:
    """Return the widths of four levels, from fine to deep, if the config names them."""
    necks = [neck for neck, _ in site.necks()]
    heads = [head for head, _ in segmentation_heads(site)]
    every = list(range(len(STRIDES)))
    for reader in necks[:1] or heads:
        widths, index = reader.get("in_channels"), reader.get("in_index", every)
        if not isinstance(widths, list | tuple) or list(index) != every:
            continue
        rising = sorted(set(widths))  # equal widths may belong to one stride
        # Some read the deepest level first.
        if len(rising) == len(every) and list(widths) in (rising, rising[::-1]):
            return rising
    return None
