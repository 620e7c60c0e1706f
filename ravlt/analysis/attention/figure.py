"""Pictures of attention: what tokens attend to, over the image."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from .map import Seen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Both grow brighter from end to end, so that they need no colour; the middle of the
# signed one is grey.
POSITIVE, SIGNED = "magma", "cividis"
_ACROSS = 4  # panels in a row
_SIDE, _SCALE, _TITLE = 3.4, 0.9, 0.75  # width of a panel, colour scale; inches


def draw_rows(
    image: Image.Image,
    pixel: tuple[int, int],
    panels: Sequence[tuple[str, Seen, Tensor]],
) -> "Figure":
    """Draws the image with the pixel, and beside it what each layer's token attends to.

    Weights are times N, so that equal ones are 1. The scale of those that may be
    negative has 0 in the middle, that of others begins there.

    Args:
        image: The image, RGB.
        pixel: Column and row of the pixel that asks.
        panels: A title, what was seen, and the map of it to show, (H, W).
    """
    from matplotlib.figure import Figure  # heavy, and only needed here

    across = min(len(panels) + 1, _ACROSS)
    down = math.ceil((len(panels) + 1) / across)
    height = (_SIDE - _SCALE) * image.height / image.width + _TITLE
    figure = Figure(figsize=(_SIDE * across, height * down), layout="constrained")
    first, *plots = figure.subplots(down, across, squeeze=False).flat
    first.imshow(image, extent=(0, image.width, image.height, 0))
    first.set_title(f"pixel {pixel[0]} {pixel[1]}", fontsize=8)
    _mark(first, pixel[0] + 0.5, pixel[1] + 0.5)
    for axes, (title, seen, weights) in zip(plots, panels, strict=False):
        _overlay(axes, image, seen, weights)
        axes.set_title(title, fontsize=8)
    for axes in (first, *plots):
        axes.tick_params(labelsize=7)
    for axes in plots[len(panels) :]:
        axes.set_axis_off()
    return figure


def _overlay(axes: "Axes", image: Image.Image, seen: Seen, weights: Tensor) -> None:
    height, width = seen.cell
    rows, cols = weights.shape
    relative = (weights * weights.numel()).numpy()
    most = abs(relative).max() or 1.0
    # Faint, so that brightness is that of weights.
    faint = dict(cmap="gray", vmin=-255, vmax=510)
    axes.imshow(image.convert("L"), extent=(0, *image.size, 0), **faint)
    shown = axes.imshow(
        relative,
        cmap=SIGNED if seen.signed else POSITIVE,
        vmin=-most if seen.signed else 0.0,
        vmax=most,
        alpha=0.7,
        interpolation="nearest",
        extent=(0, cols * width, rows * height, 0),
    )
    axes.set(xlim=(0, image.width), ylim=(image.height, 0))
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.9)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("weight x tokens", fontsize=7)
    row, col = seen.token
    _mark(axes, (col + 0.5) * width, (row + 0.5) * height)


def _mark(axes: "Axes", x: float, y: float) -> None:
    """A ring that shows on dark and on bright."""
    for color, width in (("black", 3.0), ("white", 1.2)):
        axes.plot(x, y, "o", ms=7, fillstyle="none", color=color, mew=width)
