"""Rank analysis of a backbone on images, for every layer and several resolutions."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from ravlt.analysis.subjects import build_subject, is_config
from ravlt.errors import RAVLTError
from ravlt.models import RAVLT
from ravlt.models.attention import CORES, AttentionCore
from ravlt.models.ravlt import GatedAttention
from ravlt.weights.checkpoint import load_pretrained

from .rank import (
    TOLERANCES,
    Call,
    Matrix,
    Spectra,
    attention_rows,
    effective_rank,
    kv_spectra,
    numerical_rank,
    output_spectra,
    row_sums,
    watch,
)

SCALES = (0.25, 0.5, 1, 2)  # scales of the image size at which row sums are measured
# Up to this number of tokens the explicit matrix is computed: 64 MiB a head in float32.
DENSE_TOKENS = 4096

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
_NAMES = {kind: name for name, kind in CORES.items()}


@dataclass
class Subject:
    """A backbone in eval mode and its preprocessing.

    Attributes:
        backbone: The backbone.
        prepare: Maps RGB pixels of shape (3, H, W), uint8, to (1, 3, H', W').
    """

    backbone: RAVLT
    prepare: Callable[[Tensor], Tensor]


def load_subject(name: str, size: tuple[int, int], checkpoint: str | None) -> Subject:
    """Build a backbone, with random weights if no checkpoint is given.

    Args:
        name: ``ravlt_t[:ATTENTION]`` or a config, see
            :func:`ravlt.analysis.subjects.build_subject`.
        size: Height and width of the images.
        checkpoint: See :func:`ravlt.weights.checkpoint.load_pretrained`.

    Raises:
        RAVLTError: If the backbone is not RAVLT, or the checkpoint does not fit.
    """
    model = build_subject(name, size)
    backbone = getattr(model, "backbone", model)
    if not isinstance(backbone, RAVLT):
        raise RAVLTError(
            f"The backbone of '{name}' is {type(backbone).__name__}, not RAVLT; give "
            f"ravlt_SIZE[:ATTENTION], or a config with model.backbone.type='RAVLT'."
        )
    if checkpoint:
        load_pretrained(backbone, checkpoint)
    backbone.eval()
    if not is_config(name):
        return Subject(backbone, _normalise)

    def prepare(pixels: Tensor) -> Tensor:
        # The hosts read images as BGR; their data preprocessor converts and normalises.
        return model.data_preprocessor({"inputs": [pixels.flip(0)]}, False)["inputs"]

    return Subject(backbone, prepare)


def find_images(folder: str) -> list[Path]:
    """List the images of a folder and its subfolders, sorted.

    Raises:
        RAVLTError: If the folder has no image file.
    """
    paths = Path(folder).rglob("*")
    images = sorted(path for path in paths if path.suffix.lower() in _SUFFIXES)
    if not images:
        raise RAVLTError(
            f"'{folder}' has no image file ({', '.join(sorted(_SUFFIXES))}); give a "
            f"folder with images."
        )
    return images


@dataclass
class Study:
    """Results of a rank analysis; each entry of a list is one row of a table.

    Attributes:
        ranks: One row for each :class:`ravlt.analysis.attention.rank.Matrix` of a layer
            and each head, or 'all' heads: effective and numerical ranks, averaged over
            the images, and under 'spectrum' the mean of the spectra, each divided by
            its largest value.
        attention: One row for each layer, head and image size: entropy of attention
            rows (None if the grid is too large) and row sums, over the images.
    """

    ranks: list[dict]
    attention: list[dict]


def study(subject: Subject, images: Sequence[Path], size: tuple[int, int]) -> Study:
    """Measure ranks at one image size, and row sums at :data:`SCALES` of it.

    Args:
        subject: The backbone.
        images: Image files; each is resized without keeping its aspect ratio.
        size: Height and width.

    Raises:
        RAVLTError: If a file cannot be read as an image.
    """
    attention = {
        name: name_of(layer.core)
        for name, layer in subject.backbone.named_modules()
        if isinstance(layer, GatedAttention)
    }
    spectra, rows = defaultdict(list), defaultdict(list)
    current_size = size

    def visit(name: str, call: Call) -> None:
        if current_size == size:
            for matrix, found in (kv_spectra(call) | output_spectra(call)).items():
                spectra[name, matrix].append(found)
        for alpha, found in _measure_rows(call).items():
            rows[name, current_size, call.inputs[3], alpha].append(found)

    with watch(subject.backbone, visit), torch.no_grad():
        for path in images:
            image = read_image(path)
            for scale in SCALES:
                current_size = tuple(max(round(scale * side), 1) for side in size)
                subject.backbone(subject.prepare(to_pixels(image, current_size)))
    return Study(
        [
            dict(layer=name, attention=attention[name], **row)
            for (name, matrix), found in spectra.items()
            for row in _rank_rows(matrix, found)
        ],
        [
            dict(layer=name, attention=attention[name], **row)
            for (name, *place), found in rows.items()
            for row in _attention_rows(*place, torch.stack(found))
        ],
    )


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB.

    Raises:
        RAVLTError: If the file cannot be read as an image.
    """
    try:
        return Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise RAVLTError(
            f"'{path}' cannot be read as an image ({error}); remove or replace it."
        ) from error


def to_pixels(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Resize an RGB image to a height and width; return (3, H, W), uint8."""
    pixels = np.array(image.resize(size[::-1], Image.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def name_of(core: AttentionCore) -> str:
    """Return the name of a mechanism: its key of CORES, or else its class name."""
    return _NAMES.get(type(core), type(core).__name__)


def _normalise(pixels: Tensor) -> Tensor:
    statistics = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)  # of pixels in [0, 1]
    mean, deviation = (255 * torch.tensor(x).view(3, 1, 1) for x in statistics)
    return ((pixels - mean) / deviation)[None]


def _measure_rows(call: Call) -> dict[bool | None, Tensor]:
    """Compute, by alpha, entropy and mean, minimum and maximum row sum of each head."""
    tokens = call.mixed.shape[-2]
    if tokens <= DENSE_TOKENS:
        found = attention_rows(call)
        return {alpha: _summarise(r.entropy, r.sums) for alpha, r in found.items()}
    found = row_sums(call)
    return {a: _summarise(sums * torch.nan, sums) for a, sums in found.items()}


def _summarise(entropy: Tensor, sums: Tensor) -> Tensor:
    """Reduce entropies and sums of shape (1, heads, N) to statistics (heads, 4)."""
    parts = (entropy.mean(-1), sums.mean(-1), sums.amin(-1), sums.amax(-1))
    return torch.stack(parts, dim=-1)[0].double()


def _rank_rows(matrix: Matrix, found: Sequence[Spectra]) -> Iterable[dict]:
    """Yield the rows of one matrix of a layer from its spectra on several images."""
    all_heads = torch.cat([f.all_heads for f in found])
    by_head = torch.cat([f.heads for f in found]).unbind(1)
    for head, values in (*enumerate(by_head), ("all", all_heads)):
        counts = {
            f"rank_{t:g}": numerical_rank(values, t).double().mean().item()
            for t in TOLERANCES
        }
        yield dict(
            matrix._asdict(),
            head=head,
            full_rank=values.shape[-1],
            effective_rank=effective_rank(values).mean().item(),
            **counts,
            spectrum=(values / values[:, :1]).mean(0).tolist(),
        )


def _attention_rows(
    size: tuple[int, int], grid: tuple[int, int], alpha: bool | None, found: Tensor
) -> Iterable[dict]:
    """Yield the rows of one layer and image size from statistics (images, heads, 4)."""
    by_head = found.unbind(1)
    for head, values in (*enumerate(by_head), ("all", found.flatten(0, 1))):
        entropy, mean, _, _ = values.mean(0).tolist()
        yield dict(
            alpha=alpha,
            head=head,
            size=f"{size[0]}x{size[1]}",
            tokens=grid[0] * grid[1],
            entropy=None if np.isnan(entropy) else entropy,
            entropy_of_uniform=float(np.log(grid[0] * grid[1])),
            row_sum=mean,
            row_sum_min=values[:, 2].min().item(),
            row_sum_max=values[:, 3].max().item(),
        )
