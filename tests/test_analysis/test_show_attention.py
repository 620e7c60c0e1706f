"""Figures of attention rows, and the command that draws them."""

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tool_runs import SEG, Run
from ravlt.analysis.attention.figure import POSITIVE, SIGNED, draw_rows
from ravlt.analysis.attention.map import (
    TokenAttention,
    attention_of_pixel,
    combine_heads,
    describe,
    put_core,
)
from ravlt.analysis.attention.rank_study import load_subject
from ravlt.models import RAVLT


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def attention_of(weights: torch.Tensor, signed: bool) -> TokenAttention:
    return TokenAttention("rala", signed, weights[None], (1, 2), (8.0, 6.0))


def test_maps_are_drawn_in_image_pixels_on_their_colour_scale(image):
    weights = torch.zeros(5, 10)
    weights[1, 3] = 0.5
    signed = weights.clone()
    signed[4, 0] = -0.1
    panels = [
        (title, attention_of(w, title == "signed"), w)
        for title, w in (("plain", weights), ("signed", signed))
    ]
    figure = draw_rows(image, (13, 12), panels)
    first, *plots = figure.axes[:3]
    assert [axes.get_title() for axes in (first, *plots)] == [
        "pixel 13 12",
        "plain",
        "signed",
    ]
    assert first.images[0].get_extent() == [0, 60, 40, 0]
    assert [float(x[0]) for x in first.lines[0].get_data()] == [13.5, 12.5]
    for axes, (_, _, w), limits, colors in zip(
        plots, panels, ((0, 25), (-25, 25)), (POSITIVE, SIGNED), strict=True
    ):
        below, shown = axes.images
        assert below.get_extent() == [0, 60, 40, 0]
        assert shown.get_extent() == [0, 60, 40, 0]
        np.testing.assert_allclose(shown.get_array(), w.numpy() * 50)
        assert shown.get_clim() == limits
        assert shown.get_cmap().name == colors
        assert [float(x[0]) for x in axes.lines[0].get_data()] == [15, 12]
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 60), (40, 0))


def test_tokens_beyond_the_image_are_cut_off(image):
    weights = torch.ones(6, 11)
    axes = draw_rows(image, (0, 0), [("", attention_of(weights, False), weights)]).axes[
        1
    ]
    assert axes.images[1].get_extent() == [0, 66, 48, 0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 60), (40, 0))


@pytest.mark.parametrize("name", [POSITIVE, SIGNED])
def test_brightness_of_colours_increases(name):
    """Brightness is strictly monotonic, so that the scale works in grey."""
    colors = matplotlib.colormaps[name](np.linspace(0, 1, 32))[:, :3]
    brightness = colors @ (0.299, 0.587, 0.114)
    assert (np.diff(brightness) > 0).all()
    assert brightness[0] < 0.2 and brightness[-1] > 0.8


def test_zero_is_grey_among_signed_weights():
    middle = matplotlib.colormaps[SIGNED](0.5)[:3]
    assert np.ptp(middle) < 0.05


# ------------------------------------------------------------------------- command

TOOL = "analysis_tools/show_attention.py"
CONFIG = f"""
_base_ = {str(SEG)!r}
model = dict(
    backbone=dict(arch='test', attn_types='rala'),
    neck=dict(in_channels=[16, 32, 48, 64]),
)
"""


@pytest.mark.integration
def test_command(tmp_path, image):
    """Two configs with the same weights, and two mechanisms in each."""
    image.save(tmp_path / "image.png")
    (tmp_path / "a.py").write_text(CONFIG)
    line = ["--image", "image.png", "--pixel", 59, 39, "--stage", 2, "--size", 32, 48]
    torch.manual_seed(5)
    weights = RAVLT("test", "rala").state_dict()
    for key in weights:
        if "qkvo.weight" in key:
            weights[key] *= 5  # differs from random initial weights
    torch.save(weights, tmp_path / "w.pth")
    options = ["--checkpoint", "w.pth", "--attentions", "rala", "softmax"]
    line = ["a.py", "ravlt_test", *line, *options, "--heads", "each"]
    run = Run(TOOL, [*line, "--out", "new/out.png"], tmp_path).succeeded()
    expected = []
    for label in ("a", "ravlt_test"):
        subject = load_subject("ravlt_test", (32, 48), str(tmp_path / "w.pth"))
        for name in ("rala", "softmax"):
            put_core(subject.backbone, name, 2, 1)
            found = attention_of_pixel(subject, image, (32, 48), (59, 39), 2, 1)
            for head, weights in combine_heads(found.weights, "each").items():
                title = f"{label}: {name}, stage 2, block 1, {head}"
                expected.append(f"{title}: {describe(found, weights)}")
    lines = [text for text in run.out.splitlines() if "stage 2" in text]
    assert lines == expected
    assert len(set(lines)) == 8
    with Image.open(tmp_path / "new/out.png") as picture:
        width, height = picture.size
        colors = picture.convert("RGB").getcolors(maxcolors=1 << 20)
    # The image and eight panels, four in a row.
    assert width == pytest.approx(4 * 3.4 * 110, abs=2)
    assert height > 3 * 200
    assert len(colors) > 500


@pytest.mark.integration
def test_wrong_arguments_are_refused(tmp_path, image):
    image.save(tmp_path / "image.png")
    (tmp_path / "old.png").touch()
    line = ["ravlt_test", "--image", "image.png", "--pixel", 0, 0]
    runs = {
        "--out 'old.png' exists or is no .png; name a new one.": [
            *line,
            *("--out", "old.png"),
        ],
        "--checkpoint names 2 files for 1 configs; give one, or one for each.": [
            *line,
            *("--out", "x.png", "--checkpoint", "a", "b"),
        ],
        "--size has 0; give positive numbers.": [
            *line,
            *("--out", "x.png", "--size", 0, 9),
        ],
    }
    started = {error: Run(TOOL, args, tmp_path) for error, args in runs.items()}
    for error, run in started.items():
        assert run.error() == f"error: {error}"
    assert not (tmp_path / "x.png").exists()
