"""Figures of attention: what tokens attend to, over the image."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from .map import TokenAttention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Brightness rises monotonically in both, so that they also work without colour. The
# middle of the signed one is grey.
POSITIVE, SIGNED = "magma", "cividis"
_MAX_COLUMNS = 4  # panels in a row
# Width of a panel with its colour bar, width of the bar, height of the title; inches.
_PANEL_WIDTH, _BAR_WIDTH, _TITLE_HEIGHT = 3.4, 0.9, 0.75


def draw_rows(
    image: Image.Image,
    pixel: tuple[int, int],
    panels: Sequence[tuple[str, TokenAttention, Tensor]],
) -> "Figure":
    """Draw the image with the pixel marked, and beside it what its tokens attend to.

    Weights are multiplied by the number of tokens, so that uniform weights are 1. The
    colour scale is symmetric around 0 if weights may be negative, else it begins at 0.

    Args:
        image: The image, RGB.
        pixel: Column and row of the attending pixel.
        panels: For each panel its title, the attention of the pixel's token, and the
            map to show, (H, W).
    """
    from matplotlib.figure import Figure  # heavy, and only needed here

    columns = min(len(panels) + 1, _MAX_COLUMNS)
    rows = math.ceil((len(panels) + 1) / columns)
    map_width = _PANEL_WIDTH - _BAR_WIDTH
    height = map_width * image.height / image.width + _TITLE_HEIGHT
    size = (_PANEL_WIDTH * columns, height * rows)
    figure = Figure(figsize=size, layout="constrained")
    first, *plots = figure.subplots(rows, columns, squeeze=False).flat
    first.imshow(image, extent=(0, image.width, image.height, 0))
    first.set_title(f"pixel {pixel[0]} {pixel[1]}", fontsize=8)
    _mark(first, pixel[0] + 0.5, pixel[1] + 0.5)
    for axes, (title, attention, weights) in zip(plots, panels, strict=False):
        _overlay(axes, image, attention, weights)
        axes.set_title(title, fontsize=8)
    for axes in (first, *plots):
        axes.tick_params(labelsize=7)
    for axes in plots[len(panels) :]:
        axes.set_axis_off()
    return figure


def _overlay(
    axes: "Axes", image: Image.Image, attention: TokenAttention, weights: Tensor
) -> None:
    height, width = attention.cell
    rows, cols = weights.shape
    relative = (weights * weights.numel()).numpy()
    limit = abs(relative).max() or 1.0
    # The image has low contrast, so that brightness shows the weights.
    faint = dict(cmap="gray", vmin=-255, vmax=510)
    axes.imshow(image.convert("L"), extent=(0, *image.size, 0), **faint)
    shown = axes.imshow(
        relative,
        cmap=SIGNED if attention.signed else POSITIVE,
        vmin=-limit if attention.signed else 0.0,
        vmax=limit,
        alpha=0.7,
        interpolation="nearest",
        extent=(0, cols * width, rows * height, 0),
    )
    axes.set(xlim=(0, image.width), ylim=(image.height, 0))
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.9)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("weight x tokens", fontsize=7)
    row, col = attention.token
    _mark(axes, (col + 0.5) * width, (row + 0.5) * height)


def _mark(axes: "Axes", x: float, y: float) -> None:
    """Draw a ring that is visible on dark and on bright pixels."""
    for color, width in (("black", 3.0), ("white", 1.2)):
        axes.plot(x, y, "o", ms=7, fillstyle="none", color=color, mew=width)
